"""A run of two processes that goes on in one: the same epoch, no image twice in it, none left out."""

import logging

import pytest
import torch
from memory_tasks import single, trainer
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from two_processes import ranks

from trunkline.data.classification import ImageClassification

pytestmark = pytest.mark.forks


class Seen(Callback):
    """The images of each epoch, of one process."""

    def __init__(self):
        self.images = {}

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.images.setdefault(trainer.current_epoch, []).extend(batch.image_ids.tolist())


def run(rank, folder, root, world, epochs=2, checkpoint=None, stop=-1):
    seen, size = Seen(), 2
    saved = ModelCheckpoint(dirpath=folder / "kept", save_top_k=0)
    options = {"devices": world, "strategy": "ddp"} if world > 1 else {}
    made = trainer(
        folder, max_epochs=epochs, max_steps=stop, limit_val_batches=0, callbacks=[seen, saved],
        enable_checkpointing=True, **options,
    )  # fmt: skip
    data = ImageClassification(str(root), batch_size=size, size=32, workers=0)
    task = single("scene", neck=None)
    made.fit(task, data, ckpt_path=checkpoint)
    return seen.images


@pytest.mark.slow
def test_an_epoch_of_two_processes_goes_on_in_one(tmp_path, caplog):
    from trunkline.data.synthetic.pictures import write_classification

    root = write_classification(tmp_path / "classes", train=18, val=3, size=32, seed=1, progress=False)
    root = tmp_path / "classes" if root is None else root
    before = ranks(run, tmp_path / "two", root, 2, 2, None, 3)  # 12 of the images
    caplog.set_level(logging.INFO)
    after = run(0, tmp_path / "one", root, 1, 2, str(tmp_path / "two/kept/last.ckpt"), -1)
    done = [image for found in before for image in found[0]]
    count = len(list(root.glob("train/*/*")))
    assert len(done) == len(set(done)) == 12 and count > 12
    assert len(after[0]) - (count - 12) in (0, 1) and set(done) | set(after[0]) == set(range(count))
    assert len(set(done) & set(after[0])) == len(after[0]) - (count - 12)  # what fills the last step
    assert set(after[1]) == set(range(count))
    assert "the run was on 2 device(s) with batches of 2, 4 images a step, and goes on on 1" in caplog.text
    assert torch.load(tmp_path / "one/kept/last.ckpt")["global_step"] > 3
