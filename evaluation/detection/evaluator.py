"""Collects detections of an evaluation for the COCO metrics.

Letters in shapes: B images of a batch, D detection rows per image, n detections of one image, N rows of all
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..base import EvaluationContext, Evaluator, Prediction
from ..distributed import gather_objects, process_count
from .coco_arrays import DetectionRows, precision_and_recall
from .coco_metrics import BACKENDS, ClassResult, CocoResult, by_pycocotools, summarise
from .truth import Truth

__all__ = ["BACKENDS", "ClassResult", "CocoEvaluator", "CocoResult"]


class CocoEvaluator(Evaluator):
    """Collects the detections of an evaluation and computes the COCO metrics of the images it has seen.

    Only images that were added are evaluated: a run over part of a dataset gives the metrics of that part.
    Images without detections must be added too. An image counts once. In a single process, adding it again is
    an error. Where several processes share the work, samplers repeat images to give every process the same
    number. There a repetition is ignored, and the first result of the lowest rank counts.

    Detections are kept in main memory, in one float64 array per image (48 bytes a row).

    Args:
        ground_truth: a COCO instances dict: ``images`` (``id``), ``categories`` (``id``, ``name``) and
            ``annotations`` (``image_id``, ``category_id``, ``bbox`` as x y width height in pixels,
            ``iscrowd``: 0 if absent, ``area``: width times height if absent). It is read, never changed.
            Annotation ids are replaced: pycocotools takes an id of 0 for "not matched". None: the truth of
            the context, from ``prepare``.
        backend: ``faster`` (in NumPy, from arrays) or ``pycocotools``; the metrics are the same.

    Raises:
        ValueError: for an unknown backend, repeated image or category ids, an annotation whose image or
            category does not exist, or a field of another type.
    """

    headline = "AP"
    needs_truth = True

    def __init__(self, ground_truth: dict[str, Any] | None = None, backend: str = "faster") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
        self.backend = backend
        self._given = ground_truth is not None
        self._prepared: dict[str, Any] | None = None  # the ground truth of the last ``prepare``
        nothing: dict[str, list] = {"images": [], "categories": [], "annotations": []}
        self._read(nothing if ground_truth is None else ground_truth)

    def prepare(self, context: EvaluationContext) -> None:
        """Take the ground truth of the context, unless the constructor was given one.

        Raises:
            ValueError: without a ground truth, or as the class says.
        """
        if self._given or (context.truth is self._prepared is not None):
            self.reset()
        elif context.truth is None:
            raise ValueError(
                'CocoEvaluator has no ground truth; the method evaluation_truth("detection", stage) of the '
                "data module must return a COCO instances dictionary"
            )
        else:
            self._read(context.truth)
            self._prepared = context.truth

    def _read(self, ground_truth: dict[str, Any]) -> None:
        """Read and check the ground truth, and forget all detections."""
        categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
        self._names = {int(category["id"]): str(category["name"]) for category in categories}
        self._images = {int(image["id"]) for image in ground_truth["images"]}
        for key, ids in (("images", self._images), ("categories", self._names)):
            if len(ids) < len(ground_truth[key]):
                raise ValueError(f"ground truth: ids repeat in {key!r}; give each of them its own id")
        self._truth = Truth.read(ground_truth["annotations"])
        for index, (image, category) in enumerate(
            zip(self._truth.image_ids.tolist(), self._truth.category_ids.tolist(), strict=True)
        ):
            if image not in self._images or category not in self._names:
                raise ValueError(
                    f"ground truth: annotation number {index} names image id {image} and category id "
                    f"{category}, but 'images' or 'categories' lacks it; add it or drop the annotation"
                )
        self.reset()

    def reset(self) -> None:
        """Forget all detections; the ground truth stays."""
        self._rows: dict[int, np.ndarray] = {}  # image id -> [n, 6] float64: x1 y1 x2 y2 score category id

    def __len__(self) -> int:
        """Number of images added."""
        return len(self._rows)

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Add the ``boxes``, ``scores`` and ``category_ids`` of each ``image_id``, see :meth:`add`."""
        for each in predictions:
            self.add(each["image_id"], each["boxes"], each["scores"], each["category_ids"])

    def add(self, image_id: int, boxes: ArrayLike, scores: ArrayLike, category_ids: ArrayLike) -> None:
        """Add the detections of one image; an image without any is added with empty arrays.

        Args:
            image_id: an id of the ground truth.
            boxes: ``[n, 4]`` floating point, x1 y1 x2 y2 in pixels of the original image.
            scores: ``[n]`` floating point.
            category_ids: ``[n]`` integers, ids of the ground truth (not contiguous labels).

        All three are tensors on any device (copied to main memory at once), arrays or lists.

        Raises:
            ValueError: for an unknown image or category id, shapes that do not belong together, numbers that
                are not finite, a box with x2 < x1 or y2 < y1, or an image added before (see the class).
        """
        self._keep(int(image_id), _host_rows(f"image id {int(image_id)}", boxes, scores, category_ids))

    def add_batch(
        self,
        image_ids: ArrayLike,
        boxes: ArrayLike,
        scores: ArrayLike,
        category_ids: ArrayLike,
        counts: ArrayLike,
    ) -> None:
        """Add the padded detections of a batch, with a single copy of the rows from the device.

        Args:
            image_ids: ``[B]`` integers.
            boxes: ``[B, D, 4]``, x1 y1 x2 y2 in pixels of the original images.
            scores: ``[B, D]``.
            category_ids: ``[B, D]`` integers; any value in padding rows.
            counts: ``[B]`` integers; the first ``counts[i]`` rows of image i are detections.

        Raises:
            ValueError: as ``add`` does, or if a count does not lie in 0..D.
        """
        rows = _host_rows("batch", boxes, scores, category_ids)  # [B, D, 6]
        identities, numbers = _host_integers(image_ids), _host_integers(counts)
        if rows.ndim != 3 or not len(rows) == len(identities) == len(numbers):
            raise ValueError(
                f"batch: boxes must be [B, D, 4] with B image ids and B counts, got rows {rows.shape[:-1]}, "
                f"{len(identities)} image ids and {len(numbers)} counts"
            )
        for image_id, number, image_rows in zip(identities, numbers, rows, strict=True):
            if not 0 <= number <= len(image_rows):
                raise ValueError(f"image id {image_id}: count {number} does not lie in 0..{len(image_rows)}")
            self._keep(image_id, image_rows[:number].copy())  # a view would keep the padding alive

    def _keep(self, image_id: int, rows: np.ndarray) -> None:
        """Check the ``[n, 6]`` rows of one image and store them."""
        where = f"image id {image_id}"
        if image_id not in self._images:
            raise ValueError(
                f"{where} is not in the ground truth of {len(self._images)} images; evaluate against the "
                "annotations of these images"
            )
        if rows.ndim != 2:
            raise ValueError(f"{where}: boxes must be [n, 4], got {rows.ndim} dimensions")
        wrong = ~np.isfinite(rows).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"{where}: {_first_detection(wrong, rows)} is not finite; has the training diverged?"
            )
        wrong = np.any(rows[:, 2:4] < rows[:, :2], axis=1)
        if wrong.any():
            text = _first_detection(wrong, rows)
            raise ValueError(f"{where}: {text} has x2 < x1 or y2 < y1; boxes are x1 y1 x2 y2")
        for category in np.unique(rows[:, 5]).astype(np.int64).tolist():
            if category not in self._names:
                raise ValueError(
                    f"{where}: category id {category} is not in the ground truth; its ids are "
                    f"{_first_ten(list(self._names))} (labels must be turned back into category ids)"
                )
        if image_id in self._rows:
            if process_count() > 1:
                return
            raise ValueError(f"{where} was added before; add each image once and reset() between runs")
        self._rows[image_id] = rows

    def gather(self) -> None:
        """Merge the images of all processes, so that ``compute`` and ``results`` give the same everywhere.

        Every process must call it; processes without an image too. Images that several processes have seen
        count once, as seen by the lowest rank. In a single process nothing changes.
        """
        merged: dict[int, np.ndarray] = {}
        for part in gather_objects(_Packed.pack(self._rows)):
            for image_id, rows in part.unpack().items():
                merged.setdefault(image_id, rows)
        self._rows = merged

    def results(self) -> list[dict[str, Any]]:
        """Return the detections as COCO results: dicts of plain Python numbers, boxes as x y width height."""
        packed = _Packed.pack(self._rows)
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(
                np.repeat(packed.image_ids, packed.counts).tolist(),
                packed.rows[:, 5].astype(np.int64).tolist(),
                packed.boxes().tolist(),
                packed.rows[:, 4].tolist(),
                strict=True,
            )
        ]

    def compute(self) -> CocoResult:
        """Compute the metrics of the images added so far.

        Raises:
            ValueError: if no image was added.
        """
        if not self._rows:
            raise ValueError("no image was added; call add() for each image, also for one without detections")
        image_ids, category_ids = np.array(sorted(self._rows)), np.array(list(self._names), dtype=np.int64)
        truth = self._truth.of_images(image_ids)
        if self.backend == "pycocotools":
            precision, recall = by_pycocotools(
                image_ids.tolist(), category_ids.tolist(), truth.annotations(), self.results()
            )
        else:
            rows = _Packed.pack(self._rows).detection_rows(image_ids, category_ids)
            objects = truth.objects(image_ids, category_ids)
            precision, recall = precision_and_recall(objects, rows, len(category_ids))
        counted = np.searchsorted(category_ids, truth.category_ids[truth.crowd == 0])
        numbers = np.bincount(counted, minlength=len(category_ids)).tolist()
        return summarise(precision, recall, self._names, numbers, len(image_ids))


