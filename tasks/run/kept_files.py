"""The files that a checkpoint says its run has kept: Lightning deletes them when better ones come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .checkpoints import CheckpointError

_SUFFIX = ".ckpt"  # of all that ModelCheckpoint writes
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def check_kept_files(state: Mapping[str, Any], folder: str) -> None:
    """Refuse a checkpoint that would have other files deleted than checkpoints of its run.

    Lightning deletes what lies in the run's folder, and does not look where ``..`` leads; of other storage
    (``s3://``) it deletes anything.

    Args:
        state: of a ``ModelCheckpoint``, as the checkpoint holds it.
        folder: where this run writes its checkpoints.

    Raises:
        CheckpointError: naming the file.
    """
    kept = state.get("best_k_models")
    paths = [*(kept if isinstance(kept, Mapping) else ()), *(state.get(name) for name in _PATHS)]
    for path in filter(None, paths):
        remote = "://" in str(path) and not str(path).startswith(folder.rstrip("/") + "/")
        if not isinstance(path, str) or not path.endswith(_SUFFIX) or ".." in PurePath(path).parts or remote:
            raise CheckpointError(
                f"the checkpoint says that its run has kept {str(path)[:200]!r}, which is no checkpoint of a "
                "run; the file is damaged or malicious, so do not use it"
            )
