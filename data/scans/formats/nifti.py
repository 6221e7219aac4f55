"""NIfTI files, by nibabel.

Letters in shapes: i j k the axes of the file, C channels (the fourth axis of the file).
"""

from __future__ import annotations

import gzip
import math
import os
from typing import Any

import numpy as np

from ...shared.limits import MOST_AFTER, MOST_BEFORE
from .checks import DEFLATE, check_claim
from .scan import Grid, PathLike, ScanError, Stored, make_grid, warn_once, warn_unplaced

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
_TO_MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # by the first three bits of xyzt_units; 0 is not told, 1 metres
_UNITS_BITS = 7
_HUGE = 100.0  # mm; no voxel of a patient is as large
_SQUARE = 1e-5  # by which products of directions may miss those of directions at right angles
_BLOCK = 1 << 20


def read_nifti(path: PathLike, header_only: bool = False, floats: bool = False) -> Stored:
    """Read a file. The affine is the sform's if that has a code, else the qform's if that has one.

    A file without either has nothing but voxel sizes. It is placed around the origin, with axes to the left,
    to the front and to the head, as nibabel does, and a warning says so. Lengths in metres or micrometres
    (``xyzt_units``) become millimetres; those of an unknown unit are millimetres.

    Args:
        path: the file.
        header_only: leave out the voxels.
        floats: return float32 voxels; else integers stay integers unless the header scales them.
    """
    import nibabel

    _check_header(path)
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
    affine, scale = image.affine, _millimetres(path, image.header)
    if scale != 1:
        affine = np.diag((scale, scale, scale, 1.0)) @ affine
    stored = Stored(make_grid(path, shape, affine), channels, dtype.newbyteorder("="))
    if scale != 1 and max(stored.grid.spacing) > _HUGE:
        sizes = " x ".join(f"{size:g}" for size in stored.grid.spacing)
        warn_once(
            path, f"by its xyzt_units its voxels measure {sizes} mm; if they do not, set the units to mm"
        )
    stored_as: Any = image.dataobj
    slope, inter = stored_as.slope, stored_as.inter
    if (slope, inter) != (1, 0):
        stored.step, stored.scaled_by = abs(float(slope)), f"scl_slope {slope:g} and scl_inter {inter:g}"
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        warn_unplaced(path, stored.grid, "neither sform nor qform")
    if not header_only:
        stored.values = _values(path, image, (*shape, channels), floats)
    return stored


def _check_header(path: PathLike) -> None:
    """Check what nibabel would mend in silence, or believe: sizes, and voxel sizes that the affine needs."""
    import nibabel

    packed = str(path).lower().endswith(".gz")
    with gzip.open(path) if packed else open(path, "rb") as file:
        start = file.read(nibabel.Nifti2Header.template_dtype.itemsize)
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    found = [kinds.get(int.from_bytes(start[:4], order)) for order in ("little", "big")]
    kind = found[0] or found[1]
    if kind is None or len(start) < kind.template_dtype.itemsize:
        raise ScanError(
            f"{path}: has no NIfTI header: damaged, or not of the format that its name says; copy or export "
            "it again"
        )
    header = kind(start[: kind.template_dtype.itemsize], check=False)
    shape = tuple(int(size) for size in header.get_data_shape())
    if min(shape, default=0) < 0 or not 0 < int(header["dim"][0]) < len(header["dim"]):
        raise ScanError(f"{path}: the header has sizes {header['dim'].tolist()}; copy or export it again")
    if int(header["datatype"]) not in nibabel.nifti1.data_type_codes.dtype:
        raise ScanError(f"{path}: the header has the unknown datatype {header['datatype']}; export it again")
    offset = float(header["vox_offset"])
    if not kind.template_dtype.itemsize <= offset < 1 << 62:  # nibabel would read the header as voxels
        raise ScanError(
            f"{path}: the header has vox_offset {offset:g}, where no voxels can begin (they follow the "
            f"{kind.template_dtype.itemsize} bytes of the header); repair it, or export the scan again"
        )
    if offset > MOST_BEFORE:
        raise ScanError(
            f"{path}: the header has vox_offset {offset:g}; more than {MOST_BEFORE} bytes before the voxels "
            "are not read; export the scan again without extensions of its header"
        )
    held = os.path.getsize(path) if packed else max(0, os.path.getsize(path) - int(offset))
    check_claim(path, shape, header.get_data_dtype().itemsize, held, DEFLATE if packed else 1)
    zooms = header["pixdim"][1:4]
    needed = [zooms[axis] for axis in range(3) if axis < len(shape) and shape[axis] > 1]
    if not header["sform_code"] and not all(np.isfinite(zoom) and zoom > 0 for zoom in needed):
        raise ScanError(
            f"{path}: pixdim, the sizes of voxels, are {' x '.join(f'{zoom:g}' for zoom in zooms)}, and no "
            "sform places the voxels without them; export the scan again, or repair its header"
        )


