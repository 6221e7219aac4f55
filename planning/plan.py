"""``trunkline plan``: from a dataset's fingerprint and a device's memory to a config, as nnU-Net does.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
Nature Methods 2021, and Isensee et al., "nnU-Net revisited: a call for rigorous validation in 3D medical
image segmentation", 2024, whose residual encoders these are. The numbers are worked out in ``shape``, the
memory is counted in ``memory``, and ``table`` and ``config`` write what the user reads.

Letters in shapes: N cases, n spatial axes of a scan (2 or 3).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.scans.cases.cases import CasesError, ScanDataset, find_dataset
from ..data.scans.patches import coarsest_axis
from ..data.scans.summary import FAR
from ..data.shared.storage import on_this_machine
from ..heads.segmentation.regions import Regions
from .fingerprint import Fingerprint, read_fingerprint
from .intensity import Normalisation, normalisations
from .memory import GIB, Memory, Network, training_memory
from .shape import (
    FITTING_BATCH,
    Axes,
    Stages,
    choose_patch,
    median_shape,
    most_patches,
    rounded,
    target_spacing,
)

logger = logging.getLogger("trunkline")

MOST_REMOVED = 0.25  # of the median scan by cropping, above which zeros are taken for a mask


@dataclass(frozen=True)
class Plan:
    """Everything that goes into the config.

    Attributes:
        root: absolute path of the dataset.
        given: what the user said of how to read it, arguments of ``find_dataset``.
        dataset: its cases and classes.
        fingerprint: of its scans.
        network: what the network reads and gives.
        ndim: axes of the network.
        slice_axis: what slices are perpendicular to, if it is a 2D network on scans; else None.
        crop: whether scans are cropped to what is not 0.
        normalisations: one per channel.
        spacing: mm to resample to; None for 2D images.
        spacing_reason: why.
        median: voxels per axis of the median scan at this spacing, cropped if ``crop``.
        patch: voxels, ``ndim`` of them.
        stages: of the network.
        batch: patches in a batch.
        most: what 5 % of the dataset would allow.
        memory: what training takes.
        limit: GiB to be used.
    """

    root: Path
    given: dict[str, Any]
    dataset: ScanDataset
    fingerprint: Fingerprint
    network: Network
    ndim: int
    slice_axis: int | None
    crop: bool
    normalisations: tuple[Normalisation, ...]
    spacing: tuple[float, ...] | None
    spacing_reason: str
    median: Axes
    patch: Axes
    stages: Stages
    batch: int
    most: int
    memory: Memory
    limit: float

    @property
    def shapes(self) -> np.ndarray:
        """``[N, n]`` voxels of the scans, cropped if ``crop``."""
        return self.fingerprint.cropped if self.crop else self.fingerprint.shapes


def make_plan(
    root: str | Path,
    given: Mapping[str, Any] | None = None,
    memory: float = 8.0,
    ndim: int | None = None,
    modality: Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
    workers: int = 4,
) -> Plan:
    """Read a dataset and plan a network for it.

    Args:
        root: folder of the dataset.
        given: further arguments of ``find_dataset``.
        memory: of the device, in GiB, above 0.
        ndim: 2 or 3; None for that of the scans, and 2 if their median has a single slice.
        modality: one of ``intensity.MODALITIES`` for all channels, or one per channel; None to find out.
        spacing: mm per axis after reorientation to RAS; None for what the dataset asks for.
        workers: cases read at a time.

    Raises:
        ValueError: if an argument is out of its range, the dataset cannot be read, or nothing fits into the
            memory.
    """
    root = on_this_machine(root, "scans").absolute()
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if not (0 < memory < math.inf):
        raise ValueError(f"--memory is {memory}; give the memory of the device in GiB, such as 8")
    if workers < 0:
        raise ValueError(f"--workers is {workers}; it must be at least 0")
    dataset = find_dataset(root, **given)
    if not any(case.label is not None for case in dataset.cases.get("train", ())):
        raise CasesError(f"{root} has no train cases with labels; a plan needs them")
    fingerprint = read_fingerprint(dataset, workers)
    if not fingerprint.foreground:
        raise CasesError(
            f"{root}: no label holds a class other than the background, so there is nothing to learn; check "
            "the labels, --classes and --ignore_id"
        )
    return plan_for(root, given, dataset, fingerprint, memory, ndim, modality, spacing)


def plan_for(
    root: Path,
    given: Mapping[str, Any],
    dataset: ScanDataset,
    fingerprint: Fingerprint,
    memory: float = 8.0,
    ndim: int | None = None,
    modality: Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
) -> Plan:
    """Plan a network by a dataset's fingerprint; see :func:`make_plan`."""
    crop = fingerprint.removed > MOST_REMOVED
    shapes = fingerprint.cropped if crop else fingerprint.shapes
    chosen, reason = _spacing(fingerprint, shapes, spacing)
    working = chosen or (1.0,) * fingerprint.axes
    median = median_shape(shapes, fingerprint.spacings, working)
    axes, slice_axis = _axes(ndim, median, working)
    _require_written_regions(dataset)
    network = Network(
        len(fingerprint.channels),
        len(dataset.classes),
        tuple(dataset.regions.values()) if dataset.regions else None,
        dataset.region_labels or None,
    )
    voxels = float(math.prod(median)) * len(shapes)
    patch, stages, counted = _fitting(
        network, [working[a] for a in axes], [median[a] for a in axes], voxels, memory
    )
    most = most_patches(voxels, patch)
    return Plan(
        root=Path(root),
        given=dict(given),
        dataset=dataset,
        fingerprint=fingerprint,
        network=network,
        ndim=len(axes),
        slice_axis=slice_axis,
        crop=crop,
        normalisations=tuple(normalisations(fingerprint, modality, crop)),
        spacing=chosen,
        spacing_reason=reason,
        median=median,
        patch=patch,
        stages=stages,
        batch=min(most, counted.largest_batch(memory * GIB)),
        most=most,
        memory=counted,
        limit=memory,
    )


