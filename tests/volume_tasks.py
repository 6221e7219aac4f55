"""Commands on scans, and a task whose answer is known, for the tests of segmentation of scans."""

import torch
from torch import nn

from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.cli import with_null_overrides, with_resolved_configs
from trunkline.heads.segmentation.base import RawSegmentation, SegmentationHead
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.volumes.inference import VolumeInference
from trunkline.tasks.volumes.task import VolumeSegmentation

QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
]


TINY = [
    "--data.steps_per_epoch=2",
    "--data.workers=0",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
]


def command(monkeypatch, *words):
    words = with_null_overrides(with_resolved_configs([str(word) for word in words]))
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


class Look(Backbone):
    """A trunk that hands the image on."""

    def __init__(self, ndim):
        super().__init__()
        self.levels = (FeatureLevel(1, (1,) * ndim),)
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, image):
        return [image]


class Threshold(SegmentationHead):
    """Labels 0, 1 and 2 by intensity: below 0.5, up to 1.5, above."""

    def forward(self, features, image_size):
        (x,) = features
        middle = 1 - 2 * (x - 1).abs()
        return RawSegmentation(20 * torch.cat([0.5 - x, middle.clamp(max=0.5), x - 1.5], 1))


def oracle(ndim=3, **inference):
    """A task whose answer is known: a threshold of the prepared intensities."""
    task = VolumeSegmentation(
        backbone=Look(ndim), head=lambda levels: Threshold(levels, 3), inference=VolumeInference(**inference)
    )
    return task.eval()
