"""load_weights and whole segmenters: torchvision's FCN and DeepLabV3, other heads, counts and trunks."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from trunkline.backbones import FPN, DenseNet, ResNet, load_weights
from trunkline.heads import FCN, Classifier, DeepLabV3, DeepLabV3Plus, SemanticFPN, UNet

K = 5
SIZE = (49, 65)
LAST = ["classifier.4.weight", "classifier.4.bias", "aux_classifier.4.weight", "aux_classifier.4.bias"]


class Task(nn.Module):
    def __init__(self, trunk, head):
        super().__init__()
        self.backbone = trunk
        self.head = head(trunk.levels)

    def forward(self, image):
        return self.head(self.backbone(image), image.shape[2:])


def task_with(kind, classes=K, depth=50, **options):
    """A task as torchvision's, with an auxiliary classifier on C4 where the head has such a thing."""
    if kind in (FCN, DeepLabV3, DeepLabV3Plus):
        options = {"aux": -2} | options
    trunk = ResNet(depth, output_stride=8)
    return Task(trunk, lambda levels: kind(levels, classes, **options))


def small_task_with(kind):
    wide = kind in (DeepLabV3, DeepLabV3Plus)
    options = {"aux": -2} | ({"channels": 16} if wide else {}) if wide or kind is FCN else {}
    return Task(ResNet(10, width=8), lambda levels: kind(levels, K, **options))


def segmenter(name, classes=K, aux=True):
    build = getattr(torchvision.models.segmentation, name)
    return build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=aux)


def with_norms(state):
    """Give norms other weights than new ones have."""
    for value in state.values():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.2)
    return state


@pytest.fixture(scope="module")
def fcn_state():
    return with_norms(segmenter("fcn_resnet50").state_dict())


@pytest.fixture(scope="module")
def deeplab_state():
    return with_norms(segmenter("deeplabv3_resnet50").state_dict())


def assert_close(found, expected, tolerance=1e-5):
    assert expected.std() > 0 and (found - expected).abs().max() <= tolerance * expected.abs().max()


# -- torchvision's segmenters


@pytest.mark.parametrize(
    ("name", "kind", "depth"),
    [
        ("fcn_resnet50", FCN, 50),
        ("fcn_resnet101", FCN, 101),
        ("deeplabv3_resnet50", DeepLabV3, 50),
        ("deeplabv3_resnet101", DeepLabV3, 101),
    ],
)
def test_torchvisions_segmenters_give_equal_scores(name, kind, depth, randomise):
    theirs, task = randomise(segmenter(name)).eval(), task_with(kind, depth=depth)
    report = load_weights(task, theirs.state_dict())
    assert report.fraction == 1 and not (report.skipped or report.missing or report.adapted)
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected, raw = theirs(image), task.eval()(image)
    assert raw.logits.shape == (2, K, *SIZE)
    assert_close(raw.logits, expected["out"])
    assert_close(raw.aux[0], expected["aux"])


