"""From a scan in a file to what networks see: orientation, crop, intensities, spacing; and the way back.

The order is that of nnU-Net (Isensee et al., "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation", Nature Methods 2021). ``restore`` brings predictions back.

Letters in shapes: C channels, S0 spatial axes of the file's grid, T of the turned grid (after
reorientation), S of the prepared grid, n their number (2 or 3).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...shared.labels.classes import LabelClass
from ..cases.classes import to_labels
from ..cases.types import Case, CasesError
from ..formats.files import read_labels, read_scans
from ..formats.scan import Grid, Scan, difference
from .intensity import Intensity, apply_intensities
from .resample import coarse_axis, resample, resample_labels, resampled_lengths

logger = logging.getLogger(__name__)

_KEY = "data.preparation"
_OPPOSITES = ("LR", "PA", "IS")
_MOST_VALUES = 2**33  # of a prepared scan, 32 GiB: a larger one is taken for a mistake in the spacing


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared.

    Args:
        orientation: the directions in which the three axes of prepared scans run, such as ``RAS`` (to the
            right, anterior, superior); nibabel's axis codes. Oblique scans are turned by right angles only.
            None leaves axes as they are in the files. Images of two axes stay as they are.
        spacing: of the prepared voxels along each axis in mm (of 2D images in pixels), after reorientation;
            None keeps the spacing of each scan. The true spacing of a prepared scan differs by a little, so
            that whole voxels fill its extent.
        crop: whether scans are cut to the box of voxels that are not 0 in some channel.
        intensity: one entry for all channels, or one per channel.
        anisotropy: ratio of spacings, at least 1. Along an axis whose spacing (of the file, or else the
            wanted one) is more than this ratio times that of the next coarsest, the nearest voxel is taken.
            Planes so far apart say little about each other.

    Raises:
        ValueError: if an option is out of range.
    """

    orientation: str | None = "RAS"
    spacing: list[float] | None = None
    crop: bool = False
    intensity: list[Intensity] = field(default_factory=lambda: [Intensity()])
    anisotropy: float = 3.0

    def __post_init__(self) -> None:
        """Check the options."""
        if self.orientation is not None and not _is_orientation(self.orientation):
            raise ValueError(
                f"{_KEY}.orientation is {self.orientation!r}; give three letters, one of L and R, one of P "
                "and A and one of I and S, in any order, such as RAS; or null to leave axes as they are"
            )
        if self.spacing is not None and (
            len(self.spacing) not in (2, 3) or not all(0 < number < math.inf for number in self.spacing)
        ):
            raise ValueError(
                f"{_KEY}.spacing is {self.spacing}; give one number above 0 per axis, in mm; or null to keep "
                "the spacing of each scan"
            )
        if not self.intensity:
            raise ValueError(f"{_KEY}.intensity is empty; give one entry, or one for each channel")
        if not self.anisotropy >= 1:
            raise ValueError(f"{_KEY}.anisotropy is {self.anisotropy}; it must be at least 1")


