"""Targets that read scans: NIfTI, NRRD, MetaImage, DICOM and NumPy's arrays."""

from __future__ import annotations

import gzip
import io
import random
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from dicom_series import write_slice

from trunkline.data.classification.scans import read_scan as read_to_classify
from trunkline.data.classification.scans import scan_shape
from trunkline.data.scans.formats.files import read_grid, read_labels, read_scan
from trunkline.data.scans.formats.scan import ScanError
from trunkline.data.shared.io import ImageError

from .mutate import ODD_NUMBERS, ODD_WORDS, fields_of, mutate_bytes, mutate_text, one_of, unpacked
from .target import Mutate, Target

_VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
_PACKED = zlib.compress(_VALUES.tobytes())


def _niftis() -> list[bytes]:
    plain = nibabel.Nifti1Image(_VALUES, np.diag((0.8, 1.2, 3, 1)))
    plain.header.set_xyzt_units("mm")
    channels = nibabel.Nifti1Image(np.zeros((2, 3, 4, 2), np.float32), np.eye(4))
    scaled = nibabel.Nifti1Image(_VALUES.astype(np.uint8), None)
    scaled.header["qform_code"] = 1
    scaled.header["scl_slope"], scaled.header["scl_inter"] = 2, 0.5
    return [image.to_bytes() for image in (plain, channels, scaled, nibabel.Nifti2Image(_VALUES, np.eye(4)))]


