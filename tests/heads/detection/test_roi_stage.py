"""Second stages of one's own: what sampled boxes hold, cascades, mask branches, and how a file names them."""

from collections.abc import Callable, Sequence

import jsonargparse
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones.base import FeatureLevel
from trunkline.heads import FasterRCNN, Head
from trunkline.heads.detection import (
    RoI,
    RoIOptions,
    RoIStage,
    RPNOptions,
    decode,
    gather_rows,
    pairwise_iou,
    pool_boxes,
)

OBJECTS = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 80, 69, 2), (30, 5, 60, 30, 0)]]
SIZES = [(128, 192), (70, 90)]
SMALL = {"hidden": 32, "batch_size": 64}


class Cascade(RoIStage):
    """Two stages, the second on the boxes of the first (Cai and Vasconcelos 2018)."""

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: int,
        first: RoIOptions = RoIOptions(**SMALL),
        second: RoIOptions = RoIOptions(**SMALL, fg_iou=0.6, bg_iou=0.6),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stages = nn.ModuleList([RoI(levels, num_classes, options) for options in (first, second)])

    def losses(self, features, proposals, valid, targets):
        losses = {}
        for number, stage in enumerate(self.stages):
            own, sampled = stage.losses(features, proposals, valid, targets)
            losses |= {f"stage{number}_{name}": value for name, value in own.items()}
            predictions = (sampled.logits, sampled.deltas)
            proposals, valid = stage.refine(sampled.boxes, sampled.valid, *predictions, targets.image_sizes)
        return losses, sampled

    def predict(self, features, proposals, valid, image_sizes):
        scores = []
        for stage in self.stages:
            boxes, usable = proposals, valid
            logits, deltas = stage(features, boxes)
            scores.append(logits.float().softmax(-1))
            proposals, valid = stage.refine(boxes, usable, logits, deltas, image_sizes)
        return stage.detections(sum(scores) / len(scores), deltas, boxes, usable, image_sizes)


