"""NIfTI files, by nibabel.

Letters in shapes: i j k the axes of the file, C channels (the fourth axis of the file).
"""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np

from .scan import Grid, PathLike, ScanError, Stored, make_grid, warn_unplaced

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_PLACING: tuple[str, ...] = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
)
_PLACING += ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")
_SCANNER = 1  # code of a form: coordinates of the scanner


def read_nifti(path: PathLike, header_only: bool = False, floats: bool = False) -> Stored:
    """Read a file. The affine is the sform's if that has a code, else the qform's if that has one.

    A file without either has nothing but voxel sizes. It is placed around the origin, with axes to the left,
    to the front and to the head, as nibabel does, and a warning says so.

    Args:
        path: the file.
        header_only: leave out the voxels.
        floats: return float32 voxels; else integers stay integers unless the header scales them.
    """
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ScanError(f"{path}: is {type(image).__name__}, which has no voxel grid; export it as a volume")
    shape, channels = _split_shape(path, image.shape)
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        raise ScanError(
            f"{path}: voxels are {'colours' if dtype.names else dtype}, not real numbers; split the parts "
            "into files (one per channel) and name those"
        )
    stored = Stored(make_grid(path, shape, image.affine), channels, dtype.newbyteorder("="))
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        warn_unplaced(path, stored.grid, "neither sform nor qform")
    if not header_only:
        stored.values = _values(path, image, (*shape, channels), floats)
    return stored


def _split_shape(path: PathLike, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the sizes of i, j and k, and C."""
    more = [size for size in shape[3:] if size != 1]
    if len(shape) < 2 or len(more) > 1:
        raise ScanError(
            f"{path}: has shape {list(shape)}; a scan has two or three axes, and one more if it has channels"
        )
    return (*shape[:3], 1)[:3], more[0] if more else 1


def _values(path: PathLike, image: Any, shape: tuple[int, ...], floats: bool) -> np.ndarray:
    if str(path).lower().endswith(".gz"):
        with gzip.open(path) as file:  # to its end, where the checksum stands
            image = type(image).from_bytes(file.read())
    with np.errstate(over="ignore"):  # infinite voxels are reported by the caller
        values = (
            image.get_fdata(dtype=np.float32, caching="unchanged") if floats else np.asarray(image.dataobj)
        )
    return np.moveaxis(values.reshape(shape, order="F"), -1, 0)  # [i, j, k, C] -> [C, i, j, k]


def write_nifti(path: PathLike, values: np.ndarray, grid: Grid) -> None:
    """Write ``[C, i, j, k]`` in their own dtype.

    Both sform and qform are set; an affine with oblique axes, which a qform cannot hold, has the sform only.
    The header holds numbers of 32 bits, so that places are exact to about 1e-5 mm.
    """
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_xyzt_units("mm")
    image = nibabel.Nifti1Image(_by_file_axes(values, grid.shape), None, header, dtype=values.dtype)
    image.header.set_sform(grid.affine, _SCANNER)
    axes = grid.affine[:3, :3] / grid.spacing
    square = np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    image.header.set_qform(grid.affine, _SCANNER if square else 0)
    image.to_filename(path)


def write_nifti_like(path: PathLike, values: np.ndarray, like: PathLike) -> None:
    """Write ``[1, i, j, k]`` in their own dtype, placed exactly as the NIfTI file ``like`` is.

    Sform, qform, their codes and the units are copied bit for bit; nothing else of the header is.
    """
    import nibabel

    source: Any = nibabel.load(like)
    header = type(source.header)()
    header.set_data_dtype(values.dtype)
    image = type(source)(_by_file_axes(values, source.shape[:3]), None, header, dtype=values.dtype)
    for name in _PLACING:
        image.header[name] = source.header[name]
    image.header["pixdim"][:4] = source.header["pixdim"][:4]
    image.to_filename(path)


def _by_file_axes(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``[C, i, j, k]`` as ``[i, j, k, C]``, or as ``[*shape]`` if there is one channel."""
    return values.reshape(shape) if len(values) == 1 else np.moveaxis(values, 0, -1)
