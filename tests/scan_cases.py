"""Small files of scans, what was found of them, and data modules of them."""

import nibabel
import numpy as np
import torch

from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Preparation

RAW = Preparation(intensity=[Intensity(scale="none")])
SHAPES = {"train": [(12, 14, 10), (13, 12, 11), (8, 12, 14)], "val": [(9, 10, 11), (10, 9, 8)]}
SMALL = {"patch": [6, 7, 8], "workers": 0, "preparation": RAW, "augment": [], "cache": "memory", "seed": 0}


def volume(path, ids=(0, 1), channels=1):
    """A scan, or labels, of 2 x 2 x 2 voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.resize(np.array(ids, dtype=np.int16), (2, 2, 2, channels) if channels > 1 else (2, 2, 2))
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def described(found, root):
    """Names of cases with their images and label, relative to the root, by split."""
    return {
        split: {
            case.name: (
                [image.removeprefix(f"{root}/") for image in case.images],
                case.label and case.label.removeprefix(f"{root}/"),
            )
            for case in cases
        }
        for split, cases in found.cases.items()
    }


def indexed(shape, case):
    i, j, k = np.indices(shape)
    return (case * 1e6 + i * 1e4 + j * 1e2 + k).astype(np.float32)


def labels(shape, case):
    values = np.zeros(shape, dtype=np.uint8)
    values[2:5, 3:6, 2:7] = 1
    values[6, 7, 4 + case % 3] = 4
    return values


def save(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def write(root, affine=None, shapes=SHAPES):
    number = 0
    for split, sizes in shapes.items():
        for shape in sizes:
            save(root / f"images/{split}/case{number}.nii.gz", indexed(shape, number), affine)
            save(root / f"labels/{split}/case{number}.nii.gz", labels(shape, number), affine)
            number += 1
    (root / "classes.csv").write_text("id,name\n0,background\n1,organ\n4,lesion\n")
    return root


def fitted(root, stage="fit", **options):
    made = ScanSegmentation(None if root is None else str(root), **SMALL | options)
    made.setup(stage)
    return made


def names_of(made):
    """Return the names of a data module's classes."""
    return [entry.name for entry in made.label_classes("volumes")]


def blocks(shape, seed=0):
    """Return a mask of labels 0..4 in blocks of 3 voxels a side."""
    coarse = np.random.default_rng(seed).integers(0, 5, [-(-side // 3) for side in shape], dtype=np.uint8)
    for axis in range(len(shape)):
        coarse = coarse.repeat(3, axis)
    return torch.from_numpy(coarse[tuple(map(slice, shape))].copy())


def noise(shape, channels=2, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(channels, *shape)).astype(np.float32))


def placed(matrix, origin=(-31.25, 40.5, 7.125)):
    """Return the affine of such axes and origin."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


def rotation(*degrees):
    """Turns about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


AFFINES = {
    "plain": placed(np.eye(3)),
    "anisotropic": placed(np.diag((0.75, 0.75, 5.0))),
    "flipped": placed(np.diag((-1.0, -1.5, 2.0))),
    "mirrored": placed(np.diag((-1.0, 1.5, 2.0))),
    "permuted": placed(np.array([[0, 0, 2], [-1, 0, 0], [0, 1.5, 0]])),
    "oblique": placed(rotation(20, -35, 50) * (0.9, 1.1, 3.0)),
    "sheared": placed(rotation(10, 5, -15) @ np.array([[1, 0, 0], [0, 1, 0.4], [0, 0, 1]]) * (0.9, 1.1, 3.0)),
}
