"""Files that are named like images and masks, and are something else."""

import os

import numpy as np
import pytest
from PIL import Image
from tiff_files import write_tiff

from trunkline.data.shared.extras import tell_extras
from trunkline.data.shared.io import ImageError, image_size, read_image, read_mask

VALUES = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)


@pytest.mark.parametrize("read", [read_image, image_size, read_mask])
def test_a_pipe_named_like_an_image_is_refused_without_waiting(tmp_path, read):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=r"a\.png: is a pipe, a socket or a device, not an image file; remove or rename it$"
    ):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["tif", "gif", "png"])
def test_masks_of_several_pages_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(VALUES).save(path, save_all=True, append_images=[Image.fromarray(VALUES + 1)])
    with pytest.raises(ImageError, match="several pages"):
        read_mask(path)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "bmp"])
def test_masks_of_one_page_keep_their_values(tmp_path, suffix):
    Image.fromarray(VALUES).save(tmp_path / f"a.{suffix}")
    assert (read_mask(tmp_path / f"a.{suffix}") == VALUES).all()


def test_lossy_webp_is_refused_and_lossless_webp_read(tmp_path):
    colours = np.repeat(VALUES[:, :, None], 3, axis=2)
    Image.fromarray(colours).save(tmp_path / "lossless.webp", lossless=True)
    assert (read_mask(tmp_path / "lossless.webp") == colours).all()
    Image.fromarray(colours).save(tmp_path / "lossy.webp")
    with pytest.raises(ImageError, match="lossy WEBP"):
        read_mask(tmp_path / "lossy.webp")


def write_pages(path):
    pages = [Image.fromarray(VALUES * 100), Image.fromarray(255 - VALUES * 100)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_images_of_several_pages_are_counted_and_named_once(tmp_path, caplog, suffix):
    for name in "abc":
        write_pages(tmp_path / f"{name}.{suffix}")
    Image.fromarray(VALUES).save(tmp_path / f"d.{suffix}")
    (tmp_path / f"e.{suffix}").write_text("no image")
    Image.fromarray(VALUES).save(tmp_path / "f.jpg")
    paths = sorted(str(path) for path in tmp_path.iterdir())
    tell_extras(paths)
    (record,) = caplog.records
    assert f"3 images with several pages or frames, such as {paths[0]}: only the first" in record.getMessage()
    caplog.clear()
    tell_extras(["in.zip/" + paths[0]], lambda n: (tmp_path / f"a.{suffix}").read_bytes())
    assert "1 image with several pages" in caplog.text
    caplog.clear()
    tell_extras(paths[3:])
    assert not caplog.records


def test_bands_beside_colours_are_said(tmp_path, caplog):
    path = tmp_path / "a.tif"
    write_tiff(path, np.dstack([VALUES] * 5), 1)
    tell_extras([str(path)])
    assert f"1 image with bands beside grey or red, green and blue, such as {path}" in caplog.text
    assert (read_image(path) == VALUES[:, :, None]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK"])
def test_transparency_and_inks_are_no_further_bands(tmp_path, caplog, mode):
    Image.new(mode, (6, 4)).save(tmp_path / "a.tif")
    tell_extras([str(tmp_path / "a.tif")])
    assert not caplog.records
