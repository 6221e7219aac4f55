"""Classes of one classification head: metrics, table of predictions, labelled pictures.

Letters in shapes: B images, C channels, K classes, h w height and width of a 2D image, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...data.shared.module import TrunklineData
from ...data.shared.storage import Location
from ...evaluation.base import EvaluationContext, Evaluator, Prediction
from ...evaluation.classification import ClassificationEvaluator
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_csv
from ...evaluation.pictures import contact_sheet, draw_boxes, save_picture
from ...evaluation.pictures.attempts import Attempts
from ...evaluation.pictures.text import readable
from ...heads.base import ClassificationHead
from ..base.branch import Branch
from ..base.transfer import to_main_memory
from ..base.writer import FileWriter, enlarged

SMALLEST_PICTURE = 160  # smaller pictures are enlarged, by a whole factor, to leave room for their labels
MOST_PICTURES = 64
COLUMNS = 8
LONGEST_TEXT = 27  # letters that fit onto a picture of 160 pixels; larger ones get larger letters


class ClassificationBranch(Branch):
    """Serves a classification head; its batches have ``label``, ``image_ids`` and ``image_sizes``."""

    kind = "classification"
    small_pictures = True
    head: ClassificationHead

    def default_evaluators(self, **options: Any) -> list[Evaluator]:
        return [ClassificationEvaluator(multi_label=self.head.multi_label, **options)]

    def context(self) -> EvaluationContext:
        return EvaluationContext(self.class_names, multi_label=self.head.multi_label, fitting=self.fitting)

    def prepare(self, data: TrunklineData, stage: str, fitting: bool = False) -> None:
        if stage != "predict" and self.kind in data.label_kinds:
            self._require_same_kind(data.multi_label(self.name))
        super().prepare(data, stage, fitting)

    def _require_same_kind(self, multi_label: bool) -> None:
        if multi_label != self.head.multi_label:
            several, one = "any number of classes per image", "one class per image"
            data, head = (several, one) if multi_label else (one, several)
            raise ValueError(
                f"the data have {data}, the head {head}; set --{self.option}.multi_label "
                f"{str(multi_label).lower()}, or give other labels"
            )

    def label_of(self, known: dict[str, Any]) -> str:
        return known["name"]

    def predictions(self, raw: Any, batch: Any) -> list[Prediction]:
        """Return ``image_id``, ``size`` and ``probabilities`` ``[K]`` float32 of each image, on the CPU."""
        (rows,) = to_main_memory(self.head.predict(raw, batch.image_sizes).probabilities)
        ids, sizes = (batch.in_main_memory(name).tolist() for name in ("image_ids", "image_sizes"))
        return [
            {"image_id": image_id, "size": tuple(size), "probabilities": row}
            for image_id, size, row in zip(ids, sizes, rows, strict=True)
        ]

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Take the predictions of a batch into the metrics, with ids and labels that are in main memory."""
        host = {name: batch.in_main_memory(name) for name in ("image_ids", "label")}
        super().update(predictions, replace(batch, **host))

    # -- pictures and files

    def input_picture(self, batch: Any, index: int) -> np.ndarray | None:
        return as_picture(batch.image[index])

    def draw(self, picture: np.ndarray, prediction: Prediction, min_score: float) -> np.ndarray:
        row = prediction["probabilities"]
        text, _ = label_texts(row, self.class_names, self.head.multi_label, min_score=min_score)
        return draw_label(picture, text, int(row.argmax()))

    def compare(
        self, picture: np.ndarray, prediction: Prediction, batch: Any, index: int, min_score: float
    ) -> np.ndarray:
        row = prediction["probabilities"]
        text, truth = label_texts(
            row, self.class_names, self.head.multi_label, batch.in_main_memory("label")[index]
        )
        return draw_label(picture, text, int(row.argmax()), truth)

    def prediction_picture(
        self, prediction: Prediction, path: Location, batch: Any, min_score: float
    ) -> tuple[str, np.ndarray] | None:
        """Return nothing: the first pictures come together, on one sheet."""
        return None

    def file_writer(self, folder: Path, min_score: float, pictures: bool) -> FileWriter:
        return ClassFiles(folder, self, min_score, pictures)


