"""Images and their classes, held in a few tensors, and the check of the files.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..shared.common import PackedNames, in_threads, listing
from ..shared.extras import tell_extras
from ..shared.faults import SkippedImages, raise_or_skip
from ..shared.io import ImageError, read_image, stored_size
from ..shared.loading import ImageRequest
from ..shared.locate import CheckImages
from ..shared.pixel_range import Picture
from ..shared.storage import is_stored, joined
from .archive import Archive, read_member
from .archive_names import ArchiveError
from .names import LabelError
from .scans import is_scan, read_scan, scan_shape

FIRST_SCANS = 20  # whose headers tell how many channels the scans have


@dataclass(frozen=True)
class ClassIndex:
    """The images of one split, without a Python object per image.

    Everything that grows with the data is a tensor, so worker processes share it: by copy on write when
    forked (nothing touches it), through shared memory when spawned. Never write to it.

    Attributes:
        folder: what the names are relative to: a folder, or the path of a zip; empty for the working
            directory.
        names: of the I files.
        labels: ``[I]`` int64 in 0..K-1, or ``[I, K]`` int8 zeros and ones if ``multi_label``; -1 (everywhere)
            if unknown.
        class_names: K names; label k stands for ``class_names[k]``.
        members: ``[I, 5]`` rows of ``Archive.table`` if the files lie in a zip, else None.
        table: the CSV that lists the images; empty if none does.
        lines: ``[I]`` int64, the line of each image in the CSV, or None.
    """

    folder: str
    names: PackedNames
    labels: Tensor
    class_names: tuple[str, ...]
    members: Tensor | None = None
    table: str = ""
    lines: Tensor | None = None

    def __post_init__(self) -> None:
        scans = [is_scan(name) for name in self.names]
        if any(scans) and self.members is None and is_stored(path := self.path(scans.index(True))):
            raise ImageError(
                f"{path}: scans are read from a disk only; copy them to one, or mount the storage"
            )
        if any(scans) and not all(scans):
            scan, picture = self.path(scans.index(True)), self.path(scans.index(False))
            raise ImageError(
                f"{scan} is a scan and {picture} a 2D image; train on one kind: make separate datasets"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes, or none."""
        return self.labels.ndim == 2

    @property
    def scans(self) -> bool:
        """Whether the images are scans rather than 2D images (never both)."""
        return len(self) > 0 and is_scan(self.names[0])

    def path(self, index: int) -> str:
        """Return where one image lies; inside a zip, the zip's path and the member's name."""
        return joined(self.folder, self.names[index])

    def named(self, request: ImageRequest) -> tuple[int, str]:
        """Return id (the position) and file of the image that a request of a sampler asks for."""
        return request.index, self.path(request.index)

    def content(self, index: int) -> bytes | None:
        """Return the bytes of one image if it lies in a zip, else None: it is to be read from ``path``.

        Raises:
            ImageError: if the member cannot be read.
        """
        if self.members is None:
            return None
        try:
            return read_member(self.folder, self.members[index].tolist())
        except ArchiveError as error:
            raise ImageError(f"{self.path(index)}: {error}") from error

    def label(self, index: int) -> Tensor:
        """Return ``[]`` int64, or ``[K]`` float32 if ``multi_label``."""
        label = self.labels[index]
        return label.float() if self.multi_label else label.clone()

    def layout(self) -> tuple[int, int]:
        """Return the number of channels and of spatial axes of the images; of scans, those of most of them.

        Raises:
            ImageError: if the files are scans and none of the first can be read.
        """
        if not self.scans:
            return 3, 2
        found: list[int] = []
        problems: list[ImageError] = []
        for position in range(min(len(self), FIRST_SCANS)):
            try:
                found.append(scan_shape(self.path(position), self.content(position))[0])
            except ImageError as error:
                problems.append(error)
        if not found:
            raise problems[0]
        return Counter(found).most_common(1)[0][0], 3

    def counts(self) -> Tensor:
        """Return ``[K]`` int64, how many images show each class."""
        if self.multi_label:
            return (self.labels == 1).sum(dim=0)
        return torch.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))


