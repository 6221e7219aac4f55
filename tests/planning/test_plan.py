"""Plans for scans: what a dataset and a device get, and the text of the config."""

import math

import numpy as np
import pytest
import torch
import yaml

from trunkline.data.scans.augment import default_transforms
from trunkline.data.scans.cases.cases import Case, ScanDataset
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.planning.config import config, dumped
from trunkline.planning.fingerprint import ChannelFingerprint, Fingerprint
from trunkline.planning.memory import GIB
from trunkline.planning.plan import plan_for
from trunkline.planning.shape import (
    widest_patch,
)
from trunkline.planning.table import table


def channel(name="image", **changed):
    numbers = {"mean": 80.0, "std": 40.0, "median": 75.0, "low": -20.0, "high": 180.0}
    numbers |= {"minimum": -50.0, "maximum": 300.0, "lowest": -1024.0, "whole": True}
    return ChannelFingerprint(name, **(numbers | changed))


def planned(
    shape, spacing=None, cases=20, channels=(), kept=1.0, regions=None, classes=None, written=(), **options
):
    axes = len(shape)
    classes = classes or ("background", "organ", "tumour")
    rows = tuple(LabelClass(k, name, (k, k, k)) for k, name in enumerate(classes))
    channels = tuple(channels) or (channel(),)
    dataset = ScanDataset(
        {"train": tuple(Case(f"{k}", ("x",), "y", f"{k}") for k in range(cases))},
        rows,
        tuple(one.name for one in channels),
        regions or {},
        255,
        written,
    )
    shapes = np.tile(shape, (cases, 1))
    cropped = shapes.copy()
    cropped[:, 0] = np.round(cropped[:, 0] * kept)
    counts = np.tile([90, 9, 1, 0], (cases, 1))[:, : len(rows) + 1]
    spacings = np.tile(np.array(spacing or (1.0,) * axes), (cases, 1))
    fingerprint = Fingerprint(shapes, cropped, spacings, channels, counts, True)
    return plan_for(options.pop("root", "/data/organs"), {}, dataset, fingerprint, **options)


def loaded(plan):
    content = yaml.safe_load(config(plan))
    return content["model"]["init_args"], content["data"]["init_args"]


def test_hippocampus_as_published():
    plan = planned((35, 50, 35), cases=260)
    assert plan.patch == (40, 56, 40) and plan.batch == 9 and plan.spacing == (1.0, 1.0, 1.0)
    model, data = loaded(plan)
    assert model["backbone"]["init_args"] == {
        "ndim": 3,
        "in_channels": 1,
        "channels": [32, 64, 128, 256],
        "blocks": [1, 3, 4, 6],
        "strides": [1, 2, 2, 2],
        "kernels": [3, 3, 3, 3],
        "norm": "instance",
        "activation": "leaky_relu",
    }
    head = model["head"]["init_args"]
    assert head["channels"] == [128, 64, 32] and head["convs"] == 1 and head["deep_supervision"] is True
    assert (head["num_classes"], head["upsampling"], head["norm"]) == ("auto", "transposed", "instance")
    assert data["patch"] == [40, 56, 40] and data["batch_size"] == 9 and data["steps_per_epoch"] == 250
    assert data["preparation"]["spacing"] == [1, 1, 1] and data["root"] == "/data/organs"
    assert model["inference"]["mirror"] == [] and model["lr_scheduler"]["init_args"]["total_iters"] == 250_000


def test_thick_slices_of_ct():
    plan = planned((400, 400, 90), (0.8, 0.8, 3.0), cases=100, channels=[channel("CT")], memory=8)
    model, data = loaded(plan)
    trunk = model["backbone"]["init_args"]
    assert trunk["strides"][:2] == [1, [2, 2, 1]] and trunk["kernels"][:2] == [[3, 3, 1], 3]
    assert model["head"]["init_args"]["kernels"][-1] == [3, 3, 1]
    assert data["preparation"]["intensity"] == [
        {"clip": [-20.0, 180.0], "scale": "zscore", "mean": 80.0, "std": 40.0}
    ]
    assert all(size % by == 0 for size, by in zip(plan.patch, plan.stages.divisor, strict=True))
    assert plan.memory.of(plan.batch) <= 8 * GIB < plan.memory.of(plan.batch + 1) and plan.batch >= 2
    # the proportions of the median scan are kept as far as multiples allow
    assert 1.8 < plan.patch[0] / plan.patch[2] < 8


def test_more_memory_gives_larger_patches_and_then_larger_batches():
    smaller, larger = (planned((80, 96, 80), cases=400, memory=memory) for memory in (2, 8))
    assert math.prod(smaller.patch) < math.prod(larger.patch) and smaller.batch == 2
    assert all(plan.memory.of(plan.batch) <= plan.limit * GIB for plan in (smaller, larger))
    assert larger.patch == widest_patch((1, 1, 1), (80, 96, 80)) and larger.batch > 2
    assert "what fits 8 GiB" in config(larger) and "shrunk in the proportions" in config(smaller)