def _nifti_fields(data: bytes) -> Sequence[tuple[int, str]]:
    kind = nibabel.Nifti2Header if data[:2] == b"\x1c\x02" else nibabel.Nifti1Header
    found = []
    for name in kind.template_dtype.names:
        part, offset = kind.template_dtype.fields[name][:2]
        for number in range(part.itemsize // part.base.itemsize):
            code = {"i2": "<H", "i4": "<I", "i8": "<Q", "f4": "<f", "f8": "<d"}.get(part.base.str[1:], "<B")
            found.append((offset + number * part.base.itemsize, code))
    texts = ("intent_name", "descrip", "aux_file", "data_type", "db_name", "unused_str")
    spans = [kind.template_dtype.fields[name] for name in texts if name in kind.template_dtype.fields]
    return [
        (at, code)
        for at, code in found
        if not any(span[1] <= at < span[1] + span[0].itemsize for span in spans)
    ]


_NIFTI = one_of(fields_of(_nifti_fields), fields_of(_nifti_fields), mutate_bytes)


def _packed(seeds: Callable[[], list[bytes]]) -> Callable[[], list[bytes]]:
    return lambda: [gzip.compress(seed, mtime=0) for seed in seeds()]


_NRRD = "NRRD0004\n# made here\ntype: short\ndimension: 3\nendian: little\nsizes: 2 3 4\n"
_SPACE = (
    "space: left-posterior-superior\nspace directions: (0.5,0,0) (0,0.5,0) (0,0,2)\nspace origin: (1,2,3)\n"
)


def _nrrds() -> list[bytes]:
    text = "encoding: text\n\n" + " ".join(map(str, range(24))) + "\n"
    packed = gzip.compress(_VALUES.tobytes(), mtime=0)
    four = _NRRD.replace("3\nendian", "4\nendian").replace("2 3 4", "2 2 3 2")
    return [
        f"{_NRRD}{_SPACE}encoding: raw\n\n".encode() + _VALUES.tobytes(),
        f"{_NRRD}{_SPACE}encoding: gzip\n\n".encode() + packed,
        f"{_NRRD}spacings: 1 1 2\nkinds: domain domain domain\n{text}".encode(),
        f"{four}kinds: vector domain domain domain\nencoding: hex\n\n".encode()
        + _VALUES.tobytes().hex().encode(),
        f'{_NRRD}{_SPACE}space units: "mm" "mm" "mm"\nencoding: raw\nkey:=value\n\n'.encode()
        + _VALUES.tobytes(),
    ]


def _detached() -> list[bytes]:
    return [
        f"{_NRRD}{_SPACE}encoding: raw\ndata file: a.raw\n".encode(),
        f"{_NRRD}{_SPACE}encoding: raw\ndata file: LIST\na.raw\n".encode(),
        f"{_NRRD}encoding: raw\nbyte skip: 0\ndata file: s%01d.raw 1 4 1\n".encode(),
    ]


_META = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementSpacing = 1 1 2.5\n"
_META += (
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
)
_LOCAL = "ElementDataFile = LOCAL\n"


def _metas() -> list[bytes]:
    channels = _META.replace("2 3 4", "2 3 2") + "ElementNumberOfChannels = 2\n"
    return [
        f"{_META}{_LOCAL}".encode() + _VALUES.tobytes(),
        f"{_META}CompressedData = True\nCompressedDataSize = {len(_PACKED)}\n{_LOCAL}".encode() + _PACKED,
        f"{channels}{_LOCAL}".encode() + _VALUES.tobytes(),
        f"{_META}DistanceUnits = um\n{_LOCAL}".encode() + _VALUES.tobytes(),
    ]


def _meta_headers() -> list[bytes]:
    return [
        f"{_META}ElementDataFile = a.raw\n".encode(),
        f"{_META}HeaderSize = -1\nElementDataFile = a.raw\n".encode(),
        f"{_META}ElementDataFile = LIST 2\ns1.raw\ns2.raw\ns3.raw\ns4.raw\n".encode(),
        f"{_META}ElementDataFile = s%01d.raw 1 4 1\n".encode(),
    ]


def _raw_files(folder: Path) -> None:
    (folder / "a.raw").write_bytes(_VALUES.tobytes())
    for number in range(1, 5):
        (folder / f"s{number}.raw").write_bytes(_VALUES[:, :, 0].tobytes())


def _header_of_text(data: bytes, rng: random.Random) -> bytes:
    """Mutate the lines before the voxels."""
    end = re.search(rb"\n\n|ElementDataFile[^\n]*\n", data)
    cut = end.end() if end and rng.random() < 0.9 else len(data)
    return mutate_text(data[:cut], rng) + data[cut:]


_TEXT_HEADER = one_of(_header_of_text, _header_of_text, _header_of_text, mutate_bytes)


def _slice(k: int, **more: object) -> bytes:
    buffer = io.BytesIO()
    affine = np.diag((0.8, 1.2, 3, 1.0))
    write_slice(buffer, np.arange(12, dtype=np.int16).reshape(3, 4), affine, k, **more)
    return buffer.getvalue()


def _dicoms() -> list[bytes]:
    rle = pydicom.dcmread(io.BytesIO(_slice(1)))
    rle.compress(pydicom.uid.RLELossless)
    buffer, implicit = io.BytesIO(), io.BytesIO()
    rle.save_as(buffer)
    plain = pydicom.dcmread(io.BytesIO(_slice(1)))
    plain.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    plain.save_as(implicit, implicit_vr=True, little_endian=True)
    return [
        _slice(1, SliceThickness="3"),
        buffer.getvalue(),
        implicit.getvalue(),
        _slice(1, BitsStored=12, HighBit=11, SliceThickness="3"),
    ]


def _mutate_elements(data: bytes, rng: random.Random) -> bytes:
    """Give elements of a DICOM file odd values of any length, or take them out."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        elements = list(dataset)
        for _ in range(rng.choice((1, 1, 2))):
            element = rng.choice(elements)
            if rng.random() < 0.2:
                del dataset[element.tag]
            elif element.VR in ("US", "SS", "UL"):
                element.value = rng.choice((0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 255, 4096, 65535))
            elif element.VR in ("OW", "OB"):
                element.value = mutate_bytes(element.value, rng)
            else:
                words = [rng.choice((*ODD_NUMBERS, *ODD_WORDS)) for _ in range(rng.choice((1, 1, 2, 3, 6)))]
                element = pydicom.DataElement(element.tag, element.VR, "", already_converted=True)
                element._value = words if len(words) > 1 else words[0]
                dataset[element.tag] = element
        buffer = io.BytesIO()
        dataset.save_as(buffer)
    except Exception:  # what cannot be written is changed by its bytes
        return mutate_bytes(data, rng)
    return buffer.getvalue()


def _neighbours(folder: Path) -> None:
    for k in (0, 2):
        (folder / f"n{k}.dcm").write_bytes(_slice(k))


def _read_series(path: Path) -> None:
    read_scan(path.parent)


def _read_alone(path: Path) -> None:
    read_grid(path.parent)
    read_scan(path.parent)
    read_labels(path.parent)


def _arrays() -> list[bytes]:
    found = []
    for values in (_VALUES, np.zeros((2, 2, 3, 2), np.float64), np.asfortranarray(_VALUES).astype(">f4")):
        np.save(buffer := io.BytesIO(), values)
        found.append(buffer.getvalue())
    return found


def _mutate_array(data: bytes, rng: random.Random) -> bytes:
    """Mutate the header of an array; its length stays right."""
    length = int.from_bytes(data[8:10], "little")
    header = mutate_text(data[10 : 10 + length], rng)[:60000]
    return data[:8] + len(header).to_bytes(2, "little") + header + data[10 + length :]


def _read_all(path: Path) -> None:
    read_grid(path)
    read_scan(path)
    read_labels(path)


def _classify(path: Path) -> None:
    content = path.read_bytes()
    shape = scan_shape(path, content)
    read = read_to_classify(path, content)
    assert sorted(shape) == sorted(read.shape), (shape, read.shape)
    read_to_classify(path)


def _scan(name: str, file: str, seeds: Callable[[], list[bytes]], mutate: Mutate) -> Target:
    return Target(name, file, _read_all, (ScanError,), seeds, mutate, prepare=_raw_files)


def _image(name: str, file: str, seeds: Callable[[], list[bytes]], mutate: Mutate) -> Target:
    return Target(name, file, _classify, (ImageError,), seeds, mutate)


_ARRAY = one_of(_mutate_array, _mutate_array, mutate_bytes)
_DICOM = one_of(_mutate_elements, mutate_bytes)
TARGETS = [
    _scan("nifti", "a.nii", _niftis, _NIFTI),
    _scan("nifti_gz", "a.nii.gz", _packed(_niftis), unpacked(_NIFTI)),
    _scan("nrrd", "a.nrrd", _nrrds, _TEXT_HEADER),
    _scan("nhdr", "a.nhdr", _detached, mutate_text),
    _scan("mha", "a.mha", _metas, _TEXT_HEADER),
    _scan("mhd", "a.mhd", _meta_headers, mutate_text),
    Target("dicom", "IM1.dcm", _read_alone, (ScanError,), _dicoms, _DICOM, folder=True),
    Target(
        "dicom_series",
        "IM1.dcm",
        _read_series,
        (ScanError,),
        _dicoms,
        _DICOM,
        prepare=_neighbours,
        folder=True,
    ),
    _image("scan_nifti", "a.nii", _niftis, _NIFTI),
    _image("scan_nifti_gz", "a.nii.gz", _packed(_niftis), unpacked(_NIFTI)),
    _image("scan_npy", "a.npy", _arrays, _ARRAY),
]
