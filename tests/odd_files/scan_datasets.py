"""Odd datasets of scans: cases, labels, classes, splits, and the cache of what was prepared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from trunkline.data.scans.cases.cases import ScanDataset, find_dataset
from trunkline.data.scans.cases.checks import check_cases
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare.cache import PreparedCases
from trunkline.data.scans.prepare.prepare import Preparation
from trunkline.data.shared.summary import require_learnable
from trunkline.evaluation.volumes.evaluator import case_metrics

from .case import OddFile

TOPIC = "Scans: datasets"
SHAPE = (6, 5, 4)
CLASSES = ["background", "organ"]


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def organ(value: int = 1) -> np.ndarray:
    ids = np.zeros(SHAPE, np.uint8)
    ids[2:4, 1:4, 1:3] = value
    return ids


def write_case(root: Path, split: str, name: str, ids: np.ndarray, affine: np.ndarray | None = None) -> None:
    seed = sum(name.encode())
    voxels = np.random.default_rng(seed).integers(0, 99, SHAPE).astype(np.int16)
    save(root / f"images/{split}/{name}.nii", voxels, affine)
    save(root / f"labels/{split}/{name}.nii", ids, affine)


def written(*ids: np.ndarray) -> Callable[[Path], None]:
    """Return what writes a training case for each of these labels, and one to validate with."""

    def write(root: Path) -> None:
        for number, each in enumerate(ids):
            write_case(root, "train", f"case_{number}", each)
        write_case(root, "val", "case_v", ids[0])

    return write


def found(root: Path) -> ScanDataset:
    return find_dataset(root, classes=CLASSES)


def checked(root: Path) -> None:
    check_cases(found(root), ["train", "val"])


def learned(root: Path) -> None:
    data = ScanSegmentation(str(root), classes=CLASSES, patch=[4, 4, 4], cache="memory", workers=0)
    data.setup("fit")
    require_learnable(data.summaries())


def write_cached(root: Path) -> None:
    written(organ())(root)
    cases(root).build()
    for path in (root / "cache").glob("*/image.npy"):
        path.write_bytes(path.read_bytes()[:40])


def cases(root: Path) -> PreparedCases:
    data = found(root)
    return PreparedCases(data.cases["train"], Preparation(), data.classes, 255, folder=root / "cache")


def read_cached(root: Path) -> None:
    """The entry has a name made from the place of its case, which differs from folder to folder."""
    (folder,) = [path for path in (root / "cache").iterdir() if path.name.startswith("case_0")]
    data = found(root)
    prepared = PreparedCases(data.cases["train"], Preparation(), data.classes, 255, folder=root / "cache")
    renamed = root / "cache" / "case_0-ENTRY"
    if folder != renamed:
        folder.rename(renamed)
    prepared._paths[0] = renamed
    assert prepared[0].image.shape == (1, *SHAPE)


def write_left_out(root: Path) -> None:
    written(organ())(root)
    (root / "images/train/._case_0.nii").write_bytes(b"\x00\x05\x16\x07")
    (root / "images/train/case_5.nii.part").write_bytes(b"half")
    save(root / "labels/train/case_7.nii", organ())


def write_copies(root: Path) -> None:
    written(organ())(root)
    (root / "images/val/case_v.nii").write_bytes((root / "images/train/case_0.nii").read_bytes())


def write_micron(root: Path) -> None:
    written(organ(), organ())(root)
    write_case(root, "train", "case_2", organ(), np.diag([1000.0, 1000, 1000, 1]))


def write_constant(root: Path) -> None:
    written(organ())(root)
    save(root / "images/train/case_0.nii", np.full(SHAPE, 7, np.int16))


def write_moved(root: Path) -> None:
    written(organ())(root)
    moved = np.eye(4)
    moved[0, 3] = 0.5
    save(root / "labels/train/case_0.nii", organ(), moved)


def write_rounded(root: Path) -> None:
    written(organ())(root)
    save(root / "labels/train/case_0.nii", organ(), np.diag([1.0001, 0.9999, 1, 1]))


def write_sheared(root: Path) -> None:
    """One voxel each; ten slices of 2 mm, each 1 mm to the side of the last."""
    affine = np.array([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    for name, voxel in (("truth", (0, 1, 10)), ("prediction", (10, 1, 0))):
        ids = np.zeros((11, 3, 11), np.uint8)
        ids[voxel] = 1
        save(root / f"{name}.nii", ids, affine)


def read_sheared(root: Path) -> None:
    truth, predicted = (nibabel.load(root / f"{name}.nii") for name in ("truth", "prediction"))
    pair = [np.asarray(image.dataobj) for image in (predicted, truth)]
    sizes = np.linalg.norm(truth.affine[:3, :3], axis=0)
    metrics = case_metrics(*pair, {"organ": (1,)}, sizes, axes=truth.affine[:3, :3])
    assert abs(metrics["organ"]["HD95_mm"] - 20) < 1e-5  # straight up; spacings alone tell 24.5


def write_one_case(root: Path) -> None:
    save(root / "images/case_0.nii", organ())
    save(root / "labels/case_0.nii", organ())


def table(*lines: str) -> Callable[[Path], None]:
    """Return what writes three scans with labels, and a CSV with these lines."""

    def write(root: Path) -> None:
        for number in range(3):
            save(root / f"{number}.nii", organ() * (number + 1))
            save(root / f"label_{number}.nii", organ())
        (root / "cases.csv").write_text("\n".join(lines) + "\n")

    return write


def from_table(root: Path) -> ScanDataset:
    return find_dataset(root, table="cases.csv", classes=CLASSES, folds=2)


def write_folds(*folds: dict[str, list[str]]) -> Callable[[Path], None]:
    rows = ["image,label", *(f"{number}.nii,label_{number}.nii" for number in range(3))]

    def write(root: Path) -> None:
        table(*rows)(root)
        (root / "splits.json").write_text(json.dumps(folds))

    return write


ODD_FILES = [
    OddFile(
        "scan_labels_of_255",
        TOPIC,
        "Label volumes whose foreground is 255",
        written(organ(255)),
        checked,
        "255 is what is ignored unless the classes say otherwise, and nothing else is in these files.",
        "Declare the class with the id 255, or say that it is to be ignored.",
    ),
    OddFile(
        "scan_labels_half_of_255",
        TOPIC,
        "Half of the label volumes with 0 and 1, half with 0 and 255",
        written(organ(1), organ(255)),
        checked,
        "The foreground of some files would be ignored, and their background learned.",
        "Write one id for one class in all files; or give `data.ignore_id` if 255 is to be ignored.",
    ),
    OddFile(
        "scan_labels_of_background",
        TOPIC,
        "Label volumes with nothing but background",
        written(np.zeros(SHAPE, np.uint8)),
        learned,
        "There is nothing to learn in the training data.",
        "Look at the label files.",
    ),
    OddFile(
        "damaged_scan_cache",
        TOPIC,
        "A prepared scan in the cache that is cut off",
        write_cached,
        read_cached,
        "A disk was full, or a copy incomplete. The scan is prepared again from its files, and takes "
        "the place of the damaged entry; processes that do so at once do not harm each other.",
        "Nothing, if it happens once. Else look whether the disk is full or broken.",
    ),
    OddFile(
        "scans_left_out",
        TOPIC,
        "Copies by macOS, half-finished downloads, labels without a scan",
        write_left_out,
        found,
        "Only files of known formats are scans; what else lies in their folders is named.",
        "Rename, repair or remove what is no scan by its name but should be one.",
    ),
    OddFile(
        "one_scan_twice",
        TOPIC,
        "One scan under two names",
        write_copies,
        checked,
        "The same file lies in the training and in the validation data.",
        "Remove one of them.",
    ),
    OddFile(
        "scans_of_two_units",
        TOPIC,
        "One scan in another unit than the others",
        write_micron,
        learned,
        "Spacings that differ by a factor of five or more are mostly wrong units.",
        "Correct the header.",
    ),
    OddFile(
        "constant_scan",
        TOPIC,
        "A scan with one value everywhere",
        write_constant,
        learned,
        "Nothing can be seen in it; its file may be another one than meant.",
        "Replace it, or remove the case.",
    ),
    OddFile(
        "labels_moved",
        TOPIC,
        "Labels half a voxel beside their scan",
        write_moved,
        checked,
        "Image and labels do not lie on one grid.",
        "Resample the labels, or correct the header.",
    ),
    OddFile(
        "labels_rounded",
        TOPIC,
        "Labels whose spacing differs in the fourth digit",
        write_rounded,
        checked,
        "Grids that differ by up to a tenth of a voxel at the corners are one grid.",
    ),
    OddFile(
        "sheared_grid",
        TOPIC,
        "A scan of a tilted gantry: axes that are not at right angles",
        write_sheared,
        read_sheared,
        "Distances between surfaces are measured in the world, not by spacings alone.",
    ),
    OddFile(
        "one_case",
        TOPIC,
        "One case to train and to validate with",
        write_one_case,
        found,
        "Folds need two patients.",
        "Add cases, or have folders `train` and `val`.",
    ),
    OddFile(
        "table_with_one_file_twice",
        TOPIC,
        "A table with one file as image and as labels",
        table("image,label", "0.nii,0.nii", "1.nii,label_1.nii"),
        from_table,
        "A network would learn to copy.",
        "Correct the line.",
    ),
    OddFile(
        "table_with_patients",
        TOPIC,
        "A table with a column that looks misspelt",
        table("image,label,patients", "0.nii,label_0.nii,p", "1.nii,label_1.nii,p", "2.nii,label_2.nii,q"),
        from_table,
        "Patients were not kept together in folds, as the column has another name.",
        "Name the column `patient`.",
    ),
    OddFile(
        "table_with_far_fold",
        TOPIC,
        "A table with a fold number far above the others",
        table("image,label,fold", "0.nii,label_0.nii,0", "1.nii,label_1.nii,1", "2.nii,label_2.nii,900000"),
        from_table,
        "Folds between would be empty.",
        "Number the folds 0, 1, 2 and so on.",
    ),
    OddFile(
        "folds_that_overlap",
        TOPIC,
        "A case that two folds validate",
        write_folds({"train": ["0"], "val": ["1", "2"]}, {"train": ["0"], "val": ["2"]}),
        from_table,
        "Means over the folds would count it twice.",
        "Correct `splits.json`, or remove it to have new folds made.",
    ),
    OddFile(
        "empty_fold",
        TOPIC,
        "A fold without cases to validate",
        write_folds({"train": ["0", "1", "2"], "val": []}),
        from_table,
        "Nothing could be evaluated.",
        "Correct `splits.json`, or remove it.",
    ),
]
