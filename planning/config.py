"""The config that ``trunkline plan`` writes, with the reason next to each number."""

from __future__ import annotations

import json
import textwrap
from typing import Any, cast

import numpy as np

from ..data.scans.augment import default_transforms
from .memory import DEVICE, GIB, PER_PARAMETER, SAFETY
from .plan import Plan
from .shape import LEAST_MAP, MOST_WIDTH, widest_patch
from .table import heading, one_line, times

STEPS, EPOCHS = 250, 1000


# -- values


def dumped(value: Any) -> str:
    """Write a value in one line of YAML; numbers without exponents, which YAML takes for text."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return np.format_float_positional(value, trim="0")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dumped(key)}: {dumped(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(str(value), ensure_ascii=not str(value).isprintable())


# -- the config


def config(plan: Plan, name: str = "plan.yaml") -> str:
    """Return the whole config.

    Args:
        plan: what to write.
        name: of the file, for the command in its head.
    """
    lines = [*_head(plan, name), "seed_everything: 0", *_model(plan), *_data(plan), *_trainer()]
    return "\n".join(lines) + "\n"


def _head(plan: Plan, name: str) -> list[str]:
    memory = plan.memory
    sources = (
        "Planned by the heuristics of nnU-Net (Isensee et al., Nature Methods 2021; residual encoders: "
        'Isensee et al., "nnU-Net revisited", 2024) from the fingerprint of the dataset. It is an ordinary '
        "config: change what you like."
    )
    weights = PER_PARAMETER * memory.parameters / GIB
    counted = (
        f"Memory: training takes about {memory.of(plan.batch) / GIB:.1f} GiB of the {plan.limit:g} that were "
        f"named: {weights:.2f} for {memory.parameters / 1e6:.1f} million weights, their gradients and "
        f"momentum; {memory.each / GIB:.2f} for each patch, of which {memory.saved / GIB:.2f} are counted "
        "(maps in bfloat16 that this very network keeps for backward), the rest being maps in passing and "
        f"{SAFETY - 1:.0%} on top for the workspace of convolutions; and {DEVICE / GIB:g} for the device's "
        "libraries. The margins are assumptions, not measured on a device: if memory runs out, lower "
        "batch_size or plan again with a smaller --memory. Precision 32-true takes about twice as much."
    )
    return [
        f"# Residual-encoder U-Net in {plan.ndim} dimensions for {heading(plan)}",
        "#",
        f"#   trunkline fit --config {one_line(name)}",
        "#",
        *(f"# {line}" for line in textwrap.wrap(sources, 108)),
        "#",
        *(f"# {line}" for line in textwrap.wrap(counted, 108)),
    ]


def _block(indent: int, values: dict[str, Any], comments: dict[str, str] | None = None) -> list[str]:
    comments = comments or {}
    lines = []
    for key, value in values.items():
        comment = f"  # {comments[key]}" if comments.get(key) else ""
        lines.append(f"{' ' * indent}{key}: {dumped(value) if not _plain(value) else value}{comment}")
    return lines


def _plain(value: Any) -> bool:
    """Whether a text needs no quotes: names of options."""
    return (
        isinstance(value, str) and value.replace("_", "").isalnum() and value[0].isalpha() and value.isascii()
    )


def _model(plan: Plan) -> list[str]:
    regions = plan.network.regions is not None
    return [
        "model:",
        "  class_path: VolumeSegmentation",
        "  init_args:",
        "    backbone:",
        "      class_path: ResidualEncoder",
        "      init_args:",
        *_block(8, plan.network.backbone(plan.stages), _backbone_reasons(plan)),
        "    head:",
        "      class_path: UNet",
        "      init_args:",
        *_block(8, {**plan.network.head(plan.stages), "num_classes": "auto"}, _head_reasons(plan)),
        *_regions(plan),
        "        loss:",
        "          class_path: WeightedSum",
        "          init_args:",
        "            losses:",
        "              - class_path: CrossEntropy" + ("  # binary, region by region" if regions else ""),
        "              - class_path: Dice",
        "                init_args:",
        f"                  include_background: {dumped(regions)}"
        + ("  # regions have no background to leave out" if regions else ""),
        "    inference:",
        "      overlap: 0.5  # of neighbouring windows; this and all numbers down to power as in nnU-Net",
        f"      mirror: []  # {list(range(plan.ndim))} is {2**plan.ndim} times as slow, and no good where "
        "left and right are classes of their own",
        "    optimizer:",
        "      class_path: torch.optim.SGD",
        "      init_args:",
        "        lr: 0.01",
        "        momentum: 0.99",
        "        nesterov: true",
        "        weight_decay: 0.00003",
        "    lr_scheduler:",
        "      class_path: torch.optim.lr_scheduler.PolynomialLR",
        "      init_args:",
        f"        total_iters: {STEPS * EPOCHS}  # data.steps_per_epoch times trainer.max_epochs: change "
        "them together",
        "        power: 0.9",
        "    optimization:",
        "      interval: step",
    ]


def _backbone_reasons(plan: Plan) -> dict[str, str]:
    steps, maps = plan.stages.steps, [s // d for s, d in zip(plan.patch, plan.stages.divisor, strict=True)]
    slices = "" if plan.slice_axis is None else f": slices perpendicular to axis {plan.slice_axis}"
    reasons = {
        "ndim": "scans have 3 axes" if plan.ndim == 3 else f"a 2D network{slices}",
        "in_channels": ", ".join(one_line(channel.name) for channel in plan.fingerprint.channels),
        "channels": f"doubled from stage to stage up to {MOST_WIDTH[plan.ndim]}",
        "blocks": "those of nnU-Net's residual encoders",
        "strides": f"axes are halved {', '.join(map(str, steps))} times, down to {times(maps)}: as long as "
        f"{LEAST_MAP} voxels remain",
    }
    if any(1 in kernel for kernel in plan.stages.kernels):
        reasons["kernels"] = "1 along axes with twice the finest spacing or more, or a single voxel"
    if len(set(steps)) > 1:
        reasons["strides"] += " and spacings differ by less than a factor 2"
    return reasons


def _head_reasons(plan: Plan) -> dict[str, str]:
    names = ", ".join(
        f"{label} {one_line(entry.name)}" for label, entry in enumerate(plan.dataset.classes[:12])
    )
    more = f" and {len(plan.dataset.classes) - 12} more" if len(plan.dataset.classes) > 12 else ""
    ids = [entry.id for entry in plan.dataset.classes]
    same = (
        ""
        if ids == list(range(len(ids)))
        else f"; their ids in the files are {', '.join(map(str, ids[:12]))}"
    )
    return {
        "num_classes": f"{names}{more}{same}",
        "channels": "as the trunk's",
        "kernels": "as the trunk's",
        "region_labels": "written for each region, by regions_class_order of dataset.json",
        "deep_supervision": ""
        if len(plan.stages.strides) > 3
        else "there is no block between the first and the last",
    }


def _regions(plan: Plan) -> list[str]:
    names = ", ".join(map(one_line, plan.dataset.regions))
    return (
        [f"        # the regions are {names}; where they overlap, later ones are written over earlier ones"]
        if names
        else []
    )


def _data(plan: Plan) -> list[str]:
    return [
        "data:",
        "  class_path: ScanSegmentation",
        "  init_args:",
        f"    root: {dumped(str(plan.root))}",
        *(f"    {key}: {dumped(value)}" for key, value in plan.given.items()),
        *_preparation(plan),
        f"    patch: {dumped(plan.patch)}  # {_patch_reason(plan)}",
        *(
            [f"    slice_axis: {plan.slice_axis}  # {_slice_reason(plan)}"]
            if plan.slice_axis is not None
            else []
        ),
        f"    batch_size: {plan.batch}  # {_batch_reason(plan)}",
        f"    steps_per_epoch: {STEPS}  # batches, as in nnU-Net",
        "    foreground: 0.33  # of the patches are centred on a voxel of a class other than the background",
        *_augment(plan),
        "    workers: 8  # loader processes; no more are started than there are processor cores",
    ]


def _augment(plan: Plan) -> list[str]:
    lines = ["    augment:  # the recipe of nnU-Net for this patch, angles in radians; null for none"]
    for entry in default_transforms(plan.patch):
        for name, arguments in entry.items():
            listed = ", ".join(f"{key}: {dumped(value)}" for key, value in arguments.items())
            lines.append(f"      - {name}: {{{listed}}}")
    return lines


def _preparation(plan: Plan) -> list[str]:
    lines = ["    preparation:"]
    if plan.fingerprint.axes == 3:
        lines.append("      orientation: RAS  # axes run to the right, anterior and superior")
    lines.append(f"      spacing: {dumped(plan.spacing)}  # {plan.spacing_reason}")
    removed = f"to what is not 0, which removes {plan.fingerprint.removed:.0%} of the median scan"
    lines += [f"      crop: {dumped(plan.crop)}  # {removed}", "      intensity:"]
    alike = len({json.dumps(each.options) for each in plan.normalisations}) == 1
    for each in plan.normalisations[:1] if alike else plan.normalisations:
        name = "" if alike else f"{one_line(each.name)}: "
        first, *others = _block(10, each.options)
        first += f"  # {name}{one_line(each.reason)}"
        lines += [f"        - {first.strip()}", *others]
    return lines


def _patch_reason(plan: Plan) -> str:
    axes = [axis for axis in range(len(plan.median)) if axis != plan.slice_axis]
    median = [plan.median[axis] for axis in axes]
    scan = f"the median scan, {times(median)} at this spacing"
    if all(size >= whole for size, whole in zip(plan.patch, median, strict=True)):
        size = f"{scan}, rounded up"
    elif plan.patch == widest_patch([1.0 if plan.spacing is None else plan.spacing[a] for a in axes], median):
        size = f"the same length along each axis, within {scan}, rounded"
    else:
        size = f"what fits {plan.limit:g} GiB, shrunk in the proportions of {scan},"
    return f"{size} to multiples of {times(plan.stages.divisor)}"


def _slice_reason(plan: Plan) -> str:
    if plan.median[cast(int, plan.slice_axis)] == 1:
        return "the axis of which the median scan has a single slice"
    return "the axis of the coarsest spacing"


def _batch_reason(plan: Plan) -> str:
    fitting = plan.memory.largest_batch(plan.limit * GIB)
    if plan.batch == plan.most < fitting:
        return (
            f"{fitting} would fit, but a batch shall be at most 5 % of the dataset's voxels, and at least 2"
        )
    return f"what fits {plan.limit:g} GiB; 5 % of the dataset's voxels would be {plan.most}"


def _trainer() -> list[str]:
    return [
        "trainer:",
        "  accelerator: auto",
        "  devices: 1",
        "  precision: bf16-mixed  # half the memory; 16-mixed on GPUs before 2020",
        f"  max_epochs: {EPOCHS}  # with another number N: total_iters above is {STEPS} * N",
        "  check_val_every_n_epoch: 50  # whole scans take longer than patches",
        "  log_every_n_steps: 25",
        "  gradient_clip_val: 12  # as in nnU-Net",
        "  callbacks:",
        "    - class_path: ModelCheckpoint",
        "      init_args:",
        "        monitor: val/mean_Dice",
        "        mode: max",
        "        filename: best",
        "        enable_version_counter: false",
        "    - class_path: LearningRateMonitor",
    ]
