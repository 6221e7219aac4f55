"""Pictures of slices of scans with the contours of prediction and truth.

Letters in shapes: S spatial axes of one scan (i, j, k or h, w), h w height and width of a picture, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from ...constants import IGNORE_INDEX
from .masks import draw_mask, with_legend
from .text import font_of

GROUND, TEXT = (24, 24, 24), (235, 235, 235)
LARGEST = 4  # times `size`: the longest side of a panel at most
NARROWEST = 160  # pixels of a panel with its margins, so that there is room for text
SAMPLE = 2_000_000  # voxels that the window is computed from
PERCENTILES = (1, 99)
TITLES = ("image", "prediction", "truth")
POSITIVE = "RAS"  # where the axes of RAS+ coordinates point to


class Turn(NamedTuple):
    """How slices along an axis lie in the picture.

    Attributes:
        axis: of the scan that is cut; none of a 2D image.
        rows, columns: axes of the scan that run down and across.
        flips: whether to turn rows and columns around.
        letters: what is at the top and on the left: R, A, S or L, P, I; none where nobody knows.
    """

    axis: int | None
    rows: int
    columns: int
    flips: tuple[bool, bool]
    letters: tuple[str, str]

    def cut(self, scan: np.ndarray, number: int) -> np.ndarray:
        """Return a slice ``[h, w]`` of a scan ``[*S]``."""
        plane = scan if self.axis is None else np.take(scan, number, axis=self.axis)
        plane = plane if self.rows < self.columns else plane.T
        return plane[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]


def slice_picture(
    image: ArrayLike,
    predicted: ArrayLike,
    truth: ArrayLike | None,
    names: Sequence[str],
    colours: ArrayLike,
    spacing: Sequence[float],
    axis: int | None = None,
    affine: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
    size: int = 256,
) -> np.ndarray:
    """Draw the middle and the worst slice of a scan, each plain, as predicted and as it should be.

    Each slice is a row of panels: the image, the image with the contours of the prediction, and, with a
    truth, the image with those of the truth. Contours lie on the pixels of a class that have another next to
    them; the class 0 (background) and ignored voxels have none. Which slices: see :func:`mid_and_worst`;
    where both are the same there is one row. Slices are numbered from 1, and turned as radiologists look at
    them, see :func:`turn_of`; letters in the first panel say what is at the top and on the left. A 2D image
    is one row, and stays as it is.

    Args:
        image: ``[*S]`` numbers, one channel, on the scan's own grid.
        predicted: ``[*S]`` uint8 labels, 0..K-1 or 255.
        truth: the same, 255 where a voxel is ignored; or none.
        names: K names.
        colours: ``[K, 3]`` uint8.
        spacing: voxel sizes in mm, one per axis; a mm is as long down as across.
        axis: along which slices are cut; by default that of the coarsest spacing, the last if equal.
        affine: ``[4, 4]`` voxel index to world coordinates in mm, RAS+; by default the axes point to the
            right, to anterior and to superior.
        window: values drawn black and white; by default the 1st and 99th percentile of the scan.
        size: the longest side of a panel has at least this number of pixels, and at most four times it.

    Returns:
        ``[h, w, 3]`` uint8.

    Raises:
        ValueError: if shapes, types, labels or the axis do not fit.
    """
    voxels, predicted = np.asarray(image), np.asarray(predicted)
    truth = None if truth is None else np.asarray(truth)
    _check(voxels, predicted, truth, spacing, axis)
    low, high = window or _window(voxels)
    if voxels.ndim == 2:
        turn = Turn(None, 0, 1, (False, False), ("", ""))
        rows = [(0, _wrong_text(predicted, truth))]
    else:
        axis = slice_axis(spacing) if axis is None else axis
        turn = turn_of(axis, affine)
        rows = _rows(predicted, truth, axis)
    shape = _panel_size([(voxels.shape[i], float(spacing[i])) for i in (turn.rows, turn.columns)], size)
    sheets, shown = [], []
    for number, caption in rows:
        grey = _grey(turn.cut(voxels, number), low, high, shape)
        masks = [_contoured(turn.cut(part, number), shape) for part in (predicted, truth) if part is not None]
        panels = [_lettered(grey, turn.letters), *(draw_mask(grey, mask, colours, 0.0) for mask in masks)]
        sheets.append(_captioned(panels, caption))
        shown += masks
    return with_legend(np.concatenate(sheets), np.stack(shown), names, colours)


def slice_axis(spacing: Sequence[float]) -> int:
    """Return the axis of the coarsest spacing, the last if several are equal (to 1 part in 1,000)."""
    coarsest = max(spacing)
    return max(axis for axis, width in enumerate(spacing) if width >= coarsest * (1 - 1e-3))


def mid_and_worst(predicted: np.ndarray, truth: np.ndarray | None, axis: int) -> tuple[int, int]:
    """Choose two slices of a scan.

    Args:
        predicted: ``[*S]`` uint8 labels.
        truth: the same, 255 where a voxel is ignored; or none.
        axis: along which slices are cut.

    Returns:
        Two slices. The first is the middle one of the slices with a label other than 0 in the truth; in the
        prediction if there is no truth or it has no such label; of all slices if neither has any. The second
        is the slice with most wrong voxels, or, without a truth, with most labelled ones: the first of
        several equal ones. If there is no such voxel, it is the middle one again.
    """
    rest = tuple(other for other in range(predicted.ndim) if other != axis)
    middle = (predicted.shape[axis] - 1) // 2
    for labels in (truth, predicted):
        if labels is not None:
            filled = np.flatnonzero(((labels != 0) & (labels != IGNORE_INDEX)).any(axis=rest))
            if len(filled):
                middle = int(filled[0] + filled[-1]) // 2
                break
    counts = _wrong(predicted, truth).sum(axis=rest)
    return middle, int(counts.argmax()) if counts.any() else middle


def turn_of(axis: int, affine: np.ndarray | None = None) -> Turn:
    """Find how slices of a scan of three axes are turned as radiologists look at them.

    Axial slices: anterior up, the patient's right on the left. Coronal: superior up, the patient's right on
    the left. Sagittal: superior up, anterior on the left. Oblique axes count as the nearest of the three.

    Args:
        axis: along which slices are cut.
        affine: ``[4, 4]`` voxel index to world coordinates in mm, RAS+; by default that of ones.

    Raises:
        ValueError: if the affine is singular.
    """
    from nibabel.orientations import io_orientation

    directions = io_orientation(np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64))
    if np.isnan(directions).any():
        raise ValueError(f"the affine {np.asarray(affine).tolist()} gives an axis of the scan no direction")
    world = {number: (int(directions[number, 0]), directions[number, 1]) for number in range(3)}
    # All three views run from R to L, A to P and S to I; down goes the later one of the world's axes.
    columns, rows = sorted((number for number in range(3) if number != axis), key=lambda side: world[side][0])
    flips = tuple(world[side][1] > 0 for side in (rows, columns))
    letters = (POSITIVE[world[rows][0]], POSITIVE[world[columns][0]])
    return Turn(axis, rows, columns, flips, letters)


def _check(
    voxels: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray | None,
    spacing: Sequence[float],
    axis: int | None,
) -> None:
    """Raise a ValueError unless everything fits, as :func:`slice_picture` says."""
    if voxels.ndim not in (2, 3) or not voxels.size:
        raise ValueError(f"image must be [h, w] or [i, j, k], got {list(voxels.shape)}")
    for name, labels in (("predicted", predicted), ("truth", truth)):
        if labels is not None and (labels.shape != voxels.shape or labels.dtype != np.uint8):
            kind = f"{list(labels.shape)} {labels.dtype}"
            raise ValueError(f"{name} must be {list(voxels.shape)} uint8 as the image, got {kind}")
    if len(spacing) != voxels.ndim or not all(math.isfinite(width) and width > 0 for width in spacing):
        raise ValueError(f"spacing must be {voxels.ndim} voxel sizes above 0 mm, got {list(spacing)}")
    if axis is not None and (voxels.ndim == 2 or not 0 <= axis < 3):
        raise ValueError(
            f"axis {axis} of an image of shape {list(voxels.shape)}; it must be 0, 1 or 2 of three axes"
        )


def _wrong(predicted: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """Mark voxels that are not as the truth has them; without a truth those that have a label."""
    if truth is None:
        return (predicted != 0) & (predicted != IGNORE_INDEX)
    return (predicted != truth) & (truth != IGNORE_INDEX)


def _wrong_text(predicted: np.ndarray, truth: np.ndarray | None) -> str:
    things = "pixels" if predicted.ndim == 2 else "voxels"
    return f"{int(_wrong(predicted, truth).sum()):,} {things} {'labelled' if truth is None else 'wrong'}"


def _rows(predicted: np.ndarray, truth: np.ndarray | None, axis: int) -> list[tuple[int, str]]:
    """Return the slices to draw with their captions."""
    middle, chosen = mid_and_worst(predicted, truth, axis)
    name = "most labelled" if truth is None else "worst"
    pairs = [(middle, "middle"), (chosen, name)]
    if middle == chosen:
        pairs = [(middle, f"middle and {name}")]
    total = predicted.shape[axis]
    rows = []
    for number, word in pairs:
        labels = None if truth is None else truth.take([number], axis)
        text = _wrong_text(predicted.take([number], axis), labels)
        rows.append((number, f"slice {number + 1} of {total}, {word}: {text}"))
    return rows


def _window(voxels: np.ndarray) -> tuple[float, float]:
    """Percentiles of evenly spread voxels; sorting all of a large scan takes seconds."""
    values = voxels.reshape(-1)[:: max(1, voxels.size // SAMPLE)]
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES)
    # What is rare and small, as in a mask, would otherwise be one grey with the rest.
    return (float(low), float(high)) if high > low else (float(values.min()), float(values.max()))


def _panel_size(sides: Sequence[tuple[int, float]], size: int) -> tuple[int, int]:
    """Return height and width of a panel in pixels, from number and size in mm of voxels down and across."""
    lengths = [count * width for count, width in sides]
    fine = max(lengths) / min(width for _, width in sides)  # a pixel per voxel along the finer axis
    scale = min(max(fine, size), LARGEST * size) / max(lengths)
    height, width = (max(1, round(length * scale)) for length in lengths)
    return height, width


def _grey(plane: np.ndarray, low: float, high: float, shape: tuple[int, int]) -> np.ndarray:
    """Return a slice as ``[h, w, 3]`` uint8 of the given height and width."""
    values = np.nan_to_num(plane.astype(np.float32), nan=low, posinf=high, neginf=low)
    shades = (values - low) / max(high - low, 1e-12) * 255
    picture = Image.fromarray(np.clip(shades, 0, 255).astype(np.float32))
    resized = np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR))
    return np.repeat(np.rint(resized).astype(np.uint8)[..., None], 3, axis=2)


def _contoured(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return labels ``[h, w]`` of the given height and width, each pixel of the voxel it lies in.

    The class 0 (background) is ignored: it has no contour, and no entry in the legend.
    """
    rows, columns = (
        (np.arange(size) * 2 + 1) * count // (2 * size)
        for size, count in zip(shape, labels.shape, strict=True)
    )
    enlarged = labels[np.ix_(rows, columns)]
    return np.where(enlarged == 0, np.uint8(IGNORE_INDEX), enlarged)


