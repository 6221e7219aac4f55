"""Masks of one segmentation head: classes with colours, metrics at native size, files and drawing.

Letters in shapes: B images, K classes, h w one image at input size, h0 w0 the image on disk, in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...constants import IGNORE_INDEX
from ...data.shared.io import resize_mask
from ...data.shared.labels import LabelClass, voc_colour
from ...data.shared.module import TrunklineData
from ...data.shared.storage import Location, located
from ...evaluation.base import Evaluator, Prediction
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_csv
from ...evaluation.names import unique_names
from ...evaluation.pictures.boxes import class_colour, contact_sheet
from ...evaluation.pictures.masks import draw_mask, save_id_mask, with_legend
from ...evaluation.segmentation.evaluator import SegmentationEvaluator
from ...heads.segmentation.base import SegmentationHead
from ..base.branch import Branch
from ..base.transfer import to_main_memory
from ..base.writer import FileWriter

MOST_VALUES = 2**26  # of scores at the size of an image on disk, at a time: 256 MB


class SegmentationBranch(Branch):
    """Serves a segmentation head; batches have ``mask``, ``truth``, ``image_sizes`` and ``original_sizes``.

    Metrics compare the logits, resized to the size of the mask on disk, with that mask: every pixel of every
    image counts as it was annotated.

    Attributes:
        takes_regions: whether classes may overlap, as regions of the head; only scans use them.
    """

    kind = "segmentation"
    takes_regions: ClassVar[bool] = False
    covers_areas = True
    head: SegmentationHead
    _data: TrunklineData | None = None
    _predicting: bool = False

    def default_evaluators(self, **options: Any) -> list[Evaluator]:
        return [SegmentationEvaluator(**options)]

    def prepare(self, data: TrunklineData, stage: str, fitting: bool = False) -> None:
        if self.head.regions and not self.takes_regions:
            raise ValueError(
                f"{self.option}.regions are for VolumeSegmentation; leave them out, or segment the pictures "
                "as scans (docs/scans.md)"
            )
        self._data, self._predicting = data, stage == "predict"
        super().prepare(data, stage, fitting)

    def adopt(self, classes: list[dict[str, Any]]) -> None:
        """Take over the data's classes, after giving them the numbers of the checkpoint's of the same names.

        Raises:
            ValueError: as that of the base class.
        """
        known = [LabelClass(row["id"], row["name"]) for row in self.classes]
        differ = known and [(row["id"], row["name"]) for row in classes] != [row[:2] for row in known]
        if differ and self._data is not None and self._data.take_classes(self.kind, known, self.name):
            classes = self.classes_of(self._data)
        super().adopt(classes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}  # copies of the network, and other processes, have their own

    def colours(self) -> np.ndarray:
        """Return ``[K, 3]`` uint8, the colours of the classes."""
        known = [row.get("colour", voc_colour(row["id"])) for row in self.classes]
        more = [class_colour(k) for k in range(len(known), self.head.num_classes)]
        return np.array(known + more, dtype=np.uint8)

    def ids(self) -> np.ndarray:
        """Return ``[K]`` integers of the smallest type: the value of each class in the data's own masks.

        Classes that the data do not have get the smallest values that are left.
        """
        known = [row["id"] for row in self.classes]
        free = (value for value in itertools.count() if value not in known and value != IGNORE_INDEX)
        values = known + [next(free) for _ in range(len(known), self.head.num_classes)]
        return np.array(values, dtype=np.result_type(*map(np.min_scalar_type, values)))

    def predictions(self, raw: Any, batch: Any) -> list[Prediction]:
        """Return ``image_id``, ``size`` and ``mask`` ``[h0, w0]`` uint8 labels of each image."""
        sizes, originals = (batch.in_main_memory(name).tolist() for name in ("image_sizes", "original_sizes"))
        masks = [
            labels_at(raw.logits[i : i + 1, :, : size[0], : size[1]], original)
            for i, (size, original) in enumerate(zip(sizes, originals, strict=True))
        ]
        if self._predicting:  # metrics are counted on the device, files written from main memory
            masks = to_main_memory(*masks)
        images = zip(batch.in_main_memory("image_ids").tolist(), originals, masks, strict=True)
        return [{"image_id": image, "size": tuple(size), "mask": mask} for image, size, mask in images]

    # -- pictures and files

    def draw(self, picture: np.ndarray, prediction: Prediction, min_score: float) -> np.ndarray:
        mask = resize_mask(prediction["mask"].cpu().numpy(), picture.shape[:2])
        return draw_mask(picture, mask, self.colours())

    def with_legend(self, picture: np.ndarray, prediction: Prediction) -> np.ndarray:
        return with_legend(picture, prediction["mask"].cpu().numpy(), self.class_names, self.colours())

    def compare(
        self, picture: np.ndarray, prediction: Prediction, batch: Any, index: int, min_score: float
    ) -> np.ndarray:
        height, width = picture.shape[:2]
        truth = batch.mask[index, :height, :width].cpu().numpy()
        mask = resize_mask(prediction["mask"].cpu().numpy(), picture.shape[:2])
        panels = [draw_mask(picture, labels, self.colours()) for labels in (mask, truth)]
        shown = np.concatenate([mask, truth], axis=1)
        return with_legend(contact_sheet(panels, 2), shown, self.class_names, self.colours())

    def file_writer(self, folder: Path, min_score: float, pictures: bool) -> FileWriter:
        return MaskFiles(folder, self)


class MaskFiles(FileWriter):
    """Writes ``masks/NAME.png``, with the data's own ids and the classes' colours, and two tables.

    ``classes.csv`` lists the ids, ``predictions.csv`` how many pixels of each class an image has. A mask has
    the name of its image; where several images have the same one, the id of the image is added (see
    :func:`.evaluation.names.unique_names`). Masks have 8 bits and a palette, or 16 bits where the data have
    ids above 255.
    """

    def __init__(self, folder: Path, branch: SegmentationBranch) -> None:
        self.folder = folder
        self.branch = branch
        self._values = branch.ids()
        colours = branch.colours()
        self._palette = dict(zip(self._values.tolist(), map(tuple, colours.tolist()), strict=True))
        self._names: dict[int, str] = {}
        self._rows: dict[int, list[Any]] = {}

    def begin(self, paths: Mapping[int, Location]) -> None:
        self._names = unique_names({number: located(path).stem for number, path in paths.items()})

    def add(self, prediction: Prediction, path: Location, batch: Any, index: int) -> None:
        image_id, labels = prediction["image_id"], prediction["mask"].cpu().numpy()
        name = self._names[image_id]
        save_id_mask(self.folder / "masks" / f"{name}.png", self._values[labels], self._palette)
        pixels = np.bincount(labels.ravel(), minlength=len(self._values))[: len(self._values)]
        self._rows[image_id] = [image_id, str(path), f"masks/{name}.png", *pixels.tolist()]

    def finish(self, first_process: bool) -> str:
        rows = {image_id: row for part in gather_objects(self._rows) for image_id, row in part.items()}
        if not first_process:
            return ""
        names = self.branch.class_names
        known = zip(self._values, names, self.branch.colours().tolist(), strict=True)
        table = [[value, name, *colour] for value, name, colour in known]
        write_csv(self.folder / "classes.csv", ["id", "name", "r", "g", "b"], table)
        header = ["image_id", "file_name", "mask", *(f"pixels {name}" for name in names)]
        write_csv(self.folder / "predictions.csv", header, [rows[image_id] for image_id in sorted(rows)])
        return f"masks of {len(rows)} images: {(self.folder / 'masks').resolve()}"


def labels_at(logits: Tensor, size: list[int] | tuple[int, int]) -> Tensor:
    """Resize logits ``[1, K, h, w]`` to ``[h0, w0]`` bilinearly, then take the best class: uint8.

    Classes come in turn where all of them would fill the memory, as hundreds do on a photograph.
    """
    if tuple(logits.shape[2:]) == tuple(size):
        return logits[0].argmax(0).to(torch.uint8)
    best: Any = None
    labels: Any = None
    step = max(1, MOST_VALUES // (size[0] * size[1]))
    for first in range(0, logits.shape[1], step):
        some = logits[:, first : first + step].float()
        values, index = F.interpolate(some, tuple(size), mode="bilinear", align_corners=False)[0].max(0)
        index = (index + first).to(torch.uint8)
        labels = index if best is None else torch.where(values > best, index, labels)
        best = values if best is None else torch.maximum(values, best)
    return labels