def _millimetres(path: PathLike, header: Any) -> float:
    """Return how many millimetres the header's unit of length is."""
    code = int(header["xyzt_units"]) & _UNITS_BITS
    if code not in _TO_MM:
        raise ScanError(
            f"{path}: xyzt_units says the unit of length {code}, which there is not; set it to 2 (mm), 1 "
            "(metre) or 3 (micrometre)"
        )
    return _TO_MM[code]


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
        size = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
        with gzip.open(path) as file:
            content = file.read(size)
            after = 0
            while block := file.read(_BLOCK):  # to its end, where the checksum stands
                after += len(block)
                if after > MOST_AFTER:
                    raise ScanError(
                        f"{path}: the header tells of {size} bytes, and the compressed data hold more than "
                        f"{size + MOST_AFTER}; copy or export it again"
                    )
        image = type(image).from_bytes(content)
    with np.errstate(over="ignore"):  # infinite voxels are reported by the caller
        values = (
            image.get_fdata(dtype=np.float32, caching="unchanged") if floats else np.asarray(image.dataobj)
        )
    return np.moveaxis(values.reshape(shape, order="F"), -1, 0)  # [i, j, k, C] -> [C, i, j, k]


def write_nifti(path: PathLike, values: np.ndarray, grid: Grid) -> None:
    """Write ``[C, i, j, k]`` in their own dtype.

    The sform holds the affine. The qform, which holds axes at right angles only, is the nearest of that kind
    (SVD); ITK does not open files with a sheared sform and no qform, and rounded directions are sheared. The
    header holds numbers of 32 bits, so that places are exact to about 1e-5 mm.
    """
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_xyzt_units("mm")
    image = nibabel.Nifti1Image(_by_file_axes(values, grid.shape), None, header, dtype=values.dtype)
    image.header.set_sform(grid.affine, _SCANNER)
    image.header.set_qform(grid.affine, _SCANNER, strip_shears=True)
    image.to_filename(path)


def write_nifti_like(path: PathLike, values: np.ndarray, like: PathLike) -> None:
    """Write ``[1, i, j, k]`` in their own dtype, placed exactly as the NIfTI file ``like`` is.

    Sform, qform, their codes and the units are copied bit for bit; nothing else of the header is. A sheared
    sform without a qform gets one, as in ``write_nifti``.
    """
    import nibabel

    source: Any = nibabel.load(like)
    header = type(source.header)()
    header.set_data_dtype(values.dtype)
    image = type(source)(_by_file_axes(values, source.shape[:3]), None, header, dtype=values.dtype)
    for name in _PLACING:
        image.header[name] = source.header[name]
    image.header["pixdim"][:4] = source.header["pixdim"][:4]
    if source.header["sform_code"] and not source.header["qform_code"]:
        axes = source.affine[:3, :3] / np.linalg.norm(source.affine[:3, :3], axis=0)
        if not np.allclose(axes.T @ axes, np.eye(3), atol=_SQUARE):
            image.header.set_qform(source.affine, _SCANNER, strip_shears=True)
    image.to_filename(path)


def _by_file_axes(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``[C, i, j, k]`` as ``[i, j, k, C]``, or as ``[*shape]`` if there is one channel."""
    return values.reshape(shape) if len(values) == 1 else np.moveaxis(values, 0, -1)
