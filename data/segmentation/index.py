"""Images and their masks, and the checks before training.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..shared.common import PackedNames, in_threads, listing, number_of
from ..shared.extras import tell_extras
from ..shared.failed import FailedImage
from ..shared.faults import SkippedImages, raise_or_skip
from ..shared.io import ImageError, read_image, stored_size
from ..shared.labels.classes import LabelClass
from ..shared.labels.table import MaskError
from ..shared.loading import ImageRequest
from ..shared.locate import CheckImages
from ..shared.storage import joined
from .codings import check_codings
from .masks import MaskSource, Survey, described

logger = logging.getLogger("trunkline")


@dataclass(frozen=True, eq=False)
class SegmentationIndex:
    """The images of one split and where their masks come from, without a Python object per image.

    Attributes:
        folder: what the names are relative to; empty if they are complete paths.
        names: of the I images.
        masks: in the same order; None if there are none (prediction).
    """

    folder: str
    names: PackedNames
    masks: MaskSource | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """K classes; none without masks."""
        return () if self.masks is None else self.masks.classes

    def path(self, position: int) -> str:
        """Return where one image lies."""
        return joined(self.folder, self.names[position])

    def sizes(self, skipped: SkippedImages | None = None) -> np.ndarray:
        """Read height and width of every upright image, ``[I, 2]`` int64.

        Args:
            skipped: takes those that cannot be read, whose sizes are 1; None for an error.

        Raises:
            ImageError: listing the files that are missing or no images.
        """
        positions = range(len(self))
        outcomes = in_threads(lambda p: _image_size(self.path(p), "header"), positions, "reading image sizes")
        problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
        raise_or_skip(ImageError, problems, len(self), "cannot be used", skipped)
        sizes = [(1, 1) if isinstance(outcome, str) else outcome.upright for outcome in outcomes]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def named(self, request: ImageRequest) -> tuple[int, str]:
        """Return id (the position) and file of the image that a request of a sampler asks for."""
        return request.index, self.path(request.index)

    def readable(self) -> tuple[SegmentationIndex, np.ndarray, list[FailedImage]]:
        """Return the images with a size, their sizes as in ``sizes``, and the others with later ids.

        Raises:
            ImageError: listing the first 20 files, if none is an image.
        """
        paths = [self.path(position) for position in range(len(self))]
        outcomes = in_threads(lambda path: _image_size(path, "header"), paths, "reading image sizes")
        sizes = {n: o.upright for n, o in enumerate(outcomes) if not isinstance(o, str)}
        problems = [(paths[n], o) for n, o in enumerate(outcomes) if isinstance(o, str)]
        if not sizes:
            raise_or_skip(ImageError, [text for _, text in problems], len(self), "cannot be used", None)
        failed = [FailedImage(number, *problem) for number, problem in enumerate(problems, len(sizes))]
        index = self.subset(list(sizes)) if failed else self
        return index, np.array(list(sizes.values()), dtype=np.int64).reshape(-1, 2), failed

    def subset(self, positions: Sequence[int]) -> SegmentationIndex:
        """Return the index of only some images."""
        names = PackedNames.pack(self.names[position] for position in positions)
        return SegmentationIndex(
            self.folder, names, None if self.masks is None else self.masks.subset(positions)
        )

    def renumbered(self, classes: Sequence[LabelClass]) -> SegmentationIndex | None:
        """Return the index with the labels of other classes of the same names; None if names differ."""
        masks = None if self.masks is None else self.masks.renumbered(classes)
        return None if masks is None else replace(self, masks=masks)

    def with_pixels(self, wanted: int) -> SegmentationIndex:
        """Return the index of only those images that have enough pixels outside the background.

        Raises:
            ImageError: if a mask has to be decoded for it and cannot.
        """
        labelled = in_threads(
            cast(MaskSource, self.masks).labelled_pixels, range(len(self)), "counting pixels"
        )
        return self.subset([position for position, pixels in enumerate(labelled) if pixels >= wanted])


class _ImageSize(NamedTuple):
    upright: tuple[int, int]
    stored: tuple[int, int]


class _Outcome(NamedTuple):
    """What the check of one image and its mask found."""

    damaged: str = ""
    misfit: str = ""
    survey: Survey | None = None


def check_indices(
    indices: Mapping[str, SegmentationIndex],
    images: CheckImages,
    masks: bool,
    skipped: SkippedImages | None = None,
) -> dict[str, Tensor]:
    """Check images and masks before training.

    Args:
        indices: by split.
        images: ``header`` reads the beginning of each image, ``decode`` decodes it, ``off`` leaves it out.
        masks: whether to look through all masks, as far as that is not known already.
        skipped: takes images that are missing or damaged, or do not fit their masks; None for an error.

    Returns:
        By split, ``[I, K + 1]`` int64: the pixels of each label, last of what is ignored; only for splits
        whose masks were looked through.

    Raises:
        ImageError: listing the first 20 files that are missing or damaged.
        MaskError: listing the first 20 masks of another size than their image, or with values that are
            no class.
    """
    pictures = [
        (split, index, position) for split, index in indices.items() for position in range(len(index))
    ]
    if images == "off" and not masks:
        return {}
    outcomes = in_threads(
        lambda picture: _check(picture[1], picture[2], images, masks), pictures, "checking images and masks"
    )
    count = len(pictures)
    damaged, misfits = [o.damaged for o in outcomes if o.damaged], [o.misfit for o in outcomes if o.misfit]
    raise_or_skip(ImageError, damaged, count, "cannot be used", skipped)
    raise_or_skip(MaskError, misfits, count, "do not fit their masks", skipped)
    if images != "off":
        tell_extras([index.path(position) for _, index, position in pictures])
    _raise_unknown(pictures, outcomes)
    _check_codings(pictures, outcomes)
    found: dict[str, Tensor] = {}
    for split in indices:
        surveys = [o.survey for picture, o in zip(pictures, outcomes, strict=True) if picture[0] == split]
        counted = [survey.counts for survey in surveys if survey is not None]
        if counted and skipped is not None:  # of images that are skipped, none
            counted = [np.zeros_like(counted[0]) if each is None else each.counts for each in surveys]
        if counted and len(counted) == len(surveys):
            found[split] = torch.from_numpy(np.stack(counted))
    return found


def count_pixels(index: SegmentationIndex) -> Tensor:
    """Look through all masks and return ``[I, K + 1]`` int64 as ``check_indices`` does.

    Unknown values are left out.

    Raises:
        ImageError: if a mask cannot be decoded.
    """
    surveys = in_threads(cast(MaskSource, index.masks).survey, range(len(index)), "counting pixels")
    return torch.from_numpy(np.stack([survey.counts for survey in surveys]))


def renumbered_counts(counts: Tensor, own: Sequence[LabelClass], wanted: Sequence[LabelClass]) -> Tensor:
    """Return ``[I, K + 1]`` counts of labels in the order of other classes of the same names."""
    places = {entry.name: place for place, entry in enumerate(own)}
    return counts[:, [*(places[entry.name] for entry in wanted), len(own)]]


def check_classes(split: str, index: SegmentationIndex, counts: Tensor | None) -> None:
    """Warn of classes that a split lacks; training needs at least two.

    Args:
        split: ``train``, ``val`` or ``test``.
        index: its images.
        counts: of its masks, from ``check_indices``; None if unknown.

    Raises:
        MaskError: if all training pixels are ignored or of one class.
    """
    masks = cast(MaskSource, index.masks)
    present = masks.present() if counts is None else (counts[:, :-1].sum(dim=0) > 0).numpy()
    if present is None:
        return
    names = [entry.name for entry in index.classes]
    shown = [name for name, there in zip(names, present, strict=True) if there]
    ignored = 0 if counts is None else int(counts[:, -1].sum())
    if split == "train" and len(shown) < 2:
        first = f"{masks.name(0)} and {len(index) - 1} more"
        what = f"of one class ({shown[0]})" if shown else "ignored"
        hint = "give masks with two classes or more"
        if ignored and len(shown) == 1:
            hint = (
                f"{ignored} pixels are ignored. If the value 255 is a class in these masks, name it so: "
                "data.classes [background, object] with data.mask_values [0, 255], or a CSV with the columns "
                "id and name"
            )
        raise MaskError(f"all{'' if not shown else ' labelled'} training pixels are {what} ({first}); {hint}")
    if lacking := [name for name in names if name not in shown]:
        logger.warning(
            "the %s masks have no pixel of %d of %d classes: %s",
            split, len(lacking), len(names), ", ".join(lacking[:20]),
        )  # fmt: skip


def _check(index: SegmentationIndex, position: int, images: CheckImages, masks: bool) -> _Outcome:
    path, source = index.path(position), index.masks
    size = _image_size(path, "header" if images == "off" else images)
    if isinstance(size, str):
        return _Outcome(damaged=size)
    if source is None:
        return _Outcome()
    try:
        survey = source.survey(position) if masks and not source.verified else None
        of_mask = source.size(position) if survey is None else survey.size
    except ValueError as error:
        return _Outcome(damaged=str(error))
    return _Outcome(misfit=_misfit(path, size, source.name(position), of_mask), survey=survey)


def _image_size(path: str, mode: CheckImages) -> _ImageSize | str:
    try:
        stored, swapped = stored_size(path)
        if mode == "decode":
            read_image(path, pixel_range="own")
    except ImageError as error:
        return str(error)
    return _ImageSize(stored[::-1] if swapped else stored, stored)


def _misfit(path: str, size: _ImageSize, name: str, of_mask: tuple[int, int]) -> str:
    if size.upright == tuple(of_mask):
        return ""
    text = (
        f"{path} has {size.upright[1]}x{size.upright[0]} pixels (width x height), "
        f"its mask {name} {of_mask[1]}x{of_mask[0]}"
    )
    if size.stored == tuple(of_mask):
        return text + (
            ": the image's EXIF orientation turns it by a quarter, and the mask was made without regard to "
            "that; remove the tag, or turn the mask"
        )
    return text


def _raise_unknown(
    pictures: Sequence[tuple[str, SegmentationIndex, int]], outcomes: Sequence[_Outcome]
) -> None:
    bad = [
        (
            f"{cast(MaskSource, index.masks).name(position)}: {described(outcome.survey.unknown)}",
            outcome.survey.unknown,
            index,
        )
        for (_, index, position), outcome in zip(pictures, outcomes, strict=True)
        if outcome.survey is not None and outcome.survey.unknown
    ]
    if not bad:
        return
    total: Counter[str] = Counter()
    for _, unknown, _ in bad:
        total.update(unknown)
    sums = ", ".join(f"{value} ({pixels} pixels)" for value, pixels in total.most_common(20))
    known = ", ".join(f"{entry.id} {entry.name}" for entry in bad[0][2].classes[:20])
    raise MaskError(
        f"{len(bad)} of {number_of(len(pictures), 'mask')} hold what is no class:\n"
        f"{listing([text for text, _, _ in bad])}\nin all: {sums}\nthe classes are {known}; add what is "
        "missing to data.classes, or to data.ignore what is not to be learned"
        + ("; if palettes hold the numbers of the classes, save the masks as grey" if "(" in sums[:1] else "")
    )


def _check_codings(
    pictures: Sequence[tuple[str, SegmentationIndex, int]], outcomes: Sequence[_Outcome]
) -> None:
    surveyed = [
        (cast(MaskSource, index.masks).name(position), outcome.survey)
        for (_, index, position), outcome in zip(pictures, outcomes, strict=True)
        if outcome.survey is not None
    ]
    if surveyed:
        check_codings(surveyed, cast(MaskSource, pictures[0][1].masks).table)