class ClassFiles(FileWriter):
    """Writes ``predictions.csv``, and ``pictures/sheet.jpg`` with the first pictures of the first process.

    The table has a row per image: ``path``, ``label`` and ``score`` (the class of the highest probability)
    and a column of probabilities per class. Where an image may have any number of classes, ``labels`` takes
    the place of label and score: the classes with a probability of at least ``min_score``, joined by ``;``.

    Args:
        folder: where to write.
        branch: of the head.
        min_score: see above; of no effect where each image has one class.
        pictures: whether to write the sheet of pictures. There is none of scans.
    """

    def __init__(self, folder: Path, branch: ClassificationBranch, min_score: float, pictures: bool) -> None:
        self.folder = folder
        self.branch = branch
        self.min_score = min_score
        self._room = MOST_PICTURES if pictures else 0
        self._rows: dict[int, tuple[str, np.ndarray]] = {}  # by image id: path, probabilities [K]
        self._drawn: list[np.ndarray] = []
        self._attempts = Attempts()

    def add(self, prediction: Prediction, path: Location, batch: Any, index: int) -> None:
        self._rows[prediction["image_id"]] = str(path), prediction["probabilities"].numpy()
        if len(self._drawn) < self._room:
            self._attempts.attempt(str(path), partial(self._draw, prediction, batch, index))

    def _draw(self, prediction: Prediction, batch: Any, index: int) -> None:
        picture = as_picture(batch.image[index])
        if picture is not None:
            self._drawn.append(self.branch.draw(picture, prediction, self.min_score))

    def _save_sheet(self, drawn: list[np.ndarray]) -> None:
        save_picture(self.folder / "pictures" / "sheet.jpg", contact_sheet(drawn, COLUMNS))

    def finish(self, first_process: bool) -> str:
        rows = {i: row for part in gather_objects(self._rows) for i, row in part.items()}
        drawn, self._rows, self._drawn = self._drawn, {}, []
        if not first_process:
            return ""
        several, names = self.branch.head.multi_label, self.branch.class_names
        header, table = prediction_rows(
            [rows[i] for i in sorted(rows)], names, self.min_score if several else None
        )
        path = write_csv(self.folder / "predictions.csv", header, table)
        if drawn:
            self._attempts.attempt("the sheet of images", partial(self._save_sheet, drawn))
        self._attempts.finish()
        return f"classes of {len(rows)} images: {path.resolve()}"


def prediction_rows(
    rows: list[tuple[str, np.ndarray]], names: list[str], min_score: float | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of predictions.

    Args:
        rows: path and probabilities ``[K]`` of each image.
        names: K class names. One that is also the name of another column gets ``class`` in front.
        min_score: lists all classes from this probability on, in the order of ``names``; None names the best.
    """
    head = ["path", "label", "score"] if min_score is None else ["path", "labels"]
    table = []
    for path, probabilities in rows:
        if min_score is None:
            best = int(probabilities.argmax())
            answer = [names[best], f"{probabilities[best]:.6g}"]
        else:
            answer = [";".join(name for name, p in zip(names, probabilities, strict=True) if p >= min_score)]
        table.append([path, *answer, *(f"{p:.6g}" for p in probabilities)])
    return [*head, *(f"class {name}" if name in head else name for name in names)], table


def label_texts(
    probabilities: Tensor,
    names: list[str],
    several: bool,
    truth: Tensor | None = None,
    min_score: float = 0.5,
) -> tuple[str, str]:
    """Describe a prediction in a few words, and the truth where it differs (else an empty text).

    Args:
        probabilities: ``[K]``.
        names: K class names.
        several: whether an image may have any number of classes.
        truth: ``[]`` int64 or ``[K]`` zeros and ones; -1 for unknown; None for no truth.
        min_score: from which probability on a class is named, where there may be several.
    """
    if several:
        chosen = [k for k, p in enumerate(probabilities.tolist()) if p >= min_score]
        real = chosen if truth is None or (truth < 0).any() else truth.nonzero().flatten().tolist()
    else:
        chosen = [int(probabilities.argmax())]
        real = chosen if truth is None or truth < 0 else [int(truth)]
    percent = [f" {100 * float(probabilities[k]):.0f}%" for k in chosen]
    parts = [
        _cut(readable(names[k], k), LONGEST_TEXT - len(p)) + p for k, p in zip(chosen, percent, strict=True)
    ]
    truth_text = (
        "" if real == chosen else "truth: " + (", ".join(readable(names[k], k) for k in real) or "none")
    )
    return _cut(", ".join(parts) or "none"), _cut(truth_text)


def _cut(text: str, most: int = LONGEST_TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def as_picture(image: Tensor) -> np.ndarray | None:
    """Turn ``[C, *S]`` into ``[h, w, 3]`` uint8; None for scans and anything but grey and RGB images."""
    if image.is_floating_point() or image.ndim != 3 or image.shape[0] not in (1, 3):
        return None
    return image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()


def draw_label(picture: np.ndarray, text: str, label: int, truth: str = "") -> np.ndarray:
    """Write a prediction onto a copy of ``[h, w, 3]`` uint8, framed in the colour of the class ``label``.

    A text of the truth is written below, in white on black, and the frame is of dashes.
    """
    large = enlarged(picture, SMALLEST_PICTURE)
    height, width = large.shape[:2]
    frame = [(0, 0, width, height)]
    shown: dict[str, Any] = {"truth_boxes": frame, "truth_labels": [truth]} if truth else {}
    return draw_boxes(large, frame, [text], classes=[label], **shown)
