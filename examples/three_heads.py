"""Data for three heads at once: boxes, a mask and two classes of every image, from one folder of masks.

Letters in shapes: B images, H W the padded canvas, h w one image, m its boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trunkline.data.detection import DetectionBatch, DetectionSample, collate_detection
from trunkline.data.shared import (
    ImageBatchSampler,
    ImageRequest,
    LabelClass,
    SplitData,
    batch_loader,
    list_images,
    padded,
    read_image,
    read_mask,
)

IGNORED = 255
SHAPES = ("circle", "rectangle", "triangle")
CLASSES = {
    "detection": SHAPES,
    "segmentation": ("background", *SHAPES),
    "number": ("none", "one", "several"),  # by the names of the heads for whole images
    "format": ("landscape", "portrait", "square"),
}


class Picture(NamedTuple):
    """A file and its mask; None where there is only an image to predict on."""

    image: Path
    mask: Path | None


@dataclass(kw_only=True)
class ThreeHeadsBatch(DetectionBatch):
    """Boxes, masks and classes of the same images.

    Attributes:
        mask: ``[B, H, W]`` uint8, 255 where ignored.
        truth: the mask of each image, ``[h, w]`` uint8.
        number: ``[B]`` int64, how many objects there are, see ``CLASSES``.
        format: ``[B]`` int64, the shape of the image, see ``CLASSES``.
        label: ``[B]`` int64, one of the two, for the head that learns it.
    """

    mask: Tensor
    truth: tuple[Tensor, ...]
    number: Tensor
    format: Tensor
    label: Tensor | None = None

    def for_head(self, name: str) -> Self:
        """Return the batch with the labels of one head; boxes and masks have names of their own."""
        labels = {"number": self.number, "format": self.format}
        return replace(self, label=labels[name]) if name in labels else self


class ThreeHeads(SplitData[list[Picture]]):
    """Images with masks, as ``trunkline sample segmentation`` writes them: ``images`` and ``masks``.

    An object is a connected area of a class. Images keep their size; evaluation takes one at a time.

    Args:
        root: folder of ``images/{split}`` and ``masks/{split}``.
        predict: images and folders of images to predict on.
        batch_size: images per batch and device in training.
        workers: loader processes.
        seed: of the order; if null, that of seed_everything.
    """

    label_kinds = ("detection", "segmentation", "classification")

    def __init__(
        self,
        root: str,
        predict: str | list[str] | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 1,
        workers: int = 2,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.keep_arguments()
        self.batch_size = batch_size

    def image_layout(self) -> tuple[int, int]:
        return 3, 2

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        names = CLASSES[head if kind == "classification" else kind]
        return [LabelClass(number, name) for number, name in enumerate(names)]

    def evaluation_truth(self, kind: str, stage: str, head: str = "") -> dict[str, Any]:
        pictures, annotations = self.index_of("test" if stage == "test" else "val"), []
        for number, picture in enumerate(pictures):
            for label, (x1, y1, x2, y2) in objects(read_mask(picture.mask)):
                box = [x1, y1, x2 - x1, y2 - y1]
                annotations.append({"image_id": number, "category_id": label, "bbox": box})
        return {
            "images": [{"id": number} for number in range(len(pictures))],
            "categories": [{"id": c.id, "name": c.name} for c in self.label_classes(kind)],
            "annotations": annotations,
        }

    def prediction_paths(self) -> dict[int, Path]:
        return {number: picture.image for number, picture in enumerate(self.index_of("predict"))}

    def has_split(self, split: str) -> bool:
        return (Path(self.hparams.root) / "masks" / split).is_dir()

    def read_split(self, split: str) -> list[Picture]:
        root = Path(self.hparams.root)
        images = list_images([str(root / "images" / split)])
        return [Picture(path, root / "masks" / split / f"{path.stem}.png") for path in images]

    def read_prediction(self, given: list[str]) -> list[Picture]:
        return [Picture(path, None) for path in list_images(given)]

    def make_loader(self, split: str, index: list[Picture]) -> DataLoader:
        sampler = ImageBatchSampler(len(index), **self.sampler_options(split))
        return batch_loader(ThreeHeadsDataset(index), sampler, collate, self.hparams.workers, self.trainer)


class ThreeHeadsDataset(Dataset):
    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures

    def __getitem__(self, request: ImageRequest) -> tuple[DetectionSample, np.ndarray]:
        picture = self.pictures[request.index]
        image = read_image(picture.image)
        size = image.shape[:2]
        mask = np.full(size, IGNORED, np.uint8) if picture.mask is None else read_mask(picture.mask)
        labels, boxes = zip(*objects(mask), strict=True) if objects(mask) else ((), ())
        sample = DetectionSample(
            image=torch.from_numpy(image).permute(2, 0, 1),  # [h, w, 3] -> [3, h, w]
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            crowd=torch.zeros(len(labels), dtype=torch.bool),
            image_id=request.index,
            original_size=size,
            canvas=size,
        )
        return sample, mask


def objects(mask: np.ndarray) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Return label and box (x1 y1 x2 y2) of every connected area of a class in ``[h, w]``."""
    found = []
    for label in range(len(SHAPES)):
        areas, _ = ndimage.label(mask == label + 1)  # value 0 is the background
        for rows, columns in ndimage.find_objects(areas):
            found.append((label, (columns.start, rows.start, columns.stop, rows.stop)))
    return found


def collate(samples: list[tuple[DetectionSample, np.ndarray]]) -> ThreeHeadsBatch:
    """Pad the images of a batch to the largest of them, rounded up to multiples of 32."""
    sizes = np.array([sample.original_size for sample, _ in samples])
    canvas = tuple((-(-sizes.max(axis=0) // 32) * 32).tolist())
    boxes = collate_detection([replace(sample, canvas=canvas) for sample, _ in samples])
    masks = tuple(torch.from_numpy(mask) for _, mask in samples)
    shape = np.where(sizes[:, 0] == sizes[:, 1], 2, sizes[:, 0] > sizes[:, 1])
    return ThreeHeadsBatch(
        **vars(boxes),
        mask=padded(masks, canvas, IGNORED),
        truth=masks,
        number=torch.tensor([min(len(sample.labels), 2) for sample, _ in samples]),
        format=torch.from_numpy(shape.astype(np.int64)),
    )
