"""Checks the arguments of the data module of scans, and rebuilds those that are objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..shared.common import require_positive
from .patches import check_patch
from .prepare.intensity import Intensity
from .prepare.prepare import Preparation


def check_arguments(given: Any) -> None:
    """Raise ValueError if an argument of ``ScanSegmentation`` is out of range or contradicts another.

    Args:
        given: the arguments as attributes and items.
    """
    require_positive(**{f"data.{name}": given[name] for name in ("batch_size", "steps_per_epoch")})
    if not 0 <= given.foreground <= 1:
        raise ValueError(f"data.foreground is {given.foreground}; it is a share of the patches, 0 to 1")
    if given.workers < 0:
        raise ValueError(f"data.workers is {given.workers}; it must be at least 0")
    if given.seed is not None and given.seed < 0:
        raise ValueError(f"data.seed is {given.seed}; it must be at least 0")
    if given.missing not in ("error", "skip"):
        raise ValueError(f"data.missing is {given.missing!r}; it is error or skip")
    if given.cache not in ("disk", "memory", "none"):
        raise ValueError(f"data.cache is {given.cache!r}; it is disk, memory or none")
    if given.cache_folder is not None and given.cache != "disk":
        raise ValueError(f"data.cache_folder has no effect with data.cache {given.cache}; leave it out")
    check_patch(given.patch, given.slice_axis)


def as_preparation(given: Preparation | Mapping[str, Any]) -> Preparation:
    """Rebuild a preparation from the plain values that a checkpoint holds."""
    if isinstance(given, Preparation):
        return given
    return Preparation(**{**given, "intensity": [Intensity(**one) for one in given["intensity"]]})
