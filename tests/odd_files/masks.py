"""Odd masks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from trunkline.data.shared.io import read_mask

from .case import OddFile

TOPIC = "Masks"
VALUES = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)


def write_pages(folder: Path) -> None:
    pages = [Image.fromarray(VALUES), Image.fromarray(VALUES + 1)]
    pages[0].save(folder / "mask.tif", save_all=True, append_images=pages[1:])


def write_lossy(folder: Path) -> None:
    Image.fromarray(np.repeat(VALUES[:, :, None], 3, axis=2)).save(folder / "mask.webp")


ODD_FILES = [
    OddFile(
        "mask_of_two_pages",
        TOPIC,
        "A mask of two pages",
        write_pages,
        lambda folder: read_mask(folder / "mask.tif"),
        "The file does not say which page holds the labels.",
        "Save each page as a file of its own.",
    ),
    OddFile(
        "lossy_webp_mask",
        TOPIC,
        "A mask as a lossy WebP",
        write_lossy,
        lambda folder: read_mask(folder / "mask.webp"),
        "The coder has changed values, so they are no longer those of the classes.",
        "Save the mask again from its source as PNG.",
    ),
    OddFile(
        "pipe_named_like_a_mask",
        "Folders, names and archives",
        "A pipe that is named like a mask",
        lambda folder: os.mkfifo(folder / "mask.png"),
        lambda folder: read_mask(folder / "mask.png"),
        "Opening a pipe waits until somebody writes into it.",
        "Remove or rename it.",
    ),
]