def picture_of(index: ClassIndex, position: int) -> Picture | None:
    """Return where a 2D image lies, for ``PixelRanges``; None for a scan."""
    return None if index.scans else Picture(index.path(position), partial(index.content, position))


def index_of_archive(
    archive: Archive, chosen: Sequence[int], labels: Tensor, classes: Sequence[str]
) -> ClassIndex:
    """Index some members of a zip.

    Args:
        archive: the zip.
        chosen: positions of the members in ``archive``.
        labels: of the chosen, as in ``ClassIndex``.
        classes: names of the classes.
    """
    names = PackedNames.pack(archive.names[position] for position in chosen)
    rows = archive.table[torch.as_tensor(chosen, dtype=torch.int64)]
    return ClassIndex(archive.path, names, labels, tuple(classes), rows)


def check_class_images(
    indices: Sequence[ClassIndex], mode: CheckImages = "header", skipped: SkippedImages | None = None
) -> None:
    """Check that every file is there and can be read, and that all scans have the same number of channels.

    Args:
        indices: what to check; splits that are used together.
        mode: ``header`` reads the beginning of each file; ``decode`` decodes all of it, which takes far
            longer and also finds damaged files and scans with voxels that are no numbers; ``off`` does
            nothing.
        skipped: takes files with problems; None for an error.

    Raises:
        ImageError: listing the first 20 files with problems, with the line of the CSV where there is one.
    """
    if mode == "off":
        return
    images = [(index, position) for index in indices for position in range(len(index))]
    outcomes = in_threads(
        lambda image: _channels_or_problem(image[0], image[1], mode), images, "checking images"
    )
    problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
    raise_or_skip(ImageError, problems, len(images), "cannot be used", skipped)
    images = [each for each, found in zip(images, outcomes, strict=True) if not isinstance(found, str)]
    outcomes = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    if indices and not indices[0].scans:
        paths = [index.path(position) for index, position in images]
        tell_extras(paths, lambda n: images[n][0].content(images[n][1]))
    usual = Counter(outcomes).most_common(1)[0][0] if outcomes else 0
    others = [n for n, channels in enumerate(outcomes) if channels != usual]
    if others:
        kinds = [f"{images[n][0].path(images[n][1])}: {_kind(outcomes[n])}" for n in others]
        example = images[outcomes.index(usual)]
        raise ImageError(
            f"{example[0].path(example[1])}: {_kind(usual)}, as most are, but\n{listing(kinds)}\n"
            "all images of a dataset need the same number of channels and axes"
        )


def check_training_classes(index: ClassIndex) -> None:
    """Check that there is something to tell apart.

    Raises:
        LabelError: if all images are of one class, or none shows any.
    """
    shown = [name for name, count in zip(index.class_names, index.counts().tolist(), strict=True) if count]
    if index.multi_label and not shown:
        raise LabelError(f"{index.table}: no training image shows any class; give each row its classes")
    if not index.multi_label and len(shown) < 2:
        raise LabelError(
            f"{index.table or index.folder}: all training images are of one class ({', '.join(shown)}); "
            "add images of the others"
        )


def _channels_or_problem(index: ClassIndex, position: int, mode: CheckImages) -> int | str:
    """Return the number of channels of a scan, 0 for a 2D image, or what is wrong."""
    path = index.path(position)
    try:
        content = index.content(position)
        if not index.scans:
            read_image(path, content, pixel_range="own") if mode == "decode" else stored_size(path, content)
            return 0
        return len(read_scan(path, content)) if mode == "decode" else scan_shape(path, content)[0]
    except ImageError as error:
        row = "" if index.lines is None else f"{index.table}, line {int(index.lines[position])}: "
        return f"{row}{error}"


def _kind(channels: int) -> str:
    return f"a scan of {channels} channel{'s' if channels > 1 else ''}" if channels else "a 2D image"
