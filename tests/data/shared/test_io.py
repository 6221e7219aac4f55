"""Decoding: every pixel format and orientation becomes upright 8-bit RGB, or an error that names the file."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from trunkline.data.shared.io import ImageError, image_size, read_image, resize, stored_size


@pytest.fixture
def picture():
    """A smooth 6 x 10 picture in which every corner differs."""
    ys, xs = np.mgrid[:6, :10]
    return np.stack([xs * 25, ys * 45, 200 - xs * 10 - ys * 10], axis=2).astype(np.uint8)


# Where the pixels of the upright picture are stored, by EXIF orientation (the standard's figure, in words).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],  # mirrored left to right
    3: lambda upright: upright[::-1, ::-1],  # upside down
    4: lambda upright: upright[::-1],  # mirrored top to bottom
    5: lambda upright: upright.transpose(1, 0, 2),  # rows are columns
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],  # row 0 is the right side
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],  # row 0 is the left side, from the bottom
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation_is_undone(tmp_path, picture, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](picture)))
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(path), picture)
    assert image_size(path) == (6, 10)
    assert stored_size(path) == (((10, 6), True) if orientation >= 5 else ((6, 10), False))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpeg_agrees_with_pillow(tmp_path, orientation):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    assert np.array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert image_size(path) == read_image(path).shape[:2]


def test_png_orientation_behind_the_pixels_is_seen_in_the_size_too(tmp_path, picture):
    path = tmp_path / "late.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    end = rest.index(b"IEND") - 4
    path.write_bytes(rest[:end] + chunk + rest[end:])
    assert image_size(path) == (10, 6) == read_image(path).shape[:2]


def smooth_jpeg(path, height, width, orientation=1):
    """A picture without detail, which survives any way of shrinking; stored as EXIF says."""
    ys, xs = np.mgrid[:height, :width] / (height, width)[0]
    upright = np.stack([xs * 90, ys * 200, 220 - xs * 60 - ys * 60], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, quality=95)


@pytest.mark.parametrize(
    ("enough", "size"),
    [
        ((160, 240), (160, 240)),
        ((81, 120), (160, 240)),
        ((80, 121), (160, 240)),
        ((80, 120), (80, 120)),
        ((41, 60), (80, 120)),
        ((40, 60), (40, 60)),
        ((20, 30), (20, 30)),
        ((5, 5), (20, 30)),
        ((300, 500), (160, 240)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_jpeg_is_decoded_no_smaller_than_needed(tmp_path, enough, size, orientation):
    path = tmp_path / "large.jpg"
    smooth_jpeg(path, 160, 240, orientation)
    small, full = read_image(path, enough=enough), read_image(path)
    assert small.shape == (*size, 3) and full.shape == (160, 240, 3)
    assert np.abs(small.astype(int) - resize(full, size).astype(int)).max() <= 4
    assert small.flags.writeable and np.array_equal(read_image(path, path.read_bytes(), enough), small)


def test_sizes_of_reduced_jpegs_are_rounded_up_and_other_formats_stay(tmp_path, picture):
    smooth_jpeg(tmp_path / "odd.jpg", 51, 71)
    assert read_image(tmp_path / "odd.jpg", enough=(20, 20)).shape == (26, 36, 3)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    assert np.array_equal(read_image(tmp_path / "picture.png", enough=(1, 1)), picture)


def test_grey_is_repeated(tmp_path):
    grey = np.array([[0, 90, 255]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[0] * 3, [90] * 3, [255] * 3]]


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("transparency", [None, 1])
def test_palette_becomes_its_colours(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "palette.png", **({} if transparency is None else {"transparency": transparency}))
    assert read_image(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_the_colour_beneath_kept(tmp_path, mode):
    pixels = {"RGBA": [[[10, 20, 30, 0], [40, 50, 60, 255]]], "LA": [[[10, 0], [40, 255]]]}[mode]
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(tmp_path / "alpha.png")
    expected = {"RGBA": [[[10, 20, 30], [40, 50, 60]]], "LA": [[[10] * 3, [40] * 3]]}[mode]
    assert read_image(tmp_path / "alpha.png").tolist() == expected


def test_cmyk_follows_the_ink_formula(tmp_path):
    # R = 255 * (1 - C) * (1 - K), and so on: full cyan has no red; half black halves all.
    pixels = np.array([[[255, 0, 0, 0], [0, 0, 0, 127], [0, 0, 0, 0]]], dtype=np.uint8)
    Image.fromarray(pixels, mode="CMYK").save(tmp_path / "inks.tif")
    red, half, white = read_image(tmp_path / "inks.tif")[0].tolist()
    assert red == [0, 255, 255] and white == [255] * 3
    assert all(abs(value - 128) <= 1 for value in half)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_divided_by_256(tmp_path, suffix):
    grey = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"deep.{suffix}")
    assert read_image(tmp_path / f"deep.{suffix}")[0, :, 0].tolist() == [0, 0, 1, 127, 255]


def test_thirty_two_bit_grey_is_cut_to_sixteen(tmp_path):
    Image.fromarray(np.array([[-5, 512, 70000]], dtype=np.int32)).save(tmp_path / "deep.tif")
    assert read_image(tmp_path / "deep.tif")[0, :, 1].tolist() == [0, 2, 255]


def test_result_is_writable_contiguous_bytes(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "image.png")
    pixels = read_image(tmp_path / "image.png")
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable


def damaged(kind, tmp_path, picture):
    path = tmp_path / f"{kind}.png"
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not an image at all")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "float":
        path = path.with_suffix(".tif")
        Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("missing", "check the image folder"),
        ("folder", "is a folder"),
        ("text", "convert, replace or remove"),
        ("empty", "convert, replace or remove"),
        ("truncated", "replace or remove"),
        ("float", "8 or 16 bits"),
    ],
)
def test_unusable_file_is_named_with_a_remedy(tmp_path, picture, kind, remedy):
    path = damaged(kind, tmp_path, picture)
    with pytest.raises(ImageError, match=remedy) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_header_is_enough_for_the_size(tmp_path, picture):
    path = damaged("truncated", tmp_path, picture)
    assert image_size(path) == (64, 64)
    with pytest.raises(ImageError, match="missing.png"):
        image_size(tmp_path / "missing.png")


@pytest.mark.parametrize("size", [(31, 50), (6, 9), (120, 33), (60, 71), (97, 65), (61, 41), (240, 160)])
def test_resize_is_pillows_antialiased_bilinear(size):
    image = np.random.default_rng(0).integers(0, 256, size=(60, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    actual = resize(image, size)
    assert actual.shape == (*size, 3) and actual.dtype == np.uint8
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1
    assert actual.transpose(2, 0, 1).flags.c_contiguous  # by channel


def test_enlarging_keeps_the_place_and_the_mean():
    """No shift towards a corner, and no rounding downwards, which a difference of one level could hide."""
    ramp = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)[:, :, None] * np.uint8(2)
    ramp = np.repeat(ramp, 3, axis=2)
    large = resize(ramp, (120, 180)).astype(float)
    ys, xs = np.mgrid[:120, :180]
    exact = 2 * ((ys + 0.5) / 3 - 0.5 + (xs + 0.5) / 3 - 0.5)
    inside = (slice(3, -3), slice(3, -3))
    assert abs((large[:, :, 1] - exact)[inside].mean()) < 0.26
    assert np.abs((large[:, :, 1] - exact)[inside]).max() <= 1


def test_shrinking_averages_a_checkerboard():
    board = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    small = resize(np.repeat(board[:, :, None].astype(np.uint8), 3, axis=2), (8, 8))
    assert np.abs(small.astype(int) - 127).max() <= 3  # sampling every eighth pixel would give 0 or 255


def test_resize_to_the_same_size_is_the_image_itself():
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    assert resize(image, (4, 5)) is image


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_bytes_give_what_the_file_gives(tmp_path, picture, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif)
    content = path.read_bytes()
    expected, size = read_image(path), stored_size(path)
    path.unlink()
    assert np.array_equal(read_image("in.zip/turned", content), expected)
    assert stored_size("in.zip/turned", content) == size
    for function in (read_image, stored_size):
        with pytest.raises(ImageError, match="in.zip/turned: is no image"):
            function("in.zip/turned", b"nothing")


def test_bicubic_resizing_is_pillows():
    image = np.random.default_rng(0).integers(0, 256, size=(60, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((22, 31), Image.Resampling.BICUBIC))
    assert np.abs(resize(image, (31, 22), "bicubic").astype(int) - expected.astype(int)).max() <= 1
