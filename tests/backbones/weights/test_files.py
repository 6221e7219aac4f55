"""Opening files of weights: every kind of file, and none that could run code."""

import argparse
import os
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EMAWeightAveraging
from safetensors.torch import save_file

from trunkline.backbones import ResNet, load_weights
from trunkline.backbones.weights.files import open_file, read_weights


def net(**options):
    return ResNet(10, width=8, **options)


def arrays(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def assert_same(module, other):
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class MakesAFolder:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_code_in_a_file_is_not_run(name, tmp_path):
    content = {"model": {"conv1.weight": MakesAFolder(tmp_path / "made")}}
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"{name} cannot be read as weights .*it asks for posix.mkdir"
    ) as error:
        load_weights(net(), tmp_path / name)
    assert not (tmp_path / "made").exists()
    if name.endswith(".pkl"):
        assert "could run any code" in str(error.value) and "only numpy arrays" in str(error.value)
        pickle.loads((tmp_path / name).read_bytes())  # what a plain unpickler would have done
        assert (tmp_path / "made").exists()


@pytest.mark.parametrize("target", [eval, getattr, np.load, torch.load, pickle.loads])
def test_nothing_but_arrays_is_imported(target, tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": target}, protocol=2))
    with pytest.raises(ValueError, match=r"it asks for [\w.]+, which is no part of an array"):
        open_file(tmp_path / "w.pkl")


def test_only_the_codec_of_arrays_is_used(tmp_path):
    stream = pickle.dumps(np.arange(3.0), protocol=2)
    assert b"latin1" in stream
    (tmp_path / "w.pkl").write_bytes(stream.replace(b"latin1", b"rot_13"))
    with pytest.raises(ValueError, match="codec 'rot_13'"):
        open_file(tmp_path / "w.pkl")


@pytest.mark.parametrize(
    ("protocol", "old_numpy"), [(2, False), (2, True), (3, True), (4, False), (5, False)]
)
def test_pickled_arrays_of_every_protocol(protocol, old_numpy, tmp_path):
    source = net()
    content = {
        "model": {**arrays(source), "scale": np.float32(2)},
        "__author__": "me",
        "matching_heuristics": True,
    }
    stream = pickle.dumps(content, protocol)
    if old_numpy:  # names stand in the streams of these protocols as they are, framed by line ends
        assert b"numpy._core." in stream
        stream = stream.replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "w.pkl").write_bytes(stream)
    target = net()
    assert load_weights(target, tmp_path / "w.pkl").fraction == 1.0
    assert_same(target, source)
    assert read_weights(tmp_path / "w.pkl").author == "me"


def test_arrays_of_another_byte_order_and_what_is_no_array(tmp_path):
    content = {"a": np.arange(3, dtype=">f4"), "a_momentum": np.zeros(3), "names": np.array(["x"]), "lr": 0.1}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"blobs": content}))
    state = read_weights(tmp_path / "w.pkl").state
    assert list(state) == ["a"] and state["a"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("name", ["w.safetensors", "weights.bin"])
def test_safetensors_are_known_by_suffix_or_content(name, tmp_path):
    source = net()
    save_file(source.state_dict(), tmp_path / name)
    target = ResNet(10, width=8, weights=str(tmp_path / name))
    assert_same(target, source)


def test_broken_safetensors_are_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00{nope")
    with pytest.raises(
        ValueError, match="w.safetensors cannot be read as weights .*safetensors file is need"
    ):
        load_weights(net(), tmp_path / "w.safetensors")


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        load_weights(net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.pth", "w.pkl"])
@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_torch_whatever_their_name_and_age(name, zipped, tmp_path):
    source = net()
    torch.save(source.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    target = net()
    load_weights(target, tmp_path / name)
    assert_same(target, source)


def test_options_and_metrics_beside_the_weights_do_no_harm(tmp_path):
    source = net()
    content = {
        "model": source.state_dict(),
        "args": argparse.Namespace(lr=0.1, arch="resnet10"),
        "best": np.float64(71.5),
        "curve": np.zeros(3),
    }
    torch.save(content, tmp_path / "w.pth")
    target = net()
    load_weights(target, tmp_path / "w.pth")
    assert_same(target, source)


@pytest.mark.parametrize(
    ("best", "other"),
    [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("teacher", "student")],
)
def test_averaged_weights_and_teachers_come_first(best, other, tmp_path):
    first, second = net(), net()
    torch.save({other: second.state_dict(), best: first.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    target = net()
    load_weights(target, tmp_path / "w.pth")
    assert_same(target, first)


@pytest.mark.parametrize("updates", [0, 1, 3])
def test_lightning_checkpoints_give_their_average_once_there_is_one(updates, tmp_path):
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = net()

    module = Module()
    initial = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    average = EMAWeightAveraging(decay=0.5)
    average.setup(None, module, "fit")
    for step in range(updates or 1):
        torch.nn.init.constant_(module.backbone.conv1.weight, float(step + 1))
        if updates:
            average._average_model.update_parameters(module)
    checkpoint = {"state_dict": module.state_dict()}
    average.on_save_checkpoint(None, module, checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    target = net()
    report = load_weights(target, tmp_path / "last.ckpt")
    # The first update copies 1; then (1 + 2) / 2 and (1.5 + 3) / 2. Before any, the network itself is at 1.
    assert torch.equal(
        target.conv1.weight, torch.full_like(target.conv1.weight, {0: 1, 1: 1, 3: 2.25}[updates])
    )
    assert not torch.equal(target.conv1.weight, initial["conv1.weight"])
    note = f"averaged over {updates} updates" if updates else "averaging had not begun"
    assert re.search(rf"last.ckpt \({note}\)", str(report))
