"""No format that is read runs the code in a file: each holds a payload that would make a folder."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import trunkline
from trunkline.backbones.weights.files import open_file
from trunkline.data.classification.archive import read_archive, read_member
from trunkline.data.classification.scans import read_scan
from trunkline.data.scans.prepare.entries import DamagedEntry, read_entry
from trunkline.data.shared.io import ImageError
from trunkline.tasks.detection import Detection
from trunkline.tasks.run.checkpoints import AtomicCheckpointIO, CheckpointError, read_checkpoint

ROOMS = ("backbones", "heads", "data", "evaluation", "tasks", "planning")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def payload(tmp_path):
    """A payload; at the end, that it was real and has not run."""
    made = Payload(tmp_path / "made")
    yield made
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(made))
    assert (tmp_path / "made").is_dir()


def zipped(path, content):
    torch.save(content, path)


def legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def tarred(path, content):  # what torch wrote before 0.1.10
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def plain(path, content):
    path.write_bytes(pickle.dumps(content))


def script(path, content):
    """An archive as of TorchScript, which holds constants of its own."""
    torch.save(content, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/constants.pkl", pickle.dumps(content))


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.pkl", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("write", [zipped, legacy, tarred, plain, script])
def test_no_file_of_weights_runs_code(name, write, payload, tmp_path):
    write(tmp_path / name, {"state_dict": {"w": payload}, "model": {"w": payload}})
    with pytest.raises(ValueError, match="cannot be read as weights"):
        open_file(tmp_path / name)


@pytest.mark.parametrize("write", [zipped, legacy, tarred, plain, script])
def test_no_checkpoint_runs_code(write, payload, tmp_path):
    path = tmp_path / "a.ckpt"
    write(path, {"state_dict": {}, "hyper_parameters": {"weights": payload}, "callbacks": {"a": payload}})
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(str(path), "--ckpt_path")
    with pytest.raises(Exception, match="(?i)weights.only|tar|magic"):
        Detection.load_from_checkpoint(path)
    with pytest.raises(Exception, match="(?i)weights.only|tar|magic"):
        AtomicCheckpointIO().load_checkpoint(path)  # as the trainer does, weights_only not given


def objects(folder, payload):
    array = np.empty(1, dtype=object)
    array[0] = payload
    np.save(folder / "scan.npy", array, allow_pickle=True)
    return folder / "scan.npy"


def test_no_array_runs_code_also_not_from_a_zip(payload, tmp_path):
    path = objects(tmp_path, payload)
    with pytest.raises(ImageError, match="Python objects, which could run code"):
        read_scan(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "cat/scan.npy")
    archive = read_archive(tmp_path / "a.zip")
    content = read_member(archive.path, archive.table[0].tolist())
    with pytest.raises(ImageError, match="Python objects, which could run code"):
        read_scan("a.zip/cat/scan.npy", content)
    np.savez(tmp_path / "b.npz", scan=np.array([payload], dtype=object))
    os.rename(tmp_path / "b.npz", tmp_path / "b.npy")
    with pytest.raises(ImageError, match=r"is a zip file, such as numpy\.savez writes"):
        read_scan(tmp_path / "b.npy")


@pytest.mark.parametrize("name", ["image", "locations"])
def test_no_prepared_scan_runs_code(name, payload, tmp_path):
    (tmp_path / "case").mkdir()
    grid = {"shape": [4, 4, 4], "affine": np.eye(4).tolist()}
    arrays = {"image": np.zeros((1, 4, 4, 4), np.float32), "locations": np.zeros((0, 3), np.int32)}
    meta = {"mask": False, "counts": [0, 0], "locations": {}}
    meta["placement"] = {"grid": grid, "orientation": [[0, 1], [1, 1], [2, 1]], "box": [[0, 4]] * 3}
    meta["placement"] |= {"spacing": [1.0] * 3, "shape": [4, 4, 4], "coarse": None}
    (tmp_path / "case" / "meta.json").write_text(json.dumps(meta))
    for each, array in arrays.items():
        np.save(tmp_path / "case" / f"{each}.npy", array)
    assert read_entry(tmp_path / "case", 1, labelled=False) is not None
    objects(tmp_path, payload).rename(tmp_path / "case" / f"{name}.npy")
    with pytest.raises(DamagedEntry, match="allow_pickle|Python objects"):
        read_entry(tmp_path / "case", 1, labelled=False)


def test_parts_of_a_file_of_torch_that_are_compressed_are_refused(tmp_path):
    source = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(1_000_000)}}, source)
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert path.stat().st_size < 10_000
    assert torch.load(path, weights_only=True)["state_dict"]["w"].numel() == 1_000_000  # torch reads it
    for read in (open_file, lambda p: read_checkpoint(str(p), "-"), Detection.load_from_checkpoint):
        with pytest.raises(ValueError, match=r"compressed, and would become 4,000,\d+ bytes"):
            read(path)


def test_the_package_calls_no_reader_that_runs_code():
    """Every torch.load says weights_only, no np.load allows objects, and YAML is read by the safe loaders."""
    root = Path(trunkline.__file__).parent
    files = [root / "cli.py", *(f for room in ROOMS for f in (root / room).rglob("*.py"))]
    assert len(files) > 150
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert all("weights_only=True" in call[:200] for call in text.split("torch.load(")[1:]), file
        for wrong in (
            "allow_pickle=True",
            "yaml.load(",
            "yaml.unsafe",
            "yaml.full_load",
            "shell=True",
        ):
            assert wrong not in text, (file, wrong)
