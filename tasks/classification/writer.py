"""Writes the classes of images to disk: a CSV file and a sheet of pictures.

Letters in shapes: B images, C channels, K classes, h w height and width of a picture, S spatial axes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_atomically
from ...evaluation.pictures.boxes import contact_sheet, draw_boxes, save_picture
from ..base.branch import require_writable

SMALLEST_PICTURE = 160  # smaller pictures are enlarged, by a whole factor, to leave room for their labels
MOST_PICTURES = 64
COLUMNS = 8
LONGEST_TEXT = 27  # letters that fit onto a picture of 160 pixels; larger ones get larger letters


class ClassificationWriter(BasePredictionWriter):
    """Writes ``predictions.csv``, and ``pictures.jpg`` with the first pictures of the first process.

    The table has a row per image: ``path``, ``label`` and ``score`` (the class of the highest probability)
    and a column of probabilities per class. Where an image may have any number of classes, ``labels`` takes
    the place of label and score: the classes with a probability of at least ``min_score``, joined by ``;``.
    It is written once, whole, when all ranks are done.

    Args:
        folder: where to write; created where needed.
        pictures: whether to write the sheet of pictures. There is none of scans.
        min_score: see above; of no effect where each image has one class.
    """

    def __init__(self, folder: Path, pictures: bool = True, min_score: float = 0.5) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.pictures = pictures
        self.min_score = min_score
        self._start()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the work whether its result can be written.

        Raises:
            OSError: if the folder, or one above it, is a file or may not be written to.
        """
        require_writable(self.folder)

    def _start(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # ids [B], probabilities [B, K]
        self._drawn: list[np.ndarray] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        probabilities = prediction["probabilities"]
        self._parts.append((prediction["ids"].numpy(), probabilities.numpy()))
        wanted = MOST_PICTURES - len(self._drawn)
        if not self.pictures or not trainer.is_global_zero or wanted <= 0:
            return
        names, several = pl_module.all_class_names(), pl_module.head.multi_label
        for image, row in zip(batch.image[:wanted], probabilities[:wanted], strict=True):
            picture = as_picture(image)
            if picture is not None:
                text, _ = label_texts(row, names, several, min_score=self.min_score)
                self._drawn.append(draw_label(picture, text, int(row.argmax())))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts, drawn = [part for rank in gather_objects(self._parts) for part in rank], self._drawn
        self._start()
        if not trainer.is_global_zero:
            return
        several, names = pl_module.head.multi_label, pl_module.all_class_names()
        found = {int(i): row for ids, rows in parts for i, row in zip(ids, rows, strict=True)}
        paths = trainer.datamodule.predict_paths
        text = predictions_csv(
            [(str(paths[image_id]), found[image_id]) for image_id in sorted(found)],
            names,
            self.min_score if several else None,
        )
        try:
            path = write_atomically(self.folder / "predictions.csv", text)
            print(f"classes of {len(found)} images: {path.resolve()}")
            if drawn:
                path = save_picture(self.folder / "pictures.jpg", contact_sheet(drawn, COLUMNS))
                print(f"pictures of the first {len(drawn)}: {path.resolve()}")
        except OSError as error:
            raise OSError(
                f"output.folder: {self.folder} cannot be written to ({error}); make room, or give another "
                "--output.folder"
            ) from error


def predictions_csv(
    rows: list[tuple[str, np.ndarray]], names: list[str], min_score: float | None = None
) -> str:
    """Return the table of predictions as CSV text with a header.

    Args:
        rows: path and probabilities ``[K]`` of each image.
        names: K class names. One that is also the name of another column gets ``class`` in front.
        min_score: lists all classes from this probability on, in the order of ``names``; None names the best.
    """
    head = ["path", "label", "score"] if min_score is None else ["path", "labels"]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*head, *(f"class {name}" if name in head else name for name in names)])
    for path, probabilities in rows:
        if min_score is None:
            best = int(probabilities.argmax())
            answer = [names[best], f"{probabilities[best]:.6g}"]
        else:
            answer = [";".join(name for name, p in zip(names, probabilities, strict=True) if p >= min_score)]
        writer.writerow([path, *answer, *(f"{p:.6g}" for p in probabilities)])
    return file.getvalue()


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
    parts = [_cut(names[k], LONGEST_TEXT - len(p)) + p for k, p in zip(chosen, percent, strict=True)]
    truth_text = "" if real == chosen else "truth: " + (", ".join(names[k] for k in real) or "none")
    return _cut(", ".join(parts) or "none"), _cut(truth_text)


def _cut(text: str, most: int = LONGEST_TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def as_picture(image: Tensor) -> np.ndarray | None:
    """Turn ``[C, *S]`` into ``[h, w, 3]`` uint8; None for scans and anything but grey and RGB pictures."""
    if image.is_floating_point() or image.ndim != 3 or image.shape[0] not in (1, 3):
        return None
    return image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()


def draw_label(picture: np.ndarray, text: str, label: int, truth: str = "") -> np.ndarray:
    """Write a prediction onto a copy of ``[h, w, 3]`` uint8, framed in the colour of the class ``label``.

    A text of the truth is written below, in white on black, and the frame is of dashes.
    """
    factor = -(-SMALLEST_PICTURE // min(picture.shape[:2]))  # 1 for all but small pictures
    enlarged = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = enlarged.shape[:2]
    frame = [(0, 0, width, height)]
    shown = {"truth_boxes": frame, "truth_labels": [truth]} if truth else {}
    return draw_boxes(enlarged, frame, [text], classes=[label], **shown)
