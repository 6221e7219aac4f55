"""The values that become black and white, where images do not have 8 bits: ``data.pixel_range``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from .common import in_threads, number_of
from .deep import Depth, Range, deep_values, depth_of, range_of_values
from .io import ImageError, opened
from .locate import DataNotFoundError

logger = logging.getLogger("trunkline")

PixelRange: TypeAlias = Literal["auto"] | tuple[float, float]

HEADERS = 512  # that are looked at, spread over the images
DECODED = 64  # of the deep ones among them
SMALL_PART = 0.25  # of the range: images that use less of it are nearly uniform
_NEVER_DEEP = (".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_TAIL = 0.1  # percent of the pixels at each end that do not count as used
_PIXELS = 100_000  # of an image that its percentiles are taken from
_NEWLY = ("train", "val", "test", "predict")


class Picture(NamedTuple):
    """Where an image lies: its path, and its bytes if it lies in an archive."""

    path: str
    content: Callable[[], bytes | None] = lambda: None


class Splits(Protocol):
    """What is needed of a data module, see ``SplitData``."""

    hparams: Any
    splits: dict[str, Any]

    def has_split(self, split: str) -> bool: ...

    def read_split(self, split: str) -> Any: ...


class _Sample(NamedTuple):
    """What some images of a split hold.

    Attributes:
        looked: how many headers were read.
        deep: how many of them are of images that do not have 8 bits.
        depth: of these.
        low, high: their lowest and highest value.
        used: the values between which all but the tails of the pixels lie.
        middle: half of the pixels are brighter, in the median image.
        first: path of the first.
    """

    looked: int
    deep: int
    depth: Depth
    low: float
    high: float
    used: tuple[float, float]
    middle: float
    first: str


class PixelRanges:
    """Finds the range of a data module's images, and keeps it.

    ``auto`` looks at a sample of the training images. If all have 8 bits there is no range, and nothing is
    decoded. The range takes the place of ``auto`` in the module's ``hparams``, so checkpoints hold it.

    Args:
        given: ``auto``, or the values of black and white.

    Raises:
        ValueError: if the two are no numbers, or not in ascending order.
    """

    def __init__(self, given: Any) -> None:
        self.auto = given == "auto"
        self.value: tuple[float, float] | None = None
        self._seen: set[str] = set()
        self._warned = False
        if self.auto:
            return
        if len(given) != 2 or not all(map(math.isfinite, given)) or given[0] >= given[1]:
            raise ValueError(
                f"pixel_range is {given}; give auto, or the value of black and then that of white, which is "
                "larger"
            )
        self.value = float(given[0]), float(given[1])

    def settle(self, data: Splits, picture: Callable[[Any, int], Picture | None]) -> None:
        """Find the range from the splits that have been read, training data first; warn if it does not fit.

        Args:
            data: the module, whose ``hparams`` are changed.
            picture: where an image of an index lies by its position; None if it is no picture.

        Raises:
            ImageError: if images other than those to predict on hold floating-point numbers and no range is
                given.
        """
        for split in _NEWLY:
            if split not in data.splits or split in self._seen:
                continue
            self._seen.add(split)
            sample = _sample(data.splits[split], picture, self.auto and split != "predict")
            if sample is None:
                continue
            if self.auto and (self.value is None or split == "train"):
                self.value = self._found(data, picture, split, sample)
                data.hparams["pixel_range"] = list(self.value)
            assert self.value is not None
            if not self._warned:
                self._warned = _warn_of_misfit(sample, self.value)

    def _found(
        self, data: Splits, picture: Callable[[Any, int], Picture | None], split: str, sample: _Sample
    ) -> tuple[float, float]:
        """Take the range from a sample; if it is not of training data, from those if there are any."""
        if split != "train" and (training := _training_sample(data, picture)) is not None:
            split, sample = "train", training
        found = range_of_values(sample.low, sample.high, sample.depth)
        text = (
            f"{sample.deep} of {number_of(sample.looked, f'{split} image')} looked at have values from "
            f"{sample.low:g} to {sample.high:g} ({sample.first}): {found[0]:g} becomes black, "
            f"{found[1]:g} white"
        )
        if split == "train":
            logger.info("%s; data.pixel_range changes it", text)
        else:
            logger.warning(
                "data.pixel_range is auto, and no training data with such values are known: %s; give the "
                "range of the training in data.pixel_range",
                text,
            )
        return found


def file_of(index: Any, position: int) -> Picture:
    """Return where an image lies, for indices whose images are files."""
    return Picture(str(index.path(position)))


def _training_sample(data: Splits, picture: Callable[[Any, int], Picture | None]) -> _Sample | None:
    try:
        index = data.read_split("train") if data.has_split("train") else None
    except (DataNotFoundError, ValueError):  # this command can do without them
        return None
    return None if index is None else _sample(index, picture, False)


def _sample(index: Any, picture: Callable[[Any, int], Picture | None], strict: bool) -> _Sample | None:
    """Look at some images; None if all have 8 bits.

    Raises:
        ImageError: with ``strict``, if one holds floating-point numbers.
    """
    positions = np.unique(np.linspace(0, len(index) - 1, min(HEADERS, len(index))).round().astype(int))
    chosen = [found for n in positions.tolist() if (found := picture(index, n)) is not None]
    asked = [each for each in chosen if PurePath(each.path).suffix.lower() not in _NEVER_DEEP]
    depths = [_depth(each) for each in asked]
    deep = [
        (each, depth) for each, depth in zip(asked, depths, strict=True) if depth is not None and depth.deep
    ]
    if not deep:
        return None
    floating = [each.path for each, depth in deep if depth.floating]
    if floating and strict:
        raise ImageError(
            f"{floating[0]}: the pixels are floating-point numbers of unknown range; give the values of "
            "black and white in data.pixel_range, or save it with 8 or 16 bits"
        )
    few = np.unique(np.linspace(0, len(deep) - 1, min(DECODED, len(deep))).round().astype(int)).tolist()
    outcomes = in_threads(lambda n: _values(deep[n][0]), few, "looking at pixel values")
    limits = np.array(
        [each for each in outcomes if each is not None]
    )  # [images, lowest, highest, two tails and median]
    if not len(limits):
        return None  # nothing can be decoded, which is said elsewhere
    kinds = {(depth.bits, depth.signed) for _, depth in deep}
    depth = Depth(max(bits for bits, _ in kinds), len(kinds) > 1 or any(signed for _, signed in kinds))
    return _Sample(
        len(chosen), len(deep), depth, float(limits[:, 0].min()), float(limits[:, 1].max()),
        (float(limits[:, 2].min()), float(limits[:, 3].max())), float(np.median(limits[:, 4])),
        deep[0][0].path,
    )  # fmt: skip


def _depth(picture: Picture) -> Depth | None:
    """Read an image's header; None if it cannot be read, which the check of the images says."""
    try:
        with opened(picture.path, picture.content()) as image:
            return depth_of(image)
    except ImageError:
        return None


