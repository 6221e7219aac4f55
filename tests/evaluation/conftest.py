"""A dataset and predictions with everything that real ones have, small enough to evaluate in a moment."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from trunkline.evaluation.base import EvaluationContext, Evaluator
from trunkline.evaluation.classification import ClassificationEvaluator
from trunkline.evaluation.detection import CocoEvaluator
from trunkline.evaluation.segmentation import SegmentationEvaluator
from trunkline.evaluation.volumes import VolumeEvaluator

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 30, "name": "bird"}]
CATEGORIES += [{"id": 100 + index, "name": f"thing {index}"} for index in range(9)]
CATEGORIES.append({"id": 90, "name": "never seen"})


def _objects(rng, image_id, number, category_ids):
    """Objects from a few to a few hundred pixels; mask areas smaller than boxes; some crowds."""
    for _ in range(number):
        width, height = np.exp(rng.uniform(1.8, 5.6, 2))
        x, y = rng.uniform(0, 400, 2)
        yield {
            "image_id": image_id,
            "category_id": int(rng.choice(category_ids)),
            "bbox": [float(x), float(y), float(width), float(height)],
            "area": float(width * height * rng.uniform(0.4, 1.0)),
            "iscrowd": int(rng.random() < 0.08),
        }


def _predict(rng, objects, category_ids, false):
    """Jittered objects (some missed, some found twice, some misnamed) and ``false`` boxes out of nowhere."""
    boxes, categories = [], []
    for item in objects:
        x, y, width, height = item["bbox"]
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            shift = rng.normal(0, 0.06, 4) * [width, height, width, height]
            boxes.append(np.array([x, y, x + width, y + height]) + shift)
            wrong = rng.random() < 0.1
            categories.append(int(rng.choice(category_ids)) if wrong else item["category_id"])
    corners = rng.uniform(0, 400, (false, 2))
    boxes += list(np.concatenate([corners, corners + rng.uniform(2, 200, (false, 2))], axis=1))
    categories += rng.choice(category_ids, false).tolist()
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = rng.uniform(0, 1, len(boxes)).astype(np.float32).round(2)  # two digits: many ties
    return boxes, scores, np.array(categories, dtype=np.int64)


@pytest.fixture(scope="session")
def real_like():
    """Return (ground truth, {image id: (boxes xyxy, scores, category ids)}) of 40 images in mixed order.

    Every seventh image has no object, every fifth no detection; image 1003 has 320 detections, most of one
    class. Annotation ids start at 0. One category has no object.
    """
    rng = np.random.default_rng(5)
    usual = [category["id"] for category in CATEGORIES[:-1]]
    image_ids = rng.permutation(np.arange(1000, 1040)).tolist()
    annotations, predictions = [], {}
    for position, image_id in enumerate(image_ids):
        number = 0 if position % 7 == 3 else int(rng.integers(1, 14))
        objects = list(_objects(rng, image_id, number, usual))
        annotations += objects
        if image_id == 1003:
            boxes, scores, categories = _predict(rng, objects, usual, 320)
            categories[-250:] = 7
            predictions[image_id] = (boxes, scores, categories)
        elif position % 5 == 1:
            predictions[image_id] = _predict(rng, [], usual, 0)
        else:
            # Now and then objects of the class that is nowhere in the ground truth are "found".
            predictions[image_id] = _predict(rng, objects, [*usual, 90], int(rng.integers(0, 8)))
    for index, item in enumerate(annotations):
        item["id"] = index
    images = [{"id": image_id, "height": 640, "width": 640} for image_id in image_ids]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, predictions


class ContractCase(NamedTuple):
    """The same evaluation in two ways: by the contract of evaluators, and by adding to one in Python."""

    kind: type
    context: EvaluationContext
    batches: list  # (predictions, batch)
    direct: Evaluator  # everything was added


def _boxes_case(truth, predictions):
    direct, batches = CocoEvaluator(truth), []
    for image_id, (boxes, scores, category_ids) in predictions.items():
        direct.add(image_id, boxes, scores, category_ids)
        columns = {"boxes": boxes, "scores": scores, "category_ids": category_ids}
        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        batches.append(([{"image_id": image_id, **tensors}], None))
    return ContractCase(CocoEvaluator, EvaluationContext(["unused"], truth=truth), batches, direct)


def _masks_case():
    generator, names = torch.Generator().manual_seed(3), ["ant", "bee", "cat", "nowhere"]
    direct, batches = SegmentationEvaluator(names), []
    for size in (2, 2, 1):
        truth = tuple(torch.randint(0, 3, (5, 7 + i), generator=generator).byte() for i in range(size))
        masks = [torch.where(torch.rand(t.shape, generator=generator) < 0.3, 0, t) for t in truth]
        for mask, labels in zip(masks, truth, strict=True):
            labels[0, :2] = 255
            direct.add(mask, labels)
        batches.append(([{"mask": mask} for mask in masks], SimpleNamespace(truth=truth)))
    return ContractCase(SegmentationEvaluator, EvaluationContext(names), batches, direct)


def _classes_case(multi_label):
    generator, names = torch.Generator().manual_seed(4), [f"class {k}" for k in range(7)]
    direct, batches = ClassificationEvaluator(names, multi_label), []
    for start in range(0, 12, 4):
        shape = (4, 7) if multi_label else (4,)
        label = torch.randint(0, 2 if multi_label else 7, shape, generator=generator)
        label[0] = -1
        probabilities, ids = torch.rand(4, 7, generator=generator), torch.arange(start, start + 4)
        direct.add(ids, probabilities, label)
        batch = SimpleNamespace(image_ids=ids, label=label)
        batches.append(([{"probabilities": row} for row in probabilities], batch))
    return ContractCase(
        ClassificationEvaluator, EvaluationContext(names, multi_label=multi_label), batches, direct
    )


def _scans_case():
    rng, regions = np.random.default_rng(6), {"organ": (1, 2), "core": (2,), "nowhere": (3,)}
    direct, batches = VolumeEvaluator(regions), []
    for number in range(4):
        mask, truth = rng.integers(0, 3, (2, 6, 5, 4), dtype=np.uint8)
        truth[0, 0] = 255
        direct.add(f"case_{number}", mask, truth, (1.0, 2.0, 3.0), 5.5)
        affine = np.diag([1.0, 2.0, 3.0, 1.0])
        grid = SimpleNamespace(spacing=(1.0, 2.0, 3.0), voxel=5.5, shape=truth.shape, affine=affine)
        batch = SimpleNamespace(
            case=SimpleNamespace(name=f"case_{number}"),
            truth=truth,
            placement=SimpleNamespace(grid=grid),
        )
        batches.append(([{"mask": mask}], batch))
    return ContractCase(VolumeEvaluator, EvaluationContext(["unused"], regions=regions), batches, direct)


@pytest.fixture(scope="session")
def contract_cases(real_like):
    """Return a ``ContractCase`` for each kind of labels, by name."""
    return {
        "boxes": _boxes_case(*real_like),
        "masks": _masks_case(),
        "classes": _classes_case(False),
        "several classes": _classes_case(True),
        "scans": _scans_case(),
    }
