"""Targets that read what a run is made of: configs and checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from trunkline.tasks.run.checkpoints import CheckpointError, read_checkpoint
from trunkline.tasks.run.found import newest_checkpoint
from trunkline.tasks.settings.sources import SettingError, read_sources

from .archives import MUTATE_TORCH, saved, state
from .mutate import mutate_text
from .target import Target

CONFIG = """# comment
model: &m
  class_path: Classification
  init_args: {backbone: {class_path: ResNet, init_args: {depth: 18}}, classes: 3}
data:
  root: "flowers"
  batch_size: 2
  augment:
    - class_path: HorizontalFlip
      init_args: {p: 0.5}
trainer: {max_epochs: 1, precision: 32-true, devices: [0, 1]}
"""


def _read_option(path: Path) -> None:
    read_sources(["fit", f"--data.augment={path.read_text(encoding='utf-8', errors='surrogateescape')}"])


def _read_run(path: Path) -> None:
    content = read_checkpoint(str(path), "--ckpt_path")
    assert isinstance(content, dict)


def _read_newest(path: Path) -> None:
    newest_checkpoint([path.parent], "best")


def _checkpoints() -> list[bytes]:
    callback = {"best_model_path": "/x/best.ckpt", "dirpath": "/x", "best_model_score": torch.tensor(0.5)}
    run = {"state_dict": state(), "epoch": 1, "global_step": 10, "callbacks": {"ModelCheckpoint": callback}}
    return [saved(run), saved({**run, "callbacks": {}})]


def _older(folder: Path) -> None:
    (folder / "best.ckpt").write_bytes(_checkpoints()[1])


TARGETS = [
    Target(
        "config",
        "config.yaml",
        lambda path: read_sources(["fit", "--config", str(path)]),
        (SettingError,),
        lambda: [CONFIG.encode(), b"model: {a: 1}\n"],
        mutate_text,
    ),
    Target(
        "option",
        "--data.augment",
        _read_option,
        (SettingError,),
        lambda: [b"[{class_path: HorizontalFlip, init_args: {p: 0.5}}]", b"{a: [1, 2], b: {c: null}}"],
        mutate_text,
    ),
    Target("checkpoint", "last.ckpt", _read_run, (CheckpointError,), _checkpoints, MUTATE_TORCH),
    Target(
        "checkpoint_best",
        "last.ckpt",
        _read_newest,
        (CheckpointError,),
        _checkpoints,
        MUTATE_TORCH,
        prepare=_older,
        folder=True,
    ),
]
