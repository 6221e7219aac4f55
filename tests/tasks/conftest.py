"""A tiny trunk and data in memory, for tests of the classification task."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.data.classification.batches import ClassificationBatch
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.module import TrunklineData
from trunkline.heads import Classifier
from trunkline.tasks.classification.task import Classification


class TinyTrunk(Backbone):
    """One strided convolution for pictures (``ndim=2``) or scans (3)."""

    def __init__(self, ndim=2, channels=3, width=6):
        super().__init__()
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.conv = convolution(channels, width, 3, stride=2, padding=1)
        self.levels = (FeatureLevel(width, (2,) * ndim),)

    def forward(self, image):
        return [self.conv(image).relu()]


class Memory(TrunklineData):
    """Batches from memory: ``sizes`` images each, of classes that the brightness tells."""

    label_kinds = ("classification",)

    def __init__(self, names=("dark", "grey", "light"), sizes=(4, 4, 3), several=False, ndim=2, unknown=()):
        super().__init__()
        self.names, self.several, self.ndim = list(names), several, ndim
        self.batches, first = [], 0
        generator = torch.Generator().manual_seed(0)
        for size in sizes:
            ids = torch.arange(first, first + size)
            label = ids % len(names)
            noise = torch.randint(0, 60, (size, 3, *(8,) * ndim), generator=generator)
            image = (noise + 60 * label.view(-1, *(1,) * (ndim + 1))).to(torch.uint8)
            if ndim == 3:
                image = image[:, :1].float() / 100
            if several:
                label = torch.stack([ids % 2, ids % 3 == 0, torch.ones_like(ids)], 1).float()[:, : len(names)]
            label = label.clone()
            label[[int(i) in unknown for i in ids]] = -1
            shape = torch.tensor(image.shape[2:]).repeat(size, 1)
            self.batches.append(
                ClassificationBatch(image=image, label=label, image_ids=ids, image_sizes=shape)
            )
            first += size
        self.paths = {i: f"folder/{i}, really.png" for i in range(first)}

    def image_layout(self):
        return (3, 2) if self.ndim == 2 else (1, 3)

    def label_classes(self, kind, head=""):
        return [LabelClass(k, name) for k, name in enumerate(self.names)]

    def label_counts(self, kind, head=""):
        return [6, 0, 2][: len(self.names)]

    def multi_label(self, head=""):
        return self.several

    def prediction_paths(self):
        return self.paths

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def classifier(num_classes=3, ndim=2, head=None, **options):
    """A task with the tiny trunk; ``head`` are options of the classifier."""
    torch.manual_seed(0)
    channels = 3 if ndim == 2 else 1
    return Classification(
        backbone=TinyTrunk(ndim, channels),
        head=lambda levels: Classifier(levels, num_classes, **(head or {})),
        **options,
    )


def trainer(folder, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=folder, **{**settings, **quiet, **arguments})


@pytest.fixture
def tiny():
    """``tiny.classifier(...)``, ``tiny.Memory(...)`` and ``tiny.trainer(folder, ...)``."""
    return SimpleNamespace(classifier=classifier, Memory=Memory, trainer=trainer)
