"""The fingerprint of a dataset of scans: sizes, spacings, intensities and frequencies of classes.

What nnU-Net (Isensee et al., Nature Methods 2021) collects to choose patches, spacing and normalisation.

Letters in shapes: N cases, C channels, K classes, S spatial axes of a scan after reorientation, n their
number (2 or 3), m sampled voxels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from ..constants import IGNORE_INDEX
from ..data.scans.cases.cases import Case, CasesError, ScanDataset
from ..data.scans.cases.checks import check_ignored
from ..data.scans.formats.scan import Scan
from ..data.scans.prepare.intensity import Intensity
from ..data.scans.prepare.prepare import Placement, Preparation, place, prepare_case
from ..data.scans.prepare.resample import count_labels
from ..data.scans.summary import far_spacing, middle_spacing
from ..data.shared.common import in_threads_singly, listing, number_of

logger = logging.getLogger("trunkline")

USUAL_SPACING = (0.02, 20.0)  # mm, of medical scans
MOST_SAMPLES = 10_000  # voxels of each case
_AS_STORED = Preparation(intensity=[Intensity(scale="none")])  # turned to RAS, and nothing else
_CROPPED = Preparation(orientation=None, crop=True)


@dataclass(frozen=True)
class ChannelFingerprint:
    """The intensities of one channel, in the units of the files.

    All but the last two are those of the sampled voxels of the foreground.

    Attributes:
        name: of the modality.
        mean: of all cases' samples together, as are the others.
        std: standard deviation.
        median: 50th percentile.
        low: percentile 0.5.
        high: percentile 99.5.
        minimum: the smallest.
        maximum: the largest.
        lowest: the smallest of all voxels of all cases.
        whole: whether all voxels of all cases are whole numbers.
    """

    name: str
    mean: float
    std: float
    median: float
    low: float
    high: float
    minimum: float
    maximum: float
    lowest: float
    whole: bool


@dataclass(frozen=True)
class Fingerprint:
    """What is known of the scans of a dataset.

    Attributes:
        shapes: ``[N, n]`` voxels per axis, after reorientation to RAS (2D images as they are).
        cropped: ``[N, n]``, of the box of voxels that are not 0 in some channel.
        spacings: ``[N, n]`` mm; 1 for 2D images.
        channels: C of them.
        counts: ``[N, K + 1]`` voxels of each label, and last of ignored ones.
        foreground: whether the intensities are those of the foreground (labels from 1 on); false if no case
            has any, and they are those of all labelled voxels.
    """

    shapes: np.ndarray
    cropped: np.ndarray
    spacings: np.ndarray
    channels: tuple[ChannelFingerprint, ...]
    counts: np.ndarray
    foreground: bool

    @property
    def axes(self) -> int:
        """n: 2 for 2D images."""
        return self.shapes.shape[1]

    @property
    def removed(self) -> float:
        """The share of its voxels that the median scan loses by cropping, 0..1."""
        return float(
            np.median(1 - self.cropped.prod(1, dtype=np.float64) / self.shapes.prod(1, dtype=np.float64))
        )


class _CaseFingerprint(NamedTuple):
    """What one case adds to the fingerprint; ``samples`` is ``[C, m]``, of the foreground if there is any."""

    shape: tuple[int, ...]
    cropped: tuple[int, ...]
    spacing: tuple[float, ...]
    counts: np.ndarray
    samples: np.ndarray
    foreground: bool
    lowest: np.ndarray
    whole: np.ndarray
    constant: np.ndarray
    place: Placement


def read_fingerprint(dataset: ScanDataset, workers: int = 4) -> Fingerprint:
    """Read all cases of ``train`` and ``val`` that have labels, with a progress bar.

    Of each case up to 10,000 voxels of the foreground are drawn, with a seed that is made of its name.

    Args:
        dataset: from ``find_dataset``.
        workers: cases read at a time, in threads; 0 is 1. Each holds a few copies of its scan.

    Raises:
        CasesError: if no case has labels, cases cannot be read (naming up to 20 of them), or differ in their
            numbers of axes or channels.
    """
    cases = [
        case for split in ("train", "val") for case in dataset.cases.get(split, ()) if case.label is not None
    ]
    if not cases:
        raise CasesError(
            "none of the cases to train with has labels, and a plan needs those of the foreground; add the "
            "labels"
        )
    outcomes = in_threads_singly(lambda case: _try(case, dataset), cases, "reading scans", workers)
    problems = [one for one in outcomes if isinstance(one, str)]
    found: list[_CaseFingerprint] = [one for one in outcomes if not isinstance(one, str)]
    if problems:
        raise CasesError(
            f"{number_of(len(problems), 'case')} of {len(cases)} cannot be read:\n{listing(problems)}\n"
            "repair or leave them out"
        )
    _check_alike(found, cases, dataset.channels)
    check_ignored(
        dataset, [case.label or case.name for case in cases], np.array([one.counts > 0 for one in found])
    )
    _warn_of_odd(found, cases)
    return _joined(found, dataset.channels)


def _try(case: Case, dataset: ScanDataset) -> _CaseFingerprint | str:
    try:
        return _read(case, dataset)
    except (ValueError, OSError) as error:
        return f"{case.name}: {error}"


def _read(case: Case, dataset: ScanDataset) -> _CaseFingerprint:
    prepared = prepare_case(case, _AS_STORED, dataset.classes, dataset.ignore_id)
    image, placement = prepared.image, prepared.placement
    mask = cast(np.ndarray, prepared.mask)
    counts = count_labels(mask)
    counts = np.append(counts[: len(dataset.classes)], counts[IGNORE_INDEX]).astype(np.int64)
    foreground = bool(counts[1:-1].any())
    return _CaseFingerprint(
        placement.shape,
        _box(image, placement, case.name),
        placement.spacing,
        counts,
        _samples(image, mask, 1 if foreground else 0, case.name),
        foreground,
        image.reshape(len(image), -1).min(1),
        np.array([_is_whole(channel) for channel in image]),
        np.ptp(image.reshape(len(image), -1), axis=1) == 0,
        placement,
    )


def _box(image: np.ndarray, placement: Placement, name: str) -> tuple[int, ...]:
    """Return the sizes of the box that cropping would leave."""
    turned = Scan(image, placement.prepared_grid, image.dtype)
    return place(turned, _CROPPED, name).shape


def _samples(image: np.ndarray, mask: np.ndarray, least: int, name: str) -> np.ndarray:
    """Draw voxels with labels from ``least`` on, all if there are no more than 10,000: ``[C, m]``."""
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    sizes = [int(np.count_nonzero(inside)) for inside in _planes(mask, least)]
    ranks = np.arange(sum(sizes))
    if len(ranks) > MOST_SAMPLES:
        ranks = np.sort(rng.choice(len(ranks), MOST_SAMPLES, replace=False, shuffle=False))
    bounds = np.searchsorted(ranks, np.cumsum([0, *sizes]))
    parts = [np.zeros((len(image), 0), dtype=image.dtype)]
    before = 0
    for plane, inside in enumerate(_planes(mask, least)):
        chosen = ranks[bounds[plane] : bounds[plane + 1]] - before
        before += sizes[plane]
        if len(chosen):
            parts.append(image[:, plane].reshape(len(image), -1)[:, np.flatnonzero(inside)[chosen]])
    return np.concatenate(parts, axis=1)


def _planes(mask: np.ndarray, least: int) -> Iterator[np.ndarray]:
    for plane in mask:
        yield (plane >= least) & (plane != IGNORE_INDEX)


def _is_whole(channel: np.ndarray) -> bool:
    return all(np.array_equal(plane, np.rint(plane)) for plane in channel)


def _check_alike(found: Sequence[_CaseFingerprint], cases: Sequence[Case], channels: Sequence[str]) -> None:
    """Raise CasesError unless all cases have the same number of axes and channels."""
    axes = len(found[0].shape)
    problems = [
        f"{case.name}: {len(one.shape)} axes, {cases[0].name} has {axes}"
        for one, case in zip(found, cases, strict=True)
        if len(one.shape) != axes
    ]
    problems += [
        f"{case.name}: {number_of(len(one.samples), 'channel')}, the dataset has {', '.join(channels)}"
        for one, case in zip(found, cases, strict=True)
        if len(one.samples) != len(channels)
    ]
    if problems:
        raise CasesError(f"cases differ:\n{listing(problems)}\nmake them alike, or leave them out")


def _warn_of_odd(found: Sequence[_CaseFingerprint], cases: Sequence[Case]) -> None:
    """Say which scans hold one value everywhere, and whose voxels are far from those of most scans."""
    constant = [
        f"{case.name}: channel {', '.join(map(str, np.flatnonzero(one.constant)))}"
        for one, case in zip(found, cases, strict=True)
        if one.constant.any()
    ]
    if constant:
        logger.warning(
            "%s with one value in all voxels of a channel; are these the right files?\n%s",
            number_of(len(constant), "scan"), listing(constant),
        )  # fmt: skip
    median = middle_spacing([one.place for one in found])
    far = [
        f"{case.images[0]}: {text}"
        for one, case in zip(found, cases, strict=True)
        if (text := far_spacing(one.place, median)) is not None
    ]
    if far:
        logger.warning("%s with other voxels than most:\n%s", number_of(len(far), "scan"), listing(far))
    if len(median) == 3 and not (USUAL_SPACING[0] <= min(median) and max(median) <= USUAL_SPACING[1]):
        logger.warning(
            "voxels measure %s mm in the median, which is unusual; are the units of the headers right (mm, "
            "micron, m)? Distances and volumes of the evaluation are in these mm",
            " x ".join(f"{mm:.4g}" for mm in median),
        )  # fmt: skip


def _joined(found: Sequence[_CaseFingerprint], names: Sequence[str]) -> Fingerprint:
    foreground = any(one.foreground for one in found)
    if not foreground:
        logger.warning("no case has a voxel of the foreground; intensities are those of all labelled voxels")
    samples = np.concatenate([one.samples for one in found if one.foreground == foreground], axis=1)
    samples = samples.astype(np.float64)  # [C, m]
    if not samples.shape[1]:
        raise CasesError(
            "all voxels of all cases are to be ignored, so nothing can be learned; check the labels and "
            "ignore_id"
        )
    lowest = np.min([one.lowest for one in found], axis=0)
    whole = np.all([one.whole for one in found], axis=0)
    channels = []
    for number, (name, values) in enumerate(zip(names, samples, strict=True)):
        low, median, high = (float(value) for value in np.percentile(values, [0.5, 50, 99.5]))
        channels.append(
            ChannelFingerprint(
                name,
                mean=float(values.mean()),
                std=float(values.std()),
                median=median,
                low=low,
                high=high,
                minimum=float(values.min()),
                maximum=float(values.max()),
                lowest=float(lowest[number]),
                whole=bool(whole[number]),
            )
        )
    return Fingerprint(
        np.array([one.shape for one in found], dtype=np.int64),
        np.array([one.cropped for one in found], dtype=np.int64),
        np.array([one.spacing for one in found], dtype=np.float64),
        tuple(channels),
        np.stack([one.counts for one in found]),
        foreground,
    )
