"""A tiny segmenter and pictures with masks in memory."""

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.data.segmentation.batches import SegmentationSample, collate_segmentation
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.module import TrunklineData
from trunkline.heads import FCN
from trunkline.tasks.segmentation.task import SemanticSegmentation

CLASSES = [
    LabelClass(id=3, name="road", colour=(10, 20, 30)),
    LabelClass(id=7, name="tree", colour=(200, 0, 0)),
    LabelClass(id=255, name="sky", colour=(0, 0, 250)),
]


class TinyTrunk(Backbone):
    """Two levels, of strides 2 and 4."""

    def __init__(self, channels=3):
        super().__init__()
        self.one = nn.Conv2d(channels, 5, 3, stride=2, padding=1)
        self.two = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.levels = (FeatureLevel(5, (2, 2)), FeatureLevel(6, (4, 4)))

    def forward(self, image):
        first = self.one(image).relu()
        return [first, self.two(first).relu()]


class Memory(TrunklineData):
    """Pictures of 12x16 pixels whose masks on disk are twice as large; the last class fills no mask."""

    label_kinds = ("segmentation",)

    def __init__(self, folder=None, classes=CLASSES, count=5, batch=2, factor=2):
        super().__init__()
        self.listed = tuple(classes)
        generator = torch.Generator().manual_seed(0)
        samples = []
        for number in range(count):
            image = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8, generator=generator)
            truth = torch.randint(0, 2, (12 * factor, 16 * factor), dtype=torch.uint8, generator=generator)
            truth[:3] = 255
            mask = truth[::factor, ::factor]
            size = tuple(truth.shape)
            samples.append(SegmentationSample(image, mask, number, size, truth))
        chunks = [samples[i : i + batch] for i in range(0, count, batch)]
        self.batches = [collate_segmentation(chunk, multiple=4) for chunk in chunks]
        self.paths = {}
        if folder is not None:
            for sample in samples:
                path = folder / str(sample.image_id) / "same.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                large = sample.image.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
                Image.fromarray(large).save(path)
                self.paths[sample.image_id] = path
            self.paths[0] = self.paths[0].rename(folder / "other.png")

    def image_layout(self):
        return 3, 2

    def label_classes(self, kind, head=""):
        return self.listed

    def label_counts(self, kind, head=""):
        return [30, 10, 0]

    def prediction_paths(self):
        return self.paths

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def segmenter(num_classes=3, head=None, **options):
    torch.manual_seed(0)
    return SemanticSegmentation(
        backbone=TinyTrunk(), head=lambda levels: FCN(levels, num_classes, **(head or {})), **options
    )


def trainer(folder, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=folder, **{**settings, **quiet, **arguments})
