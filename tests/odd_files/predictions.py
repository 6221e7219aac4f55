"""Odd files to predict on, and names of images and classes that come back in results and pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.shared.module import SplitData
from trunkline.evaluation.files import write_csv, write_json
from trunkline.evaluation.names import unique_names
from trunkline.evaluation.pictures.boxes import draw_boxes, save_picture
from trunkline.tasks.base.output import Failures, earlier_results, refuse_earlier_results

from .case import OddFile

TOPIC = "Predictions and drawings"


def write_pictures(folder: Path) -> None:
    for number in range(3):
        Image.new("RGB", (24, 16), (80 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-30])
    (folder / "3.png").write_text("no image")


def say_failed(data: SplitData, folder: Path) -> None:
    """Read what there is to predict on, as ``predict`` does, and say what could not be read."""
    data.setup("predict")
    failures = Failures(folder)
    failures.add(data.prediction_failures())
    read = 0
    for batch in data.predict_dataloader():
        failures.add(batch.failed)
        read += len(batch)
    text = failures.finish(True, len(data.prediction_paths()))
    assert read == 2 and len(list(csv.DictReader((folder / "failed.csv").open()))) == 2
    raise ValueError(text)


def read_boxes(folder: Path) -> None:
    say_failed(CocoDetection(predict=str(folder), short_side=16, long_side=32, workers=0), folder)


def read_masks(folder: Path) -> None:
    say_failed(ImageSegmentation(predict=str(folder), workers=0), folder)


def read_classes(folder: Path) -> None:
    say_failed(ImageClassification(predict=str(folder), size=16, workers=0), folder)


def write_colliding(folder: Path) -> None:
    for name in ("x/a.png", "y/a.png", "x/a_1.png", "x/A_0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(folder / name)


def read_colliding(folder: Path) -> None:
    names = sorted(path.stem for path in folder.rglob("*.png"))
    found = unique_names(dict(enumerate(names)))
    assert len({name.casefold() for name in found.values()}) == len(names) == 4
    assert {"a_1", "A_0"} <= set(found.values())


def write_classes(folder: Path) -> None:
    write_json(folder / "classes.json", ["line\nfeed", "tab\t", "猫", "été", "x" * 300, ""])


def read_classes_drawn(folder: Path) -> None:
    names = json.loads((folder / "classes.json").read_text())
    ground = np.full((80, 160, 3), 90, np.uint8)
    for number, name in enumerate(names):
        drawn = draw_boxes(ground, [[10, 20, 150, 70]], [name], [0.5], [number])
        assert 0.5 < (drawn == 90).all(axis=2).mean() < 1
    path = write_csv(folder / "table.csv", names, [range(len(names))])
    assert next(csv.reader(path.open(newline="", encoding="utf-8"))) == names


def write_wide(folder: Path) -> None:
    Image.new("1", (66000, 2)).save(folder / "wide.png")


def read_wide(folder: Path) -> None:
    pixels = np.asarray(Image.open(folder / "wide.png").convert("RGB"))
    with Image.open(save_picture(folder / "wide.jpg", pixels)) as drawn:
        assert drawn.size[0] == 65500


def write_used(folder: Path) -> None:
    (folder / "masks").mkdir()
    Image.new("L", (4, 4)).save(folder / "masks" / "mine.png")


def read_used(folder: Path) -> None:
    refuse_earlier_results(folder, earlier_results(folder, [""]))


def unreadable(name: str, what: str, read: object) -> OddFile:
    return OddFile(
        f"unreadable_{name}",
        TOPIC,
        f"Images to predict {what} on, of which one is damaged and one no image",
        write_pictures,
        read,  # type: ignore[arg-type]
        "All other images are predicted on and written; the command ends with the exit status 1.",
        "Look into failed.csv, replace the files, and predict on them alone.",
    )


ODD_FILES = [
    unreadable("among_boxes", "boxes", read_boxes),
    unreadable("among_masks", "masks", read_masks),
    unreadable("among_classes", "classes", read_classes),
    OddFile(
        "colliding_names",
        TOPIC,
        "Images of one name in several folders, one of which has a name that is made up for another",
        write_colliding,
        read_colliding,
        "Each gets a file of its own: its id is added where the name is not enough, also if only the case "
        "differs.",
    ),
    OddFile(
        "odd_class_names",
        TOPIC,
        "Names of classes with line feeds and letters that the font lacks, very long ones, and none",
        write_classes,
        read_classes_drawn,
        "Pictures show the names in one line, cut to 32 letters, without accents, and with ? and the number "
        "of the class where the font has no letter; tables hold them as they are.",
    ),
    OddFile(
        "wide_picture",
        TOPIC,
        "A picture of more than 65,500 pixels a side, which JPEG cannot hold",
        write_wide,
        read_wide,
        "The drawing is made smaller; results are in the pixels of the file.",
    ),
    OddFile(
        "used_output_folder",
        TOPIC,
        "An output folder that holds masks already",
        write_used,
        read_used,
        "New results would mix with old ones, or replace files of yours.",
        "Give another folder, or move the old results away by --output.existing move.",
    ),
]
