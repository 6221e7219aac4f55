"""Images that cannot be read in training and evaluation: an error, or another image in their place."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from torch.utils.data import Dataset

from .augment.checks import AugmentationError
from .common import listing, number_of
from .failed import CollateReadable, FailedImage, OnBadImage, SkipUnreadable, why
from .io import ImageError
from .objects import ObjectError, StorageError

logger = logging.getLogger("trunkline")

T = TypeVar("T", bound=Exception)

TRIES = 20  # images that are drawn for one that cannot be read
# What the machine lacks says nothing about an image.
LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


class BadImagesError(ImageError):
    """More images than ``data.max_bad_images`` cannot be read."""


def is_bad_image(error: BaseException) -> bool:
    """Return whether an error of reading is one of this image.

    Datasets raise ValueError or OSError for a sample that they cannot read. Errors of the augmentation, and
    of a machine that lacks memory, room or file descriptors, are none: all images would have them. Neither is
    a server that does not answer: which images it had not sent would depend on the time.
    """
    if not isinstance(error, ValueError | OSError) or isinstance(error, AugmentationError):
        return False
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, MemoryError) or (isinstance(told, OSError) and told.errno in LACKING):
            return False
        if isinstance(told, StorageError) and not isinstance(told, ObjectError):
            return False
        told = told.__cause__ or told.__context__
    return True


def with_hint(error: T, hint: str) -> T:
    """Return an error of the same type with a longer message."""
    try:
        return type(error)(f"{why(error)}; {hint}")
    except TypeError:  # such as UnicodeDecodeError, whose arguments are others
        return cast(T, ImageError(f"{why(error)}; {hint}"))


@dataclass
class Replaced:
    """A sample in the place of images that cannot be read.

    Attributes:
        sample: of another image.
        failed: those that were asked for before.
    """

    sample: Any
    failed: tuple[FailedImage, ...]


class ReplaceUnreadable(Dataset):
    """Samples of another dataset; for one that cannot be read, another image is drawn.

    The draw depends only on the seed of the request. It is among the images of the same group first, which
    share a canvas.

    Args:
        dataset: takes requests with ``index`` and ``seed``; raises ValueError or OSError for a sample that it
            cannot read.
        named: returns the id and the file of the image that a request asks for.
        groups: positions of images that may take each other's place; None for all.
    """

    def __init__(
        self,
        dataset: Any,
        named: Callable[[Any], tuple[int, str]],
        groups: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.dataset = dataset
        self.named = named
        self.groups = groups

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, request: Any) -> Any:
        """Return the sample of a request, or one in its place as ``Replaced``.

        Raises:
            BadImagesError: if none of 20 others can be read either.
        """
        failed: list[FailedImage] = []
        rng = np.random.default_rng([request.seed])
        asked, tried = request, {request.index}
        while True:
            try:
                sample = self.dataset[asked]
            except (ValueError, OSError) as error:
                if not is_bad_image(error):
                    raise
                failed.append(FailedImage(*self.named(asked), why(error)))
            else:
                return Replaced(sample, tuple(failed)) if failed else sample
            others = self._others(request.index, tried)
            if not len(others) or len(failed) > TRIES:
                texts = [f"image id {each.image_id}: {each.error}" for each in failed]
                raise BadImagesError(f"none of these images can be read:\n{listing(texts)}\nreplace them")
            index = int(others[rng.integers(len(others))])
            tried.add(index)
            asked = request._replace(index=index)

    def _others(self, index: int, tried: set[int]) -> np.ndarray:
        used = list(tried)
        for group in self.groups or ():
            if index in group and len(left := np.setdiff1d(group, used)):
                return left
        return np.setdiff1d(np.arange(len(self)), used)


class CollateReplaced:
    """Joins samples; the batch names the images that were replaced in ``failed``.

    Args:
        collate: joins samples into a ``Batch``.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Return the batch."""
        replaced = [sample for sample in samples if isinstance(sample, Replaced)]
        batch = self.collate([each.sample if isinstance(each, Replaced) else each for each in samples])
        if replaced:
            batch.failed = tuple(image for each in replaced for image in each.failed)
        return batch


class ErrorWithRemedy(Dataset):
    """Samples of another dataset, whose errors of reading also name ``data.on_bad_image``.

    Args:
        dataset: raises ValueError or OSError for a sample that it cannot read.
        named: returns the id and the file of the image that a request asks for.
    """

    def __init__(self, dataset: Any, named: Callable[[Any], tuple[int, str]]) -> None:
        self.dataset = dataset
        self.named = named

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.dataset[request]
        except ValueError as error:
            if not is_bad_image(error):
                raise
            raise with_hint(error, "--data.on_bad_image skip goes on without such images") from error
        except OSError as error:
            if not is_bad_image(error):
                raise
            _, file = self.named(request)
            raise ImageError(
                f"{file}: cannot be read ({why(error)}); --data.on_bad_image skip goes on without such images"
            ) from error


def on_unreadable(
    what: OnBadImage,
    training: bool,
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    named: Callable[[Any], tuple[int, str]],
    groups: Sequence[np.ndarray] | None = None,
) -> tuple[Any, Callable[[list[Any]], Any]]:
    """Return dataset and collate function of a loader that does what ``data.on_bad_image`` says.

    Args:
        what: the option.
        training: whether another image takes the place of one that cannot be read; evaluation leaves it out.
        dataset, collate: of the loader.
        named, groups: as in ``ReplaceUnreadable``.
    """
    if what == "error":
        return ErrorWithRemedy(dataset, named), collate
    if training:
        return ReplaceUnreadable(dataset, named, groups), CollateReplaced(collate)
    return SkipUnreadable(dataset, named, is_bad_image), CollateReadable(collate)


class SkippedImages:
    """The images that a run has skipped, each once, and their budget.

    Args:
        most: how many different images may be skipped; see ``data.max_bad_images``.

    Attributes:
        found: by file, the image.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: dict[str, FailedImage] = {}

    def add(self, failed: Sequence[FailedImage]) -> None:
        """Log images that are new, and count them.

        Raises:
            BadImagesError: if there are more than the budget.
        """
        for image in failed:
            if image.file_name not in self.found:
                self.found[image.file_name] = image
                logger.warning(
                    "skipped image id %d, %s: %s (%d of at most %d, data.max_bad_images)",
                    image.image_id, image.file_name, image.error, len(self.found), self.most,
                )  # fmt: skip
        self.check()

    def check(self) -> None:
        """Compare the count with the budget.

        Raises:
            BadImagesError: if there are more, naming the first 20.
        """
        if len(self.found) > self.most:
            texts = [
                f"image id {image.image_id}, {image.file_name}: {image.error}"
                for image in self.found.values()
            ]
            raise BadImagesError(
                f"{number_of(len(texts), 'image')} cannot be read, more than the {self.most} of "
                f"data.max_bad_images:\n{listing(texts)}\nreplace them, take them out of the dataset, or "
                "raise --data.max_bad_images"
            )

    def join(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over what other processes have skipped, by their ``state``; the budget is not looked at."""
        for state in states:
            for file, (image_id, error) in state.items():
                self.found.setdefault(file, FailedImage(int(image_id), file, str(error)))

    def state(self) -> dict[str, Any]:
        """Return id and error by file, in plain values."""
        return {file: [image.image_id, image.error] for file, image in self.found.items()}

    def found_before(self, kind: type[ValueError], problems: Sequence[str], count: int, what: str) -> None:
        """Say what the checks before a run have found.

        Args:
            kind: of the error.
            problems: one text for each image.
            count: how many images were looked at.
            what: is wrong with them.

        Raises:
            ValueError: of that kind, if there are more than the budget, or none is left.
        """
        text = f"{len(problems)} of {number_of(count, 'image')} {what}"
        if len(problems) > self.most or len(problems) == count:
            limit = "" if len(problems) == count else f" (data.max_bad_images is {self.most})"
            raise kind(f"{text}{limit}:\n{listing(problems)}")
        if problems:
            logger.warning("%s and will be skipped:\n%s", text, listing(problems))


def raise_or_skip(
    kind: type[ValueError], problems: Sequence[str], count: int, what: str, skipped: SkippedImages | None
) -> None:
    """Raise an error that lists the problems of images, or, with ``skipped``, say that they are skipped.

    Args:
        kind, problems, count, what: as in ``SkippedImages.found_before``.
        skipped: of the data module with ``on_bad_image: skip``; else None.
    """
    if problems and skipped is None:
        raise kind(f"{len(problems)} of {number_of(count, 'image')} {what}:\n{listing(problems)}")
    if skipped is not None:
        skipped.found_before(kind, problems, count, what)