def test_a_batch_is_no_more_than_a_share_of_the_dataset_and_at_least_two():
    assert planned((40, 40, 40), cases=2).batch == 2
    assert planned((40, 40, 40), cases=100).batch == 5  # 5 % of 100 patches


def test_regions_are_written_as_the_dataset_says():
    """Ring and core share label 2, and the whole has no label of its own; nothing but the order can tell."""
    regions = {"whole": (1, 2), "ring": (1, 2), "core": (2,)}
    plan = planned((16, 16, 16), regions=regions, written=(1, 1, 2))
    assert loaded(plan)[0]["head"]["init_args"]["region_labels"] == [1, 1, 2]
    assert "by regions_class_order" in config(plan)
    _, built = plan.network.build(plan.stages)
    assert built.region_labels == (1, 1, 2)
    scores = torch.tensor([[0.9], [0.1], [0.1]])[None]  # [1, 3, 1]: only the whole
    assert built.decide(scores).tolist() == [[1]]
    with pytest.raises(
        ValueError, match=r"regions whole, ring, core, and nothing tells .* regions_class_order"
    ):
        planned((16, 16, 16), regions=regions)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("noNorm", {"scale": "none"}),
        ("rescale_to_0_1", {"percentiles": [0.0, 100.0], "scale": "unit"}),
        ("rgb_to_0_1", {"clip": [0.0, 255.0], "scale": "unit"}),
    ],
)
def test_names_that_choose_the_normalisation(name, options):
    """Those of nnU-Net's map_channel_name_to_normalization."""
    plan = planned((16, 16, 16), channels=[channel(name)])
    assert loaded(plan)[1]["preparation"]["intensity"] == [options]
    assert plan.normalisations[0].reason.endswith("by the dataset's name of the channel")
    Intensity(**options)
    assert loaded(planned((16, 16, 16), channels=[channel(name)], modality=["mr"]))[1]["preparation"][
        "intensity"
    ] == [{"scale": "zscore"}]


def test_too_little_memory_is_an_error_that_says_how_much_it_takes():
    with pytest.raises(
        ValueError, match=r"--memory is 0.5 GiB, and two of the smallest patches take about 0\.\d+"
    ):
        planned((40, 40, 40), memory=0.5)


@pytest.mark.parametrize(
    ("channels", "modality", "is_ct", "reason"),
    [
        ([channel("CT", lowest=0.0)], None, True, "CT by the dataset's name"),
        ([channel()], None, True, "guessed to be CT: whole numbers down to -1024"),
        ([channel(lowest=-499.0)], None, False, "not CT"),
        ([channel(whole=False)], None, False, "not CT"),
        ([channel("T1")], None, False, "T1, by the dataset's name"),
        ([channel("CT")], ["mr"], False, "mr by --modality"),
        ([channel(lowest=0.0)], ["ct"], True, "ct by --modality"),
        ([channel("zscore")], None, False, "zscore, by the dataset's name"),
        ([channel("CT", std=0.0, low=3.0, high=3.0)], None, False, "are constant"),
    ],
)
def test_modalities_are_named_guessed_or_given(channels, modality, is_ct, reason, caplog):
    caplog.set_level("INFO", logger="trunkline")
    plan = planned((16, 16, 16), channels=channels, modality=modality)
    (one,) = plan.normalisations
    assert ("clip" in one.options) == is_ct and reason in one.reason and reason in config(plan)
    assert ("give --modality" in caplog.text) == ("guessed" in reason)


def test_each_channel_has_its_own_modality():
    plan = planned((16, 16, 16), channels=[channel("a"), channel("b", mean=5.0)], modality=["pet", "ct"])
    _, data = loaded(plan)
    assert data["preparation"]["intensity"][0] == {"scale": "zscore"}
    assert data["preparation"]["intensity"][1]["mean"] == 5.0
    alike = planned((16, 16, 16), channels=[channel("a"), channel("b")], modality=["mr"])
    assert loaded(alike)[1]["preparation"]["intensity"] == [{"scale": "zscore"}]
    assert loaded(alike)[0]["backbone"]["init_args"]["in_channels"] == 2


def test_masked_scans_are_cropped_and_their_zeros_left_out():
    """Of 40 voxels along the first axis 20 are left, and so the patch has 20, a multiple of 4."""
    plan = planned((40, 40, 40), channels=[channel(lowest=0.0)], kept=0.5)
    _, data = loaded(plan)
    assert plan.crop and plan.patch == (20, 40, 40) and data["preparation"]["crop"] is True
    assert data["preparation"]["intensity"] == [{"scale": "zscore", "nonzero": True}]
    whole = planned((40, 40, 40), channels=[channel(lowest=0.0)], kept=0.75)  # exactly a quarter is not more
    assert not whole.crop and whole.patch == (40, 40, 40)


