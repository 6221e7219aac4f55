"""Writes DICOM series slice by slice, for tests."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

SHAPE = (6, 5, 4)  # columns, rows, slices
TILT = np.deg2rad(20)
AXIAL = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]])  # columns: along a row, along a column, the step (LPS)
SAGITTAL = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0.0]])
TILTED = np.array([[1, 0, 0], [0, np.cos(TILT), 0], [0, np.sin(TILT), 1]])  # rows turn, the table does not
c, s = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
STEPS = (0.8, 1.25, 3.0)  # mm; PixelSpacing has that between rows first


def lps_affine(directions, steps=STEPS, origin=(-12.5, 30.25, -200)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * steps, origin
    return affine


def ras(affine):
    return np.diag((-1, -1, 1, 1)) @ affine


def write_slice(
    path, pixels, affine, k, slope=1.0, intercept=0.0, series="1.2.3", kind=CTImageStorage, **more
):
    """Write rows x columns as slice k of a stack with this affine (LPS)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "CT", series, "1.2"
    data.Rows, data.Columns = pixels.shape
    axes, steps = affine[:3, :3], np.linalg.norm(affine[:3, :3], axis=0)
    data.ImageOrientationPatient = [round(float(x), 10) for x in (axes / steps).T[:2].ravel()]
    data.ImagePositionPatient = [round(float(x), 8) for x in affine[:3, 3] + k * axes[:, 2]]
    data.PixelSpacing = [float(steps[1]), float(steps[0])]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    if slope is not None:
        data.RescaleSlope, data.RescaleIntercept = str(slope), str(intercept)
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    for name, value in more.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return data


def write_series(folder, stored, affine, shuffle=7, **more):
    """Write ``[i, j, k]`` values; neither names nor instance numbers follow the order of the slices."""
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(shuffle).permutation(stored.shape[2])
    for number, k in enumerate(order):
        each = {name: value[k] if isinstance(value, list) else value for name, value in more.items()}
        write_slice(
            folder / f"IM{number:04d}", stored[:, :, k].T, affine, k, InstanceNumber=number + 1, **each
        )
    return folder
