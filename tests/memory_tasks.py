"""Data in memory with labels of every kind, written by the contract alone, and tiny tasks that learn them."""

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from PIL import Image
from segmentation_tasks import TinyTrunk
from torch import Tensor
from torch.utils.data import DataLoader

from trunkline.backbones import FPN
from trunkline.data.classification.batches import ClassificationBatch
from trunkline.data.detection.batches import DetectionBatch
from trunkline.data.segmentation.batches import SegmentationBatch
from trunkline.data.shared.batches import Batch
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.module import TrunklineData
from trunkline.heads import FCN, Classifier, FasterRCNN
from trunkline.heads.detection import AnchorOptions, RoIOptions
from trunkline.tasks.classification import Classification
from trunkline.tasks.detection import Detection
from trunkline.tasks.multitask import MultiTask
from trunkline.tasks.segmentation import SemanticSegmentation

SIZE = (16, 24)
CLASSES = {
    "boxes": ("detection", [LabelClass(4, "cell"), LabelClass(9, "plate")]),
    "land": ("segmentation", [LabelClass(1, "water"), LabelClass(2, "soil"), LabelClass(5, "rock")]),
    "sky": ("segmentation", [LabelClass(0, "clear"), LabelClass(8, "cloud")]),
    "scene": ("classification", [LabelClass(0, "day"), LabelClass(1, "night"), LabelClass(2, "dusk")]),
}


@dataclass(kw_only=True)
class EveryLabel(Batch):
    """Images with boxes, two masks of different classes, and a class."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    land: Tensor
    sky: Tensor
    scene: Tensor

    def for_head(self, name):
        if not name:
            return self
        shared = {"image": self.image, "image_sizes": self.image_sizes, "image_ids": self.image_ids}
        if name == "scene":
            return ClassificationBatch(**shared, label=self.scene)
        shared["original_sizes"] = self.image_sizes
        if name == "boxes":
            return DetectionBatch(**shared, boxes=self.boxes, labels=self.labels, crowd=self.crowd)
        mask = getattr(self, name)
        return SegmentationBatch(**shared, mask=mask, truth=tuple(mask))


def made_batch(ids, generator):
    count = len(ids)
    corner = torch.randint(0, 8, (count, 2, 2), generator=generator).float()
    masks = {
        name: torch.randint(0, len(CLASSES[name][1]), (count, *SIZE), dtype=torch.uint8, generator=generator)
        for name in ("land", "sky")
    }
    masks["land"][:, :2] = 255
    return EveryLabel(
        image=torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=generator),
        image_sizes=torch.tensor(SIZE).repeat(count, 1),
        image_ids=ids,
        boxes=torch.cat([corner, corner + 8], 2),
        labels=torch.stack([ids % 2, -(ids % 2)], 1),  # every other image has a single box
        crowd=torch.zeros(count, 2, dtype=torch.bool),
        scene=ids % 3,
        **masks,
    )


class Everything(TrunklineData):
    """Five images; with ``head`` the labels of that head alone, as a task with one head wants them."""

    label_kinds = ("detection", "segmentation", "classification")

    def __init__(self, head="", folder=None):
        super().__init__()
        self.head = head
        if head:
            self.label_kinds = (CLASSES[head][0],)
        generator = torch.Generator().manual_seed(0)
        whole = [made_batch(ids, generator) for ids in (torch.tensor([0, 1]), torch.tensor([2, 3, 4]))]
        self.whole = whole
        self.batches = [batch.for_head(head) for batch in whole]
        self.paths = {}
        if folder is not None:
            for batch in whole:
                for number, image in zip(batch.image_ids.tolist(), batch.image, strict=True):
                    self.paths[number] = folder / f"picture {number}.png"
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(self.paths[number])

    def image_layout(self):
        return 3, 2

    def label_classes(self, kind, head=""):
        expected, classes = CLASSES[head or self.head]
        assert kind == expected
        return classes

    def label_counts(self, kind, head=""):
        return [3, 2, 1][: len(CLASSES[head or self.head][1])]

    def evaluation_truth(self, kind, stage, head=""):
        if kind != "detection":
            return None
        images = [{"id": int(i)} for batch in self.whole for i in batch.image_ids]
        annotations = [
            {"id": 0, "image_id": int(image), "category_id": (4, 9)[label], "bbox": [*box[:2], 8.0, 8.0]}
            for batch in self.whole
            for image, boxes, labels in zip(batch.image_ids, batch.boxes, batch.labels, strict=True)
            for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
            if label >= 0
        ]
        categories = [{"id": c.id, "name": c.name} for c in CLASSES["boxes"][1]]
        return {"images": images, "categories": categories, "annotations": annotations}

    def prediction_paths(self):
        return self.paths

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None, generator=torch.Generator())

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def segmenter(levels, num_classes):
    """A head whose scores differ enough for it to predict every class untrained."""
    head = FCN(levels, num_classes, channels=4, dropout=0.0)
    for value in head.parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=3.0)
    return head


HEADS = {
    "boxes": lambda levels: FasterRCNN(
        levels,
        num_classes=2,
        anchors=AnchorOptions(scale=3.0),
        roi=RoIOptions(hidden=16, pool_size=3, score_threshold=0.0, levels=2, detections_per_image=10),
    ),
    "land": lambda levels: segmenter(levels, 3),
    "sky": lambda levels: segmenter(levels, 2),
    "scene": lambda levels: Classifier(levels, 3),
}
TASKS = {
    "boxes": Detection,
    "land": SemanticSegmentation,
    "sky": SemanticSegmentation,
    "scene": Classification,
}


def parts():
    torch.manual_seed(0)
    return {"backbone": TinyTrunk(), "neck": lambda trunk: FPN(trunk, channels=8)}


def single(name, **options):
    """A task with one of the heads."""
    return TASKS[name](**{"head": HEADS[name], **parts(), **options})


def multi(**options):
    """A task with all of the heads."""
    return MultiTask(**{"heads": HEADS, **parts(), **options})


def trainer(folder, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=folder, **{**settings, **quiet, **arguments})
