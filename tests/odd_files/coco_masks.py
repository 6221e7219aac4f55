"""COCO files whose outlines, keypoints or panoptic segments are odd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trunkline.data.detection.index import read_coco
from trunkline.data.segmentation.coco_json import read_mask_json

from .case import OddFile
from .coco import HEIGHT, NAME, TOPIC, WIDTH, Content, first, writer

SQUARE = [4, 4, 24, 4, 24, 24, 4, 24]
PANOPTIC = "panoptic.json"


def outline(value: Any, **more: Any) -> Callable[[Path], None]:
    """Return what writes a file whose only annotation has this segmentation."""

    def change(given: Content) -> None:
        given["annotations"] = given["annotations"][:1]
        given["annotations"][0].update({"segmentation": value, **more})

    return writer(change)


def read(folder: Path) -> None:
    """Read the outlines, as instances and as masks; both say the same."""
    messages = []
    for function in (
        lambda: read_coco(folder / NAME, folder, instances=["masks"]),
        lambda: read_mask_json(folder / NAME),
    ):
        try:
            function()
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    assert all(messages) or not any(messages), messages
    if messages[1]:
        raise ValueError(messages[1])


def keypoints(values: Any) -> Callable[[Path], None]:
    """Return what writes a file with one person of two keypoints."""

    def change(given: Content) -> None:
        given["categories"][0]["keypoints"] = ["head", "tail"]
        given["annotations"] = [{**given["annotations"][0], "category_id": 1, "keypoints": values}]

    return writer(change)


def read_keypoints(folder: Path) -> None:
    read_coco(folder / NAME, folder, instances=["keypoints"])


def colours(value: Any) -> Callable[[Path], None]:
    """Return what writes a file whose first category has this colour."""
    square = {"segmentation": [SQUARE]}

    def change(given: Content) -> None:
        given["categories"][0]["color"] = value
        given["annotations"] = [{**given["annotations"][0], **square}]

    return writer(change)


def read_colour(folder: Path) -> None:
    assert read_mask_json(folder / NAME)[1].classes[1].colour == (255, 128, 0)


def panoptic(change: Callable[[Content], object]) -> Callable[[Path], None]:
    """Return what writes a panoptic file of two segments with one thing about it changed."""

    def write(folder: Path) -> None:
        segments = [{"id": 7, "category_id": 1}, {"id": 300, "category_id": 2}]
        given = {
            "images": [{"id": 1, "file_name": "picture.png", "width": WIDTH, "height": HEIGHT}],
            "annotations": [{"image_id": 1, "file_name": "segments.png", "segments_info": segments}],
            "categories": [{"id": 1, "name": "sky"}, {"id": 2, "name": "road"}],
        }
        change(given)
        (folder / PANOPTIC).write_text(json.dumps(given))
        numbers = np.zeros((HEIGHT, WIDTH), np.int64)
        numbers[:20], numbers[20:40] = 7, 300
        png = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], axis=2).astype(np.uint8)
        Image.fromarray(png).save(folder / "segments.png")

    return write


def read_panoptic(folder: Path) -> None:
    _, masks = read_mask_json(folder / PANOPTIC)
    masks.mask(0)


def segment(**fields: Any) -> Callable[[Content], None]:
    """Return a change of the first segment."""
    return lambda given: given["annotations"][0]["segments_info"][0].update(fields)


RUNS = "Run lengths fill an image column by column: together they are height times width pixels."
POLYGON = "A polygon is a list of x and y in turn, in pixels; an annotation has a list of polygons."
SEGMENT = "The colour of a segment is its number: red + 256 green + 65536 blue, from 1."
FIX = "Correct the annotation; for boxes with outlines `data.on_bad_box: drop` leaves it out."

ODD_FILES = [
    *(
        OddFile(f"runs_{name}", TOPIC, oddity, outline({"size": size, "counts": counts}), read, RUNS, FIX)
        for name, oddity, size, counts in [
            ("of_10_billion", "A run of 10^10 pixels", [100_000, 100_000], [10**10]),
            ("short", "Run lengths that do not fill their size", [HEIGHT, WIDTH], [100, 50]),
            ("negative", "A negative run length", [HEIGHT, WIDTH], [HEIGHT * WIDTH + 5, -5]),
            ("garbage", "Compressed run lengths that were damaged", [HEIGHT, WIDTH], "PPPP0"),
            ("not_ascii", "Compressed run lengths in another encoding", [HEIGHT, WIDTH], "\xe9\ud83d"),
            ("fractions", "Run lengths with decimals", [HEIGHT, WIDTH], [float(HEIGHT * WIDTH)]),
            ("transposed", "Run lengths of a size [width, height]", [WIDTH, HEIGHT], [WIDTH * HEIGHT]),
            ("without_size", "Run lengths without a size", None, [HEIGHT * WIDTH]),
            ("400_digits", "A run length of 400 digits", [HEIGHT, WIDTH], [10**400]),
        ]
    ),
    *(
        OddFile(f"polygon_{name}", TOPIC, oddity, outline(value), read, POLYGON, FIX)
        for name, oddity, value in [
            ("odd", "A polygon with an odd number of coordinates", [[4, 4, 24, 4, 24]]),
            ("nan", "A polygon with NaN", [[4, 4, 24, 4, 24, float("nan")]]),
            ("texts", "A polygon of numbers in quotation marks", [["4", "4", "24", "4", "24", "24"]]),
            ("400_digits", "A polygon with a number of 400 digits", [[4, 4, 24, 4, 24, 10**400]]),
            ("points", "A polygon as a list of points", [[[4, 4], [24, 4], [24, 24]]]),
            ("flat", "A polygon that is not in a list of polygons", SQUARE),
            ("none", "An annotation without an outline", []),
        ]
    ),
    OddFile(
        "polygons_in_fractions", TOPIC, "Polygons in fractions of the image",
        outline([[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]), read,
        "Read as pixels, all objects would lie within the first one, and masks would be empty.",
        "Multiply by width and height.",
    ),
    OddFile(
        "mask_iscrowd_text", TOPIC, "`iscrowd` is a text, where objects are drawn as masks",
        outline([SQUARE], iscrowd="0"), lambda folder: read_mask_json(folder / NAME),
        "Crowd regions are drawn below all others.", "Write 0 or 1.",
    ),
    OddFile(
        "mask_area_400_digits", TOPIC, "An area of 400 digits, where objects are drawn as masks",
        outline([SQUARE], area=10**400), lambda folder: read_mask_json(folder / NAME),
        "An area is a number of square pixels.", "Correct or remove it.",
    ),
    *(
        OddFile(f"keypoints_{name}", TOPIC, oddity, keypoints(values), read_keypoints,
                "A keypoint is x and y in pixels, and 0 (not labelled), 1 (hidden) or 2 (visible).", FIX)
        for name, oddity, values in [
            ("400_digits", "A keypoint with a number of 400 digits", [4, 5, 2, 10**400, 9, 2]),
            ("texts", "Keypoints in quotation marks", ["4", "5", "2", "9", "9", "2"]),
            ("true", "`true` as the visibility of a keypoint", [4, 5, True, 9, 9, 2]),
            ("few", "Fewer keypoints than the category has", [4, 5, 2]),
            ("visibility", "A visibility of 3", [4, 5, 3, 9, 9, 2]),
            ("huge", "A keypoint beyond all floats of 32 bits", [4, 5, 2, 1e300, 9, 2]),
            ("fractions", "Keypoints in fractions of the image", [0.1, 0.2, 2, 0.4, 0.3, 2]),
        ]
    ),
    *(
        OddFile(f"colour_{name}", TOPIC, oddity, colours(value), lambda folder: read_mask_json(folder / NAME),
                "Colours of classes are for drawing, and to tell masks in colours.",
                "Write three whole numbers in 0 to 255.")
        for name, oddity, value in [
            ("fractions", "A colour in fractions", [1.0, 0.5, 0.0]),
            ("word", "A colour as a word", "orange"),
        ]
    ),
    OddFile("colour_hexadecimal", TOPIC, "A colour in hexadecimal digits", colours("#FF8000"), read_colour,
            "It is read."),
    *(
        OddFile(f"panoptic_{name}", TOPIC, oddity, panoptic(change), read_panoptic, SEGMENT, "Correct it.")
        for name, oddity, change in [
            ("segment_0", "A panoptic segment with number 0", segment(id=0)),
            ("segment_text", "A panoptic segment with a text as its number", segment(id="7")),
            ("segment_huge", "A panoptic segment with a number beyond 24 bits", segment(id=2**24)),
            ("segment_twice", "Two panoptic segments with one number", segment(id=300)),
            ("category_list", "A list as the category of a panoptic segment", segment(category_id=[1])),
            ("category_true", "`true` as the category of a panoptic segment", segment(category_id=True)),
            ("category_without_id", "A panoptic category without an id",
             lambda given: given["categories"][0].pop("id")),
            ("category_id_list", "A panoptic category with a list as its id", first("categories", id=[1])),
            ("image_list", "A list as an image id in a panoptic file", first("annotations", image_id=[1])),
            ("name_null", "A panoptic annotation without a file", first("annotations", file_name=None)),
            ("name_null_character", "A null character in the name of a panoptic PNG",
             first("annotations", file_name="a\0.png")),
            ("segments_null", "A panoptic annotation without segments",
             first("annotations", segments_info=None)),
        ]
    ),
]  # fmt: skip
