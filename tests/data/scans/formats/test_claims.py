"""Headers that claim what cannot be, and files that are not what their names say: one message each."""

import gzip
import os
import zlib

import numpy as np
import pytest
from dicom_series import AXIAL, lps_affine, write_slice
from nifti_files import VALUES, nifti

from trunkline.data.scans.formats import checks
from trunkline.data.scans.formats.files import ScanError, is_scan, read_grid, read_scan, write_scan
from trunkline.data.scans.formats.itk_headers import check_header
from trunkline.data.scans.formats.scan import Grid

NRRD = "NRRD0004\ntype: {type}\ndimension: {dimension}\nsizes: {sizes}\n"
NRRD += "endian: little\nencoding: {encoding}\n{more}\n"
META = "ObjectType = Image\nNDims = {dimension}\nDimSize = {sizes}\n{more}"
META += "ElementType = {type}\nElementDataFile = {file}\n"


def nrrd(path, data=VALUES.tobytes(), **fields):
    defaults = {"type": "short", "dimension": 3, "sizes": "2 3 4", "encoding": "raw", "more": ""}
    path.write_bytes(NRRD.format(**(defaults | fields)).encode() + data)
    return path


def meta(path, data=VALUES.tobytes(), **fields):
    defaults = {"type": "MET_SHORT", "dimension": 3, "sizes": "2 3 4", "file": "LOCAL", "more": ""}
    path.write_bytes(META.format(**(defaults | fields)).encode() + data)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "30000 x 30000 x 30000 voxels of 2 bytes"),
        ({"dim": [3, -2, 3, 4, 1, 1, 1, 1]}, "the header has sizes"),
        ({"dim": [0, 2, 3, 4, 1, 1, 1, 1]}, "the header has sizes"),
        ({"dim": [3, 2, 0, 4, 1, 1, 1, 1]}, "no voxel"),
        ({"datatype": 999}, "unknown datatype 999"),
        ({"vox_offset": np.nan}, "vox_offset nan, where no voxels can begin"),
        ({"vox_offset": 0}, "vox_offset 0, where no voxels can begin"),
        ({"vox_offset": 300}, "vox_offset 300, where no voxels can begin"),
    ],
)
def test_nifti_headers(tmp_path, suffix, fields, said):
    path = nifti(tmp_path / f"a{suffix}", **fields)
    for read in (read_grid, read_scan):
        with pytest.raises(ScanError, match=f"a{suffix}: .*{said}.*again"):
            read(path)


BAD_NUMBERS = ["1" * 2000 + " 3 4", "-2 3 4", "0 3 4", "2 3", "2 3 x", "99999 99999 9999"]


