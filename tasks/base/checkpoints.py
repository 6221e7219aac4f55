"""Opens checkpoints before anything is built from them."""

from __future__ import annotations

from typing import Any

import torch


def read_checkpoint(path: str, option: str) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors memory-mapped; no code in it runs.

    Args:
        path: an existing file.
        option: names the file in errors.

    Raises:
        ValueError: if the file cannot be read as a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises nearly anything on a file that is not its own
        cause = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ValueError(
            f"{option} {path} cannot be read as a checkpoint ({cause}); give a .ckpt that fit has written"
        ) from error
