"""Masks and keypoints of the annotations of a COCO file, kept on demand.

Letters in shapes: N annotations, K classes, P keypoints of the class that has most.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..shared.coco.annotations import InstanceKind
from ..shared.coco.boxes import BoxColumns, OnBadBox
from ..shared.coco.fields import AnnotationError, shown
from ..shared.coco.outlines import NO_OUTLINE, Outline, Outlines, size_problem
from ..shared.coco.units import require_pixels
from ..shared.common import listing, number_of
from ..shared.labels.classes import LabelClass
from ..shared.storage import Location

logger = logging.getLogger("trunkline")

SCALED_POINTS = "multiply each x by the image's width and each y by its height"

Link = tuple[int, int]
_SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))


@dataclass(frozen=True)
class KeypointClasses:
    """The keypoints of each class, by its label.

    Attributes:
        names: of the keypoints; empty for a class that has none.
        skeletons: pairs of keypoints to join when drawn, counted from 0.
    """

    names: tuple[tuple[str, ...], ...]
    skeletons: tuple[tuple[Link, ...], ...]

    @property
    def most(self) -> int:
        """P, the number of keypoints of the class that has most."""
        return max(map(len, self.names), default=0)

    def partners(self) -> np.ndarray:
        """Return ``[K, P]`` int64: what each keypoint is in a mirror image, by ``left`` and ``right``."""
        partners = np.tile(np.arange(self.most), (len(self.names), 1))
        for label, names in enumerate(self.names):
            for position, name in enumerate(names):
                other = _other_side(name)
                if other in names:
                    partners[label, position] = names.index(other)
        return partners

    def as_coco(self, label: int) -> dict[str, Any]:
        """Return what a COCO category says of its keypoints; nothing for a class without."""
        if not self.names[label]:
            return {}
        skeleton = [[first + 1, second + 1] for first, second in self.skeletons[label]]
        return {"keypoints": list(self.names[label]), "skeleton": skeleton}


def _other_side(name: str) -> str:
    """Return the name of the keypoint on the other side of the body; itself if the name has no side."""
    for pair in _SIDES:
        for side, other in (pair, pair[::-1]):
            if name.startswith(side):
                return other + name.removeprefix(side)
            if name.endswith(side):
                return name.removesuffix(side) + other
    return name


def read_keypoint_classes(
    records: list[dict], categories: Sequence[LabelClass], source: Location
) -> KeypointClasses:
    """Read names and skeletons from the categories of a COCO file.

    Raises:
        AnnotationError: if no category has keypoints, names are wrong or repeated, or a skeleton names a
            keypoint that there is not.
    """
    record_of = {record["id"]: record for record in records}
    names, skeletons, problems = [], [], []
    for category in categories:
        given = record_of[category.id].get("keypoints", [])
        given = given.tolist() if isinstance(given, np.ndarray) else given  # an empty list
        links = record_of[category.id].get("skeleton", []) or []
        problem = _class_problem(given, links)
        if problem:
            problems.append(f"category id {category.id} ({category.name}): {problem}")
            continue
        names.append(tuple(given))
        skeletons.append(tuple((first - 1, second - 1) for first, second in links))
    if problems:
        raise AnnotationError(f"{source}: wrong keypoints of categories; correct them\n{listing(problems)}")
    if not any(names):
        raise AnnotationError(
            f"{source}: no category lists keypoints; take the keypoint annotations, or remove keypoints from "
            "data.instances"
        )
    return KeypointClasses(tuple(names), tuple(skeletons))


def _class_problem(names: Any, links: Any) -> str:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"keypoints is {shown(names)}, no list of names"
    if len(set(names)) < len(names):
        return "two keypoints have the same name"
    for link in links if isinstance(links, list) else [links]:
        pair = isinstance(link, list) and len(link) == 2 and all(type(end) is int for end in link)
        if not pair or not all(1 <= end <= len(names) for end in link):
            return f"skeleton has {shown(link)}, no pair of keypoints counted from 1"
    return ""


class InstanceColumns(NamedTuple):
    """What ``read_instances`` keeps of N annotations; None where it is not wanted.

    Attributes:
        masks: as they are in the file.
        keypoints: ``[N, P, 3]`` float32, see ``CocoIndex``.
        keypoint_classes: names and skeletons.
    """

    masks: Outlines | None = None
    keypoints: Tensor | None = None
    keypoint_classes: KeypointClasses | None = None


def read_instances(
    columns: BoxColumns,
    content: dict[str, list[dict]],
    categories: Sequence[LabelClass],
    sizes: np.ndarray,
    wanted: Sequence[InstanceKind],
    on_bad_box: OnBadBox,
    source: Location,
) -> tuple[BoxColumns, InstanceColumns]:
    """Read masks and keypoints of annotations, and leave out those that have wrong ones.

    Args:
        columns: the annotations to keep, in the wanted order.
        content: of the file, from ``load_instances``.
        categories: in the order of labels.
        sizes: ``[I, 2]`` height and width of the images.
        wanted: ``masks``, ``keypoints`` or both.
        on_bad_box: ``drop`` leaves out annotations whose mask or keypoints are wrong; else they are an error.
        source: the file, for errors.

    Raises:
        AnnotationError: listing annotations with a wrong mask or wrong keypoints.
    """
    records = [content["annotations"][number] for number in columns.record.tolist()]
    problems: dict[int, str] = {}
    outlines: list[Outline] = []
    classes = keypoints = None
    if "masks" in wanted:
        outlines = [record.get("segmentation", NO_OUTLINE) for record in records]
        problems |= _mask_problems(outlines, sizes[columns.image])
        drawn = [row for row, outline in enumerate(outlines) if outline.polygons and outline.pieces]
        reaches = np.array([outlines[row].reach for row in drawn])
        require_pixels("outlines", reaches, sizes[columns.image[drawn]], SCALED_POINTS, source)
    if "keypoints" in wanted:
        classes = read_keypoint_classes(content["categories"], categories, source)
        keypoints, wrong = _keypoint_column(records, columns.labels, classes)
        labelled = (keypoints[:, :, 2] > 0).any(axis=1)
        reaches = np.abs(keypoints[labelled, :, :2]).max(axis=(1, 2), initial=0) - 0.5
        require_pixels("keypoints", reaches, sizes[columns.image[labelled]], SCALED_POINTS, source)
        problems = wrong | problems
    kept = np.array([row for row in range(len(records)) if row not in problems], dtype=np.int64)
    if problems:
        _report(problems, columns, on_bad_box, source)
    if few := sum(outlines[row].dropped for row in kept) if outlines else 0:
        logger.warning("%s: left out %s of fewer than three corners", source, number_of(few, "polygon"))
    return columns.take(kept), InstanceColumns(
        masks=Outlines.pack(outlines[row] for row in kept) if "masks" in wanted else None,
        keypoints=None if keypoints is None else torch.from_numpy(keypoints[kept]),
        keypoint_classes=classes,
    )


def _report(problems: dict[int, str], columns: BoxColumns, on_bad_box: OnBadBox, source: Location) -> None:
    of_all = f"{len(problems)} of {number_of(len(columns.ids), 'annotation')}"
    if on_bad_box == "drop":
        logger.warning("%s: dropped %s with a wrong mask or wrong keypoints", source, of_all)
        return
    lines = [f"annotation id {columns.ids[row]}: {problems[row]}" for row in sorted(problems)]
    raise AnnotationError(
        f"{source}: {of_all} have a wrong mask or wrong keypoints; correct them, or set on_bad_box to drop\n"
        f"{listing(lines)}"
    )


def _mask_problems(outlines: Sequence[Outline], sizes: np.ndarray) -> dict[int, str]:
    problems = {}
    for row, outline in enumerate(outlines):
        problem = outline.problem
        if not problem and outline.size is not None:
            problem = size_problem(outline, sizes[row].tolist())
        if not problem and not outline.pieces:
            problem = "no polygon has three corners"
        if problem:
            problems[row] = problem
    return problems


def _keypoint_column(
    records: Sequence[dict], labels: np.ndarray, classes: KeypointClasses
) -> tuple[np.ndarray, dict[int, str]]:
    """Return ``[N, P, 3]`` float32 keypoints, and what is wrong with them by row."""
    column = np.zeros((len(records), classes.most, 3), dtype=np.float32)
    problems: dict[int, str] = {}
    for row, (record, label) in enumerate(zip(records, labels.tolist(), strict=True)):
        given, count = record.get("keypoints"), len(classes.names[label])
        if given is None:
            continue  # nothing is labelled
        if problem := _keypoint_problem(given, count):
            problems[row] = problem
        else:
            column[row, :count] = given.reshape(count, 3)
    column[:, :, :2] += 0.5  # COCO counts whole pixels; the centre of the first one is 0.5 in boxes
    column[column[:, :, 2] == 0] = 0
    return column, problems


def _keypoint_problem(given: Any, count: int) -> str:
    if not isinstance(given, np.ndarray):
        return "keypoints is no list of numbers"
    if len(given) != 3 * count:
        return f"keypoints has {len(given)} numbers, its category has {count} keypoints of 3 numbers each"
    if not np.isfinite(given).all():
        return "a keypoint is not finite"
    visibility = given[2::3]
    strange = visibility[~np.isin(visibility, (0, 1, 2))]
    return f"visibility {strange[0]:g} of a keypoint; it is 0, 1 or 2" if len(strange) else ""
