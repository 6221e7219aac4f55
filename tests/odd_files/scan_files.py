"""Odd files of scans: NIfTI, NRRD, MetaImage and NumPy."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from trunkline.data.classification.scans import read_scan as read_scan_to_classify
from trunkline.data.scans.formats.files import is_scan, read_grid, read_labels, read_scan, write_scan
from trunkline.data.scans.formats.scan import Grid

from .case import OddFile

TOPIC = "Scans: files"
VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
NRRD = "NRRD0004\ntype: short\ndimension: 3\nendian: little\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\n"
PLACED = "space: left-posterior-superior\nspace directions: (500,0,0) (0,500,0) (0,0,500)\n"


def nifti(path: Path, values: np.ndarray = VALUES, **fields: Any) -> None:
    """Write a file whose header has been changed after it was made."""
    content = bytearray(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())
    header: Any = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def nrrd(path: Path, fields: str, data: bytes = VALUES.tobytes()) -> None:
    path.write_bytes((NRRD + fields + "\n").encode() + data)


def write_micrometres(folder: Path) -> None:
    nifti(
        folder / "scan.nii.gz",
        srow_x=[500, 0, 0, 0],
        srow_y=[0, 500, 0, 0],
        srow_z=[0, 0, 500, 0],
        xyzt_units=3,
    )
    nrrd(folder / "scan.nrrd", f'sizes: 2 3 4\n{PLACED}space units: "um" "um" "um"\n')
    header = f"{META}DistanceUnits = um\nElementSpacing = 500 500 500\nElementDataFile = LOCAL\n"
    (folder / "scan.mha").write_bytes(header.encode() + VALUES.tobytes())


def read_micrometres(folder: Path) -> None:
    for name in ("scan.nii.gz", "scan.nrrd", "scan.mha"):
        assert np.allclose(read_grid(folder / name)[0].spacing, 0.5)


def write_scaled_labels(folder: Path) -> None:
    nifti(folder / "labels.nii.gz", np.arange(0, 48, 2, dtype=np.int16).reshape(2, 3, 4), scl_slope=0.5000076)


def read_scaled_labels(folder: Path) -> None:
    assert (read_labels(folder / "labels.nii.gz")[0] == VALUES).all()


def write_swapped_names(folder: Path) -> None:
    nifti(folder / "packed.nii")
    packed = gzip.compress((folder / "packed.nii").read_bytes(), mtime=0)
    (folder / "packed.nii").write_bytes(packed)


def write_damaged_metaimage(folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype(np.int16)
    write_scan(folder / "scan.mha", values, Grid((9, 9, 9), np.eye(4)))
    content = bytearray((folder / "scan.mha").read_bytes())
    content[-3] ^= 0xFF
    (folder / "scan.mha").write_bytes(content)


def write_pipe(folder: Path) -> None:
    os.mkfifo(folder / "scan.nii.gz")


def read_pipe(folder: Path) -> None:
    assert not is_scan(folder / "scan.nii.gz")


def write_detached(folder: Path) -> None:
    nrrd(folder / "scan.nhdr", f"sizes: 2 3 4\n{PLACED}data file: scan.raw\n", b"")
    (folder / "scan.raw").write_bytes(VALUES.tobytes())


def read_detached(folder: Path) -> None:
    assert (read_scan(folder / "scan.nhdr").voxels[0] == VALUES.reshape(4, 3, 2).transpose(2, 1, 0)).all()


def write_objects(folder: Path) -> None:
    np.save(folder / "scan.npy", np.array([[[{}]]], dtype=object), allow_pickle=True)


def write_large_array(folder: Path) -> None:
    with open(folder / "scan.npy", "wb") as file:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (4000, 4000, 4000)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.write(bytes(64))


def write_unmeasured(folder: Path) -> None:
    header = f"{META}CompressedData = True\nElementDataFile = LOCAL\n"
    (folder / "scan.mha").write_bytes(header.encode() + zlib.compress(VALUES.tobytes()))


CUT = "Copy the file again, or export it again."
ODD_FILES = [
    OddFile(
        "scans_in_micrometres",
        TOPIC,
        "Scans whose lengths are in micrometres",
        write_micrometres,
        read_micrometres,
        "The units that headers name (`xyzt_units`, `space units`, `DistanceUnits`) are converted to "
        "millimetres. An unknown unit is taken as millimetres.",
    ),
    OddFile(
        "unknown_unit_of_length",
        TOPIC,
        "An NRRD file in a unit that is not known",
        lambda folder: nrrd(folder / "scan.nrrd", f'sizes: 2 3 4\n{PLACED}space units: "ell" "ell" "ell"\n'),
        lambda folder: read_grid(folder / "scan.nrrd"),
        "Distances and volumes could not be told in millimetres.",
        "Export the scan in millimetres, or edit the line of the header.",
    ),
    OddFile(
        "voxel_size_of_zero",
        TOPIC,
        "A NIfTI file with voxel sizes of 0 or less",
        lambda folder: nifti(
            folder / "scan.nii.gz", sform_code=0, qform_code=0, pixdim=[1, 1, -1, 0, 0, 0, 0, 0]
        ),
        lambda folder: read_grid(folder / "scan.nii.gz"),
        "Only the voxel sizes tell where the voxels lie in this file, and they cannot be true.",
        "Export the scan again, or write its spacing into the header.",
    ),
    OddFile(
        "labels_off_by_rounding",
        TOPIC,
        "Labels that are off by rounding (1.000015)",
        write_scaled_labels,
        read_scaled_labels,
        "Programs save labels with a slope (`scl_slope`). Values that are whole but for "
        "rounding are rounded.",
    ),
    OddFile(
        "labels_scaled_by_header",
        TOPIC,
        "Labels that a header scales to fractions",
        lambda folder: nifti(folder / "labels.nii.gz", scl_slope=0.37),
        lambda folder: read_labels(folder / "labels.nii.gz"),
        "The numbers in the file may be ids, but the header says that they are to be multiplied.",
        "Save the labels as integers. `scl_slope` must be 1 (or 0, which means none) and `scl_inter` 0.",
    ),
    OddFile(
        "labels_scaled_to_nothing",
        TOPIC,
        "Labels that a header scales to next to nothing",
        lambda folder: nifti(folder / "labels.nii.gz", scl_slope=1e-6),
        lambda folder: read_labels(folder / "labels.nii.gz"),
        "All of them would be rounded to the background.",
        "Save the labels as integers. `scl_slope` must be 1 (or 0, which means none) and `scl_inter` 0.",
    ),
    OddFile(
        "voxels_within_the_header",
        TOPIC,
        "A NIfTI header that says that the voxels begin within it",
        lambda folder: nifti(folder / "scan.nii", vox_offset=0),
        lambda folder: read_scan(folder / "scan.nii"),
        "Other programs read the bytes of the header as voxels.",
        CUT,
    ),
    OddFile(
        "compressed_metaimage_without_size",
        TOPIC,
        "Compressed voxels in an MHA file without `CompressedDataSize`",
        write_unmeasured,
        lambda folder: read_scan(folder / "scan.mha"),
        "ITK fails to unpack them, and gives whatever was in memory before.",
        "Add the line, or export the scan again.",
    ),
    OddFile(
        "gzip_data_named_nii",
        TOPIC,
        "Compressed data under the name `.nii`",
        write_swapped_names,
        lambda folder: read_scan(folder / "packed.nii"),
        "The content does not fit the name.",
        "Rename the file.",
    ),
    OddFile(
        "nifti_claims_too_much",
        TOPIC,
        "A NIfTI header that tells of more voxels than the file holds",
        lambda folder: nifti(folder / "scan.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
        lambda folder: read_grid(folder / "scan.nii"),
        "The copy was interrupted, or the header is damaged. No memory is taken for it.",
        CUT,
    ),
    OddFile(
        "nrrd_sizes_of_2000_digits",
        TOPIC,
        "An NRRD header with a size of 2,000 digits",
        lambda folder: nrrd(folder / "scan.nrrd", f"sizes: {'1' * 2000} 3 4\n"),
        lambda folder: read_grid(folder / "scan.nrrd"),
        "The header is damaged. It is refused before ITK reads it, which would end the process.",
        CUT,
    ),
    OddFile(
        "nrrd_without_space",
        TOPIC,
        "An NRRD header with directions but without a space",
        lambda folder: nrrd(
            folder / "scan.nrrd", "sizes: 2 3 4\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        ),
        lambda folder: read_grid(folder / "scan.nrrd"),
        "Nothing says whether the first number of a direction points to the left or to the right.",
        "Add the line `space: left-posterior-superior` (or `right-anterior-superior`) to the header.",
    ),
    OddFile(
        "detached_header",
        TOPIC,
        "An NRRD header with the voxels in a second file",
        write_detached,
        read_detached,
        "`.nhdr` and `.mhd` files are read with the file of voxels that they name.",
    ),
    OddFile(
        "detached_voxels_elsewhere",
        TOPIC,
        "A header that names voxels outside its folder",
        lambda folder: nrrd(folder / "scan.nhdr", "sizes: 2 3 4\ndata file: ../scan.raw\n", b""),
        lambda folder: read_grid(folder / "scan.nhdr"),
        "Files that belong together lie side by side.",
        "Move the voxels beside the header, and correct its line `data file`.",
    ),
    OddFile(
        "damaged_compressed_voxels",
        TOPIC,
        "A compressed MetaImage file with a wrong byte",
        write_damaged_metaimage,
        lambda folder: read_scan(folder / "scan.mha"),
        "The voxels do not fit their checksum. ITK returns what it could unpack, without an error.",
        CUT,
    ),
    OddFile(
        "pipe_named_like_a_scan",
        TOPIC,
        "A pipe that is named like a scan",
        write_pipe,
        read_pipe,
        "To open it would wait for ever. It is left out.",
        "Remove it.",
    ),
    OddFile(
        "array_of_python_objects",
        TOPIC,
        "A NumPy file of Python objects",
        write_objects,
        lambda folder: read_scan_to_classify(folder / "scan.npy"),
        "Such files can run code when they are opened, and are not opened.",
        "Save the scan as an array of numbers.",
    ),
    OddFile(
        "array_claims_too_much",
        TOPIC,
        "A NumPy header that tells of more numbers than the file holds",
        write_large_array,
        lambda folder: read_scan_to_classify(folder / "scan.npy"),
        "The copy was interrupted, or the header is damaged. No memory is taken for it.",
        "Save the array again.",
    ),
]