@pytest.mark.parametrize("sizes", BAD_NUMBERS)
def test_sizes_of_nrrd_and_metaimage(tmp_path, sizes):
    """The check alone: ITK's own reader ends the process at some of these."""
    for path in (nrrd(tmp_path / "a.nrrd", sizes=sizes), meta(tmp_path / "a.mha", sizes=sizes)):
        with pytest.raises(ScanError, match=f"{path.name}: .*again") as caught:
            check_header(path)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dimension": "9" * 30}, "dimension cannot be"),
        ({"dimension": 0}, "dimension cannot be '0'"),
        ({"type": "block"}, "type cannot be 'block'"),
        ({"encoding": "zip"}, "encoding cannot be 'zip'"),
        (
            {"more": "space: LPS\nspace directions: (" + "1" * 3000 + ",0,0) (0,1,0) (0,0,1)\n"},
            "3022 characters",
        ),
        ({"more": "space directions: (1,0,0) (0,1,0) (0,0,1)\n"}, "no 'space' to say .* add a line"),
        ({"more": "data file: b.raw\n"}, "in b.raw, which is missing"),
        ({"more": "data file: ../b.raw\n"}, "outside the folder"),
        ({"more": "data file: /etc/hostname\n"}, "outside the folder"),
        ({"more": "data file: pipe.raw\n"}, "in pipe.raw, which is missing or no file"),
        ({"more": "data file: short.raw\n"}, "there are 9 bytes"),
        ({"data": b"123"}, "there are 3 bytes"),
        ({"encoding": "gzip", "data": b"123", "sizes": "200 300 400"}, "3 bytes of compressed data, too few"),
    ],
)
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_headers_of_nrrd(tmp_path, suffix, fields, said):
    os.mkfifo(tmp_path / "pipe.raw")
    (tmp_path / "short.raw").write_bytes(b"123456789")
    with pytest.raises(ScanError, match=f"a{suffix}: .*{said}"):
        check_header(nrrd(tmp_path / f"a{suffix}", **fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dimension": 300}, "NDims cannot be '300'"),
        ({"type": "MET_OTHER"}, "ElementType cannot be"),
        ({"more": "ElementSpacing = -1 1 1\n"}, "ElementSpacing cannot be"),
        ({"more": "ElementToIntensityFunctionSlope = 2\n"}, "ElementToIntensityFunctionSlope scales"),
        ({"file": "b.raw"}, "in b.raw, which is missing"),
        ({"file": "../b.raw"}, "outside the folder"),
        ({"data": b"123"}, "there are 3 bytes"),
        ({"more": "CompressedData = True\n", "data": b"123", "sizes": "200 300 400"}, "too few for them"),
        ({"more": "CompressedData = True\nCompressedDataSize = 9\n"}, "compressed voxels are damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_headers_of_metaimage(tmp_path, suffix, fields, said):
    with pytest.raises(ScanError, match=f"a{suffix}: .*{said}"):
        read_scan(meta(tmp_path / f"a{suffix}", **fields))


def test_detached_voxels_in_one_file_a_list_and_a_pattern(tmp_path):
    (tmp_path / "all.raw").write_bytes(VALUES.tobytes())
    for k in range(4):
        (tmp_path / f"s{k}.raw").write_bytes(VALUES.tobytes()[12 * k : 12 * k + 12])
    expected = VALUES.reshape(-1).reshape(4, 3, 2).transpose(2, 1, 0)
    names = "\n".join(f"s{k}.raw" for k in range(4))
    for file in ("all.raw", "s%d.raw 0 3 1", f"LIST\n{names}"):
        (tmp_path / "a.nhdr").write_text(
            NRRD.format(type="short", dimension=3, sizes="2 3 4", encoding="raw", more=f"data file: {file}")
        )
        np.testing.assert_array_equal(read_scan(tmp_path / "a.nhdr").voxels[0], expected)
        np.testing.assert_array_equal(read_scan(meta(tmp_path / "a.mhd", b"", file=file)).voxels[0], expected)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_damage_in_compressed_voxels_is_noticed(tmp_path, suffix):
    """ITK returns whatever it could unpack, without an error."""
    write_scan(
        tmp_path / f"a{suffix}",
        np.random.default_rng(0).integers(0, 9, (9, 9, 9)),
        Grid((9, 9, 9), np.eye(4)),
    )
    data = next(file for file in tmp_path.iterdir() if file.suffix not in (".nhdr", ".mhd"))
    whole = data.read_bytes()
    for place in (len(whole) - 200, len(whole) - 3):  # the voxels; the checksum
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        data.write_bytes(damaged)
        with pytest.raises(ScanError, match=f"a{suffix}: the compressed voxels are damaged"):
            read_scan(tmp_path / f"a{suffix}")
    data.write_bytes(whole[:-5])
    with pytest.raises(ScanError, match=f"a{suffix}: the compressed voxels are cut off"):
        read_scan(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_scans_larger_than_the_memory(tmp_path, suffix, monkeypatch):
    write_scan(tmp_path / f"a{suffix}", VALUES, Grid(VALUES.shape, np.eye(4)))
    monkeypatch.setattr(checks, "memory_size", lambda: 4 * 24)
    read_grid(tmp_path / f"a{suffix}")
    monkeypatch.setattr(checks, "memory_size", lambda: 4 * 24 - 1)
    with pytest.raises(ScanError, match=f"a{suffix}: its 2 x 3 x 4 voxels need .* GiB of memory"):
        read_grid(tmp_path / f"a{suffix}")


def test_a_slice_larger_than_its_file(tmp_path):
    write_slice(
        tmp_path / "IM0", VALUES[0], lps_affine(AXIAL), 0, SliceThickness=1, Rows=60000, Columns=60000
    )
    for read in (read_grid, read_scan):
        with pytest.raises(ScanError, match="IM0: the header tells of 60000 x 60000 voxels of 2 bytes"):
            read(tmp_path)


def test_gzip_data_and_plain_data_under_the_name_of_the_other(tmp_path):
    plain = nifti(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(plain)
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain))
    for name, said in (("b.nii.gz", r"rename it to b\.nii "), ("c.nii", r"rename it to c\.nii\.gz")):
        with pytest.raises(ScanError, match=f"{name}: .*{said}"):
            read_grid(tmp_path / name)


def test_pipes_folders_and_side_files_named_like_scans(tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "._a.nii").write_bytes(b"\0\5\x16\7" + bytes(100))
    assert not is_scan(tmp_path / "pipe.nii.gz") and not is_scan(tmp_path / "folder.nii")
    assert "pipe.nii.gz: is a pipe, socket or device, not a file; it is left out" in caplog.text
    for name, said in (
        ("pipe.nii.gz", "pipe, socket or device"),
        ("folder.nii", "without DICOM slices"),
        ("._a.nii", "macOS .*name a.nii"),
    ):
        with pytest.raises(ScanError, match=f"{name}: .*{said}"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize(
    ("more", "data", "said"),
    [
        ("", b"", "has no CompressedDataSize"),
        ("CompressedDataSize = 0\n", b"", "has no CompressedDataSize"),
        ("CompressedDataSize = {size}\nHeaderSize = 3\n", b"abc", "HeaderSize 3 is not possible"),
        ("CompressedDataSize = {size}\nHeaderSize = -1\n", b"", "HeaderSize -1 is not possible"),
    ],
)
def test_compressed_metaimage_that_itk_reads_as_whatever_is_in_memory(tmp_path, more, data, said):
    packed = zlib.compress(VALUES.tobytes(order="F"))
    more = "CompressedData = True\n" + more.format(size=len(packed))
    path = meta(tmp_path / "a.mha", data + packed, more=more)
    for read in (read_grid, read_scan):
        with pytest.raises(ScanError, match=f"a.mha: .*{said}.*again"):
            read(path)
    path = meta(
        tmp_path / "b.mha", packed, more=f"CompressedData = True\nCompressedDataSize = {len(packed)}\n"
    )
    np.testing.assert_array_equal(read_scan(path).voxels[0], VALUES)
    (tmp_path / "b.zraw").write_bytes(packed)  # of a file of its own ITK finds the size
    path = meta(tmp_path / "b.mhd", b"", more="CompressedData = True\n", file="b.zraw")
    np.testing.assert_array_equal(read_scan(path).voxels[0], VALUES)