def _lettered(panel: np.ndarray, letters: tuple[str, str]) -> np.ndarray:
    """Write the letters of the directions at the top and on the left of a copy of a panel."""
    height, width = panel.shape[:2]
    font = font_of(max(12, round(max(height, width) / 20)))
    picture = Image.fromarray(panel)
    draw = ImageDraw.Draw(picture)
    style: dict[str, Any] = {
        "font": font,
        "fill": (255, 255, 160),
        "stroke_width": 1,
        "stroke_fill": (0, 0, 0),
    }
    draw.text((width / 2, 3), letters[0], anchor="ma", **style)
    draw.text((4, height / 2), letters[1], anchor="lm", **style)
    return np.asarray(picture)


def _captioned(panels: Sequence[np.ndarray], caption: str, gap: int = 6) -> np.ndarray:
    """Lay panels of one size side by side under their titles and a caption."""
    height, width = panels[0].shape[:2]
    cell = max(width, NARROWEST)
    total = len(panels) * (cell + gap) + gap
    font = font_of(max(12, min(26, round(total / 55))))
    line = sum(font.getmetrics()) + gap // 2
    picture = Image.new("RGB", (total, 2 * line + gap + height + gap), GROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((gap, gap), caption, font=font, fill=TEXT)
    for number, (panel, title) in enumerate(zip(panels, TITLES, strict=False)):
        left = gap + number * (cell + gap) + (cell - width) // 2
        draw.text((left + width / 2, gap + line), title, font=font, fill=TEXT, anchor="ma")
        picture.paste(Image.fromarray(panel), (left, gap + 2 * line))
    return np.asarray(picture)
