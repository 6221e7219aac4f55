"""Small NIfTI files whose headers say what they should not."""

import gzip

import nibabel
import numpy as np

VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def nifti(path, **fields):
    """Write ``VALUES`` with some fields of the header replaced, compressed if the name ends in ``.gz``."""
    content = bytearray(nibabel.Nifti1Image(VALUES, np.eye(4)).to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
