"""A process that cannot read its image ends the whole command, by torchrun and by Lightning's launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_one_bad_image_ends_all_processes(shapes, tmp_path, launcher):
    for path in shapes.rglob("*"):
        target = tmp_path / "shapes" / path.relative_to(shapes)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    bad = sorted((tmp_path / "shapes").rglob("train/*.jpg"))[0]
    bad.write_bytes(bad.read_bytes()[:300])  # the header is whole
    words = [
        *([PROGRAMS / "torchrun", "--nproc-per-node=2"] if launcher == "torchrun" else []),
        PROGRAMS / "trunkline", "fit", "--config", "detection/faster_rcnn_r18_fpn_demo",
        "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.workers=0",
        "--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--data.batch_size=1",
        "--data.short_side=64", "--data.long_side=96", f"--data.root={tmp_path / 'shapes'}",
        f"--trainer.default_root_dir={tmp_path / 'runs'}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200)
    assert done.returncode != 0
    assert "has failed, so process" in done.stderr and bad.name in done.stderr, done.stderr[-3000:]
