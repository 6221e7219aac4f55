"""Odd pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trunkline.data.shared.io import read_image

from .case import OddFile

TOPIC = "Pictures"


def write_floating_point(folder: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)).save(folder / "picture.tif")


def write_grey_with_alpha(folder: Path) -> None:
    values = np.stack([np.arange(48).reshape(6, 8) * 5, np.zeros((6, 8))], axis=2)
    Image.fromarray(values.astype(np.uint8)).save(folder / "picture.png")


def read_grey_with_alpha(folder: Path) -> None:
    pixels = read_image(folder / "picture.png")
    assert (pixels == (np.arange(48).reshape(6, 8) * 5)[:, :, None]).all()


ODD_FILES = [
    OddFile(
        "floating_point_picture",
        TOPIC,
        "A picture of floating-point numbers",
        write_floating_point,
        lambda folder: read_image(folder / "picture.tif"),
        "The file does not say which numbers are black and white.",
        "Save it with 8 or 16 bits.",
    ),
    OddFile(
        "transparent_grey_picture",
        TOPIC,
        "A grey picture that is transparent everywhere",
        write_grey_with_alpha,
        read_grey_with_alpha,
        "Transparency is dropped, and the grey beneath it is read.",
    ),
]