def test_torchvisions_segmenters_learn_alike(randomise):
    """Losses and all gradients in training mode; without dropout, which draws its own numbers."""
    theirs, task = randomise(segmenter("deeplabv3_resnet50")), task_with(DeepLabV3)
    load_weights(task, theirs.state_dict())
    for part in (*theirs.modules(), *task.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    image, mask = torch.randn(2, 3, 25, 33), torch.randint(0, K, (2, 25, 33))
    mask[:, :5] = 255
    outputs = theirs.train()(image)
    costs = [F.cross_entropy(outputs[key], mask, ignore_index=255) for key in ("out", "aux")]
    (costs[0] + 0.5 * costs[1]).backward()  # as in torchvision's references/segmentation/train.py
    raw = task.train()(image)
    losses = task.head.losses(raw, type("Targets", (), {"mask": mask}))
    assert losses["cross_entropy"].item() == pytest.approx(costs[0].item(), rel=1e-6)
    assert losses["auxiliary"].item() == pytest.approx(0.5 * costs[1].item(), rel=1e-6)
    sum(losses.values()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in task.named_parameters():
        peer = expected[name.removeprefix("head.")]
        assert (parameter.grad - peer.grad).abs().max() <= 1e-4 * peer.grad.abs().max()


def test_files_and_names_of_published_weights(tmp_path, monkeypatch):
    """A file under its published name, and torchvision's name for it, resolved from torch's own cache."""
    name = "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1"
    state = segmenter("fcn_resnet50", classes=21).state_dict()
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / torchvision.models.get_weight(name).url.rpartition("/")[2]
    assert file.name == "fcn_resnet50_coco-1167a1af.pth"
    torch.save(state, file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for source in (str(file), name):
        task = task_with(FCN, classes=21)
        report = load_weights(task, source)
        assert report.fraction == 1 and not (report.skipped or report.missing)
        assert torch.equal(task.head.classifier[4].weight, state["classifier.4.weight"])


def test_wrapped_files_fill_the_same_head(fcn_state):
    for prefix in ("module.", "net."):
        task = task_with(FCN)
        load_weights(task, {prefix + key: value for key, value in fcn_state.items()}, minimum=1)
        assert torch.equal(task.head.aux_classifier[0].weight, fcn_state["aux_classifier.0.weight"])


# -- heads that differ from the file's


def test_an_auxiliary_classifier_that_the_head_lacks_does_not_count(fcn_state):
    task = task_with(FCN, aux=None)
    report = load_weights(task, fcn_state, minimum=1)
    spare = {key for key in fcn_state if key.startswith("aux_") and "num_batches" not in key}
    assert report.skipped == dict.fromkeys(spare, "the model has no auxiliary classifier")
    assert torch.equal(task.head.classifier[0].weight, fcn_state["classifier.0.weight"])


def test_an_auxiliary_classifier_that_the_file_lacks_starts_afresh():
    task, state = task_with(FCN), segmenter("fcn_resnet50", aux=False).state_dict()
    before = task.head.aux_classifier[0].weight.clone()
    report = load_weights(task, state)
    assert report.fraction == 1 and report.missing == []
    assert torch.equal(task.head.aux_classifier[0].weight, before)
    assert torch.equal(task.head.classifier[0].weight, state["classifier.0.weight"])


def test_skips_keep_their_zeros_beside_a_published_head(fcn_state):
    task = task_with(FCN, skips=1)
    report = load_weights(task, fcn_state)
    assert report.missing == ["head.skip_scores.0.weight", "head.skip_scores.0.bias"]
    assert report.fraction > 0.98 and not task.head.skip_scores[0].weight.any()


@pytest.mark.parametrize("kind", [FCN, DeepLabV3])
def test_another_number_of_classes_keeps_all_but_the_last_layers(kind, fcn_state, deeplab_state):
    state = fcn_state if kind is FCN else deeplab_state
    task = task_with(kind, classes=3)
    last = task.head.classifier[4].weight.clone()
    report = load_weights(task, state)
    assert report.fraction > 0.9 and sorted(report.skipped) == sorted(LAST) and report.missing == []
    width = state["classifier.4.weight"].shape[1]
    expected = f"its shape is [{K}, {width}, 1, 1], the model's [3, {width}, 1, 1]"
    assert report.skipped["classifier.4.weight"] == expected
    assert torch.equal(task.head.classifier[4].weight, last)
    assert torch.equal(task.head.classifier[1].weight, state["classifier.1.weight"])
    assert torch.equal(task.head.aux_classifier[0].weight, state["aux_classifier.0.weight"])


@pytest.mark.parametrize(("kind", "own"), [(DeepLabV3, "fcn"), (FCN, "deeplab"), (DeepLabV3Plus, "fcn")])
def test_a_classifier_of_another_kind_is_left_out_and_the_rest_loads(kind, own, fcn_state, deeplab_state):
    """FCN's and DeepLabV3's layers share names, but no tensor of one goes into the other."""
    state = fcn_state if own == "fcn" else deeplab_state
    task = task_with(kind)
    before = {name: value.clone() for name, value in task.head.state_dict().items()}
    report = load_weights(task, state, minimum=1)
    for name, value in task.head.state_dict().items():
        known = name.startswith("aux_classifier.")
        assert torch.equal(value, state[name] if known else before[name])
    assert torch.equal(task.backbone.conv1.weight, state["backbone.conv1.weight"])
    assert report.skipped["classifier.4.weight"] == "the model has another kind of head"
    if own == "deeplab":
        assert report.skipped["classifier.0.project.0.weight"] == "the model has no ASPP"


def test_plus_takes_the_aspp_of_a_published_deeplab(deeplab_state):
    task = task_with(DeepLabV3Plus)
    report = load_weights(task, deeplab_state, minimum=1)
    for name, value in task.head.aspp.state_dict().items():
        assert torch.equal(value, deeplab_state[f"classifier.0.{name}"])
    assert torch.equal(task.head.aux_classifier[0].weight, deeplab_state["aux_classifier.0.weight"])
    left = {key for key, note in report.skipped.items() if note == "the model has another kind of head"}
    assert left == {key for key in deeplab_state if key.startswith("classifier.") and key[11] in "1234"} - {
        "classifier.2.num_batches_tracked"
    }


@pytest.mark.parametrize("kind", [SemanticFPN, UNet])
def test_heads_that_torchvision_lacks_take_the_trunk(kind, fcn_state):
    task = task_with(kind)
    before = {name: value.clone() for name, value in task.head.state_dict().items()}
    report = load_weights(task, fcn_state, minimum=1)
    assert torch.equal(task.backbone.layer4[0].conv1.weight, fcn_state["backbone.layer4.0.conv1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in task.head.state_dict().items())
    assert report.skipped["classifier.4.weight"] == "belongs to no trunk, neck or head"


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_a_head_with_another_norm_takes_the_convolutions(norm, fcn_state):
    task = task_with(FCN, norm=norm)
    report = load_weights(task, fcn_state)
    assert report.fraction == 1
    assert torch.equal(task.head.classifier[0].weight, fcn_state["classifier.0.weight"])
    taken = torch.equal(task.head.classifier[1].weight, fcn_state["classifier.1.weight"])
    left = "another kind of norm" in report.skipped.get("classifier.1.running_mean", "")
    assert left == (norm == "group") and taken == (norm == "frozen_batch")


def test_a_2d_segmenter_fills_a_head_for_volumes(randomise):
    """On a constant volume every slice gets the scores of the picture; no stride along the new axis."""
    theirs = randomise(segmenter("fcn_resnet50")).eval()
    steps = [(1, 2, 2)] * 3 + [1, 1]
    trunk = ResNet(50, ndim=3, strides=steps)
    task = Task(trunk, lambda levels: FCN(levels, K, aux=-2)).eval()
    report = load_weights(task, theirs.state_dict())
    assert report.adapted["head.classifier.0.weight"] == "2-D kernel put in the middle of a 3-D one"
    flat = Task(ResNet(50, strides=[2, 2, 2, 1, 1]), lambda levels: FCN(levels, K, aux=-2)).eval()
    load_weights(flat, theirs.state_dict())
    image = torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        expected, raw = flat(image), task(image[:, :, None].repeat(1, 1, 2, 1, 1))
    for index in range(2):
        assert_close(raw.logits[:, :, index], expected.logits)
        assert_close(raw.aux[0][:, :, index], expected.aux[0])


def test_a_file_of_another_depth_is_refused_with_each_reason_once(fcn_state):
    task = task_with(FCN, depth=18)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(ValueError, match="is it of another depth") as caught:
        load_weights(task, fcn_state)
    assert str(caught.value).count("have another shape") == 1
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


# -- other sources


@pytest.mark.parametrize("kind", [FCN, DeepLabV3, DeepLabV3Plus, SemanticFPN, UNet])
def test_what_a_task_wrote_loads_into_its_like(kind):
    written, task = small_task_with(kind), small_task_with(kind)
    report = load_weights(task, written.state_dict(), minimum=1)
    assert report.skipped == {} and report.missing == []
    for name, value in written.state_dict().items():
        assert torch.equal(task.state_dict()[name], value)


@pytest.mark.parametrize("kind", [FCN, SemanticFPN, UNet, DeepLabV3])
@pytest.mark.parametrize("other", [FCN, SemanticFPN, UNet, DeepLabV3, DeepLabV3Plus])
def test_another_head_takes_the_trunk_of_what_a_task_wrote(kind, other):
    if kind is other:
        return
    written, task = small_task_with(other), small_task_with(kind)
    report = load_weights(task, written.state_dict())
    assert report.fraction == 1
    assert torch.equal(task.backbone.conv1.weight, written.backbone.conv1.weight)


@pytest.mark.parametrize("kind", [FCN, DeepLabV3])
def test_classification_files_fill_the_trunk(kind):
    state = torchvision.models.resnet18().state_dict()
    report = load_weights(task_with(kind, depth=18), state, minimum=0.99)
    assert report.skipped["fc.weight"] == "belongs to no trunk, neck or head"
    dense = torchvision.models.densenet121().state_dict()
    task = Task(DenseNet(121), lambda levels: kind(levels, K))
    report = load_weights(task, dense, minimum=0.99)
    assert torch.equal(task.backbone.conv0.weight, dense["features.conv0.weight"])
    assert report.skipped["classifier.weight"] == "belongs to no trunk, neck or head"
    classifier = Task(DenseNet(121), lambda levels: Classifier(levels, 1000))
    load_weights(classifier, dense, minimum=1)
    assert torch.equal(classifier.head.fc.weight, dense["classifier.weight"])


def test_numbered_layers_of_a_classification_network_are_no_segmenters():
    """MobileNets and VGGs call theirs ``classifier.1`` too, but have no ``backbone``."""
    state = torchvision.models.resnet18().state_dict()
    state |= {"classifier.1.weight": torch.zeros(128), "classifier.1.bias": torch.zeros(128)}
    task = task_with(FCN, depth=18)
    report = load_weights(task, state)
    assert report.skipped["classifier.1.weight"] == "belongs to no trunk, neck or head"
    assert task.head.classifier[1].weight.all()


def test_a_trunk_or_neck_alone_takes_the_trunk_of_a_segmenter(fcn_state):
    for net in (ResNet(50), FPN(ResNet(50))):
        report = load_weights(net, fcn_state, minimum=0.9)
        assert report.fraction == 1
        assert report.skipped["aux_classifier.0.weight"] == "belongs to no trunk, neck or head"
