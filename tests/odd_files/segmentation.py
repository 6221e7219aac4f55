"""Odd datasets of images with masks: folders, values of masks, lists of classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.segmentation.pairs import pair_folders
from trunkline.data.shared.labels.lists import read_class_rows
from trunkline.data.shared.locate import list_images

from .case import OddFile

FOLDERS, MASKS = "Folders, names and archives", "Masks"
OBJECT = (np.arange(48).reshape(6, 8) % 5 == 0).astype(np.uint8)


def pair(folder: Path, name: str, values: np.ndarray, split: str = "train") -> None:
    """Write an image with its mask."""
    for place in ("images", "masks"):
        (folder / place / split).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(folder / f"images/{split}/{name}.png")
    Image.fromarray(values).save(folder / f"masks/{split}/{name}.png")


def prepared(folder: Path, **options: object) -> ImageSegmentation:
    made = ImageSegmentation(str(folder), workers=0, **options)  # type: ignore[arg-type]
    made.prepare_data()
    made.setup()
    return made


def write_one_folder(folder: Path) -> None:
    (folder / "data").mkdir()
    for name in ("a.jpg", "a_mask.png"):
        Image.new("L", (8, 6)).save(folder / "data" / name)


def write_link(folder: Path) -> None:
    pair(folder, "a", OBJECT), pair(folder, "b", OBJECT)
    (folder / "masks/train/b.png").unlink()
    os.link(folder / "images/train/b.png", folder / "masks/train/b.png")


def write_left_out(folder: Path) -> None:
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    for name in ("b.heic", "._a.png", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")


def read_left_out(folder: Path) -> None:
    assert list_images([str(folder)]) == [folder / "a.png"]


def write_black_and_white(folder: Path) -> None:
    for split in ("train", "val"):
        pair(folder, "a", OBJECT * np.uint8(255), split)


def write_two_codings(folder: Path) -> None:
    pair(folder, "a", OBJECT), pair(folder, "b", OBJECT * np.uint8(255)), pair(folder, "c", OBJECT, "val")


def write_other_values(folder: Path) -> None:
    """Cityscapes with ids in one split and training ids in the other; a road below a sidewalk."""
    for split, kind, road in (("train", "labelTrainIds", 0), ("val", "labelIds", 7)):
        for place in (f"leftImg8bit/{split}/x", f"gtFine/{split}/x"):
            (folder / place).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(folder / f"leftImg8bit/{split}/x/x_leftImg8bit.png")
        mask = Image.fromarray(OBJECT + np.uint8(road))
        mask.save(folder / f"gtFine/{split}/x/x_gtFine_{kind}.png")


def read_other_values(folder: Path) -> None:
    splits = prepared(folder).splits
    for split in ("train", "val"):
        masks = splits[split].masks
        assert masks is not None and (masks.mask(0) == OBJECT).all()


def listed(name: str, text: bytes) -> tuple[Callable[[Path], None], Callable[[Path], object]]:
    """Return what writes a list of classes, and what reads it."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(text)

    return write, lambda folder: read_class_rows(folder / name)


def odd_list(name: str, oddity: str, file: str, text: bytes, means: str, remedy: str) -> OddFile:
    return OddFile(name, FOLDERS, oddity, *listed(file, text), means, remedy)


ODD_FILES = [
    OddFile(
        "images_and_masks_in_one_folder",
        FOLDERS,
        "Images and masks in one folder",
        write_one_folder,
        lambda folder: pair_folders(folder / "data", folder / "data"),
        "A mask is found by the name of its image, which each file has itself.",
        "Move the masks to a folder of their own.",
    ),
    OddFile(
        "image_linked_as_its_mask",
        FOLDERS,
        "A mask that is a link to its image",
        write_link,
        prepared,
        "The network would learn the grey of the image as classes.",
        "Replace the link by the mask.",
    ),
    OddFile(
        "files_left_out_of_a_folder",
        FOLDERS,
        "A folder with pictures of other kinds, a file of macOS, a pipe and a folder named like an image",
        write_left_out,
        read_left_out,
        "These files are not predicted on; a file that is no picture (Thumbs.db) needs no word.",
        "Convert pictures to PNG or JPEG; remove or rename the rest.",
    ),
    OddFile(
        "masks_of_0_and_255",
        MASKS,
        "Masks whose foreground is 255",
        write_black_and_white,
        lambda folder: prepared(folder, classes=["background", "cell"]),
        "255 is ignored unless it is a class, so that only the background would be learned.",
        "Name the values: --data.mask_values '[0, 255]'.",
    ),
    OddFile(
        "masks_of_1_and_masks_of_255",
        MASKS,
        "Masks of which some write the object as 1 and others as 255",
        write_two_codings,
        lambda folder: prepared(folder, classes=["background", "cell"]),
        "Nothing would be learned from the object of the masks with 255.",
        "Save all masks with 0 and 1, or state that 255 is to be ignored.",
    ),
    OddFile(
        "masks_of_other_values",
        MASKS,
        "Cityscapes with labelTrainIds to train on and labelIds to validate on",
        write_other_values,
        read_other_values,
        "The values differ, the names of the classes do not: they are matched by name.",
        "Nothing, if that was meant.",
    ),
    odd_list(
        "class_ids_with_a_point",
        "A list of classes with the id 1.0",
        "classes.csv",
        b"id,name\n0,sky\n1.0,road\n",
        "Ids are whole numbers, as they stand in the masks.",
        "Write 1; spreadsheets add the point to columns with empty cells.",
    ),
    odd_list(
        "class_twice_in_a_list",
        "A list that names a class twice",
        "classes.csv",
        b"id,name\n0,sky\n1,road\n2,sky\n",
        "It is unclear which label the class has.",
        "Give each class a line and a name of its own.",
    ),
    odd_list(
        "class_list_in_latin_1",
        "A list of classes that is not UTF-8",
        "classes.txt",
        "sky\nh\xe4user\n".encode("latin-1"),
        "Letters beyond ASCII cannot be told.",
        "Save the file as UTF-8.",
    ),
    odd_list(
        "class_list_with_numbers_and_blanks",
        "A list with a number and a name in each line",
        "classes.txt",
        b"1 sky\n2 road\n",
        "Without the colon the number would be part of the name, and the ids 0, 1 and so on.",
        "Write 1: sky, or a CSV with the columns id and name.",
    ),
    odd_list(
        "class_colour_above_255",
        "A colour beyond 255",
        "classes.csv",
        b"name,r,g,b\nsky,0,0,256\n",
        "Red, green and blue are 0 to 255.",
        "Correct the colour.",
    ),
]
