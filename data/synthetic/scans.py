"""Writes small CT-like volumes with label volumes, with known answers.

Everything is placed in millimetres of the patient: x to the right, y to the front, z to the head, 0 in the
middle of the body. Then it is sampled on each scan's own grid.

Letters in shapes: i j k the axes of a volume.
"""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .pictures import replacing

SCAN_CLASSES = ("background", "liver", "spleen", "kidney")
_LIVER, _SPLEEN, _KIDNEY = 1, 2, 3
_AIR = -1000  # Hounsfield units
_ORIENTATIONS = ("LPS", "RAS", "LAS")  # of the files' axes
_MARGIN = 1.15  # field of view over the width of the body


def write_scans(
    folder: str | PathLike[str],
    train: int = 24,
    val: int = 8,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write CT-like volumes of a body with a liver, a spleen and two kidneys, and their label volumes.

    Volumes are NIfTI, int16 Hounsfield units, about 64 x 64 x 40 voxels of about 1.5 x 1.5 x 3 mm; size,
    spacing, origin and the directions of the axes (LPS, RAS, LAS) vary. The organs' intensities overlap,
    with those of vessels and nodules too, so that size, shape and place decide. Labels are 0 background, 1
    liver, 2 spleen and 3 kidney. The result is complete or absent: it is written to a temporary folder next
    to ``folder``, which is then renamed.

    Args:
        folder: becomes the root with ``images/{train,val}/NAME.nii.gz``, ``labels/{train,val}/NAME.nii.gz``
            and ``classes.txt`` (a name per line; the id is the line number less 1). It may exist if it is
            empty or holds nothing but an earlier dataset of this function.
        train: number of volumes to train with, at least 1.
        val: number of volumes to validate with, at least 1.
        seed: the same seed gives the same files.
        overwrite: also replace entries of these names that came from somewhere else.
        progress: show a progress bar.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: if ``folder`` holds anything else.
        ValueError: if a number is too small.
    """
    folder = Path(folder)
    if train < 1 or val < 1:
        raise ValueError(f"need a scan per split at least, got {train=}, {val=}")
    with (
        replacing(folder, {"images", "labels", "classes.txt"}, overwrite) as temporary,
        tqdm(total=train + val, desc="making scans", unit="scan", disable=not progress) as bar,
    ):
        (temporary / "classes.txt").write_text("\n".join(SCAN_CLASSES) + "\n")
        first = 1
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            rng = np.random.default_rng([seed, number])
            for case in range(first, first + count):
                _write_case(temporary, split, f"scan_{case:03d}.nii.gz", rng)
                bar.update()
            first += count  # no name occurs in both splits
    return folder


def draw_scan(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a volume whose axes are those of the patient (RAS).

    Returns:
        ``[i, j, k]`` int16 Hounsfield units, ``[i, j, k]`` uint8 labels and the ``[4, 4]`` affine.
    """
    from scipy.ndimage import gaussian_filter

    shape = rng.integers((60, 60, 36), (68, 68, 44), endpoint=True)
    body = rng.uniform((38, 30), (44, 36))  # half axes, mm
    in_plane = 2 * body[0] * _MARGIN / shape[0]
    spacing = np.array((in_plane, in_plane, in_plane * rng.uniform(1.7, 2.3)))
    axes = [(np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"))  # [3, i, j, k] mm
    values, labels = _anatomy(place, body, rng)
    values = gaussian_filter(values, 1 / spacing, mode="nearest")  # edges as a scanner has them
    values += rng.normal(0, rng.uniform(12, 20), size=values.shape)
    affine = np.diag((*spacing, 1.0))
    affine[:3, 3] = [axis[0] for axis in axes] + rng.uniform(-150, 150, size=3)
    return np.rint(values).clip(-1024, 3071).astype(np.int16), labels, affine


def _anatomy(place: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return Hounsfield units without noise, and labels."""
    x, y, z = place
    inside = (x / body[0]) ** 2 + (y / body[1]) ** 2 <= 1 + 0.06 * np.sin(z / 18 + rng.uniform(0, 6))
    soft = 40 + 10 * np.sin(x / rng.uniform(9, 14)) * np.cos(y / rng.uniform(9, 14) + z / 20)
    values = np.where(inside, soft, _AIR)
    labels = np.zeros(x.shape, dtype=np.uint8)
    for _ in range(rng.integers(4, 8)):  # nodules and vessels, as bright as organs but small
        centre = rng.uniform((-0.7, -0.6, -45), (0.7, 0.8, 45)) * (*body, 1)
        spot = _blob(place, centre, rng.uniform(3, 5, size=3), 0)
        values[spot & inside] = rng.uniform(95, 190)
    for label, centre, radii, turn, value in _organs(body, rng):
        organ = _blob(place, centre, radii, turn) & inside & (labels == 0)
        values[organ], labels[organ] = value, label
    bones = [((0.0, -0.72), rng.uniform(5, 6.5))]  # the spine, then ribs
    bones += [((0.88 * math.sin(a), 0.88 * math.cos(a)), rng.uniform(2, 3)) for a in rng.uniform(0, 6.28, 6)]
    for (across, up), radius in bones:
        bone = np.hypot(x - across * body[0], y - up * body[1]) <= radius
        bone &= inside & (labels == 0)
        values[bone] = rng.uniform(300, 700)
    return values, labels


def _organs(
    body: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, np.ndarray, np.ndarray, float, float]]:
    """Return (label, centre in mm, half axes in mm, turn about z, Hounsfield units) of each organ."""
    level = rng.uniform(-12, 12)  # how high the organs of this body lie, mm
    drawn = [
        (_LIVER, (0.42, 0.15, level + 8), (16, 15, 27), rng.uniform(-0.3, 0.3), rng.uniform(85, 110)),
        (_SPLEEN, (-0.6, 0.05, level + 14), (8.5, 13, 20), rng.uniform(-0.4, 0.4), rng.uniform(115, 145)),
    ]
    kidneys = rng.uniform(160, 200)
    for side in (-1, 1):
        centre = (side * 0.42, -0.55, level - 16 + rng.uniform(-6, 6))
        drawn.append((_KIDNEY, centre, (9, 8, 18), side * rng.uniform(0.1, 0.6), kidneys))
    return [
        (
            label,
            np.array(centre) * (*body, 1) + rng.normal(0, 1.5, size=3),
            np.array(radii) * rng.uniform(0.85, 1.15, size=3),
            turn,
            value,
        )
        for label, centre, radii, turn, value in drawn
    ]


def _blob(place: np.ndarray, centre: np.ndarray, radii: np.ndarray, turn: float) -> np.ndarray:
    """``[i, j, k]`` bool: an ellipsoid, turned about z."""
    x, y, z = (axis - middle for axis, middle in zip(place, centre, strict=True))
    across, up = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    return (across / radii[0]) ** 2 + (up / radii[1]) ** 2 + (z / radii[2]) ** 2 <= 1


def _write_case(root: Path, split: str, name: str, rng: np.random.Generator) -> None:
    import nibabel
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    values, labels, affine = draw_scan(rng)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(rng.choice(_ORIENTATIONS)))
    for kind, array in (("images", values), ("labels", labels)):
        image = nibabel.Nifti1Image(array, affine).as_reoriented(turn)
        image.set_sform(image.affine, 1)
        image.set_qform(image.affine, 1)
        image.header.set_xyzt_units("mm")
        (root / kind / split).mkdir(parents=True, exist_ok=True)
        image.to_filename(root / kind / split / name)
