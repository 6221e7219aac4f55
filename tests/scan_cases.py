"""Small files of scans, and what was found of them, for the tests of all layouts."""

import nibabel
import numpy as np


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
