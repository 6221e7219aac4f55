"""Odd pictures: more than 8 bits, signs, further pages and bands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tiff_files import write_tiff

from trunkline.data.classification.module import ImageClassification

from .case import OddFile

TOPIC = "Pictures"
GREY = (np.arange(48).reshape(6, 8) * 80).astype(np.uint16)  # 0 to 3760


def pictures(write: Callable[[Path, np.ndarray], object], suffix: str = "tif") -> Callable[[Path], None]:
    """Write one picture for each class and split, from ``GREY`` with its columns moved."""

    def written(folder: Path) -> None:
        for number, place in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
            (folder / place).mkdir(parents=True)
            write(folder / place / f"1.{suffix}", np.roll(GREY, number, axis=1))

    return written


def read(folder: Path, **options: object) -> ImageClassification:
    made = ImageClassification(str(folder), size=6, batch_size=2, workers=0, **options)
    made.prepare_data()
    made.setup("fit")
    return made


def reads(low: float, high: float) -> Callable[[Path], None]:
    """Check that the range is found, and that black and white come out."""

    def check(folder: Path) -> None:
        made = read(folder)
        assert made.hparams["pixel_range"] == [low, high]
        image = next(iter(made.train_dataloader())).image
        assert image.min() < 40 and image.max() > 200

    return check


def read_8_bits_of_prediction(folder: Path) -> None:
    made = ImageClassification(predict=str(folder / "train" / "cat"), size=6, workers=0)
    made.setup("predict")


def write_pages(path: Path, grey: np.ndarray) -> None:
    page = Image.fromarray((grey // 20).astype(np.uint8))
    page.save(path, save_all=True, append_images=[page])


def write_bands(path: Path, grey: np.ndarray) -> None:
    write_tiff(path, np.dstack([(grey // 20).astype(np.uint8)] * 5), 1)


def write_wide(path: Path, grey: np.ndarray) -> None:
    write_tiff(path, grey.astype(np.uint32) * 10**6, 1)


def write_colours(path: Path, grey: np.ndarray) -> None:
    cv2.imwrite(str(path), np.dstack([grey] * 3))


def found(name: str, oddity: str, write: Callable[[Path], None], check: Callable, means: str) -> OddFile:
    return OddFile(name, TOPIC, oddity, write, check, means)


ODD_FILES = [
    found(
        "picture_of_12_bits", "Grey pictures of 12 bits in files of 16 bits",
        pictures(lambda path, grey: Image.fromarray(grey).save(path)), reads(0, 4095),
        "Training images tell how many bits are used; `data.pixel_range` says it if they do not.",
    ),
    found(
        "colours_of_12_bits", "Coloured pictures of 12 bits in files of 16 bits",
        pictures(write_colours, "png"), reads(0, 4095),
        "They are decoded with all of their bits, and mapped as grey ones are.",
    ),
    found(
        "signed_picture", "Pictures of signed numbers",
        pictures(lambda path, grey: write_tiff(path, grey.astype(np.int16) - 1024, 2)), reads(-1024, 2736),
        "The lowest and the highest value of training images become black and white.",
    ),
    found(
        "signed_bytes", "Pictures of signed 8-bit numbers",
        pictures(lambda path, grey: write_tiff(path, (grey // 20).astype(np.int8) - 90, 2)), reads(-90, 98),
        "Their sign is kept, and they are mapped as those of 16 bits are.",
    ),
    found(
        "picture_of_32_bits", "Pictures of unsigned 32-bit numbers",
        pictures(write_wide), reads(0, 3_760_000_000),
        "Values of 2^31 and more are not taken as negative.",
    ),
    OddFile(
        "small_part_of_the_range", TOPIC, "Pictures that use a small part of their range",
        pictures(lambda path, grey: Image.fromarray(grey // 20 + 1100).save(path)), read,
        "After mapping to 0 to 255 the pictures are nearly uniform.",
        "Give the values that are to be black and white in `data.pixel_range`.",
    ),
    OddFile(
        "floating_point_training", TOPIC, "Training pictures of floating-point numbers",
        pictures(lambda path, grey: Image.fromarray(grey / np.float32(4000)).save(path)), read,
        "Nothing says which numbers are black and white.",
        "Give them in `data.pixel_range`, such as [0, 1].",
    ),
    OddFile(
        "deep_prediction", TOPIC, "Pictures of 12 bits for a network whose range is not known",
        pictures(lambda path, grey: Image.fromarray(grey).save(path)), read_8_bits_of_prediction,
        "The network was trained on 8 bits, or its range is not known: it is taken from these files.",
        "Check that it is right, or give the range of the training in `data.pixel_range`.",
    ),
    OddFile(
        "reversed_pixel_range", TOPIC, "A range that ends before it begins",
        pictures(lambda path, grey: Image.fromarray(grey).save(path)),
        lambda folder: read(folder, pixel_range=[4095, 0]),
        "The first number is the value of black, the second that of white.",
        "Exchange them.",
    ),
    OddFile(
        "picture_of_two_pages", TOPIC, "Pictures of several pages, and animations",
        pictures(write_pages), read,
        "One picture per file is read: the first.",
        "Save the other pages as files of their own if they are wanted.",
    ),
    OddFile(
        "picture_of_five_bands", TOPIC, "Pictures with bands beside red, green and blue",
        pictures(write_bands), read,
        "Networks take three channels; the first three bands are read.",
        "If others are wanted, save these three as red, green and blue.",
    ),
]  # fmt: skip
