"""Plans for scans: numbers by hand for every heuristic, counted memory, and a config that trains as it is."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from trunkline.cli import main
from trunkline.data.scans.cases.cases import Case, ScanDataset
from trunkline.data.scans.formats.files import write_labels, write_scan
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.shared.labels import LabelClass
from trunkline.planning.config import config, dumped
from trunkline.planning.fingerprint import ChannelFingerprint, Fingerprint
from trunkline.planning.memory import DEVICE, GIB, Memory, Network, saved_bytes, training_memory
from trunkline.planning.plan import plan_for
from trunkline.planning.shape import (
    Stages,
    choose_patch,
    coarse_axis,
    first_patch,
    median_shape,
    most_patches,
    stages_of,
    target_spacing,
    widest_patch,
)
from trunkline.planning.table import table

# -- spacing


def test_the_target_spacing_is_the_median_of_each_axis():
    spacings = np.array([[0.6, 0.7, 2.0], [0.8, 0.7, 1.0], [0.7, 0.9, 1.5]])
    assert target_spacing(spacings, np.full((3, 3), 100)) == ((0.7, 0.7, 1.5), None)


@pytest.mark.parametrize(
    ("along", "slices", "expected", "coarse"),
    [
        ([1, 3, *[5] * 7, 7, 9], 60, 3.0, 2),  # the second of eleven is the 10th percentile
        ([1, 3, *[5] * 7, 7, 9], 200, 5.0, None),  # 3 * 200 voxels are no fewer than 512
        ([0.1, 0.2, *[5] * 7, 7, 9], 60, 0.8, 2),  # no finer than the next coarsest axis
        ([2.3] * 11, 60, 2.3, None),  # less than 3 times 0.8
    ],
)
def test_along_a_coarse_axis_the_finer_scans_decide(along, slices, expected, coarse):
    spacings = np.array([[0.7, 0.8, mm] for mm in along])
    found = target_spacing(spacings, np.full((11, 3), [512, 512, slices]))
    assert found == ((0.7, 0.8, expected), coarse)


def test_a_coarse_axis_may_be_any():
    assert coarse_axis((5, 1, 1), (20, 200, 200)) == 0
    assert coarse_axis((1, 1), (5, 200)) is None


def test_sizes_are_those_after_resampling():
    shapes, spacings = np.array([[10, 20, 1], [30, 20, 1], [50, 20, 1]]), np.array([[1, 1, 1.0]] * 3)
    assert median_shape(shapes, spacings, (2.0, 0.5, 10.0)) == (15, 40, 1)


# -- patches and strides


def test_the_first_patch_has_the_same_length_along_each_axis():
    """256 mm to the side: the volume of 256 x 256 x 256 voxels of 1 mm^3, which 0.5 x 0.5 x 4 mm are too."""
    assert first_patch((0.5, 0.5, 4.0), (1000, 1000, 1000)) == (512, 512, 64)
    assert first_patch((1.0, 4.0), (9000, 9000)) == (4096, 1024)  # 2048 x 2048 pixels of 4 mm^2


def test_the_first_patch_is_no_larger_than_the_median_scan_and_never_too_small_to_halve():
    assert first_patch((1, 1, 1), (100, 300, 30)) == (100, 256, 30)
    assert first_patch((1, 1, 1), (3, 5, 2)) == (8, 8, 2)
    assert first_patch((1, 1), (1, 90)) == (8, 90)


def test_hippocampus_has_the_published_patch_and_steps():
    stages = stages_of((1, 1, 1), (35, 50, 35))
    assert widest_patch((1, 1, 1), (35, 50, 35)) == (40, 56, 40)
    assert stages.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)) and stages.steps == (3, 3, 3)
    assert set(stages.kernels) == {(3, 3, 3)} and len(stages.kernels) == 4
    assert stages.widths == (32, 64, 128, 256) and stages.blocks == (1, 3, 4, 6)
    assert most_patches(260 * 35 * 50 * 35, (40, 56, 40)) == 9  # 0.05 * 15,925,000 / 89,600 = 8.9


def test_strides_of_scans_with_thick_slices():
    """0.8 x 0.8 x 3 mm: after one step in the plane 1.6 x 1.6 x 3, which are alike from then on."""
    stages = stages_of((0.8, 0.8, 3.0), (160, 160, 64))
    assert stages.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert stages.kernels == ((3, 3, 1), *[(3, 3, 3)] * 5)
    assert stages.divisor == (32, 32, 16) and stages.widths == (32, 64, 128, 256, 320, 320)
    assert stages.blocks == (1, 3, 4, 6, 6, 6)


def test_widths_of_networks_for_pictures_go_further():
    stages = stages_of((1, 1), (256, 256))  # 256 / 4 = 2^6
    assert stages.widths == (32, 64, 128, 256, 512, 512, 512)


def test_one_axis_alone_is_halved_only_from_twelve_voxels_on():
    assert stages_of((1, 1), (8, 20)).steps == (1, 1)  # 4 x 10 stays
    assert stages_of((1, 1), (8, 24)).steps == (1, 2)  # 4 x 12 becomes 4 x 6


def test_there_is_always_a_step_and_nothing_to_see_along_a_single_voxel():
    stages = stages_of((1, 1, 1), (8, 8, 1))
    assert stages.steps == (1, 1, 0) and stages.kernels == ((3, 3, 1), (3, 3, 1))
    assert stages_of((1, 3), (8, 8)).steps == (1, 0)
    assert stages_of((1, 1, 1), (64, 64, 2)).kernels[0] == (3, 3, 3)


def test_patches_shrink_where_they_are_largest():
    """From 128x128x64, all of the median: z to 56, y and x to 112, z to 48.

    A step is what the size below would be a multiple of: of 64 less 16 are 48, halved 3 times, so by 8.
    """
    tried = []

    def fits(stages, patch):
        tried.append(patch)
        return math.prod(patch) <= 700_000

    patch, stages = choose_patch((1, 1, 1), (128, 128, 64), fits)
    assert tried == [(128, 128, 64), (128, 128, 56), (128, 112, 56), (112, 112, 56), (112, 112, 48)]
    assert patch == (112, 112, 48) and stages == stages_of((1, 1, 1), patch)


def test_any_dataset_gets_a_patch_that_its_stages_divide():
    rng = np.random.default_rng(0)
    for _ in range(300):
        axes = int(rng.integers(2, 4))
        spacing = tuple(10 ** rng.uniform(-1, 1, axes))
        median = tuple(int(size) for size in 10 ** rng.uniform(0, 2.8, axes))
        limit = 10 ** rng.uniform(3, 7)
        patch, stages = choose_patch(spacing, median, lambda _, patch, most=limit: math.prod(patch) <= most)
        assert math.prod(patch) <= limit and stages == stages_of(spacing, patch) and len(stages.strides) > 1
        for size, by in zip(patch, stages.divisor, strict=True):
            assert size % by == 0 and (by == 1 or size // by >= 4)
        assert not any(2 in kernel for kernel in stages.kernels)


def test_no_patch_fits():
    assert choose_patch((1, 1, 1), (40, 40, 40), lambda stages, patch: False) is None


# -- memory


def test_saved_bytes_by_hand():
    """A convolution keeps its input, 16 numbers, a sigmoid its output, 32, and a square that once more."""
    conv = nn.Conv2d(1, 2, 1, device="meta")
    image = torch.empty(1, 1, 4, 4, device="meta")
    sizes = saved_bytes(lambda: conv(image).sigmoid().square().sum(), list(conv.parameters()))
    assert sorted(sizes) == [64, 128]
    weights = saved_bytes(lambda: conv(image).sum())
    assert sorted(weights) == [8, 64]  # not told that the two weights are parameters


STAGES = Stages(((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))


def test_maps_of_a_small_network_by_hand():
    """V voxels, v = V / 8 after the step; each convolution's input and output, and each activation, once."""
    with torch.device("meta"):
        trunk, head = Network(in_channels=2, num_classes=3).build(STAGES)
    image = torch.empty(1, 2, 32, 32, 32, device="meta")
    parameters = [*trunk.parameters(), *head.parameters()]
    found = sum(saved_bytes(lambda: head(trunk(image), (32, 32, 32)).logits.sum(), parameters))
    fine = 2 + 2 * 32  # the image; the first convolution and its activation
    fine += 4 * 32  # a block: two convolutions, the activation between, that of the sum
    coarse = 4 * 64 + 32 + 64  # a block with a shortcut: the pooled map, and its convolution
    coarse += 2 * 4 * 64  # two more blocks
    fine += 64 + 2 * 32  # decoder: what was upsampled beside the skip; a convolution, its activation
    assert found == pytest.approx(4 * 32**3 * (fine + coarse / 8), rel=1e-3)  # more: statistics of norms


