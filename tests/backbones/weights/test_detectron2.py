"""load_weights on files of detectron2's layout, which a network with its names writes here."""

import pickle

import pytest
import torch
import torchvision
from detectron2_zoo import BGR_MEAN, CHANNELS, CLASSES, HIDDEN, WIDTH, Trunk, Zoo, caffe2
from torch import nn

from trunkline.backbones import FPN, ResNet, load_weights
from trunkline.backbones.densenet import DenseNet
from trunkline.backbones.weights.export import detectron2_state
from trunkline.backbones.weights.load import check_pixels
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import AnchorOptions, RoIOptions
from trunkline.tasks.detection.task import Detection

PIXELS = {"pixel_mean": [value / 255 for value in BGR_MEAN[::-1]], "pixel_std": [1 / 255] * 3}


@pytest.fixture
def zoo(randomise):
    return randomise(Zoo()).eval()


def write(path, state, **more):
    """A file as the model zoo has them: numpy arrays in a pickle."""
    model = {k: v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2 Model Zoo", **more}, protocol=2))
    return path


def detector(trunk=None, anchors=None, roi=None, **pixels):
    anchors = AnchorOptions(rounded=False) if anchors is None else anchors
    roi = roi or RoIOptions(hidden=HIDDEN, aligned=True, sampling_ratio=0)
    return Detection(
        backbone=trunk or ResNet(50, width=WIDTH, norm="frozen_batch", stride_in_1x1=True),
        neck=lambda bottom_up: FPN(bottom_up, CHANNELS),
        head=lambda levels: FasterRCNN(levels, CLASSES, anchors=anchors, roi=roi),
        **(pixels or PIXELS),
    )


@torch.no_grad()
def test_a_detector_computes_what_it_did(zoo, tmp_path):
    state = zoo.state_dict()
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    task = detector().eval()
    report = load_weights(task, write(tmp_path / "model_final.pkl", state))
    assert report.fraction == 1.0 and report.missing == []
    assert report.adapted == {"backbone.bottom_up.conv1.weight": "input channels turned from BGR to RGB"}
    assert list(report.skipped) == ["proposal_generator.anchor_generator.cell_anchors.0"]
    assert "1 adapted, 1 skipped, 0 missing (100 % matched)" in str(report)
    image = torch.randint(0, 256, (1, 3, 128, 192), dtype=torch.uint8)
    raw = task.raw(image, torch.tensor([[128, 192]]))
    expected = zoo.features(image)
    for x, y in zip(raw.features, expected, strict=True):
        assert (x - y).abs().max() <= 1e-4 * y.abs().max()
    for x, y in zip((raw.objectness, raw.deltas), zoo.rpn(expected), strict=True):
        assert (x - y).abs().max() <= 1e-4 * y.abs().max()
    boxes = torch.tensor([[[3.0, 5, 60, 90], [0, 0, 192, 128], [100, 20, 130, 31], [170, 100, 192, 128]]])
    logits, deltas = task.head.roi(raw.features, boxes)
    for x, y in zip((logits[0], deltas[0].flatten(1)), zoo.boxes(expected, boxes), strict=True):
        assert (x - y).abs().max() <= 1e-4 * y.abs().max()


def test_names_go_both_ways(zoo, tmp_path):
    state = {k: v for k, v in zoo.state_dict().items() if not k.endswith("num_batches_tracked")}
    task = detector()
    load_weights(task, write(tmp_path / "w.pkl", state))
    for module, prefix in ((task, ""), (task.backbone, "backbone."), (task.trunk, "backbone.bottom_up.")):
        written = detectron2_state(module)
        expected = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        assert written.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in written.items())
    trunk = ResNet(50, width=WIDTH, stride_in_1x1=True)
    load_weights(trunk, write(tmp_path / "trunk.pkl", detectron2_state(task.trunk)))
    assert torch.equal(trunk.layer4[2].conv3.weight, task.trunk.layer4[2].conv3.weight)
    assert torch.equal(trunk.conv1.weight, task.trunk.conv1.weight)


def test_networks_that_detectron2_does_not_know_have_no_names_there():
    for net in (ResNet(18, stem="deep"), DenseNet(121)):
        with pytest.raises(ValueError, match="detectron2 has no tensor like"):
            detectron2_state(net)


def test_every_wrong_setting_is_named_at_once_and_nothing_is_loaded(zoo, tmp_path):
    path = write(tmp_path / "w.pkl", zoo.state_dict())
    trunk = ResNet(50, width=WIDTH, norm="frozen_batch")
    roi = RoIOptions(hidden=HIDDEN)
    task = detector(trunk, AnchorOptions(), roi, pixel_mean=[0.5, 0.5, 0.5], pixel_std=[0.229, 0.224, 0.225])
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(
        ValueError, match="w.pkl was trained with other settings.*nothing was loaded"
    ) as error:
        load_weights(task, path)
    assert str(error.value).splitlines()[1:] == [
        "  model.backbone.init_args.stride_in_1x1: true",
        "  model.pixel_mean: [0.485, 0.456, 0.406]",
        "  model.pixel_std: [0.00392157, 0.00392157, 0.00392157]",
        "  model.head.init_args.anchors.rounded: false",
        "  model.head.init_args.roi.aligned: true",
        "  model.head.init_args.roi.sampling_ratio: 0",
    ]
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert load_weights(task, path, check_settings=False).fraction == 1.0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"anchors": AnchorOptions()}, "anchors.rounded: false"),
        ({"roi": RoIOptions(hidden=HIDDEN, sampling_ratio=0)}, "roi.aligned: true"),
        ({"roi": RoIOptions(hidden=HIDDEN, aligned=True)}, "roi.sampling_ratio: 0"),
        ({**PIXELS, "pixel_mean": PIXELS["pixel_mean"][::-1]}, "pixel_mean: [0.485, 0.456, 0.406]"),
        ({**PIXELS, "pixel_std": [1.0]}, "pixel_std: [0.00392157, 0.00392157, 0.00392157]"),
    ],
)
def test_each_setting_is_looked_at(change, line, zoo):
    with pytest.raises(ValueError) as error:
        load_weights(detector(**change), zoo.state_dict())
    (only,) = str(error.value).splitlines()[1:]
    assert only.endswith(line)


