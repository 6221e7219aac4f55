from collections.abc import Callable, Sequence

import jsonargparse
import pytest

from trunkline.backbones.base import FeatureLevel
from trunkline.heads import FasterRCNN, Head
from trunkline.heads.detection import AnchorOptions, RoIOptions, RPNOptions

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("options", [RPNOptions, RoIOptions])
@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("fg_iou", 1.5, "between 0 and 1"),
        ("bg_iou", -0.1, "between 0 and 1"),
        ("bg_iou", 0.9, "at most fg_iou"),
        ("positive_fraction", 2, "between 0 and 1"),
        ("nms_threshold", 7, "between 0 and 1"),
        ("crowd_overlap", 0, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("min_box_size", -1, "at least 0"),
        ("smooth_l1_beta", -1, "at least 0"),
        ("box_loss", "iou", "giou"),
        ("positive_fraction", 0, "above 0"),
        ("nms_threshold", NAN, "between 0 and 1"),
        ("min_box_size", INF, "finite"),
        ("min_box_size", NAN, "finite"),
        ("smooth_l1_beta", INF, "finite"),
    ],
)
def test_bad_common_values_are_named(options, name, value, rule):
    with pytest.raises(ValueError, match=rf"{options.__name__}\.{name} must be .*{rule}.*, got {value!r}"):
        options(**{name: value})


@pytest.mark.parametrize("name", ["pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"])
def test_proposal_numbers_are_positive(name):
    with pytest.raises(ValueError, match=name):
        RPNOptions(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [("score_threshold", 1), ("score_threshold", NAN), ("score_threshold", -0.1)]
    + [("canonical_size", value) for value in (0, NAN, INF)]
    + [(n, 0) for n in ("hidden", "pool_size", "levels", "detections_per_image", "nms_candidates")]
    + [("sampling_ratio", -1)],
)
def test_second_stage_values_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        RoIOptions(**{name: value})


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"sizes": ()}, "at least one size"),
        ({"sizes": ((32,), ())}, "at least one size"),
        ({"sizes": (32, -1)}, "positive"),
        ({"sizes": ((32, 64), (64,))}, "equally many"),
        ({"ratios": ()}, "positive"),
        ({"ratios": (0,)}, "positive"),
        ({"scale": 0}, "positive"),
        ({"scale": NAN}, "positive"),
        ({"scale": INF}, "positive and finite"),
        ({"sizes": (32, INF)}, "positive and finite"),
        ({"ratios": (1.0, INF)}, "positive and finite"),
        ({"octave_scales": 0}, "at least 1"),
        ({"scale": 4, "sizes": (32,)}, "left out where sizes are given"),
    ],
)
def test_bad_anchors_are_named(values, rule):
    with pytest.raises(ValueError, match=f"AnchorOptions.{next(iter(values))} must be {rule}"):
        AnchorOptions(**values)


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
      rpn: {post_nms_test: 300}
      anchors: {sizes: [[16],[32],[64],[128],[256]]}
"""


def parse(tmp_path, text, *overrides):
    (tmp_path / "config.yaml").write_text(text)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Holder, "task")
    parsed = parser.parse_args(["--config", str(tmp_path / "config.yaml"), *overrides])
    return parser.instantiate(parsed).task.make


def test_a_configuration_file_reaches_every_part(tmp_path, levels):
    head = parse(tmp_path, CONFIG)(levels)
    assert isinstance(head, FasterRCNN) and head.num_classes == 3
    assert head.rpn.options == RPNOptions(post_nms_test=300)
    assert head.roi.options == RoIOptions()
    assert head.rpn.anchors.base[0].tolist() == [[-11, -6, 11, 6], [-8, -8, 8, 8], [-6, -11, 6, 11]]


def test_the_command_line_overrides_one_option(tmp_path, levels):
    overrides = ["--task.head.rpn.fg_iou=0.6", "--task.head.init_args.roi.box_loss=giou"]
    overrides += ["--task.head.roi.hidden=16", "--task.head.anchors.sizes=[8,16,32,64,128]"]
    head = parse(tmp_path, CONFIG, *overrides)(levels)
    assert head.rpn.options == RPNOptions(post_nms_test=300, fg_iou=0.6)
    assert head.roi.options == RoIOptions(hidden=16, box_loss="giou")
    assert head.rpn.anchors.base[0, 1].tolist() == [-4, -4, 4, 4]


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("post_nms_test: 300", "post_nms_tset: 300", "post_nms_tset"),
        ("num_classes: 3", "num_clases: 3", "num_clases"),
        ("post_nms_test: 300", "box_loss: wiou", "box_loss"),
        ("post_nms_test: 300", "fg_iou: high", "fg_iou"),
        ("post_nms_test: 300", "fg_iou: 3", "fg_iou must be between 0 and 1"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, before, after, named, levels):
    with pytest.raises((jsonargparse.ArgumentError, ValueError), match=named):
        parse(tmp_path, CONFIG.replace(before, after))(levels)