class _Packed(NamedTuple):
    """The detections of many images in three arrays: quick to send."""

    image_ids: np.ndarray  # [images] int64
    counts: np.ndarray  # [images] int64
    rows: np.ndarray  # [N, 6] float64

    @classmethod
    def pack(cls, rows: dict[int, np.ndarray]) -> _Packed:
        return cls(
            np.array(list(rows), dtype=np.int64),
            np.array([len(value) for value in rows.values()], dtype=np.int64),
            np.concatenate([np.zeros((0, 6)), *rows.values()]),
        )

    def boxes(self) -> np.ndarray:
        """Return ``[N, 4]`` x y width height."""
        boxes = self.rows[:, :4].copy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def detection_rows(self, image_ids: np.ndarray, category_ids: np.ndarray) -> DetectionRows:
        """Replace ids by their places in the given ascending ids."""
        images = np.repeat(np.searchsorted(image_ids, self.image_ids), self.counts)
        classes = np.searchsorted(category_ids, self.rows[:, 5].astype(np.int64))
        return DetectionRows(images, classes, self.boxes(), self.rows[:, 4])

    def unpack(self) -> dict[int, np.ndarray]:
        pieces = np.split(self.rows, np.cumsum(self.counts)[:-1]) if len(self.counts) else []
        return dict(zip(self.image_ids.tolist(), pieces, strict=True))


