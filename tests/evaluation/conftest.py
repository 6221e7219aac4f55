"""A dataset and predictions with everything that real ones have, small enough to evaluate in a moment."""

import numpy as np
import pytest

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
