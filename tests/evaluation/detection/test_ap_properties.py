"""COCO metrics of anything hypothesis finds equal those of pycocotools.

Drawn: boxes that are equal, touch, have no width, are tiny (1e-3 px) or cover more than 1e10 square pixels;
scores that are equal or below 0; crowds; areas at the borders of the ranges; images without objects or
detections; ids beyond 2^31.
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.evaluation.detection.evaluator import CocoEvaluator

sizes = st.sampled_from((0.0, 1e-3, 8.0, 16.0, 32.0, 96.0, 2e5))
places = st.sampled_from((0.0, 8.0, 16.0, -4.0, 1e5))
boxes = st.tuples(places, places, sizes, sizes)
IDS, CATEGORIES = (1, 2**31 + 7, 2**52), (3, 2**40)
objects = st.tuples(
    st.sampled_from(IDS),
    st.sampled_from(CATEGORIES),
    boxes,
    st.booleans(),
    st.sampled_from((None, 1024.0, 9216.0, 0.0)),
)
detections = st.tuples(
    st.sampled_from(IDS), st.sampled_from(CATEGORIES), boxes, st.sampled_from((1.0, 0.5, 0.5, 0.1, 0.0, -1.0))
)


@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(st.lists(objects, max_size=8), st.lists(detections, max_size=10))
def test_metrics_equal_pycocotools(truth, found):
    annotations = [
        {"id": index, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": int(crowd)}
        | ({} if area is None else {"area": area})
        for index, (image, category, box, crowd, area) in enumerate(truth)
    ]
    ground_truth = {
        "images": [{"id": image} for image in IDS],
        "categories": [{"id": category, "name": str(category)} for category in CATEGORIES],
        "annotations": annotations,
    }
    results = []
    for backend in ("faster", "pycocotools"):
        evaluator = CocoEvaluator(ground_truth, backend)
        for image in IDS:
            rows = [row for row in found if row[0] == image]
            corners = [[x, y, x + width, y + height] for _, _, (x, y, width, height), _ in rows]
            evaluator.add(image, corners, [row[3] for row in rows], [row[1] for row in rows])
        result = evaluator.compute()
        results.append((result.metrics, [(row.objects, row.ap, row.ap50) for row in result.per_class]))
    (ours, classes), (theirs, expected) = results
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    for one, other in zip(classes, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-12, nan_ok=True)
    assert all(math.isnan(value) or 0 <= value <= 1 for value in ours.values())