class WithMasks(RoIStage):
    """A cascade with a branch that learns a mask of each object; here each mask has one value throughout."""

    def __init__(self, levels, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.strides = [level.stride for level in levels]
        self.boxes = Cascade(levels, num_classes)
        self.masks = nn.Conv2d(levels[0].channels, num_classes, 1)

    def losses(self, features, proposals, valid, targets):
        losses, sampled = self.boxes.losses(features, proposals, valid, targets)
        pooled = pool_boxes(features, self.strides, sampled.boxes, pool_size=3)
        logits = self.masks(pooled).unflatten(0, sampled.labels.shape)  # [B, S, K, 3, 3]
        own = torch.where(sampled.positive, sampled.labels, 0)[..., None, None, None]
        logits = logits.take_along_dim(own, dim=2).squeeze(2)
        wanted = targets.masks.gather(1, sampled.index)[..., None, None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((2, 3))
        number = sampled.positive.sum().clamp(min=1)
        return losses | {"mask": torch.where(sampled.positive, loss, 0).sum() / number}, sampled

    def predict(self, features, proposals, valid, image_sizes):
        return self.boxes.predict(features, proposals, valid, image_sizes)


@pytest.fixture
def detector(levels):
    """A detector with a second stage of any kind, and weights under which boxes and scores vary."""

    def make(roi_stage, **options):
        head = FasterRCNN(
            levels, 3, rpn=RPNOptions(pre_nms_train=100, pre_nms_test=100), roi_stage=roi_stage, **options
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_(std=0.1, generator=generator)
        return head

    return make


# ---- what is handed on


def test_sampled_boxes_name_the_objects_they_learn(make_head, make_features, make_targets, place):
    torch.manual_seed(0)
    head, features = make_head(batch_size=64), make_features()
    targets = make_targets(OBJECTS, SIZES, rows=5)
    proposals, valid = head.rpn.proposals(head(features, (128, 192)), targets.image_sizes, 200, 1000)
    losses, sampled = head.roi.losses(features, proposals, valid, targets)
    assert sampled.positive.any(1).all() and (sampled.valid & ~sampled.positive).any(1).all()
    objects = gather_rows(targets.boxes, sampled.index)
    for image in range(2):
        rows = sampled.positive[image]
        overlap = pairwise_iou(sampled.boxes[image, None, rows], objects[image, None, rows])[0].diagonal()
        assert (overlap >= 0.5).all()
        assert torch.equal(sampled.labels[image, rows], targets.labels[image][sampled.index[image, rows]])
        assert (sampled.labels[image, sampled.valid[image] & ~rows] == 3).all()
        assert (rows.int().diff() <= 0).all()  # positives come first
    logits, deltas = head.roi(features, sampled.boxes)
    torch.testing.assert_close(sampled.logits, logits)
    torch.testing.assert_close(sampled.deltas, deltas)
    rows = sampled.valid
    expected = F.cross_entropy(sampled.logits[rows], sampled.labels[rows])
    torch.testing.assert_close(losses["roi_class"], expected)


# ---- refining


def test_boxes_are_refined_by_the_best_class(levels):
    stage = RoI(levels, 2, RoIOptions(hidden=4, min_box_size=2.0))
    boxes = torch.tensor([[[10.0, 10, 30, 20]] * 5])
    deltas = torch.zeros(1, 5, 2, 4)
    deltas[0, :, 1, 0] = 10.0  # class 1 moves right by one width
    deltas[0, 3] = torch.tensor([0.0, 0, -40, 0])  # and these become too narrow, or infinite
    deltas[0, 4] = torch.inf
    logits = torch.tensor([[[2.0, 1, 9], [1, 2, 9], [2, 1, 9], [2, 1, 9], [2, 1, 9]]])  # background is last
    valid = torch.tensor([[True, True, False, True, True]])
    refined, kept = stage.refine(boxes, valid, logits, deltas, torch.tensor([[99, 40]]))
    assert kept.tolist() == [[True, True, False, False, False]]
    assert refined[0].tolist() == [[10, 10, 30, 20], [30, 10, 40, 20], *[[0] * 4] * 3]
    agnostic, _ = stage.refine(boxes, valid, logits, deltas[:, :, 1:], torch.tensor([[99, 40]]))
    assert agnostic[0, :2].tolist() == [[30, 10, 40, 20]] * 2
    assert not refined.requires_grad


def test_a_stage_takes_proposals_with_gaps(make_head, make_features, place):
    torch.manual_seed(0)
    head, features = make_head(), make_features()
    sizes = torch.tensor(SIZES)
    proposals, valid = head.rpn.proposals(head(features, (128, 192)), sizes, 50, 60)
    assert valid.all()
    gaps = torch.zeros(2, 90, dtype=torch.bool)
    gaps[:, ::3] = True
    spread = torch.zeros(2, 90, 4)
    spread[:, ::3] = proposals[:, :30]
    with torch.no_grad():
        expected = head.roi.predict(features, proposals[:, :30], valid[:, :30], sizes)
        found = head.roi.predict(features, spread, gaps, sizes)
    assert (found.count > 10).all() and torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)


# ---- compositions


def test_a_cascade_learns_and_detects(detector, make_features, make_targets, place):
    torch.manual_seed(0)
    head, features, targets = detector(Cascade), make_features(), make_targets(OBJECTS, SIZES)
    raw = head(features, (128, 192))
    losses = head.losses(raw, targets)
    expected = ["rpn_objectness", "rpn_box"]
    expected += [f"stage{number}_roi_{name}" for number in (0, 1) for name in ("class", "box")]
    assert list(losses) == expected
    sum(losses.values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    assert (head.predict(raw, targets.image_sizes).count > 0).all()


def test_a_cascade_of_a_stage_that_changes_nothing_is_the_other_stage(detector, make_features, place):
    torch.manual_seed(0)
    head, features, sizes = detector(Cascade), make_features(), torch.tensor(SIZES)
    first, second = head.roi.stages
    with torch.no_grad():
        first.load_state_dict(second.state_dict())
        first.regressor.weight.zero_(), first.regressor.bias.zero_()
        proposals, valid = head.rpn.proposals(head(features, (128, 192)), sizes, 50, 60)
        found = head.roi.predict(features, proposals, valid, sizes)
        expected = second.predict(features, proposals, valid, sizes)
    assert (found.count > 10).all()
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)


def test_the_second_stage_sees_the_boxes_of_the_first(detector, make_features, make_targets, monkeypatch):
    torch.manual_seed(0)
    head, features, targets = detector(Cascade), make_features(), make_targets(OBJECTS, SIZES)
    first, second = head.roi.stages
    seen = []
    original = second.losses
    monkeypatch.setattr(second, "losses", lambda *inputs: seen.append(inputs) or original(*inputs))
    raw = head(features, (128, 192))
    proposals = head.rpn.proposals(raw, targets.image_sizes, 100, 100)
    torch.manual_seed(1)
    head.roi.losses(features, *proposals, targets)
    torch.manual_seed(1)
    _, sampled = first.losses(features, *proposals, targets)
    best = sampled.logits[..., :-1].argmax(-1)
    ((_, boxes, valid, _),) = seen
    assert valid.sum() > 50
    for image, row in valid.nonzero().tolist():
        moved = decode(
            sampled.deltas[image, row, best[image, row]], sampled.boxes[image, row], (10.0, 10.0, 5.0, 5.0)
        )
        height, width = SIZES[image]
        expected = torch.minimum(moved.clamp(min=0), torch.tensor([width, height, width, height]))
        torch.testing.assert_close(boxes[image, row], expected, rtol=0, atol=1e-4)


def test_a_mask_branch_learns_from_the_positives(detector, make_features, make_targets, monkeypatch):
    torch.manual_seed(0)
    head, features, targets = detector(WithMasks), make_features(), make_targets(OBJECTS, SIZES)
    targets.masks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    kept = []
    original = head.roi.boxes.losses
    monkeypatch.setattr(head.roi.boxes, "losses", lambda *inputs: kept.append(original(*inputs)) or kept[-1])
    losses = head.losses(head(features, (128, 192)), targets)
    ((_, sampled),) = kept
    values = []
    for image, row in sampled.positive.nonzero().tolist():
        maps = [feature[image, None] for feature in features]
        pooled = pool_boxes(maps, head.roi.strides, sampled.boxes[image, None, row, None], pool_size=3)
        label = targets.labels[image, sampled.index[image, row]]
        wanted = targets.masks[image, sampled.index[image, row]].expand(3, 3)
        values.append(F.binary_cross_entropy_with_logits(head.roi.masks(pooled)[0, label], wanted))
    assert len(values) > 4
    torch.testing.assert_close(losses["mask"], sum(values) / len(values))
    losses["mask"].backward()
    assert head.roi.masks.weight.grad.abs().sum() > 0


# ---- how a detector receives its stage


def test_a_factory_of_the_default_stage_gives_the_default(levels, make_features, make_targets):
    options = RoIOptions(hidden=16, class_agnostic=True)
    heads = []
    for given in (
        {"roi": options},
        {"roi_stage": lambda levels, num_classes: RoI(levels, num_classes, options)},
    ):
        torch.manual_seed(0)
        heads.append(FasterRCNN(levels, 3, **given))
    states = [head.state_dict() for head in heads]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    features, targets, losses = make_features(), make_targets(OBJECTS, SIZES), []
    for head in heads:
        torch.manual_seed(1)
        losses.append(head.losses(head(features, (128, 192)), targets))
    assert losses[0] == losses[1]


def test_options_of_the_default_stage_and_another_stage_exclude_each_other(levels):
    with pytest.raises(ValueError, match="roi and roi_stage are both given.*remove roi.*roi_stage.init_args"):
        FasterRCNN(levels, 3, roi=RoIOptions(hidden=16), roi_stage=Cascade)


def test_settings_that_weights_expect_have_the_names_of_their_options(levels):
    default = FasterRCNN(levels, 3)
    assert list(default.expectations("detectron2")) == [
        "anchors.rounded",
        "roi.aligned",
        "roi.sampling_ratio",
    ]
    given = FasterRCNN(levels, 3, roi_stage=lambda *both: RoI(*both, RoIOptions(aligned=True)))
    assert list(given.expectations("detectron2")) == ["anchors.rounded", "roi_stage.options.sampling_ratio"]
    assert list(FasterRCNN(levels, 3, roi_stage=Cascade).expectations("detectron2")) == ["anchors.rounded"]
    assert default.expectations("torchvision") == {}


def test_an_unfinished_stage_names_what_is_missing():
    class Unfinished(RoIStage):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must implement losses"):
        Unfinished().losses([], 0, 0, 0)
    with pytest.raises(NotImplementedError, match="Unfinished must implement predict"):
        Unfinished().predict([], 0, 0, 0)
    assert Unfinished().expectations("detectron2") == {}


class Holder:
    """Stands for a task: it takes a head's factory."""

    def __init__(self, head: Callable[[Sequence[FeatureLevel]], Head]) -> None:
        self.make = head


CONFIG = """
task:
  head:
    class_path: FasterRCNN
    init_args:
      num_classes: 3
      roi_stage: {class_path: %s, init_args: {%s: {hidden: 24, fg_iou: 0.7}}}
"""


def parse(tmp_path, text, *overrides):
    (tmp_path / "config.yaml").write_text(text)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Holder, "task")
    parsed = parser.parse_args(["--config", str(tmp_path / "config.yaml"), *overrides])
    return parser.instantiate(parsed).task.make


def test_a_configuration_file_names_the_stage(tmp_path, levels):
    head = parse(tmp_path, CONFIG % (f"{__name__}.Cascade", "second"))(levels)
    first, second = head.roi.stages
    assert first.options == RoIOptions(**SMALL)
    # Options that the file leaves out are those of the default.
    assert second.options == RoIOptions(hidden=24, fg_iou=0.7, bg_iou=0.6, batch_size=64)
    assert first.num_classes == 3
    head = parse(tmp_path, CONFIG % ("trunkline.heads.detection.RoI", "options"))(levels)
    assert head.roi.options == RoIOptions(hidden=24, fg_iou=0.7)


def test_the_command_line_overrides_the_stage(tmp_path, levels):
    text = CONFIG % (f"{__name__}.Cascade", "second")
    head = parse(tmp_path, text, "--task.head.roi_stage.second.fg_iou=0.8")(levels)
    assert head.roi.stages[1].options == RoIOptions(hidden=24, fg_iou=0.8, bg_iou=0.6, batch_size=64)


def test_a_wrong_key_of_a_stage_is_named(tmp_path, levels):
    with pytest.raises(jsonargparse.ArgumentError, match="thrid"):
        parse(tmp_path, CONFIG % (f"{__name__}.Cascade", "thrid"))(levels)
