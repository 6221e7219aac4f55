"""COCO files whose records have odd fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trunkline.data.detection.index import CocoIndex, read_coco

from .case import OddFile

TOPIC = "Boxes and COCO JSON"
NAME = "instances.json"
WIDTH, HEIGHT = 64, 48

Content = dict[str, Any]


def content() -> Content:
    """Return a small file as it should be: one picture, three boxes of two classes."""
    boxes = [[4, 6, 20, 15], [30, 10, 12.5, 30], [2, 30, 25, 16]]
    return {
        "images": [{"id": 1, "file_name": "picture.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1 + n % 2, "bbox": box, "area": 100.5, "iscrowd": 0}
            for n, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def writer(change: Callable[[Content], object]) -> Callable[[Path], None]:
    """Return what writes the small file with one thing about it changed."""

    def write(folder: Path) -> None:
        given = content()
        change(given)
        (folder / NAME).write_text(json.dumps(given), encoding="utf-8")
        shade = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)
        Image.fromarray(np.stack([shade] * 3, axis=2)).save(folder / "picture.png")

    return write


def read(folder: Path) -> CocoIndex:
    """Read the boxes of the file."""
    return read_coco(folder / NAME, folder)


def each(key: str, **fields: Any) -> Callable[[Content], None]:
    """Return a change of all records of a list."""
    return lambda given: [record.update(fields) for record in given[key]] and None


def first(key: str, **fields: Any) -> Callable[[Content], None]:
    """Return a change of the first record of a list."""
    return lambda given: given[key][0].update(fields)


def lacking(key: str, field: str) -> Callable[[Content], None]:
    """Return a change that takes a field from the first record of a list."""

    def change(given: Content) -> None:
        del given[key][0][field]

    return change


def repeated(key: str) -> Callable[[Content], None]:
    """Return a change that lists the first record of a list twice."""
    return lambda given: given[key].append(given[key][0])


def read_flags(folder: Path) -> None:
    assert read(folder).crowd.tolist() == [True, False, False]


def read_without_areas(folder: Path) -> None:
    assert read(folder).area.tolist() == [300, 375, 400]


CROWD = (
    "Only the numbers 0 and 1 (or true and false) say whether an annotation is a crowd region. A text that "
)
CROWD += "is not empty would count as true, and every object would be ignored."
IDS = "Ids are whole numbers; other libraries would fail on this file, or mix objects up."

FLAGS: dict[str, Any] = {
    "text_0": "0",
    "text_false": "false",
    "text_0_0": "0.0",
    "nan": float("nan"),
    "minus_1": -1,
    "2": 2,
    "half": 0.5,
    "list": [0],
}


def ones_and_noughts(given: Content) -> None:
    for record, flag in zip(given["annotations"], (True, 0.0, None), strict=True):
        record["iscrowd"] = flag


def named_twice(given: Content) -> None:
    given["categories"].append({"id": 3, "name": "cat", "supercategory": "none"})


ODD_FILES = [
    *(
        OddFile(
            f"iscrowd_{name}",
            TOPIC,
            f"`iscrowd` is {json.dumps(value)}",
            writer(each("annotations", iscrowd=value)),
            read,
            CROWD,
            "Write 0 for single objects and 1 for regions of many.",
        )
        for name, value in FLAGS.items()
    ),
    OddFile(
        "iscrowd_true_and_missing",
        TOPIC,
        "`iscrowd` is true, 0.0 or null",
        writer(ones_and_noughts),
        read_flags,
        "true is 1, 0.0 is 0, and null is as if it were missing, which is 0.",
    ),
    *(
        OddFile(f"{key}_{name}", TOPIC, oddity, writer(change), read, means, remedy)
        for key, name, oddity, change, means, remedy in [
            ("category", "without_id", "A category without an id", lacking("categories", "id"), IDS,
             "Give every category an id."),
            ("category", "id_list", "A category with a list as its id", first("categories", id=[1]), IDS,
             "Give every category a whole number."),
            ("category", "id_text", "A category with a text as its id", first("categories", id="1"), IDS,
             "Write the id without quotation marks."),
            ("category", "id_huge", "A category with an id of 19 digits", first("categories", id=2**62), IDS,
             "Renumber the categories."),
            ("category", "name_blank", "A category without a name", first("categories", name="  "),
             "Names are how classes are told from each other, in tables and between files.", "Name it."),
            ("category", "name_line_feed", "A line feed in the name of a category",
             first("categories", name="cat\nblack"),
             "Names go into tables, drawings and file names, which have one line.",
             "Take it out of the name."),
            ("category", "name_number", "A number as the name of a category", first("categories", name=3),
             "A name is a text.", "Put it into quotation marks."),
            ("category", "name_half_character", "Half of a character in a name",
             first("categories", name="cat \ud83d"),
             "The name was cut in the middle of a character beyond 16 bits.", "Write the name again."),
            ("category", "twice", "Two categories with one id", repeated("categories"), IDS,
             "Renumber one of them."),
            ("category", "names_equal", "Two categories with one name", named_twice,
             "Both are read, as classes of their own. Their boxes are never exchanged.",
             "Merge them if they are one class."),
            ("image", "id_infinite", "An image whose id is infinite", first("images", id=float("inf")), IDS,
             "Give every image a whole number."),
            ("image", "id_400_digits", "An image whose id has 400 digits", first("images", id=10**400), IDS,
             "Renumber the images."),
            ("image", "width_text", "A width in quotation marks", first("images", width="64"),
             "Sizes are whole numbers.", "Write it without quotation marks."),
            ("image", "height_fraction", "A height with a decimal", first("images", height=48.5),
             "Sizes are whole numbers.", "Write the height of the file in pixels."),
            ("image", "size_0", "An image of width 0", first("images", width=0),
             "Boxes cannot be checked against it.", "Write the size of the file in pixels."),
            ("image", "size_huge", "An image that claims a million pixels a side",
             first("images", width=10**6, height=10**6),
             "No picture of that size can be read; masks of that size would need all memory.",
             "Write the size of the file in pixels, or cut large images into tiles."),
            ("image", "name_empty", "An image without a file name", first("images", file_name=""),
             "There is no file to read.", "Name the file."),
            ("image", "name_null_character", "A null character in a file name",
             first("images", file_name="picture.png\0"), "No file system has such names.",
             "Correct the name."),
            ("image", "twice", "Two images with one id", repeated("images"),
             "Annotations could belong to either.", "Renumber one of them and its annotations."),
            ("image", "file_twice", "Two images with one file",
             lambda given: given["images"].append({**given["images"][0], "id": 2}),
             "Both are read. Where their annotations differ, objects of one are background of the other.",
             "Merge the records if they are one image."),
            ("annotation", "id_missing", "An annotation without an id", lacking("annotations", "id"),
             "Messages name annotations by their ids.", "Number the annotations."),
            ("annotation", "twice", "Two annotations with one id", repeated("annotations"),
             "One may be a copy, which would count as a second object.", "Remove it, or renumber it."),
            ("annotation", "image_unknown", "An annotation of an image that is not listed",
             first("annotations", image_id=9), "Its object would be lost.", "List the image."),
            ("annotation", "category_unknown", "An annotation of a category that is not listed",
             first("annotations", category_id=9), "Its object would be lost.", "List the category."),
            ("annotation", "category_list", "A list as a category id", first("annotations", category_id=[1]),
             IDS, "Write one category per annotation."),
            ("annotation", "area_text", "An area in quotation marks", first("annotations", area="100"),
             "The metrics of small, medium and large objects go by the areas.",
             "Write it without quotation marks, or leave it out."),
            ("annotation", "area_nan", "An area that is no number",
             first("annotations", area=float("nan")),
             "The metrics of small, medium and large objects go by the areas.", "Leave it out."),
            ("annotation", "area_negative", "A negative area", first("annotations", area=-4),
             "Areas of outlines that run clockwise come out negative if the sign is not dropped.",
             "Write its absolute value."),
            ("annotation", "areas_0", "Areas of 0", each("annotations", area=0),
             "The areas are used as they are, as pycocotools does, so every object counts as small.",
             "Leave the areas out, or compute them."),
            ("annotation", "copied", "An annotation that is there twice, with two ids",
             lambda given: given["annotations"].append({**given["annotations"][0], "id": 9}),
             "Both are read. A detector finds one of the two, so recall is lower than it should be.",
             "Remove the copy."),
            ("annotation", "ignore", "Annotations with the field `ignore`", each("annotations", ignore=1),
             "Some libraries leave such objects out. COCO's evaluation overwrites the field by `iscrowd`.",
             "Set `iscrowd` to 1 where objects are to be ignored."),
        ]
    ),
    OddFile(
        "annotation_without_area",
        TOPIC,
        "Annotations without an area",
        writer(each("annotations", area=None)),
        read_without_areas,
        "The area of the box takes its place.",
    ),
]  # fmt: skip