def test_several_sizes_and_ratios_per_cell_are_refused():
    anchors = AnchorOptions(sizes=((8, 9), (16, 17), (32, 33), (64, 65), (128, 129)), rounded=False)
    task = detector(anchors=anchors)
    with pytest.raises(ValueError, match="anchors.sizes: one size per level"):
        load_weights(task, detectron2_state(task))


def test_pixel_mean_in_the_file_decides_the_order_of_channels(zoo):
    state = zoo.backbone.bottom_up.state_dict()
    conv1 = state["stem.conv1.weight"]
    trunk = ResNet(50, width=WIDTH, stride_in_1x1=True)
    load_weights(trunk, state | {"pixel_mean": torch.tensor(BGR_MEAN).view(3, 1, 1)})
    assert torch.equal(trunk.conv1.weight, conv1.flip(1))
    rgb = {"pixel_mean": torch.tensor(BGR_MEAN[::-1]), "pixel_std": torch.tensor([58.395, 57.12, 57.375])}
    with pytest.raises(ValueError, match="stride_in_1x1: false"):
        load_weights(trunk, state | rgb)
    trunk = ResNet(50, width=WIDTH)
    report = load_weights(trunk, state | rgb)
    assert torch.equal(trunk.conv1.weight, conv1) and report.adapted == {}
    check_pixels(trunk, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(ValueError, match=r"pixel_std: \[0.229, 0.224, 0.225\]"):
        check_pixels(trunk, (0.485, 0.456, 0.406), (1 / 255,) * 3)


def test_torchvisions_trunks_as_its_tool_converts_them(randomise, tmp_path):
    source = randomise(torchvision.models.resnet50())
    state = {}
    for name, value in source.state_dict().items():
        parts = name.split(".")
        if parts[0].startswith("layer"):
            parts[0] = f"res{int(parts[0][5]) + 1}"
        else:
            parts.insert(0, "stem")
        words = ".".join(parts).replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for index in "123":
            words = words.replace(f"bn{index}", f"conv{index}.norm")
        state[words] = value
    net = ResNet(50)
    report = load_weights(
        net, write(tmp_path / "w.pkl", state, __author__="torchvision", matching_heuristics=True)
    )
    assert report.adapted == {} and report.fraction == 1.0
    assert list(report.skipped) == ["stem.fc.weight", "stem.fc.bias"]
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, source.state_dict()[name]), name
    check_pixels(net, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
@torch.no_grad()
def test_trunks_with_names_of_caffe2(affine, norm, randomise, tmp_path):
    theirs = randomise(Trunk()).eval()
    if affine:  # statistics of such a norm are 0 and 1, with nothing added to the variance
        for part in theirs.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.zero_()
                part.running_var.fill_(1)
                part.eps = 0.0
    path = tmp_path / "R-50.pkl"
    arrays = {k: v.numpy() for k, v in caffe2(theirs, affine).items() if "num_batches" not in k}
    path.write_bytes(pickle.dumps(arrays, protocol=2))
    net = ResNet(50, width=WIDTH, norm=norm, stride_in_1x1=True, weights=str(path)).eval()
    report = load_weights(net, path)
    assert (
        report.fraction == 1.0 and report.missing == [] and list(report.skipped) == ["fc1000_w", "fc1000_b"]
    )
    assert report.adapted["conv1.weight"] == "input channels turned from BGR to RGB"
    assert len(report.adapted) == (1 + 2 * 53 if affine else 1)
    bgr = torch.randn(1, 3, 64, 64)
    for x, y in zip(net(bgr.flip(1)), theirs(bgr), strict=True):
        assert (x - y).abs().max() <= 1e-4 * y.abs().max()
    with pytest.raises(ValueError, match="stride_in_1x1: true"):
        ResNet(50, width=WIDTH, norm=norm, weights=str(path))


def test_the_normalisation_that_a_trunk_expects_is_remembered(randomise):
    net = ResNet(50, width=WIDTH, stride_in_1x1=True)
    check_pixels(net, (0.5,) * 3, (0.5,) * 3)  # nothing is known yet
    load_weights(net, caffe2(randomise(Trunk()), affine=True))
    with pytest.raises(ValueError) as error:
        check_pixels(net, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert str(error.value).splitlines()[1:] == ["  model.pixel_std: [0.00392157, 0.00392157, 0.00392157]"]
    check_pixels(FPN(net, 8), *PIXELS.values())


def test_group_norms_of_caffe2_are_no_affine_batch_norms(randomise):
    state = {k.replace("_bn_", "_gn_"): v for k, v in caffe2(randomise(Trunk()), affine=True).items()}
    with pytest.raises(ValueError, match="running_mean"):
        load_weights(ResNet(50, width=WIDTH), state)
    net = ResNet(50, width=WIDTH, norm="group")
    report = load_weights(net, state)  # these networks have the stride in the 3x3
    assert report.fraction == 1.0 and torch.equal(net.layer1[0].bn1.weight, state["res2_0_branch2a_gn_s"])


def test_a_grouped_network_has_the_stride_and_the_deviation_of_its_configurations():
    net = ResNet(50, groups=32, width_per_group=4)
    report = load_weights(net, detectron2_state(net))
    assert report.fraction == 1.0
    check_pixels(net, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
