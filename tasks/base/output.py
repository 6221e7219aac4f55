"""The folder that ``predict`` writes to, and the list of the images that could not be predicted on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from ...data.shared.common import number_of
from ...data.shared.failed import FailedImage
from ...evaluation.distributed import gather_objects
from ...evaluation.files import shown, write_csv

Existing = Literal["error", "move"]

FAILED = "failed.csv"
LOCK = ".predicting.lock"
RESULTS = (
    *("predictions.json", "predictions.csv", "images.json", "classes.csv", "cases.json", FAILED),
    *("masks", "labels", "pictures"),
)
NAMED = 5  # failures that the message names


class UnreadImages(ValueError):
    """Some images could not be predicted on; all others are written."""


def require_writable(folder: Path) -> None:
    """Raise an OSError unless ``folder`` can be written to, or created."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problem = "may not be written to" if place.is_dir() else "is no folder"
        raise OSError(f"output.folder: {shown(place)} {problem}; give another --output.folder")


class OutputLock:
    """Keeps other predictions out of a folder while one writes to it, as long as its process is there.

    Where a file system has no locks, nothing is kept out.

    Args:
        folder: of the output; created where needed.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder = folder
        self._made = False
        self._lock = FileLock(folder / LOCK, timeout=0)

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            OSError: if another prediction has it, or it cannot be created.
        """
        from filelock import Timeout

        self._made = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise OSError(
                f"output.folder: another prediction is writing to {shown(self.folder)}; give another "
                "--output.folder, or wait for its end"
            ) from error
        except NotImplementedError:
            return

    def release(self) -> None:
        """Let others have the folder; one that was created and holds nothing is removed."""
        if self._lock.is_locked:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.release()
        if self._made and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def earlier_results(folder: Path, branches: Iterable[str]) -> list[str]:
    """Return the names in ``folder`` that a prediction writes, and that are there already.

    Args:
        folder: of the output.
        branches: folders of the branches in it; an empty name is the folder itself.
    """
    names = (*RESULTS, *(name for name in branches if name))
    return [name for name in names if os.path.lexists(folder / name)]


def refuse_earlier_results(folder: Path, names: Sequence[str]) -> None:
    """Raise an OSError if there are any: new files would mix with those of other images, or replace them."""
    if names:
        raise OSError(
            f"output.folder: {shown(folder)} holds {', '.join(names)} already, of an earlier prediction or "
            "of yours; give another --output.folder, or --output.existing move, which moves them into a "
            "folder earlier_1 (_2, ...) there"
        )


def move_earlier_results(folder: Path, names: Sequence[str]) -> Path:
    """Move earlier results into a new folder ``earlier_N`` of the output folder, and return that."""
    for number in itertools.count(1):
        target = folder / f"earlier_{number}"
        try:
            target.mkdir()
            break
        except FileExistsError:
            continue
    for name in names:
        os.rename(folder / name, target / name)
    return target


class Failures:
    """The images that could not be predicted on, of all processes.

    Args:
        folder: where ``failed.csv`` goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[int, FailedImage] = {}

    def add(self, images: Iterable[FailedImage]) -> None:
        """Keep what is found."""
        self._found |= {image.image_id: image for image in images}

    def finish(self, first_process: bool, count: int) -> str:
        """Write ``failed.csv`` (``image_id``, ``file_name``, ``error``) if there is anything to write.

        All processes call it.

        Args:
            first_process: which writes.
            count: of all images.

        Returns:
            The message for people; empty without a failure.
        """
        parts: list[Any] = gather_objects(self._found)
        found = {number: image for part in parts for number, image in part.items()}
        if not found:
            return ""
        images = [found[number] for number in sorted(found)]
        path = self.folder / FAILED
        if first_process:
            rows = [[image.image_id, image.file_name, image.error] for image in images]
            write_csv(path, ["image_id", "file_name", "error"], rows)
        lines = "".join(f"\n  {shown(named(image))}" for image in images[:NAMED])
        more = f"\n  ... and {len(images) - NAMED} more" if len(images) > NAMED else ""
        return (
            f"{len(images)} of {number_of(count, 'image')} could not be predicted on; the others are done. "
            f"All of them are listed in {shown(path.resolve())}:{lines}{more}"
        )


def named(image: FailedImage) -> str:
    """Return the error with the file in it."""
    return image.error if image.file_name in image.error else f"{image.file_name}: {image.error}"
