"""DICOM series: folders with one file per slice.

Headers are checked in dicom_files and pixels decoded in dicom_pixels. Slices are ordered by where they lie,
never by file name or number. The affine follows "Image Plane Module", DICOM PS3.3 C.7.6.2, with the step from
slice to slice taken from the positions themselves, so that a tilted gantry gives a sheared affine.

Letters in shapes: i columns, j rows and k slices, the axes of a scan.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_memory
from .dicom_files import Slice, listed, read_headers
from .dicom_pixels import check_size, pixel_type, pixels, scaling
from .itk import LPS_TO_RAS
from .scan import PathLike, ScanError, Stored, make_grid, warn_once

_TURNED = 1e-3  # difference of direction cosines that counts as another orientation
_SAME_PLACE = 1e-3  # mm
# Scanners round positions to 0.01 mm or so; a slice that is missing is off by a whole gap.
_UNEVEN, _UNEVEN_MM = 0.05, 0.02  # share of the usual gap, and mm


def read_dicom(path: PathLike, header_only: bool = False) -> Stored:
    """Read the series in a folder, rescaled slice by slice.

    Files without pixels (a DICOMDIR, reports) and files that are no DICOM are left out; a warning names them,
    except for notes and side files of systems.

    Args:
        path: the folder.
        header_only: leave out the voxels; the series is still checked.

    Raises:
        ScanError: if there is no slice or more than one series; slices differ in size, spacing or
            orientation, lie in one place, or are missing; a file has several frames or colours; or one
            that is named like the slices is empty or no DICOM.
    """
    folder = Path(path)
    slices = read_headers(folder)
    _check_alike(folder, slices)
    slices, step = _stack(folder, slices)
    first = slices[0].header
    across, down = _directions(first)
    between_rows, between_columns = (float(value) for value in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * between_columns, down * between_rows
    affine[:3, 2], affine[:3, 3] = step, slices[0].position
    shape = (int(first.Columns), int(first.Rows), len(slices))
    dtype = np.result_type(*(pixel_type(one) for one in slices))
    for one in slices:
        check_size(one)
    check_memory(folder, shape)
    stored = Stored(make_grid(folder, shape, LPS_TO_RAS @ affine), 1, dtype)
    scales = {scaling(one) for one in slices}
    if scales != {(1.0, 0.0)}:
        slope, intercept = max(scales, key=lambda scale: abs(scale[0]))
        stored.step = abs(slope)
        stored.scaled_by = f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g}"
    if not header_only:
        stored.values = np.empty((1, *shape), dtype=np.float32)
        for k, one in enumerate(slices):
            stored.values[0, :, :, k] = pixels(one).T  # [j, i] -> [i, j]
    return stored


def _directions(header: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row and along a column (LPS)."""
    across, down = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    return across / (lengths[0] or 1), down / (lengths[1] or 1)


def _check_alike(folder: Path, slices: list[Slice]) -> None:
    series = Counter(str(one.header.get("SeriesInstanceUID")) for one in slices)
    if len(series) > 1:
        listed = ", ".join(f"{uid} ({count} files)" for uid, count in series.most_common(10))
        raise ScanError(
            f"{folder}: holds {len(series)} series: {listed}; move each SeriesInstanceUID to a folder of its "
            "own"
        )
    first = slices[0]
    for one in slices[1:]:
        problem = _unlike(first.header, one.header)
        if problem:
            raise ScanError(
                f"{folder}: {first.path.name} and {one.path.name} differ in {problem}; a scan is one stack "
                "of parallel slices: remove localisers and other series from the folder"
            )


def _unlike(a: Any, b: Any) -> str | None:
    if (a.Rows, a.Columns) != (b.Rows, b.Columns):
        return f"size ({a.Rows} x {a.Columns} and {b.Rows} x {b.Columns} pixels)"
    if not np.allclose(a.PixelSpacing, b.PixelSpacing, rtol=1e-3, atol=0):
        return f"pixel spacing ({listed(a.PixelSpacing)} and {listed(b.PixelSpacing)} mm)"
    if max(np.abs(x - y).max() for x, y in zip(_directions(a), _directions(b), strict=True)) > _TURNED:
        return f"orientation ({listed(a.ImageOrientationPatient)} and {listed(b.ImageOrientationPatient)})"
    return None


def _stack(folder: Path, slices: list[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Return the slices in the order of their places, and the step ``[3]`` from one to the next (LPS, mm)."""
    normal = np.cross(*_directions(slices[0].header))
    for one in slices:
        one.along = float(one.position @ normal)
    slices = sorted(slices, key=lambda one: one.along)
    if len(slices) == 1:
        return slices, normal * _thickness(slices[0])
    gaps = np.diff([one.along for one in slices])
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    _check_gaps(folder, slices, gaps, usual)
    step = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    said = slices[0].header.get("SpacingBetweenSlices")
    if said is not None and abs(abs(float(said)) - usual) > max(_UNEVEN * usual, _UNEVEN_MM):
        warn_once(
            folder,
            f"SpacingBetweenSlices says {float(said):g} mm, but slices lie {usual:.3g} mm apart by their "
            "positions; the positions are taken",
        )
    for k, one in enumerate(slices):
        off = float(np.linalg.norm(slices[0].position + k * step - one.position))
        if off > max(_UNEVEN * usual, _UNEVEN_MM):
            raise ScanError(
                f"{folder}: {one.path.name} lies {off:.3g} mm off the line of even slices from "
                f"{slices[0].path.name} to {slices[-1].path.name}; resample the series to a regular stack"
            )
    return slices, step


def _check_gaps(folder: Path, slices: list[Slice], gaps: np.ndarray, usual: float) -> None:
    for gap, before, after in zip(gaps, slices[:-1], slices[1:], strict=True):
        if gap < _SAME_PLACE:
            raise ScanError(
                f"{folder}: {before.path.name} and {after.path.name} lie in the same place "
                f"({before.along:.3f} mm along the stack); remove copies, and give each time, echo or "
                "b-value a folder of its own"
            )
    for gap, before, after in zip(gaps, slices[:-1], slices[1:], strict=True):
        if abs(gap - usual) > max(_UNEVEN * usual, _UNEVEN_MM):
            missing = round(gap / usual) - 1
            said = f"{missing} missing" if missing > 0 else "uneven"
            raise ScanError(
                f"{folder}: slices are {usual:.3g} mm apart but {before.path.name} ({before.along:.2f} mm "
                f"along the stack) and {after.path.name} ({after.along:.2f} mm) are {gap:.3g} mm ({said}); "
                "copy the series again, or resample it to even slices"
            )


def _thickness(one: Slice) -> float:
    """Millimetres that a single slice stands for."""
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = one.header.get(name)
        if value is not None and float(value) > 0:
            return float(value)
    raise ScanError(
        f"{one.path}: is the only slice and has neither SpacingBetweenSlices nor SliceThickness, so its "
        "thickness is not known; copy the whole series, or set SliceThickness"
    )
