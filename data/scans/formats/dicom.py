"""DICOM series: folders with one file per slice.

pydicom reads headers, which are checked here; pixels are decoded by pydicom, or by SimpleITK (GDCM) where
they are compressed as JPEG. Slices are ordered by where they lie, never by file name or number. The affine
follows "Image Plane Module", DICOM PS3.3 C.7.6.2, with the step from slice to slice taken from the positions
themselves, so that a tilted gantry gives a sheared affine.

Letters in shapes: i columns, j rows and k slices, the axes of a scan.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .itk import LPS_TO_RAS
from .scan import PathLike, ScanError, Stored, decoding, is_dicom, make_grid

_TAGS: tuple[str, ...] = ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
_TAGS += ("ImagePositionPatient", "BitsAllocated", "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames")
_TAGS += ("SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "SOPClassUID")
_TAGS += ("ModalityLUTSequence", "SharedFunctionalGroupsSequence")
_NEEDED = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
_TURNED = 1e-3  # difference of direction cosines that counts as another orientation
_SAME_PLACE = 1e-3  # mm
# Scanners round positions to 0.01 mm or so; a slice that is missing is off by a whole gap.
_UNEVEN, _UNEVEN_MM = 0.05, 0.02  # share of the usual gap, and mm


@dataclass
class _Slice:
    """One file of a series: its header, its place (LPS, mm), and how far along the stack that is."""

    path: Path
    header: Any
    position: np.ndarray  # [3]
    along: float = 0.0


def read_dicom(path: PathLike, header_only: bool = False) -> Stored:
    """Read the series in a folder, rescaled slice by slice.

    Files without pixels (a DICOMDIR, reports) and files that are no DICOM are skipped.

    Args:
        path: the folder.
        header_only: leave out the voxels; the series is still checked.

    Raises:
        ScanError: if there is no slice or more than one series; slices differ in size, spacing or
            orientation, lie in one place, or are missing; or a file has several frames or colours.
    """
    folder = Path(path)
    slices = _read_headers(folder)
    _check_alike(folder, slices)
    slices, step = _stack(folder, slices)
    first = slices[0].header
    across, down = _directions(first)
    between_rows, between_columns = (float(value) for value in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * between_columns, down * between_rows
    affine[:3, 2], affine[:3, 3] = step, slices[0].position
    shape = (int(first.Columns), int(first.Rows), len(slices))
    dtype = np.result_type(*(_pixel_type(one) for one in slices))
    stored = Stored(make_grid(folder, shape, LPS_TO_RAS @ affine), 1, dtype)
    if not header_only:
        stored.values = np.empty((1, *shape), dtype=np.float32)
        for k, one in enumerate(slices):
            stored.values[0, :, :, k] = _pixels(one).T  # [j, i] -> [i, j]
    return stored


def _read_headers(folder: Path) -> list[_Slice]:
    import pydicom

    slices = []
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.upper() == "DICOMDIR":
            continue
        with decoding(file):
            if not is_dicom(file):
                file.open("rb").close()  # one that may not be read is an error, not skipped
                continue
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
            if "Rows" in header or "NumberOfFrames" in header:
                _check_header(file, header)
                slices.append(_Slice(file, header, np.array(header.ImagePositionPatient, dtype=np.float64)))
    if not slices:
        raise ScanError(
            f"{folder}: is a folder without DICOM slices; name the folder that holds the files of one series "
            "(sub-folders are not searched)"
        )
    return slices


def _check_header(file: Path, header: Any) -> None:
    if int(header.get("NumberOfFrames") or 1) > 1 or "SharedFunctionalGroupsSequence" in header:
        raise ScanError(
            f"{file}: holds several frames (enhanced DICOM); convert the series to NIfTI, for example by "
            "dcm2niix"
        )
    if missing := [name for name in _NEEDED if header.get(name) is None]:
        raise ScanError(
            f"{file}: has no {', '.join(missing)}, so its place in the world is not known; remove the file "
            "if it is no slice of the scan, or export the series again"
        )
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise ScanError(f"{file}: is in colours; a scan is grey (screenshots do not belong to the series)")
    if "ModalityLUTSequence" in header:
        raise ScanError(f"{file}: its values are looked up in a table (Modality LUT); convert it by dcm2niix")
    numbers = [*header.PixelSpacing, *header.ImageOrientationPatient, *header.ImagePositionPatient]
    if len(numbers) != 11 or not np.isfinite(np.array(numbers, dtype=np.float64)).all():
        raise ScanError(
            f"{file}: spacing, orientation and position are not 2, 6 and 3 finite numbers; repair it"
        )


def _directions(header: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row and along a column (LPS)."""
    across, down = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    return across / (lengths[0] or 1), down / (lengths[1] or 1)


