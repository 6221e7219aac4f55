"""Read COCO instances and panoptic files as masks; errors name the file and the record ids.

Letters in shapes: I images, A annotations.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..shared.coco.annotations import read_categories, read_images
from ..shared.coco.fields import AnnotationError, areas, flags, is_integer, record_name, shown, text_problem
from ..shared.coco.json_file import read_json
from ..shared.coco.outlines import NO_OUTLINE, Outlines, size_problem, starts, with_packed_outline
from ..shared.coco.units import require_pixels
from ..shared.common import PackedNames, listing, number_of
from ..shared.inside import outside, require_inside
from ..shared.labels.classes import LabelClass
from ..shared.labels.table import UNKNOWN, Background, ClassTable, row_id
from ..shared.locate import DataNotFoundError
from ..shared.storage import Location
from .coco_masks import DrawnInstances, Overlaps, PanopticMasks, Shapes
from .pairs import Unpaired

logger = logging.getLogger("trunkline")

_FEW = 100  # annotations, by which a panoptic file is known
OUTLINES_IN_PIXELS = "multiply each x by the image's width and each y by its height"


def read_mask_json(
    source: Location,
    ignore: Sequence[str | int] = (),
    categories: Sequence[str | int] | None = None,
    background: Background = "class",
    overlaps: Overlaps = "smaller",
    missing: Unpaired = "error",
) -> tuple[list[str], DrawnInstances | PanopticMasks]:
    """Read a COCO instances or panoptic file.

    Args:
        source: the file.
        ignore, categories, background: as in ``ClassTable``; the rows are the categories in ascending order
            of their ids. For instances, all categories that are not ignored if None, and a background.
        overlaps: see ``DrawnInstances``.
        missing: ``error``, or ``skip`` (without a warning: ``silent``) for images of which a panoptic file
            has no segments.

    Returns:
        The file names of the images, and their masks.

    Raises:
        AnnotationError: if the file is missing or of another form, or records contradict each other.
        MaskError: if the classes are wrong.
    """
    content = _load(source)
    categories_read = read_categories(content["categories"], source)
    known = {record["id"]: record for record in content["categories"]}
    rows = [
        LabelClass(entry.id, entry.name, _category_colour(known[entry.id], source))
        for entry in categories_read
    ]
    image_ids, sizes, names = read_images(content["images"], source)
    annotations = content["annotations"]
    if any(isinstance(record, dict) and "segments_info" in record for record in annotations[:_FEW]):
        table = ClassTable(rows, ignore, categories, background, str(source))
        return _panoptic(source, table, annotations, image_ids, names, missing)
    if categories is None:
        ignored = {row_id(rows, entry, "ignore", str(source)) for entry in ignore}
        categories = [row.id for row in rows if row.id not in ignored]
    table = ClassTable(rows, ignore, categories, background, str(source))
    shapes = _shapes(source, table, annotations, image_ids, sizes)
    ids = torch.from_numpy(image_ids)
    return names, DrawnInstances(source, table, ids, torch.from_numpy(sizes), shapes, overlaps)


def _load(source: Location) -> dict[str, Any]:
    content = read_json(source, with_packed_outline)
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise AnnotationError(f"{source}: has no lists {', '.join(lists)}; is it a COCO file?")
    return content


def _shapes(
    source: Location, table: ClassTable, records: list[dict], image_ids: np.ndarray, sizes: np.ndarray
) -> Shapes:
    position_of = {int(image_id): position for position, image_id in enumerate(image_ids)}
    known = {row.id for row in table.rows}
    kept: list[tuple[int, int, dict]] = []  # position of the image, label, record
    problems: list[str] = []
    for number, record in enumerate(records):
        problem = _annotation_problem(record, position_of, known, sizes)
        label = UNKNOWN if problem else int(table.labels(np.array(record["category_id"])))
        drawn = not problem and (label != table.rest or record["category_id"] in table.ignored)
        if drawn:
            problem = record.get("segmentation", NO_OUTLINE).problem
        if problem:
            name = record if isinstance(record, dict) else {}
            problems.append(f"{record_name(name, number, 'annotation')}: {problem}")
        elif drawn:
            kept.append((position_of[record["image_id"]], label, record))
    if problems:
        raise AnnotationError(
            f"{source}: {len(problems)} of {number_of(len(records), 'annotation')} cannot be drawn; correct "
            f"or remove them (boxes without an outline give no mask)\n{listing(problems)}"
        )
    if dropped := sum(record["segmentation"].dropped for _, _, record in kept):
        logger.warning("%s: left out %s of fewer than three corners", source, number_of(dropped, "polygon"))
    kept = [entry for entry in kept if entry[2]["segmentation"].pieces]
    polygons = [entry for entry in kept if entry[2]["segmentation"].polygons]
    require_pixels(
        "outlines",
        np.array([record["segmentation"].reach for _, _, record in polygons]),
        sizes[[position for position, _, _ in polygons]].reshape(-1, 2),
        OUTLINES_IN_PIXELS,
        source,
    )
    return _pack(sorted(kept, key=lambda entry: entry[0]), len(image_ids), source)


def _annotation_problem(record: Any, position_of: dict[int, int], known: set[int], sizes: np.ndarray) -> str:
    if not isinstance(record, dict):
        return "is no object"
    image_id, category_id = record.get("image_id"), record.get("category_id")
    if type(image_id) is not int or image_id not in position_of:
        return f"image_id {shown(image_id)} is not that of an image in the file"
    if type(category_id) is not int or category_id not in known:
        return f"category_id {shown(category_id)} is not that of a category in the file"
    outline = record.get("segmentation", NO_OUTLINE)
    return size_problem(outline, sizes[position_of[image_id]].tolist())


def _pack(kept: list[tuple[int, int, dict]], images: int, source: Location) -> Shapes:
    positions = np.array([position for position, _, _ in kept], dtype=np.int64)
    records = [record for _, _, record in kept]
    return Shapes(
        rows=torch.from_numpy(np.searchsorted(positions, np.arange(images + 1)).astype(np.int64)),
        labels=torch.tensor([label for _, label, _ in kept], dtype=torch.uint8),
        crowd=torch.from_numpy(flags(records, source)),
        area=torch.from_numpy(np.nan_to_num(areas(records, source))),
        **vars(Outlines.pack(record["segmentation"] for record in records)),
    )


def _panoptic(
    source: Location,
    table: ClassTable,
    records: list[Any],
    image_ids: np.ndarray,
    names: list[str],
    missing: Unpaired,
) -> tuple[list[str], PanopticMasks]:
    position_of = {int(image_id): position for position, image_id in enumerate(image_ids)}
    record_of: dict[int, dict] = {}
    problems: list[str] = []
    known = {row.id for row in table.rows}
    for number, record in enumerate(records):
        problem = _panoptic_problem(record, position_of, known)
        if not problem and record_of.setdefault(position_of[record["image_id"]], record) is not record:
            problem = f"image id {record['image_id']} has two"
        if problem:
            problems.append(f"annotation number {number}: {problem}")
    alone = [
        f"image id {image_ids[position]} ({name}): no annotation"
        for position, name in enumerate(names)
        if position not in record_of
    ]
    if problems:
        alone = []  # the wrong ones may be theirs
    elif missing != "error":
        if missing == "skip" and alone:
            logger.warning("%s: left out %s without a mask", source, number_of(len(alone), "image"))
        alone = []
    if problems or alone:
        remedy = "correct the records"
        if alone:
            remedy = "add them, or set data.missing to skip to leave out images without annotation"
        raise AnnotationError(
            f"{source}: {number_of(len(problems) + len(alone), 'problem')}:\n{listing([*problems, *alone])}\n"
            f"{remedy}"
        )
    kept = sorted(record_of)
    segments = [sorted((s["id"], s["category_id"]) for s in record_of[p]["segments_info"]) for p in kept]
    ids = np.array([pair[0] for pairs in segments for pair in pairs], dtype=np.int64)
    category_ids = np.array([pair[1] for pairs in segments for pair in pairs], dtype=np.int64)
    files = [record_of[position]["file_name"] for position in kept]
    folder = _panoptic_folder(source, files[0])
    require_inside(files, folder, source, lambda n: f"annotation of image id {image_ids[kept[n]]}")
    masks = PanopticMasks(
        str(folder),
        PackedNames.pack(files),
        table,
        starts([len(pairs) for pairs in segments]),
        torch.from_numpy(ids),
        torch.from_numpy(table.labels(category_ids).astype(np.uint8)),
    )
    return [names[position] for position in kept], masks


def _panoptic_problem(record: Any, position_of: dict[int, int], known: set[int]) -> str:
    name = record.get("file_name") if isinstance(record, dict) else None
    if not isinstance(name, str) or text_problem(name):
        return f"file_name {shown(name)}" if name is not None else "no file_name"
    image_id = record.get("image_id")
    if type(image_id) is not int or image_id not in position_of:
        return f"image_id {shown(image_id)} is not that of an image in the file"
    segments = record.get("segments_info")
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        return f"image id {image_id}: no segments_info"
    seen: set[int] = set()
    for segment in segments:
        number, category_id = segment.get("id"), segment.get("category_id")
        if not is_integer(number) or not 0 < number < 2**24:
            return (
                f"image id {image_id}: segment id {shown(number)}; it is the colour in the PNG, "
                "red + 256 green + 65536 blue, from 1 (0 is unlabelled)"
            )
        if type(category_id) is not int or category_id not in known:
            return (
                f"image id {image_id}: segment id {number} has category_id {shown(category_id)}, which is "
                "not that of a category in the file"
            )
        if number in seen:
            return f"image id {image_id}: segment id {number} occurs twice"
        seen.add(number)
    return ""


def _panoptic_folder(source: Location, first: str) -> Location:
    """Find the folder of the PNGs by where the first of them is."""
    folders = [source.with_suffix(""), source.parent / "masks", source.parent]
    for folder in folders:
        if not outside(first, folder) and (folder / first).exists():
            return folder
    looked = "\n".join(f"  {folder}" for folder in folders)
    raise DataNotFoundError(f"{source}: no panoptic PNGs found, looked for {first} in\n{looked}")


def _category_colour(record: dict[str, Any], source: Location) -> tuple[int, int, int] | None:
    """Return the colour of a category: three numbers 0..255, or their hexadecimal digits after a #."""
    colour = record.get("color")
    if colour is None:
        return None
    if isinstance(colour, str) and re.fullmatch("#[0-9a-fA-F]{6}", colour):
        colour = list(bytes.fromhex(colour[1:]))
    if isinstance(colour, list) and len(colour) == 3 and all(type(c) is int and 0 <= c < 256 for c in colour):
        return colour[0], colour[1], colour[2]
    raise AnnotationError(
        f"{source}: category id {record['id']}: color {shown(colour)} is neither [red, green, blue], 0..255, "
        "nor such as #ff8000; correct or remove it"
    )
