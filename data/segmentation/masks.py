"""Where the masks of a split come from: files of values or colours; and the survey of what they hold.

COCO's masks are in ``coco_masks``. Letters in shapes: I masks, h w height and width of a mask in pixels, K
classes, V different values of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ...constants import IGNORE_INDEX
from ..shared.common import PackedNames
from ..shared.io import ImageError, MaskPixels, image_size, read_mask_pixels
from ..shared.labels.classes import LabelClass
from ..shared.labels.table import UNKNOWN, ClassTable, MaskError
from ..shared.storage import joined
from .palettes import PaletteLabels, used_entries, written_colour

_NONE = np.empty(0, dtype=np.uint32)
_MOST_VALUES = 4096  # different ones of a mask that are remembered: a photograph has very many


class Survey(NamedTuple):
    """What one mask holds.

    Attributes:
        size: height and width in pixels.
        counts: ``[K + 1]`` int64, pixels of each label; last those that are ignored.
        unknown: value or colour, as text, to its pixels, of what is no class.
        values: the different values of a file, at most three; empty if there are more, or for colours.
        entries: ``used_entries`` of its palette where only the numbers are known; else empty.
    """

    size: tuple[int, int]
    counts: np.ndarray
    unknown: dict[str, int]
    values: tuple[int, ...] = ()
    entries: np.ndarray = _NONE


class MaskSource(Protocol):
    """The masks of a split by position, as labels.

    Attributes:
        table: what values and categories stand for.
        classes: K of them; label k stands for ``classes[k]``.
        background: the label of the background, or None.
        verified: whether reading the annotations has already told that all masks hold known classes, so that
            they need not be looked through once more.
    """

    table: ClassTable
    classes: tuple[LabelClass, ...]
    background: int | None
    verified: bool

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """Say where a mask comes from, for errors."""

    def size(self, position: int) -> tuple[int, int]:
        """Return height and width of a mask in pixels, without decoding it where that is possible."""

    def mask(self, position: int) -> np.ndarray:
        """Return ``[h, w]`` uint8 labels, 255 where ignored; a new array."""

    def survey(self, position: int) -> Survey:
        """Count what a mask holds; unlike ``mask`` this does not stop at unknown values."""

    def labelled_pixels(self, position: int) -> float:
        """Return the pixels of a mask that are of a class other than the background."""

    def present(self) -> np.ndarray | None:
        """Return ``[K]`` bool, the classes that occur, if that is known without decoding; else None."""

    def subset(self, positions: Sequence[int]) -> MaskSource:
        """Return the masks at some positions."""

    def renumbered(self, classes: Sequence[LabelClass]) -> MaskSource | None:
        """Return the masks with the labels of other classes of the same names; None if names differ."""


class MaskFiles:
    """Masks as image files: values (grey, 16-bit, palette) or colours.

    Args:
        folder: what the names are relative to.
        names: of the I files.
        table: what values and colours stand for.
    """

    verified = False

    def __init__(self, folder: str, names: PackedNames, table: ClassTable):
        self.folder = folder
        self.names = names
        self.table = table
        self.classes = table.classes
        self.background = table.background
        self._palettes = PaletteLabels(table) if table.coloured else None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        """Return the path of a mask."""
        return joined(self.folder, self.names[position])

    def size(self, position: int) -> tuple[int, int]:
        """Return height and width from the file's header.

        Raises:
            ImageError: if it is missing or no image.
        """
        return image_size(self.name(position))

    def mask(self, position: int) -> np.ndarray:
        """Return ``[h, w]`` uint8 labels.

        Raises:
            ImageError: if the file cannot be decoded.
            MaskError: naming the values that are neither a class nor ignored, or an entry of a palette whose
                colour and number are those of different classes.
        """
        pixels = read_mask_pixels(self.name(position))
        if self._palettes is None or pixels.palette is None:
            labels = self.table.labels(codes_of(pixels, self.name(position), self.table))
        else:
            labels = self._palettes.of(pixels.palette).take(pixels.values)
        if labels.min(initial=0) < 0:
            found = self.survey(position).unknown  # which raises for what is contradictory
            raise MaskError(
                f"{self.name(position)}: {described(found)}; data.check_masks finds all such files"
            )
        return labels.astype(np.uint8)

    def survey(self, position: int) -> Survey:
        """Count what a mask holds.

        Raises:
            MaskError: for an entry of a palette whose colour and number are those of different classes.
        """
        name = self.name(position)
        pixels = read_mask_pixels(name)
        palette = pixels.palette
        by_colour = self._palettes is not None and palette is not None
        codes = pixels.values if by_colour else codes_of(pixels, name, self.table)
        values, counts = occurring(codes)
        if self._palettes is not None and palette is not None:
            self._palettes.check(values, palette, name)
            labels = self._palettes.of(palette)[values]
        else:
            labels = self.table.labels(values)
        strange = labels == UNKNOWN
        order = np.argsort(-counts[strange], kind="stable")[:_MOST_VALUES]
        unknown = {
            _written(int(value), codes, palette if by_colour else None): int(count)
            for value, count in zip(values[strange][order], counts[strange][order], strict=True)
        }
        known = np.where(labels == IGNORE_INDEX, len(self.classes), labels)[~strange]
        found = np.bincount(known, weights=counts[~strange], minlength=len(self.classes) + 1)
        return Survey(
            codes.shape,
            found.astype(np.int64),
            unknown,
            () if by_colour or codes.dtype == np.uint32 or len(values) > 3 else tuple(values.tolist()),
            _NONE if by_colour or palette is None else used_entries(values, palette),
        )

    def labelled_pixels(self, position: int) -> float:
        """Return the pixels of a class other than the background; this decodes the mask."""
        counts = self.survey(position).counts[:-1].copy()
        if self.background is not None:
            counts[self.background] = 0
        return float(counts.sum())

    def present(self) -> None:
        """Only decoding the files can tell."""

    def subset(self, positions: Sequence[int]) -> MaskFiles:
        """Return the masks at some positions."""
        return MaskFiles(self.folder, PackedNames.pack(self.names[p] for p in positions), self.table)

    def renumbered(self, classes: Sequence[LabelClass]) -> MaskFiles | None:
        """Return the masks with the labels of other classes of the same names; None if names differ."""
        found = self.table.renumbered(classes)
        return None if found is None else MaskFiles(self.folder, self.names, found[0])


def values_of(path: str, table: ClassTable | None = None) -> np.ndarray:
    """Decode a mask to one number per pixel.

    Colours become codes (uint32) if the table's classes have colours of their own; without them a mask in
    red, green and blue has to be grey, and its values are those of a channel.

    Returns:
        ``[h, w]`` uint8 or uint16 values, or uint32 codes.

    Raises:
        ImageError: if the file cannot be decoded, or holds colours of which nothing is known.
    """
    return codes_of(read_mask_pixels(path), path, table)


def codes_of(pixels: MaskPixels, path: str, table: ClassTable | None = None) -> np.ndarray:
    """Return what ``values_of`` does of a mask that has been decoded; ``path`` is for errors."""
    decoded = pixels.values
    if decoded.ndim == 2:
        return decoded
    if table is not None and table.coloured:
        red, green, blue = (decoded[..., channel].astype(np.uint32) for channel in range(3))
        return red << 16 | green << 8 | blue
    if not (decoded == decoded[..., :1]).all():
        raise ImageError(
            f"{path}: is in colours, but the classes have none; give data.classes a CSV with the columns "
            "name, r, g and b, or save masks as values"
        )
    return np.ascontiguousarray(decoded[..., 0])


def occurring(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``[V]`` different values, in their own type, and how often each occurs."""
    if values.dtype == np.uint32:
        return np.unique(values, return_counts=True)
    counts = np.bincount(values.reshape(-1))
    found = np.flatnonzero(counts)
    return found.astype(values.dtype), counts[found]


def described(unknown: dict[str, int]) -> str:
    """Name values that are no class, with their pixels."""
    shown = [f"{value} ({count} pixels)" for value, count in list(unknown.items())[:8]]
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    noun = "value" if next(iter(unknown)).isdecimal() else "colour"
    return f"{noun}{'s' if len(unknown) > 1 else ''} {', '.join(shown)}{more}, which no class has"


def _written(value: int, codes: np.ndarray, palette: np.ndarray | None) -> str:
    """Write a value or colour as people know it; ``codes`` is the mask that it is of."""
    if palette is not None:
        return written_colour(int(palette[value])) if value < len(palette) else str(value)
    return written_colour(value) if codes.dtype == np.uint32 else str(value)
