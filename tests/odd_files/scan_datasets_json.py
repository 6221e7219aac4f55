"""Odd ``dataset.json`` files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trunkline.data.scans.cases.cases import ScanDataset, find_dataset

from .case import OddFile
from .scan_datasets import TOPIC, organ, save

LABELS: dict[str, Any] = {"background": 0, "organ": 1}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "ring": [1, 2, 3], "core": [2]}


def nnunet(text: str | None = None, **changes: Any) -> Callable[[Path], None]:
    """Return what writes two cases of nnU-Net's layout, and a ``dataset.json`` of these keys or text."""
    content = {
        "channel_names": {"0": "T1"},
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    } | changes

    def write(root: Path) -> None:
        for number in range(2):
            save(root / f"imagesTr/case_{number}_0000.nii.gz", organ() + number)
            save(root / f"labelsTr/case_{number}.nii.gz", organ())
        (root / "dataset.json").write_text(json.dumps(content) if text is None else text)

    return write


def found(root: Path) -> ScanDataset:
    return find_dataset(root, folds=2)


def read_regions(root: Path) -> None:
    data = found(root)
    assert data.regions == {"whole": (1, 2), "ring": (1, 2, 3), "core": (2,)}
    assert data.region_labels == (1, 3, 2)


ODD_FILES = [
    OddFile(
        "dataset_json_regions",
        TOPIC,
        "Regions whose label only regions_class_order tells",
        nnunet(labels=REGIONS, regions_class_order=[1, 3, 2]),
        read_regions,
        "Each region is written as the id in its place; `trunkline plan` puts it into `region_labels`.",
    ),
    OddFile(
        "dataset_json_wrong_order",
        TOPIC,
        "A regions_class_order in another order than the regions",
        nnunet(labels=REGIONS, regions_class_order=[1, 2, 3]),
        found,
        "A region would be written as a label that it does not have.",
        "Bring regions and ids into one order.",
    ),
    OddFile(
        "dataset_json_misspelt",
        TOPIC,
        "A misspelt key in dataset.json",
        nnunet(region_class_order=[1]),
        found,
        "The key has no meaning.",
        "Correct its name.",
    ),
    OddFile(
        "dataset_json_twice",
        TOPIC,
        "A class that is there twice in dataset.json",
        nnunet('{"channel_names": {"0": "T1"}, "labels": {"background": 0, "organ": 1, "organ": 2}}'),
        found,
        "JSON keeps only the last of two equal keys.",
        "Correct the file.",
    ),
    OddFile(
        "dataset_json_background",
        TOPIC,
        "A background whose id is not 0",
        nnunet(labels={"background": 1, "organ": 0}),
        found,
        "The class of id 0 is the background, which is not evaluated.",
        "Exchange the ids, or rename the class.",
    ),
    OddFile(
        "dataset_json_number",
        TOPIC,
        "A dataset.json that counts other cases than there are",
        nnunet(numTraining=3),
        found,
        "Files may be missing, or there may be some too many.",
        "Look for the files, or correct `numTraining`.",
    ),
    OddFile(
        "dataset_json_reader",
        TOPIC,
        "A reader of nnU-Net that is not used",
        nnunet(overwrite_image_reader_writer="Tiff3DIO"),
        found,
        "Files are read by their suffixes.",
        "Convert files that are read in another way than meant, to NIfTI.",
    ),
    OddFile(
        "dataset_json_large_id",
        TOPIC,
        "An id that no file can hold",
        nnunet(labels={"background": 0, "organ": 10**12}),
        found,
        "Label files hold whole numbers of up to 32 bits.",
        "Correct the id.",
    ),
]
