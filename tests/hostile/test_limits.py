"""What small files claim or unpack to is refused by a limit, before memory is taken for it."""

import gzip
import struct
import tracemalloc
import zlib

import nibabel  # noqa: F401  # so that importing it does not count as memory of a test
import numpy as np
import pydicom  # noqa: F401
import pytest
import SimpleITK  # noqa: F401
from PIL import Image

from trunkline.data.scans.formats.dicom_size import check_unpacked, coded_size
from trunkline.data.scans.formats.files import read_scan
from trunkline.data.shared import limits
from trunkline.data.shared.io import ImageError, image_size, read_image
from trunkline.data.shared.limits import unpacked_size


@pytest.fixture(autouse=True)
def memory():
    """At the end, that no test has taken more than some MiB."""
    tracemalloc.start()
    yield
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40 << 20


def png(path, width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_pixels(tmp_path, monkeypatch):
    png(tmp_path / "a.png", 40_000, 40_000)
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match="more than 178,956,970 pixels.*TRUNKLINE_MAX_PIXELS"):
            read(tmp_path / "a.png")
    monkeypatch.setenv(limits.PIXELS, "many")
    with pytest.raises(ValueError, match="TRUNKLINE_MAX_PIXELS of the environment is 'many'"):
        limits.most_pixels()
    monkeypatch.setenv(limits.PIXELS, "2000000000")
    assert limits.most_pixels() == 2_000_000_000


def test_a_tile_of_a_tiff(tmp_path):
    tags = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 200, 325: 20}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(content.ljust(200, b"\0") + zlib.compress(bytes(1000)))
    with pytest.raises(ImageError, match="tiles of 30000 x 30000 pixels; more than 67,108,864 are not read"):
        read_image(tmp_path / "a.tif")


def test_postscript_is_not_run(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is EPS, which another program would have to run"):
        read_image(tmp_path / "a.png")


def nifti(shape, offset=352.0, after=b""):
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", head, 70, 2, 8)
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<f", head, 108, offset)
    head[344:348] = b"n+1\0"
    return bytes(head) + after


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_headers_of_nifti(tmp_path, name):
    def refused(content, message):
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        with pytest.raises(ImageError, match=message):
            read_scan(tmp_path / name)

    refused(nifti((30_000, 30_000, 30_000)), "the header tells of 30000 x 30000 x 30000 voxels")
    refused(nifti((2, 2, 2), offset=1e9), "vox_offset 1e\\+09; more than 67108864 bytes")
    if name.endswith("gz"):
        refused(nifti((2, 2, 2), after=bytes(3 << 20)), "the compressed data hold more than")


def test_voxels(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_bytes(nifti((4, 4, 4), after=bytes(64)))
    assert read_scan(tmp_path / "a.nii").voxels.size == 64
    monkeypatch.setenv(limits.VOXELS, "63")
    with pytest.raises(ImageError, match="4 x 4 x 4 voxels; more than 63 are not read.*TRUNKLINE_MAX_VOXELS"):
        read_scan(tmp_path / "a.nii")


def test_nrrd_and_metaimage(tmp_path):
    for encoding, message in (("ascii", "tells of"), ("gzip", "tells of"), ("raw", "tells of")):
        head = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 1500 1500 900\nencoding: {encoding}\n\n"
        (tmp_path / "a.nrrd").write_bytes(head.encode() + zlib.compress(bytes(1000)))
        with pytest.raises(ImageError, match=message):
            read_scan(tmp_path / "a.nrrd")
    packed = zlib.compress(bytes(4 << 20))
    head = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nCompressedData = True\n"
    head += f"CompressedDataSize = {len(packed)}\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head.encode() + packed)
    with pytest.raises(ImageError, match="compressed data hold more than"):
        read_scan(tmp_path / "a.mha")


def test_deflated_dicom(tmp_path, monkeypatch):
    uid = b"1.2.840.10008.1.2.1.99\0"
    meta = b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
    packer = zlib.compressobj(wbits=-15)
    (tmp_path / "a.dcm").write_bytes(
        bytes(128) + b"DICM" + meta + packer.compress(bytes(3 << 20)) + packer.flush()
    )
    monkeypatch.setattr("trunkline.data.scans.formats.dicom_size.MOST_UNPACKED", 1 << 20)
    with pytest.raises(ImageError, match="unpacks to more than 1,048,576 bytes"):
        check_unpacked(tmp_path / "a.dcm")


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_sizes_of_coded_pixels(tmp_path, kind):
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(tmp_path / "a", kind)
    assert coded_size((tmp_path / "a").read_bytes()) == (9, 5)
    assert coded_size(b"\xff\xd8\xff") is None and coded_size(b"") is None


def test_counting_stops_at_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(zlib.compress(bytes(50 << 20)))
    tracemalloc.reset_peak()
    with open(tmp_path / "a", "rb") as file:
        assert 1 << 20 < unpacked_size(file, 1 << 20, zlib.MAX_WBITS) <= 3 << 20
