"""Opens files of weights so that no code in them can run, and takes the state dict out of them."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_weight

from .arrays import STAND_INS, Array, Dtype, require_whole, with_arrays

Source = str | os.PathLike[str] | Mapping[str, Tensor]

# Published before torchvision's frozen batch norm added eps to the variance; its builders therefore set eps
# to 0 for these four (overwrite_eps in torchvision.models.detection).
_WITHOUT_EPS = tuple(
    f"{detector}_ResNet50_FPN_Weights.COCO_V1"
    for detector in ("FasterRCNN", "MaskRCNN", "KeypointRCNN", "RetinaNet")
)
# Keys under which files hold a state dict, the one to prefer first: averaged weights before those that they
# average, a teacher before its student.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "blobs",
    "teacher",
    "student",
)
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch.save began files before they were zip archives


@dataclass(frozen=True)
class Weights:
    """What was read.

    Attributes:
        label: names the source in reports and errors.
        state: its tensors.
        author: who made it, as files of detectron2's model zoo say under ``__author__``; None for others.
        without_eps: whether its norms were trained without eps.
        published: whether torchvision publishes them.
    """

    label: str
    state: dict[str, Tensor]
    author: str | None = None
    without_eps: bool = False
    published: bool = False


def read_weights(source: Source) -> Weights:
    """Read a file, a state dict or torchvision's published weights; see :func:`.weights.load_weights`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the source cannot be read as weights.
        OSError: if weights could not be downloaded.
    """
    if isinstance(source, Mapping):
        return _unwrap(source, "the state dict")
    label = os.fspath(source)
    if re.fullmatch(r"\w+_Weights\.\w+", label) and not Path(label).exists():
        return _download(label)
    published = {Path(get_weight(name).url).name for name in _WITHOUT_EPS}
    return _unwrap(open_file(Path(label)), label, Path(label).name in published)


def _download(name: str) -> Weights:
    try:
        weights = get_weight(name)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name} is neither a file nor the name of torchvision weights (as ResNet50_Weights.DEFAULT is)"
        ) from error
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{name} could not be downloaded from {weights.url} ({error}); download it by other means "
            "and give the path of the file"
        ) from error
    return replace(_unwrap(state, name, str(weights) in _WITHOUT_EPS), published=True)


def open_file(path: Path) -> object:
    """Return what a file holds: one of ``torch.save``, a safetensors file, or a pickle of numpy arrays.

    Which of them it is follows from its first bytes and its suffix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of these, or holds more than tensors, arrays and plain values.
    """
    if path.is_dir():
        raise FileNotFoundError(f"weights {path}: that is a folder; give the file in it")
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file, and not the name of torchvision weights")
    opener, needed = _opener(path)
    try:
        return opener(path)
    except ImportError as error:
        raise ValueError(f"{path} is a safetensors file; to read it, pip install safetensors") from error
    except Exception as error:  # these readers raise almost any exception on other files
        raise ValueError(f"{path} cannot be read as weights ({_cause(path, error)}); {needed}") from error


def _cause(path: Path, error: Exception) -> str:
    """Say why a file could not be read, without torch's advice to run the code in it."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if start.lstrip()[:1] == b"<":
        return "it is a web page; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    if start.startswith(b"PK") and "central directory" in str(error):
        return "its end is missing; download it again"
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    said = (
        [f"it asks for {forbidden[1]}"] if forbidden else [inner[1]] if inner else str(error).splitlines()[:1]
    )
    return ": ".join([type(error).__name__, *said])


def _opener(path: Path) -> tuple[Callable[[Path], object], str]:
    """Return the reader for a file, and what it demands of the file."""
    with path.open("rb") as file:
        start = file.read(16)
    header = int.from_bytes(start[:8], "little")  # of a safetensors file: the length of the JSON that follows
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and header < path.stat().st_size):
        return _open_safetensors, "a .safetensors file is needed"
    zipped = start.startswith(b"PK")
    pickled = start.startswith(b"\x80") or path.suffix == ".pkl"
    if pickled and not zipped and _TORCH_MAGIC not in start:
        return _open_pickle, "a pickle must hold only numpy arrays and plain values, as detectron2's do"
    return _open_torch, (
        "a file must be written by torch.save and hold only tensors and plain values, as one of "
        "torch.save(model.state_dict(), path) does"
    )


def require_stored(path: str | os.PathLike[str]) -> None:
    """Refuse a file of ``torch.save`` with compressed parts, which that never writes.

    A few kilobytes of them could fill the memory.

    Raises:
        ValueError: if they are. Damage is not noticed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [part for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError):
        return  # an older format, or damaged: torch says what it is
    except (NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise ValueError(f"its list of parts is damaged ({error}); download it again") from error
    if packed:
        raise ValueError(
            f"its parts are compressed, and would become {sum(part.file_size for part in packed):,} bytes"
        )
    size = os.path.getsize(path)
    for part in archive.infolist():
        if part.file_size != part.compress_size or part.header_offset + part.file_size > size:
            raise ValueError(
                f"{part.filename} claims {part.file_size:,} bytes, more than the file has; download it again"
            )


def _open_torch(path: Path) -> object:
    require_stored(path)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch tells its formats apart
    if not zipped:
        require_whole(path.read_bytes(), old_torch=True)
    # Checkpoints often hold their options (a Namespace) and metrics (numpy scalars) next to the tensors.
    allowed: list[Any] = [argparse.Namespace, Array, Dtype]
    allowed += [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with torch.serialization.safe_globals(allowed):
        return with_arrays(torch.load(path, map_location="cpu", weights_only=True))


def _open_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    return load_file(path)


def _open_pickle(path: Path) -> object:
    content = path.read_bytes()
    require_whole(content)
    unpickler = _ArrayUnpickler(io.BytesIO(content), encoding="latin1")  # Python 2 wrote many of them
    return with_arrays(unpickler.load())


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays, numbers, strings and containers; refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no part of an array; loading it could run any code"
            ) from None


def _updates(averaged: Mapping[Any, Any], label: str) -> int:
    """Return how many updates an average is of."""
    try:
        return int(averaged.get("n_averaged", 1))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{label}: averaging_state has an n_averaged that is no number") from error


def _unwrap(content: Any, label: str, without_eps: bool = False) -> Weights:
    """Take the state dict out of what a file holds."""
    author = content.get("__author__") if isinstance(content, Mapping) else None
    averaged = content.get("averaging_state") if isinstance(content, Mapping) else None
    if isinstance(averaged, Mapping) and isinstance(content.get("current_model_state"), Mapping):
        # Lightning's WeightAveraging: the average is under state_dict, and is the untrained network until
        # the first update.
        updates = _updates(averaged, label)
        content = content.get("state_dict" if updates else "current_model_state")
        label += f" (averaged over {updates} updates)" if updates else " (averaging had not begun)"
    while isinstance(content, Mapping):
        key = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{label} holds a {type(content).__name__} without tensors; needed is a state dict")
    if any(type(value).__module__ == "numpy" for value in content.values()):
        content = _from_arrays(content)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{label}: {key!r} is a {type(value).__name__}, not a tensor; needed is a state dict, bare "
                f"or under one of the keys {', '.join(_WRAPPERS)}"
            )
    return Weights(label, dict(content), author if isinstance(author, str) else None, without_eps)


def _from_arrays(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn arrays of numbers into tensors; everything else (momenta, options) is left out."""
    import numpy

    state = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            state[key] = value
        elif (
            isinstance(value, numpy.ndarray) and value.dtype.kind in "fiub" and not key.endswith("_momentum")
        ):
            state[key] = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))
    return state