@dataclass(frozen=True)
class Placement:
    """Where the voxels of a prepared scan lie in the file's grid. It can be pickled, and written as JSON.

    Attributes:
        grid: of the file.
        orientation: per axis of the file, the turned axis that it became and 1, or -1 if it was flipped
            (nibabel's orientation array).
        box: first voxel and the one after the last, per axis of the turned grid: what was kept of it.
        shape: sizes of the prepared scan.
        spacing: of the prepared voxels in mm, the true one.
        coarse: the axis along which the nearest voxel was taken, or None.
    """

    grid: Grid
    orientation: tuple[tuple[int, int], ...]
    box: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    coarse: int | None = None

    @property
    def box_shape(self) -> tuple[int, ...]:
        """The sizes of the box: those of the prepared scan before it was resampled."""
        return tuple(stop - start for start, stop in self.box)

    @property
    def turned_spacing(self) -> tuple[float, ...]:
        """Millimetres between the voxels of the file, per axis of the prepared scan."""
        return _turned_spacing(self.grid, self.orientation)

    @property
    def prepared_grid(self) -> Grid:
        """The grid of the prepared scan in the world of the file."""
        from nibabel.orientations import inv_ornt_aff

        scale = [old / new for old, new in zip(self.box_shape, self.shape, strict=True)]
        to_turned = np.eye(4)  # from an index among prepared voxels to one in the turned grid
        for axis, (factor, (start, _)) in enumerate(zip(scale, self.box, strict=True)):
            to_turned[axis, axis] = factor
            to_turned[axis, 3] = start + (factor - 1) / 2
        turned = _with_three_axes(self.orientation)
        sizes = [*self.grid.shape, *[1] * (3 - len(self.grid.shape))]
        return Grid(self.shape, self.grid.affine @ inv_ornt_aff(turned, sizes) @ to_turned)

    def orders(self, order: int) -> tuple[int, ...]:
        """Return the given spline order per axis, 0 for the coarse axis."""
        return tuple(0 if axis == self.coarse else order for axis in range(len(self.shape)))

    def turn(self, voxels: np.ndarray) -> np.ndarray:
        """Turn an array on the file's grid and cut it to the box.

        Args:
            voxels: ``[*S0]``, or ``[C, *S0]`` with a further axis in front.

        Returns:
            ``[*T]`` or ``[C, *T]``, a view: what is written into it is written into ``voxels``.
        """
        inside: list[Any] = [slice(*side) for side in self.box]
        return _turned(voxels, self.orientation)[(..., *inside)]

    def to_json(self) -> dict[str, Any]:
        """Return only numbers and lists, for ``from_json``."""
        return {
            "grid": {"shape": list(self.grid.shape), "affine": np.asarray(self.grid.affine).tolist()},
            "orientation": [list(pair) for pair in self.orientation],
            "box": [list(side) for side in self.box],
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "coarse": self.coarse,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Placement:
        """Rebuild what ``to_json`` returned, exactly.

        Raises:
            KeyError: if a part is missing.
        """
        grid = content["grid"]
        return cls(
            Grid(tuple(grid["shape"]), np.array(grid["affine"], dtype=np.float64)),
            tuple((axis, flip) for axis, flip in content["orientation"]),
            tuple((start, stop) for start, stop in content["box"]),
            tuple(content["shape"]),
            tuple(content["spacing"]),
            content["coarse"],
        )


@dataclass
class Prepared:
    """A prepared scan.

    Attributes:
        image: ``[C, *S]`` float32.
        mask: ``[*S]`` uint8 labels, 255 is ignored; None without labels.
        placement: where it lies in the file's grid.
    """

    image: np.ndarray
    mask: np.ndarray | None
    placement: Placement


def prepare_case(case: Case, how: Preparation, classes: Sequence[LabelClass], ignore_id: int) -> Prepared:
    """Read the files of a case and prepare them.

    Raises:
        ValueError: (or a subclass) naming the file, if one cannot be read, holds ids that are no class, if
            the grids of labels and scan differ, or if the preparation does not fit.
    """
    scan = read_scans(case.images)
    labels = None
    if case.label is not None:
        ids, grid = read_labels(case.label)
        if different := difference(scan.grid, grid):
            raise CasesError(
                f"{case.label}: lies on another grid than {case.images[0]}: {different}; bring the labels to "
                "the scan's grid"
            )
        labels = to_labels(ids, classes, ignore_id, case.label)
    return prepare(scan, how, labels, case.name)


def prepare(
    scan: Scan, how: Preparation, labels: np.ndarray | None = None, name: str = "the scan"
) -> Prepared:
    """Turn, crop, normalise and resample a scan, and its labels with it.

    Voxels are resampled by cubic splines, and labels by the largest share (see ``resample_labels``); along a
    coarse axis both by the nearest voxel. Labels take no part in the choice of the crop. A scan without any
    voxel other than 0 is not cropped, with a warning.

    Args:
        scan: the scan; it is not changed.
        how: what to do.
        labels: ``[*S0]`` uint8 on the scan's grid, 255 is ignored.
        name: of the scan, for messages.

    Raises:
        ValueError: if the preparation does not fit the scan: another number of axes or channels, or
            a spacing that makes it huge; or if the labels have another shape.
    """
    placement = place(scan, how, name)
    if labels is not None and labels.shape != tuple(scan.grid.shape):
        raise ValueError(f"{name}: shape {scan.grid.shape}, but that of its labels is {labels.shape}")
    image = np.array(placement.turn(scan.voxels), dtype=np.float32, order="C")  # [C, *S0] -> [C, *T], a copy
    apply_intensities(image, how.intensity)
    image = resample(image, placement.shape, placement.orders(3))
    mask = None
    if labels is not None:
        turned = np.ascontiguousarray(placement.turn(labels))
        mask = resample_labels(turned, placement.shape, placement.orders(1))
        mask = mask.copy() if np.shares_memory(mask, labels) else mask
    return Prepared(image, mask, placement)


def place(scan: Scan, how: Preparation, name: str = "the scan") -> Placement:
    """Work out where the prepared scan will lie.

    Raises:
        ValueError: as ``prepare``, except those about labels.
    """
    axes = len(scan.grid.shape)
    if how.spacing is not None and len(how.spacing) != axes:
        raise ValueError(
            f"{name}: has {axes} axes, but {_KEY}.spacing is {how.spacing}; give one number per axis"
        )
    if len(how.intensity) not in (1, len(scan.voxels)):
        raise ValueError(
            f"{name}: has {len(scan.voxels)} channels, but {_KEY}.intensity has {len(how.intensity)} "
            "entries; give one entry for all channels, or one for each"
        )
    orientation = _orientation(scan.grid, how.orientation)
    turned = _turned(scan.voxels, orientation)
    box = tuple((0, length) for length in turned.shape[1:])
    if how.crop:
        box = _nonzero_box(turned, box, name)
    lengths = tuple(stop - start for start, stop in box)
    old = _turned_spacing(scan.grid, orientation)
    shape, coarse = lengths, None
    if how.spacing is not None:
        shape = resampled_lengths(lengths, old, how.spacing)
        coarse = coarse_axis(old, how.spacing, how.anisotropy)
    if math.prod(shape) * len(scan.voxels) > _MOST_VALUES:
        raise ValueError(
            f"{name}: would have the shape {shape} with {_KEY}.spacing {how.spacing} mm (its own is "
            f"{[round(number, 4) for number in old]} mm); choose a larger spacing, or "
            "correct the unit of its header (mm, micron, m)"
        )
    spacing = tuple(was * length / new for was, length, new in zip(old, lengths, shape, strict=True))
    return Placement(scan.grid, orientation, box, shape, spacing, coarse)


def _is_orientation(codes: str) -> bool:
    return len(codes) == 3 and all(sum(code in pair for code in codes) == 1 for pair in _OPPOSITES)


def _orientation(grid: Grid, codes: str | None) -> tuple[tuple[int, int], ...]:
    axes = len(grid.shape)
    if codes is None or axes == 2:
        return tuple((axis, 1) for axis in range(axes))
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    found = ornt_transform(io_orientation(grid.affine), axcodes2ornt(codes))
    return tuple((int(axis), int(flip)) for axis, flip in found)


def _with_three_axes(orientation: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array([*orientation, *[(axis, 1) for axis in range(len(orientation), 3)]])


def _turned(voxels: np.ndarray, orientation: Sequence[tuple[int, int]]) -> np.ndarray:
    """Apply an orientation to the last axes of an array; returns a view."""
    front = voxels.ndim - len(orientation)
    order = [*range(front), *[front + int(axis) for axis in np.argsort([axis for axis, _ in orientation])]]
    flips: tuple[Any, ...] = tuple(slice(None, None, flip) for _, flip in orientation)
    return voxels[(..., *flips)].transpose(order)


def _turned_spacing(grid: Grid, orientation: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    turned = dict(zip([axis for axis, _ in orientation], grid.spacing, strict=True))
    return tuple(float(turned[axis]) for axis in range(len(orientation)))


def _nonzero_box(
    voxels: np.ndarray, whole: tuple[tuple[int, int], ...], name: str
) -> tuple[tuple[int, int], ...]:
    """Return the smallest box with all voxels that are not 0 in some channel; the whole without any."""
    other = voxels[0] != 0  # [*T]
    for channel in voxels[1:]:
        other |= channel != 0
    box = []
    for axis in range(other.ndim):
        found = np.flatnonzero(other.any(axis=tuple(a for a in range(other.ndim) if a != axis)))
        if not len(found):
            logger.warning("%s: all voxels are 0; it is not cropped", name)
            return whole
        box.append((int(found[0]), int(found[-1]) + 1))
    return tuple(box)
