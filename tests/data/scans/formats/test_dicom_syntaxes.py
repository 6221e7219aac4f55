"""One image in every transfer syntax is one array, whatever its bits, sign and scaling."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import AXIAL, lps_affine, write_slice
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from trunkline.data.scans.formats.files import ScanError, read_scan

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
KINDS = [("uint8", 8), ("uint16", 12), ("uint16", 16), ("int16", 12), ("int16", 16)]
SYNTAXES = ["explicit", "implicit", "big_endian", "deflated", "rle", "jpeg", "jpeg2000_unsigned"]


def image(dtype, bits):
    low = -(2 ** (bits - 1)) if dtype == "int16" else 0
    return np.random.default_rng(0).integers(low, low + 2**bits, (11, 14)).astype(dtype)


def with_fragments(one, fragments, syntax):
    one.PixelData, one.file_meta.TransferSyntaxUID = fragments, syntax
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    return one


def compressed_by_gdcm(one, pixels, compressor, folder):
    """GDCM writes JPEG lossless; its fragments are put into the file's own header.

    It is not asked for JPEG 2000: of noise, which does not get smaller, its encoder writes beyond its memory.
    """
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(folder / "packed.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(pixels[None]))
    packed = pydicom.dcmread(folder / "packed.dcm")
    return with_fragments(one, packed.PixelData, packed.file_meta.TransferSyntaxUID)


def recode(source, target, syntax, pixels):
    """Write an uncompressed slice again in another transfer syntax."""
    one = pydicom.dcmread(source)
    if syntax == "implicit":
        one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        return one.save_as(target, implicit_vr=True, little_endian=True)
    if syntax == "big_endian":
        one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        one.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        one["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
        return pydicom.dcmwrite(target, one, implicit_vr=False, little_endian=False, force_encoding=True)
    if syntax == "deflated":
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif syntax == "rle":
        one.compress(RLELossless)
    elif syntax == "jpeg2000_unsigned":
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
        one = with_fragments(one, encapsulate([stream.getvalue()]), JPEG2000Lossless)
    elif syntax != "explicit":
        one = compressed_by_gdcm(one, pixels, syntax.upper(), target.parent.parent)
    return one.save_as(target)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("dtype", "bits"), KINDS)
def test_every_transfer_syntax_gives_the_stored_values(tmp_path, syntax, dtype, bits):
    """Also of MONOCHROME1, which tells viewers to invert and no reader, and with a padding value."""
    if syntax == "jpeg2000_unsigned" and dtype == "int16":
        pytest.skip("Pillow writes no signed JPEG 2000")
    pixels = image(dtype, bits)
    folder = tmp_path / "series"
    folder.mkdir()
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        for slope, intercept in ((1.0, 0.0), (0.5, -20.0)):
            source = tmp_path / "plain"
            more = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": photometric}
            one = write_slice(
                source, pixels, lps_affine(AXIAL), 0, slope, intercept, SliceThickness=2, **more
            )
            one.add_new("PixelPaddingValue", "SS" if dtype == "int16" else "US", int(pixels[0, 0]))
            one.save_as(source)
            recode(source, folder / "IM0", syntax, pixels)
            scan = read_scan(folder)
            np.testing.assert_array_equal(scan.voxels[0, :, :, 0].T, pixels * slope + intercept)
            assert scan.dtype == dtype


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("name", ["RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless"])
def test_a_real_slice_in_several_syntaxes(tmp_path, name, photometric):
    """pydicom's MR_small in the syntaxes that it comes in, JPEG-LS among them, against the plain one."""
    expected = pydicom.dcmread(TEST_FILES / "MR_small.dcm").pixel_array
    one = pydicom.dcmread(TEST_FILES / f"MR_small_{name}.dcm")
    one.PhotometricInterpretation = photometric
    one.save_as(tmp_path / "IM0.dcm")
    np.testing.assert_array_equal(read_scan(tmp_path).voxels[0, :, :, 0].T, expected)


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg"])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_bits_above_those_stored_are_no_part_of_the_values(tmp_path, syntax, dtype):
    """Old files keep overlays there."""
    pixels = image(dtype, 12)
    dirty = ((pixels.astype(np.int32) & 0x0FFF) | 0xA000).astype(np.uint16).view(dtype)
    folder = tmp_path / "series"
    folder.mkdir()
    more = {"BitsStored": 12, "HighBit": 11}
    write_slice(tmp_path / "plain", dirty, lps_affine(AXIAL), 0, SliceThickness=2, **more)
    recode(tmp_path / "plain", folder / "IM0", syntax, dirty)
    np.testing.assert_array_equal(read_scan(folder).voxels[0, :, :, 0].T, pixels)


def without_preamble(file, with_meta):
    content = file.read_bytes()[132:]
    if not with_meta:
        length = int.from_bytes(content[8:12], "little")  # of the meta group, after its first element
        content = content[12 + length :]
    file.write_bytes(content)


@pytest.mark.parametrize("with_meta", [True, False])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian"])
def test_files_without_preamble_are_read(tmp_path, syntax, with_meta):
    pixels = image("int16", 16)
    folder = tmp_path / "series"
    folder.mkdir()
    write_slice(tmp_path / "plain", pixels, lps_affine(AXIAL), 0, 2.0, 1.0, SliceThickness=2)
    recode(tmp_path / "plain", folder / "IM0", syntax, pixels)
    without_preamble(folder / "IM0", with_meta)
    assert b"DICM" not in (folder / "IM0").read_bytes()
    np.testing.assert_array_equal(read_scan(folder).voxels[0, :, :, 0].T, pixels * 2.0 + 1)


def test_a_deflated_slice_is_deflated(tmp_path):
    """The helper above does compress."""
    write_slice(tmp_path / "plain", np.zeros((50, 50), np.int16), lps_affine(AXIAL), 0)
    recode(tmp_path / "plain", tmp_path / "packed", "deflated", None)
    assert (tmp_path / "packed").stat().st_size < 2500


def test_a_syntax_without_decoder_is_named(tmp_path):
    """A video: GDCM does not decode it."""
    folder = tmp_path / "series"
    folder.mkdir()
    pixels = image("uint16", 16)
    write_slice(tmp_path / "plain", pixels, lps_affine(AXIAL), 0, SliceThickness=2)
    recode(tmp_path / "plain", folder / "IM0", "jpeg2000", pixels)
    one = pydicom.dcmread(folder / "IM0")
    one.file_meta.TransferSyntaxUID = MPEG2MPML
    one.save_as(folder / "IM0")
    with pytest.raises(ScanError, match=r"IM0: the pixels \(MPEG2 .*decompress the series"):
        read_scan(folder)
