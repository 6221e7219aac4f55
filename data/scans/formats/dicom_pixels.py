"""Pixels of DICOM slices, the same whichever way they are compressed.

pydicom decodes what is not compressed, deflated or RLE; SimpleITK (GDCM) decodes JPEG, JPEG-LS and JPEG 2000.

Letters in shapes: i columns, j rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.bounded import BoundedFile
from .checks import DEFLATE, check_claim
from .dicom_files import Slice
from .dicom_size import check_coded_size
from .scan import ScanError, decoding

_KEYS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_RLE = 64  # values that two bytes of RLE stand for, halved (PS3.5, G.3.1)
# A flat slice may be compressed to next to nothing; this is for slices that are large as well.
_PACKED, _LARGE = 1000, 1 << 26


def pixel_type(one: Slice) -> np.dtype:
    """Return how a slice stores its pixels.

    Raises:
        ScanError: if that is no number of whole bytes.
    """
    bits = int(one.header.get("BitsAllocated") or 16)
    if bits not in (8, 16, 32, 64):
        raise ScanError(f"{one.path}: pixels have {bits} bits; convert the series to NIfTI by dcm2niix")
    return np.dtype(f"{'i' if one.header.get('PixelRepresentation') else 'u'}{bits // 8}")


def scaling(one: Slice) -> tuple[float, float]:
    """Return the slope and intercept from stored values to the units of the series."""
    slope, intercept = one.header.get("RescaleSlope"), one.header.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def check_size(one: Slice) -> None:
    """Raise ``ScanError`` if the header tells of more pixels than its file can hold."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

    meta = one.header.file_meta if "TransferSyntaxUID" in one.header.file_meta else None
    syntax = None if meta is None else meta.TransferSyntaxUID
    ratio = 1
    if syntax == DeflatedExplicitVRLittleEndian:
        ratio = DEFLATE
    elif syntax is not None and syntax.is_encapsulated:
        ratio = _RLE if syntax == RLELossless else _PACKED
    sizes, bytes_each = (int(one.header.Columns), int(one.header.Rows)), pixel_type(one).itemsize
    if ratio != _PACKED or sizes[0] * sizes[1] * bytes_each > _LARGE:
        check_claim(one.path, sizes, bytes_each, one.path.stat().st_size, ratio)


def pixels(one: Slice) -> np.ndarray:
    """``[j, i]`` values in the units of the series (Hounsfield units of CT).

    MONOCHROME1, which asks viewers to show small values bright, does not change them.
    """
    import pydicom

    with decoding(one.path):
        with BoundedFile(one.path) as file:
            dataset = pydicom.dcmread(file, force=True)  # see dicom_files
        if not any(name in dataset for name in _KEYS):
            raise ScanError(f"{one.path}: the slice has no pixels; copy or export it again")
        _complete_meta(dataset)
        syntax = dataset.file_meta.TransferSyntaxUID
        jpeg = (
            syntax.is_encapsulated and syntax != pydicom.uid.RLELossless
        )  # RLE is decoded by pydicom itself
        raw = _decompress(one.path, dataset) if jpeg else dataset.pixel_array
        if raw.shape != (one.header.Rows, one.header.Columns):
            raise ScanError(f"{one.path}: pixels of shape {list(raw.shape)} are not what the header says")
        slope, intercept = scaling(one)
        return _stored_bits(raw, dataset).astype(np.float64) * slope + intercept


def _complete_meta(dataset: Any) -> None:
    """Files without preamble may lack the transfer syntax; how their elements are coded tells which it is."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" in dataset.file_meta:
        return
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _stored_bits(raw: np.ndarray, dataset: Any) -> np.ndarray:
    """Clear the bits above those stored, in which old files have overlays; the sign goes on through them."""
    stored = int(dataset.get("BitsStored") or 0)
    unused = 8 * raw.dtype.itemsize - stored
    if raw.dtype.kind not in "iu" or stored < 1 or unused < 1:
        return raw
    return (raw << unused) >> unused


def _decompress(path: Path, dataset: Any) -> np.ndarray:
    """``[j, i]`` values as stored, by GDCM. It would rescale some kinds of images and not others, and invert
    MONOCHROME1, so both are taken out of the header first."""
    import SimpleITK as sitk

    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in dataset:
            delattr(dataset, name)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    check_coded_size(path, dataset)
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
