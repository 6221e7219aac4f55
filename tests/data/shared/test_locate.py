"""The images in a folder: which are found, and what is said of those left out."""

import os
import socket

import numpy as np
import pytest
from PIL import Image, features

from trunkline.data.shared.io import IMAGE_SUFFIXES, read_image
from trunkline.data.shared.locate import DataNotFoundError, image_names, list_images


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_quiet_about_what_is_no_picture(tmp_path, caplog):
    fill(tmp_path, "b.JPG", "a.png", "Thumbs.db", ".DS_Store", "notes.txt", "c.json", "in/d.png")
    assert image_names(tmp_path) == ["a.png", "b.JPG"]
    assert image_names(tmp_path, inside=True) == ["a.png", "b.JPG", "in/d.png"] and not caplog.text


def test_pictures_left_out_are_counted_and_named_with_the_reason(tmp_path, caplog, monkeypatch):
    fill(tmp_path, "a.png", "b.heic", "c.HEIF", "d.psd", "e.npy", "._a.png", ".b.png", "__MACOSX/._a.png")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
        made.bind("socket.png")
    assert list_images([str(tmp_path)]) == [tmp_path / "a.png"]
    for words in (
        "left out 10 files",
        "4 of a kind that is not read; convert them to PNG or JPEG (b.heic, c.HEIF, d.psd, ...)",
        "1 whose names begin with ._, which macOS adds beside the real ones (._a.png)",
        "1 whose names begin with a dot (.b.png)",
        "1 that are folders (folder.jpg)",
        "3 that are pipes, sockets or devices (link.png, pipe.png, socket.png)",
    ):
        assert words in caplog.text
    assert len(caplog.records) == 1


def test_links_in_a_circle_end_and_links_to_nothing_stay(tmp_path):
    fill(tmp_path, "in/a.png")
    (tmp_path / "in/round").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    assert image_names(tmp_path, inside=True) == ["gone.png", "in/a.png", "self.png"]


def test_a_folder_of_other_pictures_alone_says_both(tmp_path, caplog):
    fill(tmp_path, "a.heic")
    with pytest.raises(DataNotFoundError, match=r"no image in .*looked for \.jpg"):
        list_images([str(tmp_path)])
    assert "1 of a kind that is not read" in caplog.text


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_can_be_read(tmp_path, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow comes without the decoder")
    path = tmp_path / f"a{suffix}"
    Image.new("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB", (8, 6), 1).save(path)
    assert read_image(path).shape == (6, 8, 3) and list_images([str(tmp_path)]) == [path]


def test_read_values_of_kinds_without_loss(tmp_path):
    pixels = np.arange(144, dtype=np.uint8).reshape(6, 8, 3)
    for suffix in (".tga", ".pnm"):
        Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
        assert (read_image(tmp_path / f"a{suffix}") == pixels).all()