def test_networks_for_pictures_on_slices():
    plan = planned((64, 48, 12), (1.0, 1.0, 4.0), ndim=2)
    model, data = loaded(plan)
    assert plan.ndim == 2 and data["slice_axis"] == 2 and data["patch"] == [64, 48]
    assert model["backbone"]["init_args"]["ndim"] == 2 and data["preparation"]["spacing"] == [1, 1, 4]
    assert planned((12, 48, 64), (4.0, 1.0, 1.0), ndim=2).slice_axis == 0
    assert "slice_axis" not in loaded(planned((64, 48, 12), (1.0, 1.0, 4.0)))[1]


def test_single_slices_get_a_network_for_pictures_unless_asked():
    plan = planned((64, 1, 48), (1.0, 1.0, 3.0))
    assert plan.ndim == 2 and plan.slice_axis == 1 and plan.patch == (64, 48)
    plan = planned((64, 48, 1), ndim=3)
    assert plan.ndim == 3 and plan.patch == (64, 48, 1) and plan.stages.steps[2] == 0


def test_pictures():
    plan = planned((300, 200), channels=[channel("red"), channel("green"), channel("blue")])
    model, data = loaded(plan)
    assert (
        plan.ndim == 2 and data["preparation"]["spacing"] is None and "orientation" not in data["preparation"]
    )
    assert model["backbone"]["init_args"]["in_channels"] == 3
    assert data["preparation"]["intensity"] == [{"scale": "zscore"}]  # whole numbers or not: no CT


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (40, 40, 2), (5, 50, 2), (7, 7), (1, 50)])
def test_small_and_thin_scans_have_valid_networks(shape):
    plan = planned(shape, cases=1)
    trunk, head = plan.network.build(plan.stages)
    image = torch.randn(2, 1, *plan.patch)
    with torch.no_grad():
        logits = head(trunk(image), plan.patch).logits
    assert logits.shape == (2, 3, *plan.patch) and logits.isfinite().all() and plan.batch == 2


def test_regions_become_those_of_the_head():
    regions = {"whole": (1, 2), "core": (2,)}
    plan = planned((16, 16, 16), regions=regions)
    model, _ = loaded(plan)
    head = model["head"]["init_args"]
    assert head["regions"] == [[1, 2], [2]]
    assert head["loss"]["init_args"]["losses"][1]["init_args"] == {"include_background": True}
    assert "whole, core" in config(plan)
    _, built = plan.network.build(plan.stages)
    assert built.regions == ((1, 2), (2,))


@pytest.mark.parametrize(
    ("shape", "spacing", "ndim"),
    [((35, 50, 35), None, 3), ((40, 40, 2), (1.0, 1.0, 6.0), 3), ((40, 60, 30), None, 2)],
)
def test_the_config_holds_the_recipe_of_augmentation_for_its_patch(shape, spacing, ndim):
    plan = planned(shape, spacing, ndim=ndim)
    assert loaded(plan)[1]["augment"] == default_transforms(plan.patch) and len(plan.patch) == ndim


def test_the_spacing_can_be_given():
    plan = planned((40, 40, 40), spacing=(1.0, 1.0, 1.0))
    coarser = planned_with_spacing((2.0, 1.0, 0.5))
    assert plan.median == (40, 40, 40) and coarser.median == (20, 40, 80)
    assert loaded(coarser)[1]["preparation"]["spacing"] == [2.0, 1.0, 0.5]


def planned_with_spacing(asked):
    plan = planned((40, 40, 40))
    return plan_for(plan.root, {}, plan.dataset, plan.fingerprint, spacing=asked)


@pytest.mark.parametrize("asked", [[1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, float("nan")]])
def test_a_wrong_spacing_is_an_error(asked):
    with pytest.raises(
        ValueError, match="--spacing is .* give one number of mm above 0 for each of the 3 axes"
    ):
        planned_with_spacing(asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ndim": 3}, "--ndim is 3, but the dataset holds 2D images"),
        ({"ndim": 1}, "--ndim is 1; a network has 2 or 3 axes"),
        ({"modality": ["xray"]}, "--modality is xray; give one of ct, mr"),
        ({"modality": ["ct", "mr"]}, r"for each of the 1 \(image\)"),
    ],
)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        planned((40, 40), **options)


def test_names_that_yaml_would_misread():
    root = '/data/it\'s: #1 "best"\n{x}'
    plan = planned(
        (16, 16, 16), root=root, classes=("back: ground", "#1", "a\nb"), channels=[channel("x\ny: #")]
    )
    assert str(loaded(plan)[1]["root"]) == root
    assert "back: ground" in table(plan)


@pytest.mark.parametrize(
    "value",
    [1e-7, 123456789.0, 0.1, [1, [2, 2, 1]], {0: "a", 5: "b: c"}, "true", "1e3", None, True, "ü", "\x07"],
)
def test_values_come_back_as_they_are(value):
    assert yaml.safe_load(f"x: {dumped(value)}") == {"x": value}
