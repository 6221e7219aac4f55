"""Odd zips and folders of images with classes."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image

from trunkline.data.classification import ImageClassification
from trunkline.data.shared.locate import DataNotFoundError

from .case import OddFile

TOPIC = "Folders, names and archives"
ZIP = "train.zip"
GOOD = ("cat/a.png", "dog/b.png")


def png(number: int) -> bytes:
    target = BytesIO()
    Image.new("RGB", (8, 6), (40 * number, 90, 200)).save(target, "PNG")
    return target.getvalue()


def zipped(*names: str, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    """Write a zip of images of these names, as they are: zipfile would tidy some."""

    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / ZIP, "w", compression) as opened:
            for number, name in enumerate(names):
                entry = zipfile.ZipInfo("x")
                entry.compress_type = compression
                entry.filename = entry.orig_filename = name
                opened.writestr(entry, png(number))

    return write


def changed(offset: int, form: str, value: int) -> Callable[[Path], None]:
    """Write a zip of which the first record in the list of members has another value."""

    def write(folder: Path) -> None:
        zipped(*GOOD)(folder)
        content = bytearray((folder / ZIP).read_bytes())
        struct.pack_into(form, content, content.index(b"PK\x01\x02") + offset, value)
        (folder / ZIP).write_bytes(content)

    return write


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / ZIP).write_bytes(content) and None


def write_cut(folder: Path) -> None:
    zipped(*GOOD)(folder)
    (folder / ZIP).write_bytes((folder / ZIP).read_bytes()[:-60])


def write_nested(folder: Path) -> None:
    zipped(*GOOD)(folder)
    content = (folder / ZIP).read_bytes()
    with zipfile.ZipFile(folder / ZIP, "w") as opened:
        opened.writestr("set/images.zip", content)


def write_bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / ZIP, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("cat/a.png", bytes(1 << 22))
        opened.writestr("dog/b.png", png(1))
    content = bytearray((folder / ZIP).read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 4096)
    (folder / ZIP).write_bytes(content)


def files(*names: str) -> Callable[[Path], None]:
    """Write images below ``train``; a name that ends in ``/`` is a folder, one with ``|`` a pipe."""

    def write(folder: Path) -> None:
        for number, name in enumerate(names):
            path = folder / "train" / name.strip("|")
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir()
            elif name.endswith("|"):
                os.mkfifo(path)
            else:
                path.write_bytes(png(number))

    return write


def write_copy(folder: Path) -> None:
    files(*GOOD, "../val/cat/c.png", "../val/dog/d.png")(folder)
    (folder / "train/dog/copy.png").write_bytes((folder / "train/cat/a.png").read_bytes())


def read(folder: Path) -> ImageClassification:
    """Read what there is and look at each file, as a run does; without validation data, only the split."""
    data = ImageClassification(str(folder), size=8, workers=0)
    if not data.has_split("val"):
        index = data.read_split("train")
        for position in range(len(index)):
            index.content(position)
        return data
    data.setup("fit")
    data.prepare_data()
    return data


def read_as_unpacked(folder: Path) -> None:
    index = read(folder).read_split("train")
    assert index.class_names == ("cat", "dog") and index.labels.tolist() == [0, 1]
    if index.content(1) != png(1):
        raise AssertionError("another member")


def read_nested(folder: Path) -> None:
    try:
        read(folder)
    except DataNotFoundError as error:
        raise ValueError(str(error)) from error


def odd(name: str, oddity: str, write: Callable[[Path], None], means: str, remedy: str) -> OddFile:
    return OddFile(name, TOPIC, oddity, write, read, means, remedy)


CLAIM = "The sizes that a zip lists are checked before a member is read, and while it is unpacked."
AGAIN = "Download or make the archive again."
NO_ZIP = "The file is something else than its name says."
UNPACK = "Unpack it, or make a zip of it."
NAMES = "Members are known by their names; what unpacking would write elsewhere, or twice, is refused."
LEFT = "They are not used, whatever the reason; everything else is read."
LOOK = "Look whether something that you want is among them, and convert, rename or move it."
NO_CLASSES = "Every folder is a class, and these names mean something else."
GIVE = "Give the folder that holds one folder for each class."

ODD_FILES = [
    odd("zip_of_3_gigabytes", "A zip whose member claims 3 GiB", changed(24, "<I", 3 << 30), CLAIM, AGAIN),
    odd(
        "zip_bomb",
        "A zip whose member unpacks to a thousand times of what it claims",
        write_bomb,
        CLAIM,
        AGAIN,
    ),
    odd(
        "zip_of_more_than_it_has",
        "A zip whose member is longer than the zip",
        changed(20, "<I", 1 << 31),
        CLAIM,
        AGAIN,
    ),
    odd("zip_cut", "A zip without its end", write_cut, CLAIM, AGAIN),
    odd("zip_of_version_9", "A zip of a later version of the format", changed(6, "<H", 99), NO_ZIP, UNPACK),
    odd(
        "zip_that_is_a_page",
        "A web page named .zip",
        holding(b"<!DOCTYPE html><html></html>"),
        NO_ZIP,
        UNPACK,
    ),
    odd("zip_that_is_7z", "A 7z archive named .zip", holding(b"7z\xbc\xaf\x27\x1c\0\4"), NO_ZIP, UNPACK),
    odd("zip_that_is_gzip", "A .tar.gz named .zip", holding(b"\x1f\x8b\x08\0\0\0\0\0\0\3"), NO_ZIP, UNPACK),
    odd("zip_empty", "An empty file named .zip", holding(b""), NO_ZIP, UNPACK),
    odd(
        "zip_by_lzma", "A zip compressed by LZMA", zipped(*GOOD, compression=zipfile.ZIP_LZMA), NO_ZIP, UNPACK
    ),
    odd("zip_encrypted", "An encrypted zip", changed(8, "<H", 1), NO_ZIP, UNPACK),
    odd("zip_names_outside", "A zip with .. in a name", zipped(*GOOD, "../c.png"), NAMES, AGAIN),
    odd("zip_absolute_names", "A zip with an absolute name", zipped(*GOOD, "/etc/c.png"), NAMES, AGAIN),
    odd("zip_names_twice", "A zip with two members of one name", zipped(*GOOD, "./cat/a.png"), NAMES, AGAIN),
    OddFile(
        "zip_of_windows",
        TOPIC,
        "A zip with backslashes between folders",
        zipped("cat\\a.png", "dog\\b.png"),
        read_as_unpacked,
        "They are read as /, as programs that unpack do.",
    ),
    OddFile(
        "zip_in_a_zip",
        TOPIC,
        "A zip in a zip",
        write_nested,
        read_nested,
        "Zips inside a zip are not looked into.",
        "Unpack the outer one.",
    ),
    odd(
        "zip_of_a_mac",
        "A zip with __MACOSX, hidden files and images of kinds that are not read",
        zipped(*GOOD, "__MACOSX/cat/._a.png", "cat/._a.png", ".ipynb_checkpoints/b.png", "dog/c.heic"),
        LEFT,
        LOOK,
    ),
    odd(
        "folders_of_a_mac",
        "Class folders with hidden files and folders, and images of kinds that are not read",
        files(
            *GOOD, "__MACOSX/cat/._a.png", "cat/._a.png", ".ipynb_checkpoints/b.png", "dog/c.heic", "notes"
        ),
        LEFT,
        LOOK,
    ),
    odd("pipe_among_images", "A pipe named like an image", files(*GOOD, "cat/pipe.png|"), LEFT, LOOK),
    odd(
        "empty_class_folder", "A class folder without images", files(*GOOD, "cow/"), "It stays a class.", LOOK
    ),
    odd(
        "images_beside_class_folders",
        "An image beside the class folders",
        files(*GOOD, "c.png"),
        "It has no class.",
        "Move it into the folder of its class.",
    ),
    odd(
        "splits_as_classes",
        "A folder of train and val in place of classes",
        files("train/cat/a.png", "val/cat/b.png"),
        NO_CLASSES,
        GIVE,
    ),
    odd(
        "images_and_masks",
        "Folders of images and masks in place of classes",
        files("images/a.png", "masks/a.png"),
        NO_CLASSES,
        GIVE,
    ),
    odd(
        "masks_among_classes",
        "A folder of masks beside class folders",
        files(*GOOD, "masks/a.png"),
        NO_CLASSES,
        GIVE,
    ),
    odd(
        "classes_one_deeper",
        "Classes one folder deeper",
        files("x/cat/a.png", "x/dog/b.png", "y/cat/c.png", "y/dog/d.png"),
        NO_CLASSES,
        GIVE,
    ),
    odd(
        "class_with_line_feed",
        "A class folder with a line feed in its name",
        files(*GOOD, "c\nw/c.png"),
        "Names of classes go into tables and logs.",
        "Rename the folder.",
    ),
    odd(
        "same_image_of_two_classes",
        "One image in two class folders",
        write_copy,
        "One of the two is wrong. Files are compared where there are up to 20,000 images.",
        "Remove it.",
    ),
]