def _host_rows(where: str, boxes: ArrayLike, scores: ArrayLike, category_ids: ArrayLike) -> np.ndarray:
    """Copy boxes ``[*, 4]``, scores ``[*]`` and category ids ``[*]`` to the CPU as ``[*, 6]`` float64."""
    # Lists go through NumPy, which keeps Python's floats as they are; torch would round them to float32.
    parts = [
        part.detach() if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        for part in (boxes, scores, category_ids)
    ]
    if len({part.device for part in parts}) > 1 or parts[0].device.type == "mps":  # MPS has no float64
        parts = [part.cpu() for part in parts]
    if parts[0].numel() == 0 and parts[0].ndim == 1:  # an empty list has no second dimension
        parts[0] = parts[0].reshape(0, 4)
    if parts[0].shape != (*parts[1].shape, 4) or parts[1].shape != parts[2].shape:
        raise ValueError(
            f"{where}: boxes must be [n, 4] and scores and category ids [n], got shapes "
            f"{', '.join(str(tuple(part.shape)) for part in parts)}"
        )
    if parts[2].is_floating_point() and parts[2].numel():
        raise ValueError(f"{where}: category ids must be integers, got {parts[2].dtype}")
    columns = [parts[0].double(), parts[1].double().unsqueeze(-1), parts[2].double().unsqueeze(-1)]
    return torch.cat(columns, dim=-1).cpu().numpy()  # float64 holds every float and ids up to 2**53 exactly


def _host_integers(values: ArrayLike) -> list[int]:
    plain: Any = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    return [int(value) for value in plain]


def _first_ten(values: list[int]) -> str:
    """Name up to ten values."""
    return ", ".join(map(str, values[:10])) + (f" ... ({len(values)} in all)" if len(values) > 10 else "")


def _first_detection(wrong: np.ndarray, rows: np.ndarray) -> str:
    """Describe the first of the marked detections."""
    index = int(np.argmax(wrong))
    return f"detection {index} with box {rows[index, :4].tolist()} and score {float(rows[index, 4])}"
