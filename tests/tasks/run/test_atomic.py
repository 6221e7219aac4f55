"""Checkpoints are written whole or not at all: on a full disk, and when the writer fails half-way."""

import errno
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from trunkline.tasks.run.checkpoints import AtomicCheckpointIO


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.arange(5)}}, path)
    return path


def test_written_file_holds_what_was_given(saved):
    content = torch.load(saved, weights_only=True)
    assert torch.equal(content["state_dict"]["a"], torch.arange(5))
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_folders_are_created_and_long_names_fit(tmp_path):
    path = tmp_path / "a" / "b" / ("x" * 250 + ".ckpt")
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    assert torch.load(path, weights_only=True) == {"state_dict": {}}


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
    ],
)
def test_failure_half_way_leaves_the_old_file(saved, monkeypatch, failure):
    before = saved.read_bytes()

    def save(checkpoint, file):
        file.write(b"half of it")
        raise failure

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="last.ckpt cannot be written .*unharmed; make room on the disk"):
        AtomicCheckpointIO().save_checkpoint({}, saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_interruption_half_way_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def save(checkpoint, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({}, saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def can_mount():
    """Whether this system lets a process mount a file system of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    words = [unshare, "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


FILLING = """
    import shutil
    import sys
    from pathlib import Path
    from pytorch_lightning.callbacks import Callback
    from trunkline.cli import main

    class Fill(Callback):
        '''Leaves too little room for another checkpoint after the first epoch.'''
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                with open(Path("runs") / "filling", "wb", buffering=0) as file:
                    while shutil.disk_usage("runs").free > 200_000:  # for the logger
                        file.write(bytes(4096))

    sys.modules["filling"] = sys.modules["__main__"]
    sys.path.insert(0, ".")
    main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs a system that lets a process mount a small file system")
def test_fit_on_a_full_disk_keeps_the_checkpoint_of_the_last_epoch(tmp_path, class_folders):
    """The folder of the runs is a file system of 8 MiB, and other than that of temporary files."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(FILLING))
    (tmp_path / "runs").mkdir()
    fit = [
        sys.executable, "program.py", "fit", "--config", "classification/resnet50_imagenet",
        f"--data.root={class_folders}", "--data.workers=0", "--data.batch_size=2", "--data.size=32",
        "--model.backbone.weights=null", "--model.backbone.width=4", "--model.backbone.depth=18",
        "--trainer.accelerator=cpu", "--trainer.max_epochs=3", "--trainer.enable_progress_bar=false",
        "--trainer.callbacks+=filling.Fill",
    ]  # fmt: skip
    script = (
        'mount -t tmpfs -o size=8m tmpfs runs && "$@"; status=$?; '
        "rm -f runs/filling; cp -r runs kept; exit $status"
    )
    words = ["unshare", "-rm", "sh", "-c", script, "sh", *fit]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-3000:]
    assert re.search(r"(best|last)\.ckpt cannot be written \(No space left on device\)", done.stderr)
    assert "make room on the disk, or give another --trainer.default_root_dir" in done.stderr
    assert "Traceback" not in done.stderr
    (last,) = (tmp_path / "kept").rglob("last.ckpt")
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 3 and content["between_steps"]["position"] == "epoch"
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.suffix == ".part"]
