"""Odd masks: what their palettes say, and types of pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tiff_files import write_tiff

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared.io import read_mask

from .case import OddFile

TOPIC = "Masks"
VALUES = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)
BLACK, RED, GREEN, BLUE = (0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)
COLOURED = "name,r,g,b\nground,0,0,0\nroof,200,0,0\ntree,0,200,0\n"
NUMBERED = "id,name,r,g,b\n0,ground,0,0,0\n1,roof,200,0,0\n2,tree,0,200,0\n"

Colours = tuple[tuple[int, int, int], ...]


def palettes(classes: str, *colours: Colours) -> Callable[[Path], None]:
    """Write a mask of the same values for each palette."""

    def write(folder: Path) -> None:
        for split, name, palette in (
            ("val", 0, colours[0]),
            *(("train", *each) for each in enumerate(colours)),
        ):
            for place in ("images", "masks"):
                (folder / place / split).mkdir(parents=True, exist_ok=True)
            mask = Image.fromarray(VALUES, mode="P")
            mask.putpalette([part for colour in palette for part in colour])
            mask.save(folder / f"masks/{split}/{name}.png")
            Image.new("RGB", (8, 6)).save(folder / f"images/{split}/{name}.png")
        if classes:
            (folder / "classes.csv").write_text(classes)

    return write


def read(folder: Path) -> ImageSegmentation:
    made = ImageSegmentation(str(folder), workers=0)
    made.setup("fit")
    made.prepare_data()
    return made


def read_by_colours(folder: Path) -> None:
    masks = read(folder).splits["train"].masks
    assert (masks.mask(0) == VALUES).all() and (masks.mask(1) == np.array([0, 2, 1])[VALUES]).all()


def refused(name: str, oddity: str, write: Callable, means: str, remedy: str) -> OddFile:
    return OddFile(name, TOPIC, oddity, write, read, means, remedy)


def type_of(name: str, oddity: str, write: Callable[[Path], object], means: str, remedy: str) -> OddFile:
    return OddFile(
        name, TOPIC, oddity, lambda folder: write(folder / "mask.tif"),
        lambda folder: read_mask(folder / "mask.tif"), means, remedy,
    )  # fmt: skip


ODD_FILES = [
    OddFile(
        "palettes_with_named_colours", TOPIC, "Palettes of different order, and classes with colours",
        palettes(COLOURED, (BLACK, RED, GREEN), (BLACK, GREEN, RED)), read_by_colours,
        "Each entry of a palette is the class of its colour.",
    ),
    refused(
        "palettes_that_differ", "Palettes of different order, and classes without colours",
        palettes("", (BLACK, RED, GREEN), (BLACK, GREEN, RED)),
        "The numbers in the masks may mean other classes in each file.",
        "Give a CSV of the classes with colours; if the numbers are right, save the masks as grey.",
    ),
    refused(
        "palette_against_numbers", "A palette whose colours contradict the numbers of the classes",
        palettes(NUMBERED, (BLACK, GREEN, RED)),
        "By its colour a pixel is of one class, by its number of another.",
        "Correct the palette or the list of classes, or leave the numbers out of the list.",
    ),
    refused(
        "palette_of_unknown_colour", "A palette with a colour that no class has",
        palettes(COLOURED, (BLACK, RED, BLUE)),
        "Where classes have colours, palettes are read by them.",
        "Add the colour to the list of classes; if the numbers of the palette count, save masks as grey.",
    ),
    type_of(
        "mask_of_negative_values", "A mask with negative values",
        lambda path: write_tiff(path, VALUES.astype(np.int16) - 1, 2),
        "Values of masks are 0 to 65535.", "Use 255 for what is to be ignored.",
    ),
    type_of(
        "mask_of_signed_bytes", "A mask of signed bytes with negative values",
        lambda path: write_tiff(path, VALUES.astype(np.int8) - 1, 2),
        "Values of masks are not negative.", "Use 255 for what is to be ignored.",
    ),
    type_of(
        "mask_of_large_values", "A mask of 32-bit numbers",
        lambda path: write_tiff(path, VALUES.astype(np.uint32) + 70000, 1),
        "Values of masks are 0 to 65535.", "Number the classes anew.",
    ),
    type_of(
        "floating_point_mask", "A mask of floating-point numbers",
        lambda path: Image.fromarray(VALUES.astype(np.float32)).save(path),
        "Values of masks are whole numbers.", "Save the mask as PNG of 8 or 16 bits.",
    ),
    type_of(
        "mask_of_two_bands", "A mask with a second band",
        lambda path: write_tiff(path, np.dstack([VALUES, VALUES]), 1),
        "Only one of them can be the classes.", "Save the band that holds the classes alone.",
    ),
    type_of(
        "mask_of_deep_colours", "A mask in colours of 16 bits",
        lambda path: cv2.imwrite(str(path), np.dstack([VALUES.astype(np.uint16) * 80] * 3)),
        "Colours of classes have 8 bits, and cutting these would change them.",
        "Save the mask with 8 bits, or its values as grey.",
    ),
]  # fmt: skip
