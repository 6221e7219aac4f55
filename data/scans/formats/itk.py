"""NRRD and MetaImage files (``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``), by SimpleITK.

ITK's world is LPS (x to the patient's left, y to the back), its arrays have the fastest axis last, and the
channels of a voxel after that; here and there the two are exchanged.

Letters in shapes: i j k the axes of the file, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .itk_headers import NRRD_SUFFIXES, check_header
from .scan import Grid, PathLike, ScanError, Stored, make_grid, warn_unplaced

ITK_SUFFIXES = (*NRRD_SUFFIXES, ".mha", ".mhd")
LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


def read_itk(path: PathLike, header_only: bool = False) -> Stored:
    """Read a file. Pixels of several components, or a fourth axis, are channels.

    Lengths that the header tells in another unit become millimetres.

    Args:
        path: the file.
        header_only: leave out the voxels.
    """
    import SimpleITK as sitk

    header = check_header(path)
    scale = header.scale
    reader = _opened(path)
    size, parts = reader.GetSize(), reader.GetNumberOfComponents()
    more = [number for number in size[3:] if number != 1]
    if len(size) < 2 or len(more) + (parts > 1) > 1:
        raise ScanError(
            f"{path}: has shape {list(size)} with {parts} numbers per voxel; a scan has two or three axes, "
            "and one more (or several numbers per voxel) if it has channels"
        )
    shape, channels = (*size[:3], 1)[:3], more[0] if more else parts
    grid = make_grid(path, shape, np.diag((scale, scale, scale, 1.0)) @ _affine(path, reader))
    _check_space(path, reader, grid)
    dtype = sitk.GetArrayViewFromImage(sitk.Image((1, 1), reader.GetPixelID())).dtype
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxels are {dtype}, not real numbers; export the scan as numbers")
    stored = Stored(grid, channels, dtype)
    if not header_only:
        header.check_voxels(path)
        try:
            array = sitk.GetArrayFromImage(reader.Execute())  # [C?, k?, j, i] or [k?, j, i, C]
        except RuntimeError as error:
            raise ScanError(
                f"{path}: the voxels are cut off, damaged or missing (of a header, in the file that it names)"
                "; copy or export it again"
            ) from error
        stored.values = _by_our_axes(array, parts, (channels, *shape))
    return stored


def _check_space(path: PathLike, reader: Any, grid: Grid) -> None:
    """Warn where an NRRD file does not say which of its axes' ends are left, front and head."""
    if not str(path).lower().endswith(NRRD_SUFFIXES):
        return
    space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else None
    if space is None:
        warn_unplaced(path, grid, "no space directions")
    elif space != "left-posterior-superior":  # what ITK turns the other spaces of patients into
        warn_unplaced(path, grid, f"the space {space}, which is not that of a patient")


def _opened(path: PathLike) -> Any:
    """Return a reader that has read the header."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()  # the innermost comes last
        raise ScanError(
            f"{path}: is no such file as its name says, or its header is damaged ({reason}); copy or export "
            "it again"
        ) from error
    return reader


def _affine(path: PathLike, image: Any) -> np.ndarray:
    """``[4, 4]`` to RAS+ from the first three axes of an image or a reader; axes it lacks measure 1 mm."""
    n = image.GetDimension()
    directions = np.array(image.GetDirection()).reshape(n, n)
    if n > 3 and (directions[:3, 3:].any() or directions[3:, :3].any()):
        raise ScanError(
            f"{path}: its fourth axis is not apart from space; store channels as voxel components"
        )
    affine, m = np.eye(4), min(n, 3)
    affine[:m, :m] = (directions * image.GetSpacing())[:m, :m]
    affine[:m, 3] = image.GetOrigin()[:m]
    return LPS_TO_RAS @ affine


def _by_our_axes(array: np.ndarray, parts: int, shape: tuple[int, ...]) -> np.ndarray:
    """Reverse the axes of an ITK array: to ``[C, i, j, k]``."""
    if parts > 1:
        array = np.moveaxis(array, -1, 0)  # [k, j, i, C] -> [C, k, j, i]
    return array.reshape(shape[0], *shape[:0:-1]).transpose(0, 3, 2, 1)  # [C, k, j, i] -> [C, i, j, k]


def write_itk(path: PathLike, values: np.ndarray, grid: Grid, written_as: PathLike | None = None) -> None:
    """Write ``[C, i, j, k]`` in their own dtype, compressed.

    Args:
        path: the file; its suffix decides the format.
        values: the voxels.
        grid: where they lie.
        written_as: a file of this kind whose origin, spacing and directions are those of ``grid``: they are
            copied as they are, without the detour over an affine, which costs the last bit.
    """
    import SimpleITK as sitk

    array = np.ascontiguousarray(values.transpose(3, 2, 1, 0))  # [C, i, j, k] -> [k, j, i, C]
    vectors = len(values) > 1
    image = sitk.GetImageFromArray(array if vectors else array[..., 0], isVector=vectors)
    affine = LPS_TO_RAS @ grid.affine
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(grid.spacing)
    image.SetDirection((affine[:3, :3] / grid.spacing).ravel().tolist())
    if written_as is not None and check_header(written_as).scale == 1:  # no unit is written
        reader = _opened(written_as)
        if reader.GetDimension() == 3:
            image.SetOrigin(reader.GetOrigin())
            image.SetSpacing(reader.GetSpacing())
            image.SetDirection(reader.GetDirection())
    sitk.WriteImage(image, str(path), useCompression=True)
