"""Odd DICOM series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from dicom_series import AXIAL, TILTED, lps_affine, write_slice

from trunkline.data.scans.formats.files import read_grid, read_scan, write_labels

from .case import OddFile

TOPIC = "Scans: files"
PIXELS = np.arange(30, dtype=np.int16).reshape(5, 6)


def series(folder: Path, affine: np.ndarray | None = None, **more: Any) -> Path:
    """Write four slices, 3 mm apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(4):
        write_slice(
            folder / f"IM{k}.dcm", PIXELS + k, lps_affine(AXIAL) if affine is None else affine, k, **more
        )
    return folder


def edit(file: Path, **changes: Any) -> None:
    one = pydicom.dcmread(file)
    for name, value in changes.items():
        setattr(one, name, value)
    one.save_as(file)


def write_empty_last(folder: Path) -> None:
    (series(folder / "series") / "IM3.dcm").write_bytes(b"")


def write_cut_last(folder: Path) -> None:
    last = series(folder / "series") / "IM3.dcm"
    last.write_bytes(last.read_bytes()[:400])


def write_deep(folder: Path) -> None:
    series(folder / "case" / "study" / "series")


def write_without_preamble(folder: Path) -> None:
    for file in series(folder / "series").iterdir():
        file.write_bytes(file.read_bytes()[132:])


def read_without_preamble(folder: Path) -> None:
    assert (read_scan(folder / "series").voxels[0, :, :, 2].T == PIXELS + 2).all()


def write_inverted(folder: Path) -> None:
    """MONOCHROME1, compressed as JPEG by GDCM."""
    for k, file in enumerate(
        sorted(series(folder / "series", PhotometricInterpretation="MONOCHROME1").iterdir())
    ):
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(folder / "packed.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray((PIXELS + k)[None]))
        packed, one = pydicom.dcmread(folder / "packed.dcm"), pydicom.dcmread(file)
        one.PixelData, one["PixelData"].VR = packed.PixelData, "OB"
        one.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        one.save_as(file)
        (folder / "packed.dcm").unlink()


def write_tilted(folder: Path) -> None:
    affine = lps_affine(TILTED)
    for k, file in enumerate(sorted(series(folder / "series", affine).iterdir())):
        edit(file, ImagePositionPatient=[round(float(x), 2) for x in affine[:3, 3] + k * affine[:3, 2]])


def read_tilted(folder: Path) -> None:
    write_labels(folder / "labels.nii.gz", np.ones((6, 5, 4), np.uint8), folder / "series")
    assert sitk.ReadImage(str(folder / "labels.nii.gz")).GetSize() == (6, 5, 4)
    assert np.allclose(nibabel.load(folder / "labels.nii.gz").affine, read_grid(folder / "series")[0].affine)


def write_large_slice(folder: Path) -> None:
    series(folder / "series", Rows=60000, Columns=60000)


def write_spacing(folder: Path) -> None:
    series(folder / "series", SpacingBetweenSlices=5.0)


def write_report(folder: Path) -> None:
    series(folder / "series")
    report = pydicom.dcmread(folder / "series" / "IM0.dcm")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.save_as(folder / "series" / "report.dcm")


ODD_FILES = [
    OddFile(
        "dicom_empty_last_slice",
        TOPIC,
        "A DICOM series whose last file is empty",
        write_empty_last,
        lambda folder: read_grid(folder / "series"),
        "A copy was interrupted. No gap between slices would tell of it.",
        "Copy the series again. If the file is no slice, remove it.",
    ),
    OddFile(
        "dicom_cut_last_slice",
        TOPIC,
        "A DICOM series whose last file is cut off within its header",
        write_cut_last,
        lambda folder: read_grid(folder / "series"),
        "A copy was interrupted. What is left looks like a file without an image, such as a report.",
        "Copy the series again.",
    ),
    OddFile(
        "dicom_in_deeper_folders",
        TOPIC,
        "A folder whose DICOM files lie deeper",
        write_deep,
        lambda folder: read_grid(folder / "case"),
        "A scan is a folder with the files of one series in it.",
        "Name the folder of the series, or move it up.",
    ),
    OddFile(
        "dicom_files_left_out",
        TOPIC,
        "A DICOM report among the slices",
        write_report,
        lambda folder: read_grid(folder / "series"),
        "The scan is read. Files without an image are left out, and named once.",
        "Nothing, if these are no slices.",
    ),
    OddFile(
        "dicom_without_preamble",
        TOPIC,
        "DICOM files without the preamble (`DICM`)",
        write_without_preamble,
        read_without_preamble,
        "They are known by their first element and read like others.",
    ),
    OddFile(
        "dicom_monochrome1",
        TOPIC,
        "Compressed DICOM slices that viewers show inverted (MONOCHROME1)",
        write_inverted,
        read_without_preamble,
        "The values are read as they are stored, whichever way they are compressed.",
    ),
    OddFile(
        "dicom_tilted_gantry",
        TOPIC,
        "A tilted DICOM series with rounded positions",
        write_tilted,
        read_tilted,
        "Labels are written with the sheared sform and the nearest qform, so that ITK opens them too.",
    ),
    OddFile(
        "dicom_claims_too_much",
        TOPIC,
        "A DICOM header that tells of more pixels than the file holds",
        write_large_slice,
        lambda folder: read_grid(folder / "series"),
        "The copy was interrupted, or the header is damaged. No memory is taken for it.",
        "Copy the series again, or export it again.",
    ),
    OddFile(
        "dicom_spacing_contradicts_positions",
        TOPIC,
        "A DICOM series whose spacing contradicts the positions",
        write_spacing,
        lambda folder: read_grid(folder / "series"),
        "The positions of the slices are taken, as the standard says.",
        "Nothing, if the positions are right.",
    ),
]
