"""COCO instances annotations as a few tensors.

Letters in shapes: I images, N boxes, K classes; m boxes of one image of h0 w0 pixels, P keypoints of a box.
Boxes are x1 y1 x2 y2 in pixels unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..shared.augment.instances import Instances, keypoints_inside
from ..shared.coco.annotations import (
    InstanceKind,
    load_instances,
    read_annotations,
    read_categories,
    read_images,
)
from ..shared.coco.boxes import BoxColumns, OnBadBox, check_boxes, no_boxes
from ..shared.coco.outlines import Outlines
from ..shared.common import PackedNames, in_threads
from ..shared.extras import tell_extras
from ..shared.failed import FailedImage
from ..shared.faults import SkippedImages, raise_or_skip
from ..shared.inside import require_inside
from ..shared.io import ImageError, read_image, stored_size
from ..shared.labels.classes import LabelClass
from ..shared.locate import CheckImages
from ..shared.storage import Location, joined, located
from .instances import InstanceColumns, KeypointClasses, read_instances
from .truth import TruthRows

WRONG_INSTANCES = "wrong mask or keypoints"


@dataclass(frozen=True)
class CocoIndex:
    """Images and boxes of one annotation file, without a Python object per record.

    Everything that grows with the data is a tensor, so worker processes share it: by copy on write when
    forked (nothing touches it), through shared memory when spawned. Never write to it.

    Attributes:
        folder: where the images lie; empty if the file names are complete paths.
        categories: in ascending id order; label k stands for ``categories[k]``.
        image_ids: ``[I]`` int64.
        sizes: ``[I, 2]`` int64, height and width.
        names: of the I files.
        offsets: ``[I + 1]`` int64; the boxes of image i are rows ``offsets[i]:offsets[i + 1]``.
        boxes: ``[N, 4]`` float32, inside their image, with positive width and height.
        boxes_xywh: ``[N, 4]`` float64, the same boxes in COCO form as the file gives them, for evaluation:
            neither rounded nor clipped to their image.
        labels: ``[N]`` int64 in 0..K-1.
        crowd: ``[N]`` bool.
        area: ``[N]`` float64, the area field of the file (of the mask, where there was one).
        annotation_ids: ``[N]`` int64.
        masks: the N outlines as the file gives them; None unless they were asked for.
        keypoints: ``[N, P, 3]`` float32 x, y and visibility (0 not labelled, 1 hidden, 2 visible). COCO
            counts whole pixels; here 0.5 was added to x and y, so that they are in the pixels of boxes, as in
            detectron2. 0, 0, 0 for those not labelled. None unless they were asked for.
        keypoint_classes: names and skeletons; None without keypoints.
        truth: the boxes to evaluate against, if there are others than the N; None if these are all. Where
            masks or keypoints are kept, these are all.
        dropped: how many annotations were left out, by the reason.
    """

    folder: str
    categories: tuple[LabelClass, ...]
    image_ids: Tensor
    sizes: Tensor
    names: PackedNames
    offsets: Tensor
    boxes: Tensor
    boxes_xywh: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor
    annotation_ids: Tensor
    masks: Outlines | None = None
    keypoints: Tensor | None = None
    keypoint_classes: KeypointClasses | None = None
    truth: TruthRows | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """Return the file name of one image as the annotation file gives it."""
        return self.names[index]

    def path(self, index: int) -> Location:
        """Return where one image lies."""
        return located(joined(self.folder, self.file_name(index)))

    def named(self, request: Any) -> tuple[int, str]:
        """Return id and file of the image that a request of a sampler asks for."""
        return int(self.image_ids[request.index]), str(self.path(request.index))

    def rows(self, index: int) -> slice:
        """Return the rows of one image in ``boxes``, ``labels``, ``crowd`` and ``area``."""
        start, end = self.offsets[index : index + 2].tolist()
        return slice(start, end)

    def instances(self, index: int) -> Instances | None:
        """Return masks and keypoints of one image in its pixels on disk; None if none are kept."""
        if self.masks is None and self.keypoints is None:
            return None
        rows, size = self.rows(index), tuple(self.sizes[index].tolist())
        keypoints = partners = None
        if self.keypoints is not None and self.keypoint_classes is not None:
            keypoints = keypoints_inside(self.keypoints[rows].numpy(), size)
            partners = self.keypoint_classes.partners()[self.labels[rows].numpy()]
        return Instances(self._bitmaps(index, rows, size), keypoints, partners)

    def _bitmaps(self, index: int, rows: slice, size: tuple[int, int]) -> np.ndarray | None:
        """Return ``[m, h0, w0]`` uint8 masks."""
        if self.masks is None:
            return None
        # Columns are neighbours in memory, as in pycocotools.
        bitmaps = np.zeros((rows.stop - rows.start, *size[::-1]), dtype=np.uint8).transpose(0, 2, 1)
        for bitmap, row in zip(bitmaps, range(rows.start, rows.stop), strict=True):
            bitmap[:] = coco_mask.decode(self.masks.run_lengths(row, size))
        return bitmaps

    def with_boxes(self) -> CocoIndex:
        """Return the index of only those images that have at least one box that is no crowd region."""
        image_of_box = torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())
        single = torch.bincount(image_of_box[~self.crowd], minlength=len(self))
        kept = torch.nonzero(single).flatten()
        rows = torch.isin(image_of_box, kept)
        counts = self.offsets.diff()[kept]
        per_box = ("boxes", "boxes_xywh", "labels", "crowd", "area", "annotation_ids")
        return replace(
            self,
            image_ids=self.image_ids[kept],
            sizes=self.sizes[kept],
            names=PackedNames.pack(self.names[index] for index in kept.tolist()),
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
            masks=None if self.masks is None else self.masks.take(torch.nonzero(rows).flatten()),
            keypoints=None if self.keypoints is None else self.keypoints[rows],
            truth=None,  # such an index is to train on
            **{name: getattr(self, name)[rows] for name in per_box},
        )

    def as_coco(self) -> dict[str, Any]:
        """Return a COCO instances dict for an evaluator: original image and category ids, ``xywh`` boxes.

        Annotations are numbered 1..N in the order of the index: pycocotools takes an annotation with id 0 for
        an object without a match.
        """
        images = [
            {"id": image_id, "file_name": self.file_name(index), "height": height, "width": width}
            for index, (image_id, (height, width)) in enumerate(
                zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
            )
        ]
        categories = [{"id": category.id, "name": category.name} for category in self.categories]
        if self.keypoint_classes is not None:
            for label, category in enumerate(categories):
                category |= self.keypoint_classes.as_coco(label)
        truth = self.truth or TruthRows.of_rows(
            self.offsets, self.labels, self.boxes_xywh, self.area, self.crowd
        )
        columns = (self.image_ids[truth.images], *truth)
        records = zip(*(column.tolist() for column in columns), strict=True)
        annotations = [self._annotation(number, record) for number, record in enumerate(records, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _annotation(self, number: int, record: tuple[Any, ...]) -> dict[str, Any]:
        image_id, image, label, box, area, crowd, row = record
        annotation = {
            "id": number,
            "image_id": image_id,
            "category_id": self.categories[label].id,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        if self.masks is not None:
            annotation["segmentation"] = self.masks.as_coco(row, self.sizes[image].tolist())
        if self.keypoint_classes is not None and (count := len(self.keypoint_classes.names[label])):
            points = cast(Tensor, self.keypoints)[row, :count].double()
            points[:, :2] -= 0.5 * (points[:, 2:] > 0)  # whole pixels again
            annotation["keypoints"] = points.flatten().tolist()
            annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
        return annotation


def read_coco(
    json_path: str | PathLike[str] | Location,
    image_folder: str | PathLike[str] | Location,
    on_bad_box: OnBadBox = "error",
    boxes: bool = True,
    instances: Sequence[InstanceKind] = (),
) -> CocoIndex:
    """Read a COCO instances file and check everything that can be checked without opening an image.

    A box is bad if it has a side <= 0, a number that is not finite, or leaves its image by more than one
    pixel. Less than that is annotation rounding: such boxes are clipped, whatever ``on_bad_box`` says, and
    counted in the log. All this is for training. Evaluation sees every finite box as the file gives it, as
    pycocotools does; only where ``instances`` are read, what is dropped is missing there too.

    Args:
        json_path: the annotation file; also at an address.
        image_folder: where the images lie, which ``file_name`` is relative to.
        on_bad_box: ``error`` lists the first 20; ``clip`` clips them to the image and drops those of which
            nothing is left; ``drop`` drops them all. Annotations with a wrong mask or wrong keypoints are
            dropped with ``drop`` and an error otherwise.
        boxes: if false, read only images and categories; the file then needs no annotations, and may be
            without categories.
        instances: ``masks``, ``keypoints`` or both, to keep them too.

    Raises:
        AnnotationError: if the file is missing or no COCO instances file, has no images or no categories, or
            has duplicate ids. Also for an annotation with an image or category that is not listed, a bad box,
            a wrong mask or wrong keypoints.
    """
    source = located(json_path)
    content = load_instances(source, boxes, instances)
    records = content["categories"] if boxes else content.get("categories") or []
    categories = read_categories(records, source) if boxes or records else ()
    image_ids, sizes, names = read_images(content["images"], source)
    require_inside(names, image_folder or source.parent, source, lambda n: f"image id {image_ids[n]}")
    if not boxes:
        return _build(str(image_folder), categories, image_ids, sizes, names, no_boxes(), InstanceColumns())
    columns = read_annotations(content["annotations"], image_ids, categories, source)
    columns, truth, dropped = check_boxes(columns, image_ids, sizes, names, on_bad_box, source)
    columns, kept = columns.take(np.argsort(columns.image, kind="stable")), InstanceColumns()
    if instances:
        count = len(columns.ids)
        columns, kept = read_instances(columns, content, categories, sizes, instances, on_bad_box, source)
        dropped = {**dropped, **({WRONG_INSTANCES: lost} if (lost := count - len(columns.ids)) else {})}
    index = _build(str(image_folder), categories, image_ids, sizes, names, columns, kept)
    more = None if instances or len(truth.ids) == len(columns.ids) else TruthRows.of(truth, columns)
    return replace(index, truth=more, dropped=dropped)


def index_of_files(paths: Sequence[Location]) -> tuple[CocoIndex, list[FailedImage]]:
    """Index image files that have no annotations; their ids are 1..I in the given order.

    Returns:
        The images, and the files that are missing or no images, with the ids from I + 1 on.

    Raises:
        ImageError: listing the first 20 files, if none is an image.
    """
    outcomes = in_threads(_upright_size, paths, "reading image sizes")
    found = list(zip(paths, outcomes, strict=True))
    problems = [(str(path), outcome) for path, outcome in found if isinstance(outcome, str)]
    if len(problems) == len(paths):
        raise_or_skip(ImageError, [text for _, text in problems], len(paths), "cannot be used", None)
    sizes = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    names = [str(path) for path, outcome in found if not isinstance(outcome, str)]
    ids = np.arange(1, len(names) + 1)
    failed = [FailedImage(number, *problem) for number, problem in enumerate(problems, len(names) + 1)]
    return _build("", (), ids, np.asarray(sizes), names, no_boxes(), InstanceColumns()), failed


def check_images(
    index: CocoIndex, mode: CheckImages = "header", skipped: SkippedImages | None = None
) -> None:
    """Check that every image is there and has the size that its annotations were made for.

    Args:
        index: what to check.
        mode: ``header`` reads the beginning of each file; ``decode`` decodes all of it, which also finds
            truncated files and takes far longer; ``off`` does nothing.
        skipped: takes images with problems; None for an error.

    Raises:
        ImageError: listing the first 20 images with problems, each with its id, and their number.
    """
    if mode == "off":
        return
    outcomes = in_threads(lambda i: _image_problem(index, i, mode), range(len(index)), "checking images")
    raise_or_skip(ImageError, [each for each in outcomes if each], len(index), "cannot be used", skipped)
    tell_extras([str(index.path(position)) for position in range(len(index))])


def _image_problem(index: CocoIndex, position: int, mode: CheckImages) -> str | None:
    path = index.path(position)
    name = f"image id {int(index.image_ids[position])}: {path}"
    expected = tuple(index.sizes[position].tolist())
    try:
        stored, swapped = stored_size(path)
        if mode == "decode":
            read_image(path, pixel_range="own")
    except ImageError as error:
        return f"image id {int(index.image_ids[position])}: {error}"
    upright = stored[::-1] if swapped else stored
    if upright == expected:
        return None
    text = (
        f"{name}: is {upright[1]}x{upright[0]} pixels (width x height), "
        f"the annotations say {expected[1]}x{expected[0]}"
    )
    if swapped and stored == expected:
        return text + (
            ": its EXIF orientation turns it by a quarter, and the annotations were made without regard to "
            "that; remove the tag if the boxes fit the unturned pixels, else correct width and height"
        )
    return text + "; correct the record, or restore the image that was annotated"


def _upright_size(path: Location) -> tuple[int, int] | str:
    try:
        stored, swapped = stored_size(path)
    except ImageError as error:
        return str(error)
    return stored[::-1] if swapped else stored


def _build(
    folder: str,
    categories: tuple[LabelClass, ...],
    image_ids: np.ndarray,
    sizes: np.ndarray,
    names: list[str],
    columns: BoxColumns,
    kept: InstanceColumns,
) -> CocoIndex:
    limits = np.asarray(sizes).reshape(-1, 2)[columns.image][:, ::-1]
    low, high = columns.inside[:, :2], columns.inside[:, :2] + columns.inside[:, 2:]
    boxes = np.concatenate([low, np.minimum(high, limits)], axis=1).astype(np.float32)
    return CocoIndex(
        folder=folder,
        categories=categories,
        image_ids=torch.as_tensor(image_ids, dtype=torch.int64),
        sizes=torch.as_tensor(sizes, dtype=torch.int64).reshape(-1, 2),
        names=PackedNames.pack(names),
        offsets=torch.from_numpy(np.searchsorted(columns.image, np.arange(len(names) + 1)).astype(np.int64)),
        boxes=torch.from_numpy(boxes),
        boxes_xywh=torch.from_numpy(columns.xywh),
        labels=torch.from_numpy(columns.labels.astype(np.int64)),
        crowd=torch.from_numpy(columns.crowd),
        area=torch.from_numpy(columns.area),
        annotation_ids=torch.from_numpy(columns.ids),
        **kept._asdict(),
    )