def _values(picture: Picture) -> Sequence[float] | None:
    """Return lowest and highest value of an image, both without the tails, and its median."""
    content = picture.content()
    try:
        with opened(picture.path, content) as image:
            values = deep_values(image, depth_of(image), picture.path, content)
    except ImageError:
        return None
    some = values.reshape(-1)[:: max(1, values.size // _PIXELS)]
    return float(values.min()), float(values.max()), *np.percentile(some, [_TAIL, 100 - _TAIL, 50]).tolist()


def _warn_of_misfit(sample: _Sample, black_white: Range) -> bool:
    """Warn if the images use a small part of the range, or if most of their pixels become white."""
    low, high = black_white
    used = min(sample.used[1], high) - max(sample.used[0], low)
    if sample.middle > high:
        problem = "have half of their pixels or more above"
    elif used < SMALL_PART * (high - low):
        problem = f"use {100 * max(used, 0) / (high - low):.0f} % of"
    else:
        return False
    logger.warning(
        "the images (such as %s) %s the range from %g to %g that becomes 0 to 255: nearly all of their "
        "values are from %g to %g; give what is to be black and white, such as data.pixel_range [%g, %g]",
        sample.first, problem, low, high, *sample.used,
        math.floor(sample.used[0]), max(math.ceil(sample.used[1]), math.floor(sample.used[0]) + 1),
    )  # fmt: skip
    return True