def _require_written_regions(dataset: ScanDataset) -> None:
    """Raise CasesError if it is not clear which label each region is written as."""
    if dataset.regions and not dataset.region_labels:
        try:
            Regions(list(dataset.regions.values()), len(dataset.classes))
        except ValueError as error:
            raise CasesError(
                f"the dataset has the regions {', '.join(dataset.regions)}, and nothing tells which id each "
                f"is written as; give dataset.json a regions_class_order with an id of each region ({error})"
            ) from error


def _spacing(
    fingerprint: Fingerprint, shapes: np.ndarray, asked: Sequence[float] | None
) -> tuple[tuple[float, ...] | None, str]:
    """Return the spacing to resample to, None for 2D images, and why."""
    if asked is not None:
        if fingerprint.axes == 2:
            raise ValueError(
                "--spacing is given, but the dataset holds 2D images, which are not resampled; leave it out"
            )
        if len(asked) != fingerprint.axes or not all(0 < mm < math.inf for mm in asked):
            raise ValueError(
                f"--spacing is {list(asked)}; give one number of mm above 0 for each of the 3 axes"
            )
        median = np.median(fingerprint.spacings, axis=0)
        if (np.maximum(asked / median, median / asked) > FAR).any():
            logger.warning(
                "--spacing is %s, but voxels of the scans measure %s mm in the median", list(asked),
                " x ".join(f"{mm:.4g}" for mm in median),
            )  # fmt: skip
        return tuple(float(mm) for mm in asked), "given by --spacing"
    if fingerprint.axes == 2:
        return None, "2D images have pixels, not mm"
    spacing, coarse = target_spacing(fingerprint.spacings, shapes)
    if coarse is None:
        return spacing, "mm, the median of each axis"
    median = rounded(float(np.median(fingerprint.spacings[:, coarse])))
    return spacing, (
        f"mm, the median of each axis; but of axis {coarse}, which is coarse (median {median:g}), the 10th "
        "percentile, so that the finer scans keep theirs"
    )


def _axes(ndim: int | None, median: Sequence[int], spacing: Sequence[float]) -> tuple[list[int], int | None]:
    """Return the axes that the network sees, and the one that slices are perpendicular to, or None."""
    if ndim not in (None, 2, 3):
        raise ValueError(f"--ndim is {ndim}; a network has 2 or 3 axes")
    axes = list(range(len(median)))
    if len(median) == 2:
        if ndim == 3:
            raise ValueError("--ndim is 3, but the dataset holds 2D images; they have 2 axes; leave it out")
        return axes, None
    if ndim == 3 or (ndim is None and min(median) > 1):
        return axes, None
    thin = [axis for axis in axes if median[axis] == 1]
    slice_axis = thin[-1] if thin else coarsest_axis(spacing)
    return [axis for axis in axes if axis != slice_axis], slice_axis


def _fitting(
    network: Network, spacing: Sequence[float], median: Sequence[int], voxels: float, limit: float
) -> tuple[Axes, Stages, Memory]:
    """Return the largest patch that fits, its stages and what it takes.

    Raises:
        ValueError: if not even the smallest fits.
    """
    counted: dict[tuple[Stages, Axes], Memory] = {}
    of_stages: dict[Stages, tuple[Axes, Memory]] = {}

    def memory_of(stages: Stages, patch: Axes) -> Memory:
        if (stages, patch) not in counted:
            counted[stages, patch] = training_memory(network, stages, patch)
            of_stages.setdefault(stages, (patch, counted[stages, patch]))
        return counted[stages, patch]

    def fits(stages: Stages, patch: Axes) -> bool:
        batch = min(FITTING_BATCH[len(patch)], most_patches(voxels, patch))
        if stages in of_stages:  # maps grow with the patch, so most patches need not be counted
            known, memory = of_stages[stages]
            ratio = math.prod(patch) / math.prod(known)
            guess = replace(memory, saved=int(memory.saved * ratio), largest=int(memory.largest * ratio))
            if guess.of(batch) > 1.02 * limit * GIB:
                return False
        return memory_of(stages, patch).of(batch) <= limit * GIB

    found = choose_patch(spacing, median, fits)
    if found is None:
        least = min(memory.of(2) for memory in counted.values()) / GIB
        raise ValueError(
            f"--memory is {limit:g} GiB, and two of the smallest patches take about {least:.2g}; name a "
            "larger device"
        )
    return *found, memory_of(found[1], found[0])
