"""Writes small datasets in real formats, with known answers.

Letters in shapes: h w height and width of an image in pixels.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from ...constants import IGNORE_INDEX
from ..shared.labels.classes import voc_colour
from .drawing import CATEGORIES, draw_picture, draw_shape

_MASK_NAMES = ("background", "circle", "rectangle", "triangle")
_MARKER = ".trunkline-synthetic"
_EMPTY_EVERY = 16  # one image in 16 shows no object
_PNG_EVERY = 4
_OBJECTS = (1, 4)  # fewest and most objects of an image


def write_detection(
    folder: str | PathLike[str],
    train: int = 240,
    val: int = 48,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a COCO-format dataset of circles, rectangles and triangles on noisy backgrounds.

    The shape decides the class; colour, size, turn and place are random. Boxes are tight around the drawn
    pixels. Images are landscape, portrait and square, JPEG and PNG; some show no object. The result is
    complete or absent: it is written to a temporary folder next to ``folder``, which is then renamed.

    Args:
        folder: becomes the root with ``images/{train,val}`` and ``annotations/instances_{train,val}.json``.
            It may exist if it is empty or holds nothing but an earlier dataset of this function.
        train: number of training images, at least 1.
        val: number of validation images, at least 1.
        size: length of the shorter and the longer side in pixels, 32 or more. Square images have the
            shorter.
        seed: the same seed and sizes give the same files.
        overwrite: also replace ``images`` and ``annotations`` that came from somewhere else.
        progress: show a progress bar.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: if ``folder`` holds anything else.
        ValueError: if a number is too small.
    """
    folder = Path(folder)
    _check_counts(train, val, size)
    with (
        replacing(folder, {"images", "annotations"}, overwrite) as temporary,
        tqdm(total=train + val, desc="drawing images", unit="image", disable=not progress) as bar,
    ):
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _write_split(temporary, split, count, size, np.random.default_rng([seed, number]), bar)
    return folder


