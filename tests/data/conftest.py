"""Shared by the data tests: small datasets, and a model that writes down what it is given."""

import pytest
import pytorch_lightning as pl
import torch

from trunkline.data.synthetic.pictures import write_detection


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return write_detection(tmp_path_factory.mktemp("coco") / "shapes", train=21, val=10, size=(64, 80))


@pytest.fixture
def own(tmp_path):
    """A dataset that a test may damage."""
    return write_detection(tmp_path / "own", train=6, val=4, size=(48, 64))


class Recorder(pl.LightningModule):
    """Trains nothing and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[int, ...], int]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        pixels = int(batch.image.long().sum())
        self.seen.append((self.current_epoch, tuple(batch.image_ids.tolist()), pixels))
        return self.weight.sum() * 0

    def validation_step(self, batch, batch_idx):
        self.validated += batch.image_ids.tolist()

    def test_step(self, batch, batch_idx):
        self.validated += batch.image_ids.tolist()

    def predict_step(self, batch, batch_idx):
        return batch.image_ids.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def recorder():
    """The class ``Recorder``."""
    return Recorder


@pytest.fixture
def trainer(tmp_path):
    """Make a quiet trainer on the CPU."""

    def make(**options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        fast = {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0}
        return pl.Trainer(default_root_dir=tmp_path, **fast | quiet | options)

    return make
