"""Ids of labels from what files hold: whole numbers, or numbers that are whole but for rounding.

Letters in shapes: *S the spatial axes of a scan.
"""

from __future__ import annotations

import numpy as np

from .scan import PathLike, ScanError

_ID_TYPES = (np.uint8, np.uint16, np.int32)
# Interpolated labels take any value between ids, so that rounding of this size is never theirs: float16 has
# 1e-3 near 1, and programs reckon with float32 more than once.
_ROUNDING = 1e-3
_MOST = 0.05  # a step of twice that between stored numbers leaves ids and values between them apart


def whole_ids(path: PathLike, values: np.ndarray, step: float = 0.0, scaled_by: str = "") -> np.ndarray:
    """Return whole numbers in the smallest type that holds them, in C order.

    Floating-point numbers are rounded if all of them are whole but for a tolerance: 0.001, or for large ids
    the distance of neighbouring numbers of their type. Where a header scales integers it is half a step of
    them, as far as that stays below 0.05.

    Args:
        path: the file, for errors.
        values: ``[*S]`` numbers.
        step: by how much values differ whose stored integers differ by 1; 0 if the file does not scale them.
        scaled_by: the fields of the header that scale, for errors; empty if there are none.

    Returns:
        ``[*S]`` uint8, uint16 or int32.

    Raises:
        ScanError: if values are not whole, or do not fit 32 bits.
    """
    if values.dtype.kind == "f":
        values = _rounded(path, values, step, scaled_by)
    elif values.dtype.kind not in "biu":
        raise ScanError(f"{path}: labels are {values.dtype}, not whole numbers")
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    for kind in _ID_TYPES:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.ascontiguousarray(values, dtype=kind)
    raise ScanError(f"{path}: ids from {low} to {high} do not fit 32 bits; give the classes other numbers")


def _rounded(path: PathLike, values: np.ndarray, step: float, scaled_by: str) -> np.ndarray:
    whole = np.rint(values)
    with np.errstate(invalid="ignore"):  # of infinite ones
        off = np.abs(values - whole)
        half_step = min(0.5 * step, _MOST) if scaled_by else 0.0
        # Slope and intercept are float32, of which large ones lie further apart.
        single = np.abs(whole) * np.finfo(np.float32).eps if scaled_by else 0.0
        bad = ~(off <= np.maximum(max(_ROUNDING, half_step), single))
    if not bad.any():
        if scaled_by:
            _check_apart(path, values, whole, scaled_by)
        return whole
    example = values[np.unravel_index(int(bad.argmax()), bad.shape)]
    if scaled_by:
        cause = (
            f"the header scales the numbers that are stored by {scaled_by}; store the ids themselves, as "
            "integers, with a slope of 1 and an intercept of 0"
        )
    else:
        cause = "labels hold one id per voxel and must not be interpolated"
    raise ScanError(
        f"{path}: {int(bad.sum())} of {values.size} labels are no whole numbers, such as {example:g}; {cause}"
    )


def _check_apart(path: PathLike, values: np.ndarray, whole: np.ndarray, scaled_by: str) -> None:
    """Refuse ids that a header scales to next to nothing, so that rounding makes all of them background."""
    if not whole.any() and values.size and values.min() != values.max():
        raise ScanError(
            f"{path}: all labels are 0 when rounded, because the header scales the numbers that are stored "
            f"by {scaled_by}; store the ids themselves, as integers, with a slope of 1 and an intercept of 0"
        )
