"""Files of checkpoints: written whole or not at all, and read without running code in them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.cloud_io import _is_local_file_protocol

from ...backbones.weights.files import require_stored
from .leftovers import hold, part_of


class CheckpointError(ValueError):
    """A checkpoint is not there, cannot be read, or contradicts what is asked for."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to where it belongs, and renames it when all of it is on the disk.

    So there is never half a checkpoint under its name, and the old one is there until the new one is whole.
    Lightning's own writes to ``$TMPDIR`` first, and copies from there where that is another file system.
    Addresses of other storage (``s3://``) are left to Lightning.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what to write.
            path: where; folders above it are created.
            storage_options: as in Lightning, not supported.

        Raises:
            OSError: if it cannot be written; what was there before stays as it is.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = part_of(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                hold(file)
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch's writer turns errors of the disk into RuntimeError
            cause = _cause(error)
            raise OSError(
                f"the checkpoint {target} cannot be written ({cause}); "
                + ("what was there before is unharmed; " if target.is_file() else "")
                + "make room on the disk, or give another --trainer.default_root_dir"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> Any:
        """Read a checkpoint; no code in it runs, also not of one at an address, unless told otherwise.

        Args:
            path: of the checkpoint.
            map_location: as in ``torch.load``; main memory if not given.
            weights_only: False trusts the file as a program.
        """
        if _is_local_file_protocol(path):
            require_stored(path)
        location = (lambda storage, _: storage) if map_location is None else map_location
        return super().load_checkpoint(path, location, weights_only is not False)


def _cause(error: BaseException) -> str:
    """Return what the system said, which torch's writer hides behind an error of its own."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, OSError) and told.strerror:
            return told.strerror
        told = told.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Let the new name of a file outlive a loss of power; not every system can open a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def read_checkpoint(path: str, option: str) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors memory-mapped; no code in it runs.

    Args:
        path: an existing file.
        option: names the file in errors.

    Raises:
        CheckpointError: if the file cannot be read as a checkpoint.
    """
    try:
        require_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises nearly anything on a file that is not its own
        cause = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        if "PytorchStreamReader" in cause:
            cause = "it is cut short or damaged"
        elif "Weights only load failed" in cause:
            cause = "it holds objects other than tensors and plain values, which could run code"
        raise CheckpointError(
            f"{option} {path} cannot be read as a checkpoint ({cause}); give a .ckpt that fit has written"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(
            f"{option} {path} is no checkpoint of a run: it has no state_dict; a file of weights alone "
            "goes to --model.weights"
        )
    return content


def require_whole(path: str | Path, option: str) -> None:
    """Compare all parts of a checkpoint with their checksums; it is read once from the disk.

    Args:
        path: of a file that :func:`read_checkpoint` has opened.
        option: names the file in errors.

    Raises:
        CheckpointError: if bytes have changed since it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        broken = str(error)
    if broken is not None:
        raise CheckpointError(
            f"{option} {path} cannot be read as a checkpoint (it is damaged: {broken}); give a .ckpt that "
            "fit has written"
        )
