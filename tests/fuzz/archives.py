"""Targets that read zip files, weights and checkpoints."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from trunkline.backbones.weights.detectron2 import convention_of
from trunkline.backbones.weights.files import read_weights
from trunkline.data.classification.archive import read_archive, read_member
from trunkline.data.classification.archive_names import ArchiveError

from .mutate import fields_of, mutate_bytes, mutate_json, one_of
from .target import Finding, Target

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_PARTS = {
    _LOCAL: ((4, "<H"), (6, "<H"), (8, "<H"), (14, "<I"), (18, "<I"), (22, "<I"), (26, "<H"), (28, "<H")),
    _CENTRAL: (
        (6, "<H"),
        (8, "<H"),
        (10, "<H"),
        (12, "<I"),
        (16, "<I"),
        (20, "<I"),
        (24, "<I"),
        (28, "<H"),
        (30, "<H"),
        (32, "<H"),
        (42, "<I"),
    ),
    _END: ((8, "<H"), (10, "<H"), (12, "<I"), (16, "<I"), (20, "<H")),
}


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def _zips() -> list[bytes]:
    members = {
        "cat/": b"",
        "cat/a.png": b"abc" * 20,
        "dog/é.png": b"",
        "__MACOSX/._a": b"x",
        "b\\c.png": bytes(500),
    }
    return [_zip(members), _zip(members, zipfile.ZIP_STORED), _zip({})]


def _zip_fields(data: bytes) -> Sequence[tuple[int, str]]:
    """Return the fields of the headers of members, of the list of members and of its end."""
    found = []
    for mark, parts in _PARTS.items():
        at = data.find(mark)
        while at >= 0:
            found += [
                (at + offset, form)
                for offset, form in parts
                if at + offset + struct.calcsize(form) <= len(data)
            ]
            at = data.find(mark, at + 4)
    return found


def _read_zip(path: Path) -> None:
    archive = read_archive(path)
    for name, row in zip(archive.names, archive.table.tolist(), strict=True):
        assert not name.startswith("/") and ".." not in name.split("/"), name
        try:
            read_member(str(path), row)
        except ArchiveError as error:  # the caller names archive and member
            raise ArchiveError(f"{path}: {error}") from error


def state() -> dict[str, Any]:
    return {
        "conv1.weight": torch.ones(2, 3, 3, 3),
        "bn1.num_batches_tracked": torch.tensor(3),
        "fc.bias": torch.zeros(4).half(),
    }


def saved(content: Any, **options: Any) -> bytes:
    torch.save(content, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


def _torch_files() -> list[bytes]:
    checkpoint = {"state_dict": state(), "epoch": 3, "hyper_parameters": {"lr": 0.1, "names": ["a"]}}
    averaged = {**checkpoint, "averaging_state": {"n_averaged": 2}, "current_model_state": state()}
    return [saved(state()), saved(checkpoint), saved(averaged)]


def _old_torch_files() -> list[bytes]:
    return [saved({"model": state()}, _use_new_zipfile_serialization=False)]


def _pickles() -> list[bytes]:
    arrays = {
        "res2_0_branch2a_w": np.ones((2, 3, 1, 1), np.float32),
        "conv1_w": np.zeros((2, 3, 7, 7), ">f4"),
        "pixel_mean": np.array([3.0, 2.0, 1.0]),
        "lr": np.float64(0.1),
    }
    model = {"model": arrays, "__author__": "a", "matching_heuristics": True}
    return [pickle.dumps(model, protocol) for protocol in (2, 4)] + [pickle.dumps({"blobs": arrays}, 2)]


def _tensors() -> list[bytes]:
    return [save(state()), save({"a": torch.zeros(0)}, {"format": "pt"})]


def _mutate_tensors(data: bytes, rng: random.Random) -> bytes:
    """Mutate the JSON of a safetensors file; its length stays right."""
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _mutate_members(data: bytes, rng: random.Random) -> bytes:
    """Mutate a member of a zip file of torch, mostly its pickle; checksums stay right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a damaged zip file
        return mutate_bytes(data, rng)
    pickles = [name for name in members if name.endswith(".pkl")]
    name = rng.choice(pickles) if pickles and rng.random() < 0.8 else rng.choice([*members, "x"])
    if rng.random() < 0.05:
        members.pop(name, None)
    else:
        members[name] = mutate_pickle(members.get(name, b""), rng)
    return _zip(members, zipfile.ZIP_STORED)


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change the opcodes and the numbers of a pickle."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind, at = rng.randrange(4), rng.randrange(len(content) + 1)
        codes = (
            b"(.0123FNPQRSTUVXabcdeghijlopqrstu}]\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x94\x95IJKMLG)"
        )
        if kind == 0:
            content[at : at + 1] = bytes([rng.choice(codes)])
        elif kind == 1:
            content[at:at] = rng.choice(
                (
                    b"cbuiltins\neval\n",
                    b"cos\nsystem\n",
                    b"cnumpy\nndarray\n",
                    b"cnumpy\ndtype\n",
                    b"X\x01\0\0\0a",
                    b"K\x07",
                    b"J\xff\xff\xff\x7f",
                    b"N",
                    b"R",
                    b"b",
                    b"\x8a\x04\0\0\0\x80",
                    b"\x95\xff\xff\xff\xff\0\0\0\0",
                    b"T\xff\xff\xff\x7f",
                    b"r\xff\xff\xff\x7f",
                    b"ccollections\nOrderedDict\n",
                )
            )
        else:
            return mutate_bytes(bytes(content), rng)
    return bytes(content)


def _read_weights(path: Path) -> None:
    try:
        weights = read_weights(path)
        convention_of(weights.state, weights.author)
    except ValueError as error:
        if not str(error).startswith(str(path)):  # one of another library
            raise Finding(f"foreign ValueError {error!s:.40}", repr(error)[:500]) from error
        raise


MUTATE_TORCH = one_of(_mutate_members, _mutate_members, fields_of(_zip_fields), mutate_bytes)
_WEIGHTS = (ValueError,)
TARGETS = [
    Target("zip", "a.zip", _read_zip, (ArchiveError,), _zips, one_of(fields_of(_zip_fields), mutate_bytes)),
    Target("weights_torch", "a.pth", _read_weights, _WEIGHTS, _torch_files, MUTATE_TORCH),
    Target("weights_old_torch", "a.pth", _read_weights, _WEIGHTS, _old_torch_files, mutate_pickle),
    Target("weights_pickle", "a.pkl", _read_weights, _WEIGHTS, _pickles, mutate_pickle),
    Target(
        "weights_safetensors",
        "a.safetensors",
        _read_weights,
        _WEIGHTS,
        _tensors,
        one_of(_mutate_tensors, _mutate_tensors, mutate_bytes),
    ),
]
