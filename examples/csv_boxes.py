"""A dataset layout of your own for detection: one CSV file of boxes and a folder of images.

``boxes.csv`` has the columns split, image, class, x1, y1, x2, y2 (in pixels) and a row per box. A row whose
class is empty stands for an image without objects.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from trunkline.data.detection import DetectionSample, collate_detection
from trunkline.data.shared import (
    Augmentation,
    CanvasBatchSampler,
    LabelClass,
    Request,
    SplitData,
    batch_loader,
    default_canvases,
    image_size,
    list_images,
    read_image,
    resize,
    scaled_size,
)


@dataclass
class Images:
    """The images of a split, by position: files, sizes on disk, and the boxes and labels of each."""

    paths: list[Path] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)  # [m, 4] float32 x1 y1 x2 y2
    labels: list[np.ndarray] = field(default_factory=list)  # [m] int64

    def add(self, path: Path, boxes: Sequence[Sequence[float]] = (), labels: Sequence[int] = ()) -> None:
        self.paths.append(path)
        self.sizes.append(image_size(path))
        self.boxes.append(np.array(boxes, dtype=np.float32).reshape(-1, 4))
        self.labels.append(np.array(labels, dtype=np.int64))


class CsvBoxes(SplitData[Images]):
    """Boxes from ``boxes.csv``.

    Args:
        root: folder with ``boxes.csv``, and the folder ``images`` that its names of images are relative to.
        predict: images and folders of images to predict on.
        classes: names of the classes, in the order of their labels.
        batch_size: images per batch and device in training.
        eval_batch_size: the same for everything else; as batch_size if null.
        workers: loader processes.
        short_side: of the images after resizing, in pixels.
        long_side: limit of the longer side.
        augment: albumentations transforms for training.
        seed: of order and augmentation; if null, that of seed_everything.
    """

    label_kinds = ("detection",)

    def __init__(
        self,
        root: str,
        classes: list[str],
        predict: str | list[str] | None = None,
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        workers: int = 2,
        short_side: int = 128,
        long_side: int = 192,
        augment: list[dict[str, dict[str, Any] | None]] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # self.hparams; checkpoints hold them
        self.keep_arguments()
        self.batch_size = batch_size

    # -- what tasks ask

    def image_layout(self) -> tuple[int, int]:
        return 3, 2  # channels, axes

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        return [LabelClass(number, name) for number, name in enumerate(self.hparams.classes)]

    def evaluation_truth(self, kind: str, stage: str, head: str = "") -> dict[str, Any]:
        """Return the boxes of the validation or test images as a COCO instances dictionary."""
        index = self.index_of("test" if stage == "test" else "val")
        annotations = [
            {"image_id": number, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for number in range(len(index.paths))
            for (x1, y1, x2, y2), label in zip(
                index.boxes[number].tolist(), index.labels[number].tolist(), strict=True
            )
        ]
        return {
            "images": [{"id": number} for number in range(len(index.paths))],
            "categories": [{"id": c.id, "name": c.name} for c in self.label_classes(kind)],
            "annotations": annotations,
        }

    def prediction_paths(self) -> dict[int, Path]:
        return dict(enumerate(self.index_of("predict").paths))

    # -- what SplitData asks

    def rows(self, split: str) -> list[dict[str, str]]:
        with open(Path(self.hparams.root) / "boxes.csv", newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row["split"] == split]

    def has_split(self, split: str) -> bool:
        return bool(self.rows(split))

    def read_split(self, split: str) -> Images:
        of_image: dict[str, list[dict[str, str]]] = {}
        for row in self.rows(split):
            of_image.setdefault(row["image"], []).append(row)
        index, names = Images(), self.hparams.classes
        for name, rows in of_image.items():
            known = [row for row in rows if row["class"]]
            boxes = [[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in known]
            labels = [names.index(row["class"]) for row in known]
            index.add(Path(self.hparams.root) / "images" / name, boxes, labels)
        return index

    def read_prediction(self, given: list[str]) -> Images:
        index = Images()
        for path in list_images(given):
            index.add(path)
        return index

    def make_loader(self, split: str, index: Images) -> DataLoader:
        given = self.hparams
        sampler = CanvasBatchSampler(
            np.array(index.sizes),
            short_sides=[given.short_side],
            long_side=given.long_side,
            canvases=default_canvases([given.short_side], given.long_side),
            **self.sampler_options(split),
        )
        augmentation = Augmentation(given.augment or []) if split == "train" else None
        dataset = CsvBoxesDataset(index, given.long_side, augmentation)
        return batch_loader(dataset, sampler, collate_detection, given.workers, self.trainer)


class CsvBoxesDataset(Dataset):
    """Reads, augments and resizes one image at a time, as the sampler's requests say."""

    def __init__(self, index: Images, long_side: int, augmentation: Augmentation | None) -> None:
        self.index = index
        self.long_side = long_side
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.index.paths)

    def __getitem__(self, request: Request) -> DetectionSample:
        number = request.index
        image, boxes, labels = (
            read_image(self.index.paths[number]),
            self.index.boxes[number],
            self.index.labels[number],
        )
        crowd = np.zeros(len(labels), dtype=bool)
        if self.augmentation is not None:
            image, boxes, labels, crowd = self.augmentation(image, boxes, labels, crowd, request.seed)
        height, width = image.shape[:2]
        size = scaled_size((height, width), request.short_side, self.long_side, request.canvas)
        factors = np.array([size[1] / width, size[0] / height] * 2, dtype=np.float32)
        return DetectionSample(
            image=torch.from_numpy(resize(image, size)).permute(2, 0, 1),  # [h, w, 3] -> [3, h, w]
            boxes=torch.from_numpy(boxes * factors),
            labels=torch.from_numpy(labels),
            crowd=torch.from_numpy(crowd),
            image_id=number,
            original_size=self.index.sizes[number],
            canvas=request.canvas,
        )