def write_classification(
    folder: str | PathLike[str],
    train: int = 240,
    val: int = 48,
    size: int = 64,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write class folders of images that show one circle, rectangle or triangle on a noisy background.

    The shape decides the class; colour, size, turn and place are random. Classes are equally frequent (to
    within one image). As in ``write_detection`` the result is complete or absent.

    Args:
        folder: becomes the root with ``{train,val}/{circle,rectangle,triangle}/NNNNNN.jpg`` (every fourth a
            ``.png``). It may exist if it is empty or holds nothing but an earlier dataset of this function.
        train: number of training images, at least 3.
        val: number of validation images, at least 3.
        size: side of the images in pixels, 32 or more.
        seed: the same seed and sizes give the same files.
        overwrite: also replace ``train`` and ``val`` that came from somewhere else.
        progress: show a progress bar.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: if ``folder`` holds anything else.
        ValueError: if a number is too small.
    """
    folder = Path(folder)
    names = [category["name"] for category in CATEGORIES]
    if min(train, val) < len(names) or size < 32:
        raise ValueError(
            f"need an image per class and split and 32 pixels a side at least, got {train=}, {val=}, {size=}"
        )
    with (
        replacing(folder, {"train", "val"}, overwrite) as temporary,
        tqdm(total=train + val, desc="drawing images", unit="image", disable=not progress) as bar,
    ):
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            rng = np.random.default_rng([seed, number])
            for position in range(count):
                name = names[position % len(names)]
                place = temporary / split / name
                place.mkdir(parents=True, exist_ok=True)
                _save(draw_shape(name, size, rng), place, position + 1)
                bar.update()
    return folder


def write_segmentation(
    folder: str | PathLike[str],
    train: int = 240,
    val: int = 48,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write images like those of ``write_detection`` with a mask each, in which pixels are of a class.

    Masks are palette PNGs in the colours of ``classes.csv``: 0 background, 1 circle, 2 rectangle, 3 triangle;
    255, ignored, in a border of one pixel around each object, as in Pascal VOC. As in ``write_detection`` the
    result is complete or absent.

    Args:
        folder: becomes the root with ``images/{train,val}``, ``masks/{train,val}`` and ``classes.csv``. It
            may exist if it is empty or holds nothing but an earlier dataset of this function.
        train: number of training images, at least 1.
        val: number of validation images, at least 1.
        size: as in ``write_detection``.
        seed: the same seed and sizes give the same files.
        overwrite: also replace entries of these names that came from somewhere else.
        progress: show a progress bar.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: if ``folder`` holds anything else.
        ValueError: if a number is too small.
    """
    folder = Path(folder)
    _check_counts(train, val, size)
    rows = [(number, name, *voc_colour(number)) for number, name in enumerate(_MASK_NAMES)]
    with (
        replacing(folder, {"images", "masks", "classes.csv"}, overwrite) as temporary,
        tqdm(total=train + val, desc="drawing images", unit="image", disable=not progress) as bar,
    ):
        lines = [",".join(map(str, row)) for row in (("id", "name", "r", "g", "b"), *rows)]
        (temporary / "classes.csv").write_text("\n".join(lines) + "\n")
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _write_masked_split(temporary, split, count, size, np.random.default_rng([seed, number]), bar)
    return folder


@contextmanager
def replacing(folder: Path, content: set[str], overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``folder`` if all goes well.

    Args:
        folder: what to replace; see ``_check_replaceable``.
        content: names of the entries that will be in it.
        overwrite: whether entries of those names may come from somewhere else.
    """
    _check_replaceable(folder, content, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        (temporary / _MARKER).write_text("written by trunkline, which may replace this folder\n")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(folder: Path, content: set[str], overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder")
    found = {entry.name for entry in folder.iterdir()}
    strange = found - content - {_MARKER}
    if found and (strange or not (_MARKER in found or overwrite)):
        shown = ", ".join(sorted(strange or found)[:5])
        raise FileExistsError(
            f"{folder}: exists and was not written by this command (it holds {shown}); "
            "name a new or empty folder" + ("" if strange else ", or ask to overwrite it")
        )


def _write_split(
    root: Path, split: str, count: int, size: tuple[int, int], rng: np.random.Generator, bar: tqdm
) -> None:
    (root / "images" / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (picture, objects) in enumerate(_draw_pictures(count, size, rng), start=1):
        width, height = picture.size
        name = _save(picture, root / "images" / split, number)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for category_id, box, solid in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_id,
                    "bbox": box,
                    "area": int(solid.sum()),
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
        bar.update()
    content = {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _write_masked_split(
    root: Path, split: str, count: int, size: tuple[int, int], rng: np.random.Generator, bar: tqdm
) -> None:
    (root / "images" / split).mkdir(parents=True)
    (root / "masks" / split).mkdir(parents=True)
    value_of = {category["id"]: _MASK_NAMES.index(category["name"]) for category in CATEGORIES}
    palette = [channel for number in range(256) for channel in voc_colour(number)]
    for number, (picture, objects) in enumerate(_draw_pictures(count, size, rng), start=1):
        name = _save(picture, root / "images" / split, number)
        values = np.zeros(picture.size[::-1], dtype=np.uint8)
        for category_id, _, solid in objects:
            values[np.asarray(Image.fromarray(solid).filter(ImageFilter.MaxFilter(3)))] = IGNORE_INDEX
            values[solid] = value_of[category_id]
        mask = Image.fromarray(values).convert("P")
        mask.putpalette(palette)
        mask.save((root / "masks" / split / name).with_suffix(".png"))
        bar.update()


def _check_counts(train: int, val: int, size: tuple[int, int]) -> None:
    if train < 1 or val < 1 or min(size) < 32:
        raise ValueError(
            f"need an image per split and 32 pixels a side at least, got {train=}, {val=}, {size=}"
        )


def _draw_pictures(
    count: int, size: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[Image.Image, list[tuple[int, list[int], np.ndarray]]]]:
    """Yield images of different orientations, a few without objects; see ``draw_picture``."""
    short, long = min(size), max(size)
    shapes = ((short, long), (long, short), (short, short))
    for number in range(1, count + 1):
        height, width = shapes[rng.choice(3, p=(0.5, 0.3, 0.2))]
        # The last of every sixteen is empty, and so is the second if there are fewer.
        empty = number % _EMPTY_EVERY == 0 or (count < _EMPTY_EVERY and number == 2)
        wanted = 0 if empty else int(rng.integers(*_OBJECTS, endpoint=True))
        yield draw_picture(height, width, wanted, rng)


def _save(picture: Image.Image, folder: Path, number: int) -> str:
    """Write an image as JPEG, or every fourth as PNG, and return the name of the file."""
    name = f"{number:06d}." + ("png" if number % _PNG_EVERY == 0 else "jpg")
    options: dict[str, Any] = {} if name.endswith("png") else {"quality": 92}
    picture.save(folder / name, **options)
    return name