def _check_alike(folder: Path, slices: list[_Slice]) -> None:
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
        return f"pixel spacing ({_listed(a.PixelSpacing)} and {_listed(b.PixelSpacing)} mm)"
    if max(np.abs(x - y).max() for x, y in zip(_directions(a), _directions(b), strict=True)) > _TURNED:
        return f"orientation ({_listed(a.ImageOrientationPatient)} and {_listed(b.ImageOrientationPatient)})"
    return None


def _listed(numbers: Any) -> str:
    return " ".join(f"{float(number):g}" for number in numbers)


def _stack(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], np.ndarray]:
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
    for k, one in enumerate(slices):
        off = float(np.linalg.norm(slices[0].position + k * step - one.position))
        if off > max(_UNEVEN * usual, _UNEVEN_MM):
            raise ScanError(
                f"{folder}: {one.path.name} lies {off:.3g} mm off the line of even slices from "
                f"{slices[0].path.name} to {slices[-1].path.name}; resample the series to a regular stack"
            )
    return slices, step


def _check_gaps(folder: Path, slices: list[_Slice], gaps: np.ndarray, usual: float) -> None:
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


def _thickness(one: _Slice) -> float:
    """Millimetres that a single slice stands for."""
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = one.header.get(name)
        if value is not None and float(value) > 0:
            return float(value)
    raise ScanError(
        f"{one.path}: is the only slice and has neither SpacingBetweenSlices nor SliceThickness, so its "
        "thickness is not known; copy the whole series, or set SliceThickness"
    )


def _pixel_type(one: _Slice) -> np.dtype:
    bits = int(one.header.get("BitsAllocated") or 16)
    if bits not in (8, 16, 32, 64):
        raise ScanError(f"{one.path}: pixels have {bits} bits; convert the series to NIfTI by dcm2niix")
    return np.dtype(f"{'i' if one.header.get('PixelRepresentation') else 'u'}{bits // 8}")


def _pixels(one: _Slice) -> np.ndarray:
    """``[j, i]`` values in the units of the series (Hounsfield units of CT)."""
    import pydicom

    with decoding(one.path):
        dataset = pydicom.dcmread(one.path)
        if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ScanError(f"{one.path}: the slice has no pixels; copy or export it again")
        syntax = dataset.file_meta.TransferSyntaxUID
        jpeg = (
            syntax.is_encapsulated and syntax != pydicom.uid.RLELossless
        )  # RLE is decoded by pydicom itself
        raw = _decompress(one.path, dataset) if jpeg else dataset.pixel_array
        if raw.shape != (one.header.Rows, one.header.Columns):
            raise ScanError(f"{one.path}: pixels of shape {list(raw.shape)} are not what the header says")
        slope, intercept = one.header.get("RescaleSlope"), one.header.get("RescaleIntercept")
        scale = 1.0 if slope is None else float(slope)
        return raw.astype(np.float64) * scale + (0.0 if intercept is None else float(intercept))


def _decompress(path: Path, dataset: Any) -> np.ndarray:
    """``[j, i]`` values as stored, by GDCM. It would rescale some kinds of images and not others, so the
    rescaling is taken out of the header first."""
    import SimpleITK as sitk

    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in dataset:
            delattr(dataset, name)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "slice.dcm")
        dataset.save_as(file)
        try:
            return sitk.GetArrayFromImage(sitk.ReadImage(file))[0]  # [1, j, i] -> [j, i]
        except RuntimeError as error:
            name = dataset.file_meta.TransferSyntaxUID.name
            raise ScanError(
                f"{path}: the pixels ({name}) are damaged or of a kind that GDCM cannot decode; copy the "
                "file again, or decompress the series, for example by dcm2niix"
            ) from error