def test_the_count_is_that_of_a_real_step_in_mixed_precision():
    """What autograd keeps in a step on the CPU: the maps, and the copies of the weights in bfloat16."""
    network, patch = Network(1, 4), (32, 32, 16)
    memory = training_memory(network, STAGES, patch)
    trunk, head = network.build(STAGES)
    parameters = [*trunk.parameters(), *head.parameters()]
    image, mask = torch.randn(1, 1, *patch), torch.randint(0, 4, (1, *patch), dtype=torch.uint8)
    mask[0, 0, 0, 0] = 255  # on a CPU losses keep less where every voxel has a label; devices do not look
    targets = type("Targets", (), {"mask": mask})()

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            raw = head(trunk(image), patch)
        return torch.stack(list(head.losses(raw, targets).values())).sum()

    assert memory.parameters == sum(weight.numel() for weight in parameters)
    pooled = 4 * 32 * math.prod(patch)  # which on this device happens in float32, on a copy of its own
    found = sum(saved_bytes(step, parameters))
    assert found == pytest.approx(memory.saved + 2 * memory.parameters + pooled, rel=2e-3)


def test_memory_grows_with_everything():
    network = Network(1, 2)
    base = training_memory(network, STAGES, (16, 16, 16))
    double = training_memory(network, STAGES, (16, 16, 32))
    assert double.saved == pytest.approx(2 * base.saved, rel=2e-3) and double.parameters == base.parameters
    assert training_memory(Network(1, 9), STAGES, (16, 16, 16)).saved > base.saved
    assert training_memory(Network(3, 2), STAGES, (16, 16, 16)).saved > base.saved
    deeper = training_memory(network, stages_of((1, 1, 1), (32, 32, 32)), (16, 16, 16))
    assert deeper.parameters > base.parameters and deeper.saved > base.saved


