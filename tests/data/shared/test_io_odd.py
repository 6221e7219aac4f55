"""Files that are named like images and masks, and are something else."""

import os

import numpy as np
import pytest
from PIL import Image

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
