"""Masks of one segmentation head: classes with colours, figures at native size, files and drawing.

Letters in shapes: B images, K classes, h w one image at input size, h0 w0 the image on disk, in pixels.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...constants import IGNORE_INDEX
from ...data.shared.io import resize_mask
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_csv, write_json
from ...evaluation.pictures.boxes import class_colour, contact_sheet, save_picture
from ...evaluation.pictures.confusion import MOST_CLASSES, draw_confusion
from ...evaluation.pictures.masks import draw_mask, save_id_mask, with_legend
from ...evaluation.segmentation.evaluator import SegmentationEvaluator
from ...heads.base import Head
from ...heads.segmentation.base import SegmentationHead
from ..base.branch import Branch, FileWriter, Found, ids_of
from ..base.classes import spare_classes

logger = logging.getLogger("trunkline")

MOST_VALUES = 2**26  # of scores at the size of an image on disk, at a time: 256 MB


class SegmentationBranch(Branch):
    """Serves a segmentation head; batches have ``mask``, ``truth``, ``image_sizes`` and ``original_sizes``.

    Figures compare the logits, resized to the size of the mask on disk, with that mask: every pixel of every
    image counts as it was annotated.
    """

    noun = "classes"
    headline = "mIoU"
    covers_areas = True

    def __init__(self, head: Head, option: str = "model.head") -> None:
        if not isinstance(head, SegmentationHead):
            raise ValueError(f"{option} is a {type(head).__name__}, which is no head for masks (FCN is one)")
        super().__init__(head, option)
        self._evaluator = SegmentationEvaluator(self.class_names())

    # -- classes

    def classes_of(self, data: Any) -> list[dict[str, Any]]:
        return [
            {"id": int(c.id), "name": c.name, "colour": list(c.colour)}
            for c in getattr(data, "classes", None) or ()
        ]

    def label_of(self, known: dict[str, Any]) -> str:
        return f"{known['id']} {known['name']}"

    def prepare(self, data: Any, stage: str) -> None:
        self.require_kind(data)
        super().prepare(data, stage)
        if stage == "predict":
            return
        if self.classes and len(self.classes) < self.head.num_classes:
            text = spare_classes(len(self.classes), self.head.num_classes, self.option)
            logger.warning("%s unless the others are to come later", text)
        counts = getattr(data, "pixel_counts", None)
        if stage == "fit" and counts is not None and self.head.loss.balanced:
            self.head.loss.balance([int(count) for count in counts()])

    def require_kind(self, data: Any) -> None:
        """Raise a ValueError unless the data are pictures with masks, and the head tells classes apart."""
        if hasattr(data, "slice_axis"):
            raise ValueError(
                f"{type(data).__name__} reads scans; set --model to VolumeSegmentation, which segments them"
            )
        if self.head.regions:
            raise ValueError(
                f"{self.option}.regions are for VolumeSegmentation; leave them out, or segment the pictures "
                "as scans (docs/scans.md)"
            )

    def state(self) -> dict[str, Any]:
        state = super().state()
        if self.head.loss.balanced and self.head.loss.class_weights is not None:
            state["class_weights"] = self.head.loss.class_weights
        return state

    def restore(self, state: dict[str, Any], predicting: bool) -> None:
        super().restore(state, predicting)
        if self.head.loss.balanced and state.get("class_weights"):
            self.head.loss.set_class_weights(state["class_weights"])

    def colours(self) -> np.ndarray:
        """Return ``[K, 3]`` uint8, the colours of the classes."""
        known = [row["colour"] for row in self.classes]
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

    # -- predictions and figures

    def predictions(self, raw: Any, batch: Any) -> list[Found]:
        """Return ``image_id``, ``size`` and ``mask`` ``[h0, w0]`` uint8 labels of each image."""
        sizes, originals = batch.image_sizes.tolist(), batch.original_sizes.tolist()
        images = zip(ids_of(batch).tolist(), sizes, originals, strict=True)
        return [
            {
                "image_id": image_id,
                "size": tuple(original),
                "mask": labels_at(raw.logits[i : i + 1, :, : size[0], : size[1]], original),
            }
            for i, (image_id, size, original) in enumerate(images)
        ]

    def reset(self) -> None:
        self._evaluator = SegmentationEvaluator(self.class_names())  # a checkpoint may have brought others

    def evaluate(self, found: list[Found], batch: Any) -> None:
        for each, truth in zip(found, batch.truth, strict=True):
            self._evaluator.add(each["mask"], truth)

    def gather(self) -> None:
        self._evaluator.merge(gather_objects(self._evaluator.rows()))

    def compute(self) -> dict[str, float]:
        self.result = self._evaluator.compute()
        return self.result.figures

    def write_report(self, folder: Path, stage: str) -> dict[str, Path]:
        written = {"figures": write_json(folder / f"{stage}_figures.json", self.result.as_dict())}
        if len(self.result.confusion) <= MOST_CLASSES:
            picture = draw_confusion(self.result.confusion, self.class_names())
            written["confusion matrix"] = save_picture(folder / f"{stage}_confusion.png", picture)
        return written

    # -- pictures and files

    def draw(self, picture: np.ndarray, found: Found, min_score: float) -> np.ndarray:
        mask = resize_mask(found["mask"].cpu().numpy(), picture.shape[:2])
        return draw_mask(picture, mask, self.colours())

    def with_legend(self, picture: np.ndarray, found: Found) -> np.ndarray:
        return with_legend(picture, found["mask"].cpu().numpy(), self.class_names(), self.colours())

    def compare(
        self, picture: np.ndarray, found: Found, batch: Any, index: int, min_score: float
    ) -> np.ndarray:
        height, width = picture.shape[:2]
        truth = batch.mask[index, :height, :width].cpu().numpy()
        mask = resize_mask(found["mask"].cpu().numpy(), picture.shape[:2])
        panels = [draw_mask(picture, labels, self.colours()) for labels in (mask, truth)]
        shown = np.concatenate([mask, truth], axis=1)
        return with_legend(contact_sheet(panels, 2), shown, self.class_names(), self.colours())

    def file_writer(self, folder: Path) -> FileWriter:
        return MaskFiles(folder, self)


class MaskFiles(FileWriter):
    """Writes ``masks/NAME.png``, with the data's own ids and the classes' colours, and ``classes.csv``.

    A mask has the name of its image; where several images have the same one, the id of the image is added.
    Masks have 8 bits and a palette, or 16 bits where the data have ids above 255.
    """

    def __init__(self, folder: Path, branch: SegmentationBranch) -> None:
        self.folder = folder
        self.branch = branch
        self._values = branch.ids()
        colours = branch.colours()
        self._palette = dict(zip(self._values.tolist(), map(tuple, colours.tolist()), strict=True))
        self._repeated: set[str] = set()
        self._written = 0

    def begin(self, paths: dict[int, Path]) -> None:
        stems = Counter(Path(path).stem for path in paths.values())
        self._repeated = {stem for stem, number in stems.items() if number > 1}
        self._written = len(paths)

    def add(self, found: Found, path: Path) -> None:
        name = f"{path.stem}_{found['image_id']}" if path.stem in self._repeated else path.stem
        ids = self._values[found["mask"].cpu().numpy()]
        save_id_mask(self.folder / "masks" / f"{name}.png", ids, self._palette)

    def finish(self, first_process: bool) -> str:
        if not first_process:
            return ""
        known = zip(self._values, self.branch.class_names(), self.branch.colours().tolist(), strict=True)
        rows = [[value, name, *colour] for value, name, colour in known]
        write_csv(self.folder / "classes.csv", ["id", "name", "r", "g", "b"], rows)
        return f"masks of {self._written} images: {(self.folder / 'masks').resolve()}"


def labels_at(logits: Tensor, size: list[int] | tuple[int, int]) -> Tensor:
    """Resize logits ``[1, K, h, w]`` to ``[h0, w0]`` bilinearly, then take the best class: uint8.

    Classes come in turn where all of them would fill the memory, as hundreds do on a photograph.
    """
    if tuple(logits.shape[2:]) == tuple(size):
        return logits[0].argmax(0).to(torch.uint8)
    best, labels = None, None
    step = max(1, MOST_VALUES // (size[0] * size[1]))
    for first in range(0, logits.shape[1], step):
        some = logits[:, first : first + step].float()
        values, index = F.interpolate(some, tuple(size), mode="bilinear", align_corners=False)[0].max(0)
        index = (index + first).to(torch.uint8)
        labels = index if best is None else torch.where(values > best, index, labels)
        best = values if best is None else torch.maximum(values, best)
    return labels
