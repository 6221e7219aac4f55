"""Targets that read text: COCO JSON, other JSON, tables, lists and configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trunkline.data.classification.names import LabelError
from trunkline.data.classification.table_file import read_image_table
from trunkline.data.detection.index import read_coco
from trunkline.data.scans.cases.dataset_json import read_description
from trunkline.data.scans.cases.splits import read_folds
from trunkline.data.scans.cases.table import read_case_table
from trunkline.data.scans.cases.types import CasesError
from trunkline.data.segmentation.coco_json import read_mask_json
from trunkline.data.segmentation.pairs import pair_list
from trunkline.data.shared.coco.fields import AnnotationError
from trunkline.data.shared.labels.lists import read_class_rows
from trunkline.data.shared.labels.table import ClassTable, MaskError
from trunkline.data.shared.locate import DataNotFoundError

from .mutate import mutate_json, mutate_text
from .target import Target

_DRAWN = 1 << 20  # pixels of images whose masks are drawn here
_RUNS = {"counts": [6, 4, 16 * 12 - 10], "size": [16, 12]}


def coco() -> dict[str, Any]:
    """Return a COCO file with polygons, run lengths, a crowd region and keypoints."""
    people = {
        "id": 7,
        "name": "person",
        "keypoints": ["nose", "left_eye", "right_eye"],
        "skeleton": [[1, 2], [1, 3]],
    }
    box = {"image_id": 1, "category_id": 7, "bbox": [1.5, 2, 5, 6], "area": 30.0, "iscrowd": 0, "id": 10}
    polygon = [[1.5, 2, 6.5, 2, 6.5, 8, 1.5, 8]]
    points = [2, 3, 2, 4, 4, 1, 0, 0, 0]
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 16, "width": 12},
            {"id": 2, "file_name": "b/c.jpg", "height": 9, "width": 20},
        ],
        "categories": [people, {"id": 3, "name": "dog", "keypoints": [], "skeleton": [], "color": "#ff0010"}],
        "annotations": [
            {**box, "segmentation": polygon, "keypoints": points, "num_keypoints": 2},
            {**box, "id": 11, "segmentation": _RUNS, "iscrowd": 1, "keypoints": [0] * 9},
            {
                **box,
                "id": 12,
                "image_id": 2,
                "bbox": [0, 0, 20, 9],
                "segmentation": polygon,
                "keypoints": [0] * 9,
            },
        ],
    }


def panoptic() -> dict[str, Any]:
    """Return a panoptic COCO file."""
    content = coco()
    content["annotations"] = [
        {"image_id": n, "file_name": f"{n}.png", "segments_info": [{"id": 5, "category_id": 7, "iscrowd": 0}]}
        for n in (1, 2)
    ]
    return content


def _encoded(*contents: Any) -> list[bytes]:
    return [json.dumps(content).encode() for content in contents]


def _coco_seeds() -> list[bytes]:
    compressed = coco()
    compressed["annotations"][1]["segmentation"] = {"counts": "64h5", "size": [16, 12]}
    without = {key: value for key, value in coco().items() if key == "images"}
    return _encoded(coco(), compressed, without, {**coco(), "annotations": []})


def _read_boxes(path: Path) -> None:
    read_coco(path, "images", "error")
    index = read_coco(path, "images", "clip").with_boxes()
    index.as_coco()


def _read_lenient(path: Path) -> None:
    read_coco(path, "images", "drop").as_coco()


def _read_instances(path: Path) -> None:
    index = read_coco(path, "images", "drop", instances=("masks", "keypoints"))
    index.as_coco()
    for position in range(min(3, len(index))):
        rows = index.rows(position)
        if index.sizes[position].prod() * max(1, rows.stop - rows.start) <= _DRAWN:
            index.instances(position)


def _read_names(path: Path) -> None:
    read_coco(path, "images", boxes=False)


def _read_masks(path: Path) -> None:
    names, masks = read_mask_json(path, ignore=(3,), missing="skip")
    if not masks.verified:  # panoptic PNGs are not there
        return
    for position in range(min(3, len(names))):
        height, width = masks.size(position)
        if height * width <= _DRAWN:
            masks.survey(position)
            masks.labelled_pixels(position)
    masks.present()


def _panoptic_png(folder: Path) -> None:
    for name in ("1.png", "2.png"):
        Image.new("RGB", (12, 16), (5, 0, 0)).save(folder / name)


def _dataset_seeds() -> list[bytes]:
    listed = [
        {"image": "./a.nii.gz", "label": "./a.nii.gz"},
        {"image": ["b.nii.gz"], "label": "b.nii.gz", "fold": 0},
    ]
    decathlon = {
        "labels": {"0": "background", "1": "liver"},
        "modality": {"0": "CT"},
        "numTraining": 2,
        "numTest": 1,
        "training": listed,
        "test": ["./b.nii.gz"],
    }
    nnunet = {
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "channel_names": {"0": "T1", "1": "T2"},
        "file_ending": ".nii.gz",
        "numTraining": 2,
    }
    return _encoded(decathlon, nnunet, {"training": listed, "validation": listed[:1]})


def _two_scans(folder: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        (folder / name).write_bytes(b"x")


def _images_and_masks(folder: Path) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(exist_ok=True)
        for name in ("a.png", "b c.png", "d.png"):
            (folder / kind / name).write_bytes(b"x")


def _lines(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]


def _table_seeds() -> Sequence[bytes]:
    return _lines(
        "path,label,split\na.png,cat,train\nb/c.png,dog,val\n",
        'path,labels\n"a.png",cat;dog\nb.png,\n',
        "path,cat,dog\r\na.png,1,0\r\nb.png,0.0,1.0\r\n",
    )


def _read_table(path: Path) -> None:
    read_image_table(path, labelled=False)
    read_image_table(path)


def _read_classes(path: Path) -> None:
    table = ClassTable(read_class_rows(path), source=str(path))
    assert table.background is None or table.background < len(table)


TARGETS = [
    Target("coco_boxes", "coco.json", _read_boxes, (AnnotationError,), _coco_seeds, mutate_json),
    Target("coco_drop", "coco.json", _read_lenient, (AnnotationError,), _coco_seeds, mutate_json),
    Target("coco_instances", "coco.json", _read_instances, (AnnotationError,), _coco_seeds, mutate_json),
    Target("coco_images", "coco.json", _read_names, (AnnotationError,), _coco_seeds, mutate_json),
    Target(
        "coco_masks",
        "coco.json",
        _read_masks,
        (AnnotationError, MaskError, DataNotFoundError),
        lambda: _encoded(coco(), panoptic()),
        mutate_json,
        prepare=_panoptic_png,
    ),
    Target(
        "dataset_json",
        "dataset.json",
        lambda path: read_description(path, "skip"),
        (CasesError,),
        _dataset_seeds,
        mutate_json,
        prepare=_two_scans,
    ),
    Target(
        "folds",
        "splits_final.json",
        read_folds,
        (CasesError,),
        lambda: _encoded([{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}]),
        mutate_json,
    ),
    Target("image_table", "images.csv", _read_table, (LabelError,), _table_seeds, mutate_text),
    Target(
        "case_table",
        "cases.csv",
        read_case_table,
        (CasesError,),
        lambda: _lines(
            "image,label,split,patient,case\na.nii.gz,b.nii.gz,train,p,c1\nb.nii.gz,,test,q,c2\n",
            "image_1,image_2,label,fold\na.nii.gz,b.nii.gz,c.nii.gz,0\n",
            "t1,t2,label\na.nii.gz,b.nii.gz,c.nii.gz\n",
        ),
        mutate_text,
        prepare=_two_scans,
    ),
    Target(
        "class_table",
        "classes.csv",
        _read_classes,
        (MaskError,),
        lambda: _lines(
            "id,name,r,g,b\n0,background,0,0,0\n1,cat,255,0,0\n",
            "name;colour\nsky;#00ff00\nsea;#0000ff\n",
            "id\tname\n3\tcat\n",
        ),
        mutate_text,
    ),
    Target(
        "class_list",
        "classes.txt",
        _read_classes,
        (MaskError,),
        lambda: _lines(
            "background\ncat\ndog\n",
            "0: background\n5: cat\n",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,0::\n",
        ),
        mutate_text,
    ),
    Target(
        "image_list",
        "train.txt",
        lambda path: pair_list(path, path.parent / "images", path.parent / "masks"),
        (MaskError,),
        lambda: _lines("a.png\nb c\n", "/images/a.png /masks/a.png\nd 1\n"),
        mutate_text,
        prepare=_images_and_masks,
    ),
]