def test_batches_that_fit_by_hand():
    memory = Memory(parameters=GIB // 14, saved=GIB, largest=GIB // 3)
    # 0.75 for libraries, 1 for 14 bytes a parameter, and 1.2 * (1 + 3 / 3) for each patch.
    assert DEVICE / GIB == 0.75 and memory.of(2) / GIB == pytest.approx(1.75 + 4.8)
    assert memory.largest_batch(6.56 * GIB) == 2 and memory.largest_batch(6.54 * GIB) == 1
    assert memory.largest_batch(GIB) == 0
    wanted = [memory.of(batch) for batch in range(5)]
    assert wanted == sorted(wanted)


# -- plans


def channel(name="image", **changed):
    numbers = {"mean": 80.0, "std": 40.0, "median": 75.0, "low": -20.0, "high": 180.0}
    numbers |= {"minimum": -50.0, "maximum": 300.0, "lowest": -1024.0, "whole": True}
    return ChannelFingerprint(name, **(numbers | changed))


def planned(shape, spacing=None, cases=20, channels=(), kept=1.0, regions=None, classes=None, **options):
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
    assert (head["num_classes"], head["upsampling"], head["norm"]) == (3, "transposed", "instance")
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
        ({"ndim": 3}, "--ndim is 3, but the dataset holds pictures"),
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


# -- the command


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two training and two validation scans of CT, 16 x 18 x 12 voxels, with a bright organ."""
    root = tmp_path_factory.mktemp("plan") / "organs"
    rng = np.random.default_rng(0)
    for split, number in itertools.product(("train", "val"), range(2)):
        ids = np.zeros((16, 18, 12), np.uint8)
        ids[4:10, 5:12, 3:9] = 5
        voxels = np.where(ids, 100, -1000) + rng.integers(-20, 20, ids.shape)
        image = root / "images" / split / f"{split}_{number}.nii.gz"
        write_scan(image, voxels.astype(np.int16), Grid(ids.shape, np.diag([1.0, 1.0, 2.0, 1.0])))
        write_labels(root / "labels" / split / image.name, ids, like=image)
    return root


CLASSES = ["--classes", "0=background", "5=organ"]


def test_a_plan_trains_as_it_is(root, tmp_path, monkeypatch, capsys):
    """The dataset by a relative path, which the config names from wherever it is run."""
    from trunkline.tasks.command import TrunklineCLI

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(root.parent)
    output = tmp_path / "folder" / "plan.yaml"
    main(["plan", "organs", "--output", str(output), "--workers", "2", *CLASSES])
    printed = capsys.readouterr().out
    assert f"wrote {output}: trunkline fit --config {output}" in printed
    assert "16 .. 16 .. 16" in printed and "organ" in printed and "99.5 %" in printed
    assert os.listdir(output.parent) == ["plan.yaml"]  # nothing unfinished
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(output.read_text())
    data = content["data"]["init_args"]
    assert data["root"] == str(root) and data["classes"] == {0: "background", 5: "organ"}
    assert 70 < data["preparation"]["intensity"][0]["clip"][0] < 90  # guessed to be CT
    few = ["--trainer.max_epochs=1", "--data.steps_per_epoch=2", "--model.lr_scheduler.total_iters=2"]
    quiet = [
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--data.workers=0",
    ]
    here = [
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.log_every_n_steps=1",
    ]
    checked = ["--trainer.check_val_every_n_epoch=1"]
    monkeypatch.setattr(
        "sys.argv", ["trunkline", "fit", "--config", str(output), *few, *quiet, *here, *checked]
    )
    cli = TrunklineCLI()
    assert cli.trainer.global_step == 2 and list(tmp_path.rglob("best.ckpt"))
    assert cli.model.backbone.levels[-1].stride == (4, 4, 2) and cli.datamodule.patch == (16, 20, 12)
    assert 0 <= float(cli.trainer.callback_metrics["val/mean_Dice"]) <= 1


def test_options_for_finding_cases_go_into_the_config(root, tmp_path):
    table_file = tmp_path / "cases.csv"
    rows = [
        f"{root}/images/{s}/{s}_{n}.nii.gz,{root}/labels/{s}/{s}_{n}.nii.gz"
        for s in ("train", "val")
        for n in range(2)
    ]
    table_file.write_text("\n".join(["image,label", *rows]))
    output = tmp_path / "plan.yaml"
    words = [
        "--table",
        str(table_file),
        "--splits",
        str(tmp_path / "splits.json"),
        "--folds",
        "2",
        "--fold",
        "1",
    ]
    main(
        [
            "plan",
            str(tmp_path),
            "--output",
            str(output),
            *words,
            *CLASSES,
            "--modality",
            "mr",
            "--memory",
            "2",
        ]
    )
    data = yaml.safe_load(output.read_text())["data"]["init_args"]
    assert (data["fold"], data["folds"], data["table"]) == (1, 2, str(table_file))
    assert data["preparation"]["intensity"] == [{"scale": "zscore"}]
    assert "2 GiB" in output.read_text() or "of the 2 that were named" in output.read_text()


def test_a_config_that_is_there_is_kept(root, tmp_path):
    output = tmp_path / "plan.yaml"
    output.write_text("mine")
    words = ["plan", str(root), "--output", str(output), *CLASSES]
    with pytest.raises(SystemExit, match="is there already; add --overwrite"):
        main(words)
    assert output.read_text() == "mine"
    with pytest.raises(SystemExit, match="trunkline plan: .*nowhere is no folder"):
        main(["plan", str(root / "nowhere"), "--output", str(output), "--overwrite"])
    assert output.read_text() == "mine"
    main([*words, "--overwrite"])
    assert output.read_text().startswith("# Residual-encoder U-Net")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "0=background"], "there is 1 class; 2 to 255 can be learned"),
        (["--classes", "0=background", "x=organ"], "an id is a whole number, as in 0=background"),
        (["--classes", "0=background", "0=organ"], "an id is there twice"),
        (["--classes", "background", "organ"], r"(?s)4 cases of 4 cannot be read.*ids that are no class: 5"),
        ([*CLASSES, "--memory", "-1"], "--memory is -1.0; give the memory of the device in GiB"),
    ],
)
def test_errors_say_what_to_do(root, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["plan", str(root), "--output", str(tmp_path / "plan.yaml"), *words])
    assert not (tmp_path / "plan.yaml").exists()
