"""Images that do not have 8 bits: how their values become bytes."""

import cv2
import numpy as np
import pytest
from PIL import Image
from tiff_files import write_tiff

from trunkline.data.shared.io import ImageError, image_size, read_image, read_mask

GREY = (np.arange(48).reshape(6, 8) * 80).astype(np.uint16)  # 0 to 3760, as of 12 bits
COLOURS = np.stack([GREY, GREY // 2, GREY * 17], axis=2)


def mapped(values, low, high):
    """The slow loop: 0 at low, 255 at high, to the nearest."""
    flat = [min(max(round((float(v) - low) / (high - low) * 255), 0), 255) for v in values.reshape(-1)]
    return np.array(flat).reshape(values.shape)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_range_is_mapped_linearly_and_clipped(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    for low, high in ((0, 4095), (100, 900), (-50, 70000), (0.5, 65535)):
        pixels = read_image(tmp_path / f"a.{suffix}", pixel_range=(low, high))
        assert (pixels == mapped(GREY, low, high)[:, :, None]).all() and pixels.shape == (6, 8, 3)


def test_the_full_range_is_divided_by_256_as_without_a_range(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(every).save(tmp_path / "a.png")
    expected = (every >> 8).astype(np.uint8)[:, :, None]
    for chosen in (None, (0, 65535), [0.0, 65535.0], "own"):
        assert (read_image(tmp_path / "a.png", pixel_range=chosen) == expected).all()


def test_images_of_8_bits_stay_as_they_are(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for name, pixels in (("a.png", picture), ("b.tif", picture), ("c.png", picture[:, :, 0])):
        Image.fromarray(pixels).save(tmp_path / name)
        assert (read_image(tmp_path / name, pixel_range=(0, 4095)) == read_image(tmp_path / name)).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_16_bits_keep_their_depth(tmp_path, suffix, alpha):
    written = np.dstack([COLOURS, GREY + 7]) if alpha else COLOURS
    order = [2, 1, 0, 3] if alpha else [2, 1, 0]
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), written[:, :, order])
    assert (read_image(path, pixel_range=(0, 4095)) == mapped(COLOURS, 0, 4095)).all()
    assert (read_image(path) == COLOURS >> 8).all()
    content = path.read_bytes()
    assert (read_image("in.zip/a", content, pixel_range=(0, 4095)) == mapped(COLOURS, 0, 4095)).all()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (GREY.astype(np.int16) - 1024, 2),
        (GREY.astype(np.int32) * 1000 - 5, 2),
        (GREY.astype(np.uint32) * 1_000_000, 1),  # beyond 2**31, which Pillow makes negative
        ((GREY // 20).astype(np.int8) - 90, 2),  # Pillow reads these as 0 to 255
        (GREY.astype(np.float32) / 4000, 3),
    ],
)
def test_signed_and_wide_values(tmp_path, values, kind):
    write_tiff(tmp_path / "a.tif", values, kind)
    low, high = float(values.min()), float(values.max())
    for chosen in ((low, high), "own"):
        assert (
            read_image(tmp_path / "a.tif", pixel_range=chosen)[:, :, 0] == mapped(values, low, high)
        ).all()
    assert image_size(tmp_path / "a.tif") == (6, 8)


def test_pgm_of_12_bits_is_stretched_by_its_own_header(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 8 6 4095\n" + GREY.astype(">u2").tobytes())
    expected = np.round(GREY / 4095 * 65535).astype(int) >> 8
    found = read_image(tmp_path / "a.pgm")[:, :, 0].astype(int)
    assert abs(found - expected).max() <= 1 and found.max() > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).save(tmp_path / "deep.png", exif=exif)
    flat = mapped(GREY, 0, 4095).astype(np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png", exif=exif)
    pixels = read_image(tmp_path / "deep.png", pixel_range=(0, 4095))
    assert np.array_equal(pixels, read_image(tmp_path / "flat.png"))
    assert image_size(tmp_path / "deep.png") == pixels.shape[:2]


def test_floating_point_images_need_a_range(tmp_path):
    Image.fromarray(GREY / np.float32(4000)).save(tmp_path / "a.tif")
    with pytest.raises(
        ImageError, match=r"unknown range; give the values of black and white in data\.pixel_"
    ):
        read_image(tmp_path / "a.tif")
    values = np.array([[np.nan, -np.inf, 0.5, np.inf]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "b.tif")
    assert read_image(tmp_path / "b.tif", pixel_range=(0, 1))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_masks_of_deep_colours_are_refused_unless_they_are_those_of_bytes(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), COLOURS)
    with pytest.raises(ImageError, match="has colours of 16 bits"):
        read_mask(tmp_path / "a.png")
    small = (np.arange(48).reshape(6, 8) * 5).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "b.png"), np.dstack([small] * 3) * 257)
    assert (read_mask(tmp_path / "b.png") == small[:, :, None]).all()


@pytest.mark.parametrize(
    ("values", "kind", "match"),
    [
        (GREY.astype(np.int16) - 2, 2, "values from -2 to 3758; a mask has 0 to 65535"),
        (GREY.astype(np.uint32) + 2**31, 1, "a mask has 0 to 65535"),
        (GREY.astype(np.float32), 3, "pixels of mode F"),
        (np.zeros((6, 8, 2), np.uint8), 1, "has 1 band beside grey or colours"),
        (np.zeros((6, 8, 5), np.uint8), 1, "has 2 bands beside grey or colours"),
        ((GREY // 20).astype(np.int8) - 90, 2, "values from -90; a mask has no negative"),
    ],
)
def test_masks_of_other_types_are_refused(tmp_path, values, kind, match):
    write_tiff(tmp_path / "a.tif", values, kind)
    with pytest.raises(ImageError, match=match):
        read_mask(tmp_path / "a.tif")


def test_masks_of_16_bits_with_a_sign_keep_small_values(tmp_path):
    write_tiff(tmp_path / "a.tif", GREY.astype(np.int16), 2)
    assert (read_mask(tmp_path / "a.tif") == GREY).all()
