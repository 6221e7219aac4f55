"""COCO files whose boxes are odd, or odd all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trunkline.data.detection import CocoDetection
from trunkline.data.detection.index import read_coco
from trunkline.data.shared.summary import require_learnable

from .case import OddFile
from .coco import HEIGHT, NAME, TOPIC, WIDTH, Content, each, first, read, writer

BAD = (
    "A box has four finite numbers, an area, and lies in its image. What leaves it by a pixel is clipped for "
)
BAD += "training; evaluation takes it as it is, as pycocotools does."
OPTION = (
    "Correct the boxes, or set `data.on_bad_box` to `clip` or `drop`; the table at the start says how many."
)


def boxes(*values: list[Any]) -> Any:
    """Return a change that puts these boxes into the file, one annotation each."""

    def change(given: Content) -> None:
        given["annotations"] = [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
            for n, box in enumerate(values, start=1)
        ]

    return change


def fractions(given: Content) -> None:
    for record in given["annotations"]:
        x, y, width, height = record["bbox"]
        record["bbox"] = [x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]
        del record["area"]


def some_fractions(given: Content) -> None:
    fractions(given)
    given["annotations"] = given["annotations"][:1]
    given["annotations"] += [
        {"id": 10 + n, "image_id": 1, "category_id": 1, "bbox": [n, n, 20, 20]} for n in range(5)
    ]


def corners(given: Content) -> None:
    for record in given["annotations"]:
        x, y, width, height = record["bbox"]
        record["bbox"] = [x, y, x + width, y + height]


def centres(given: Content) -> None:
    boxes([54, 24, 20, 20], [10, 10, 18, 18], [32, 40, 60, 16])(given)


def percentages(given: Content) -> None:
    given["images"][0].update(width=640, height=480)
    boxes(*([5 * (n % 15), 7 * (n % 10), 20, 30] for n in range(30)))(given)


def read_overshoot(folder: Path) -> None:
    index = read(folder)
    assert index.boxes.tolist() == [[40, 10, 64, 30]]
    assert index.as_coco()["annotations"][0]["bbox"] == [40, 10, 24.75, 20]


def read_clipped(folder: Path) -> None:
    read_coco(folder / NAME, folder, on_bad_box="clip")


def fit(folder: Path, **options: Any) -> None:
    """Do what the beginning of ``fit`` does."""
    images, annotations = str(folder), str(folder / NAME)
    sizes = {"short_side": 48, "long_side": 64, **options}
    data = CocoDetection(None, images, annotations, images, annotations, workers=0, **sizes)
    data.prepare_data()
    data.setup("fit")
    require_learnable(data.summaries())


EMPTY = "A model would learn only that everything is background, without an error."

ODD_FILES = [
    *(
        OddFile(f"box_{name}", TOPIC, oddity, writer(boxes(box, [3, 3, 9, 9])), read, BAD, OPTION)
        for name, oddity, box in [
            ("flat", "A box without height", [5, 5, 10, 0]),
            ("negative", "A box of negative width", [20, 5, -10, 10]),
            ("nan", "A box with NaN", [5, 5, float("nan"), 10]),
            ("outside", "A box beside its image", [200, 10, 20, 20]),
            ("half_outside", "A box that leaves its image", [50, 10, 30, 20]),
        ]
    ),
    *(
        OddFile(
            f"box_{name}",
            TOPIC,
            oddity,
            writer(first("annotations", bbox=box)),
            read,
            "Four numbers are needed: x, y, width and height.",
            "Correct the record.",
        )
        for name, oddity, box in [
            ("of_texts", "A box of numbers in quotation marks", ["5", "5", "10", "10"]),
            ("with_null", "A box with null", [5, 5, None, 10]),
            ("with_true", "A box with true", [True, 5, 10, 10]),
            ("of_three", "A box of three numbers", [5, 5, 10]),
            ("of_400_digits", "A box with a number of 400 digits", [5, 5, 10**400, 10]),
            ("nested", "A box of two points", [[5, 5], [10, 10]]),
        ]
    ),
    OddFile(
        "box_overshoots_by_less_than_a_pixel",
        TOPIC,
        "A box that leaves its image by less than a pixel",
        writer(boxes([40, 10, 24.75, 20])),
        read_overshoot,
        "It is clipped for training. Evaluation takes it as it is, so AP is that of pycocotools on the file.",
    ),
    OddFile(
        "boxes_in_fractions",
        TOPIC,
        "Boxes in fractions of the image",
        writer(fractions),
        read,
        "Read as pixels, all objects would lie within the first one.",
        "Multiply by width and height.",
    ),
    OddFile(
        "boxes_partly_in_fractions",
        TOPIC,
        "A few boxes in fractions of the image",
        writer(some_fractions),
        read,
        "Files of two kinds may have been merged. The boxes are read as they are.",
        "Correct the records.",
    ),
    OddFile(
        "boxes_as_corners",
        TOPIC,
        "Boxes as x1, y1, x2, y2",
        writer(corners),
        read,
        "COCO has x, y, width and height.",
        "Convert the boxes. Clipping them would train on wrong ones.",
    ),
    OddFile(
        "boxes_as_corners_clipped",
        TOPIC,
        "Boxes as x1, y1, x2, y2, with `on_bad_box: clip`",
        writer(corners),
        read_clipped,
        "The boxes were clipped as asked, but seem to be of another form.",
        "Convert the boxes.",
    ),
    OddFile(
        "boxes_as_centres",
        TOPIC,
        "Boxes as centre, width and height",
        writer(centres),
        read,
        "COCO has the upper left corner, not the centre.",
        "Convert the boxes.",
    ),
    OddFile(
        "boxes_in_percent",
        TOPIC,
        "Boxes in percent of the image",
        writer(percentages),
        read,
        "Percentages look like pixels; that all boxes end before the middle of their images gives them away.",
        "Multiply by width / 100 and height / 100, if they are percentages.",
    ),
    OddFile(
        "boxes_all_crowd",
        TOPIC,
        "Every box is a crowd region",
        writer(each("annotations", iscrowd=1)),
        fit,
        EMPTY,
        "Set `iscrowd` to 0 for single objects.",
    ),
    OddFile(
        "boxes_none",
        TOPIC,
        "No annotations at all",
        writer(lambda given: given["annotations"].clear()),
        fit,
        EMPTY,
        "Check the export.",
    ),
    OddFile(
        "boxes_all_dropped",
        TOPIC,
        "Boxes that are all without area, with `on_bad_box: drop`",
        writer(boxes([5, 5, 0, 9], [9, 9, 3, 0])),
        lambda folder: fit(folder, on_bad_box="drop"),
        EMPTY,
        "Correct the boxes.",
    ),
    OddFile(
        "boxes_below_a_pixel",
        TOPIC,
        "Boxes below a pixel at the size of training",
        writer(boxes([5, 5, 2, 2], [9, 9, 3, 1])),
        lambda folder: fit(folder, short_side=16, long_side=20),
        "Resizing leaves nothing of the objects to see.",
        "Train at a larger `data.short_side`, or cut the images into tiles.",
    ),
]
