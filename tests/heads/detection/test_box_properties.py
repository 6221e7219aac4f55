"""Properties of boxes, found by hypothesis, beside slow loops over single numbers.

Boxes are drawn from few coordinates, so that they are often equal, touch or share sides; among them are boxes
without area, huge ones (1e8, and 1e20, whose area float32 cannot hold), tiny ones (1e-30, whose area is 0 in
float32), ones with x2 < x1, and ones with NaN or infinity. Covered: IoU and GIoU (range, symmetry, values),
coding round trips and their limit, clipping, matching with ties, crowds, padding and low quality, sampling,
suppression with equal and odd scores by each way without a GPU, and detections from odd candidates.
"""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from trunkline.heads.detection import nms_keep, select_detections
from trunkline.heads.detection.boxes import clip, decode, device_paths, encode, pairwise_iou
from trunkline.heads.detection.losses import iou_loss
from trunkline.heads.detection.matching import match_boxes, sample

quick = settings(max_examples=40, derandomize=True, deadline=None, database=None)

PLAIN = (0.0, 1.0, 2.0, 3.5, 4.0, 8.0)
HUGE, TINY = (1e8, 1.5e8, 2e8), (1e-30, 3e-30)
ODD = (-1.0, math.nan, math.inf, -math.inf, 1e20)
coordinates = st.sampled_from(PLAIN + HUGE + TINY + ODD)
any_box = st.tuples(*[coordinates] * 4)
whole_box = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 4)] * 2).map(
    lambda box: (float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3]))
)
some_box = st.one_of(whole_box, whole_box, any_box)


def tensor(rows, columns=4):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, columns)


def loop_iou(one, other):
    """Intersection over union of two boxes in single precision, and the intersection; NaN stays NaN."""
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    sides, zero = [], np.float32(0)
    for axis in (0, 1):
        ends, starts = (one[axis + 2], other[axis + 2]), (one[axis], other[axis])
        sides.append(np.fmax(np.minimum(*ends) - np.maximum(*starts), zero))
        if any(np.isnan([*ends, *starts])):
            sides[-1] = np.float32(np.nan)
    shared = sides[0] * sides[1]
    union = (area(one) + area(other)) - shared
    return (shared / max(union, np.finfo(np.float32).tiny) if not np.isnan(union) else union), shared


def area(box):
    x1, y1, x2, y2 = np.asarray(box, np.float32)
    return (x2 - x1) * (y2 - y1)


def sound(box):
    return bool(np.isfinite(area(box)))


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


WAYS = {"cpu": contextlib.nullcontext, "device": device_paths}


@quick
@given(st.lists(some_box, max_size=3), st.lists(some_box, max_size=3))
def test_iou_is_that_of_a_loop_symmetric_and_in_range(ours, others):
    found = pairwise_iou(tensor(ours)[None], tensor(others)[None])[0]
    back = pairwise_iou(tensor(others)[None], tensor(ours)[None])[0].T
    assert torch.equal(found.nan_to_num(-1), back.nan_to_num(-1))
    for row, one in enumerate(ours):
        for column, other in enumerate(others):
            value = float(found[row, column])
            if sound(one) and sound(other):
                assert 0 <= value <= 1
                assert value == float(loop_iou(one, other)[0])
                if one == other:
                    exact = area(one) >= np.finfo(np.float32).tiny and one[2] > one[0]
                    assert value == (1 if exact else 0)
            else:
                assert math.isnan(value) or value == 0


@quick
@given(whole_box, whole_box, st.sampled_from((1.0, 2.0**26, 2.0**-6)))
def test_giou_is_symmetric_and_in_range_at_any_scale(one, other, scale):
    ours, others = tensor([one]) * scale, tensor([other]) * scale
    for kind, most in (("giou", 2.0), ("diou", 2.0), ("ciou", 3.0)):
        loss = iou_loss(ours, others, kind)
        torch.testing.assert_close(loss, iou_loss(others, ours, kind))
        assert -1e-6 <= float(loss) <= most
        assert float(iou_loss(ours, ours, kind)) == pytest.approx(0, abs=1e-3)
    hull = (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))
    iou, shared = loop_iou(one, other)
    union = area(one) + area(other) - shared
    expected = 1 - iou + (area(hull) - union) / area(hull)
    assert float(iou_loss(ours, others, "giou")) == pytest.approx(expected, abs=1e-3)


sides = st.floats(2**-6, 1e4, width=32)
places = st.floats(-1e4, 1e4, width=32)
sized = st.tuples(places, places, sides, sides)


@quick
@given(sized, sized, st.sampled_from([(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)]))
def test_decoding_undoes_encoding_up_to_the_limit_of_growth(box, reference, weights):
    def corners(values):
        x, y, width, height = values
        return torch.tensor([x, y, x + width, y + height], dtype=torch.float64)

    box, reference = corners(box), corners(reference)
    back = decode(encode(box, reference, weights), reference, weights)
    size, limit = box[2:] - box[:2], (reference[2:] - reference[:2]) * (1000 / 16)
    wanted = torch.minimum(size, limit)
    center = (box[:2] + box[2:]) / 2
    expected = torch.cat([center - wanted / 2, center + wanted / 2])
    torch.testing.assert_close(back, expected, rtol=1e-9, atol=1e-7)


@quick
@given(
    st.lists(st.sampled_from((0.0, -3.0, 1e4, -1e4, 1e30, -1e38, math.nan, math.inf)), min_size=4, max_size=4)
)
def test_decoded_boxes_have_their_corners_in_order_or_are_not_finite(deltas):
    found = decode(tensor([deltas]), tensor([(1, 2, 5, 9)]))[0]
    if all(map(math.isfinite, deltas)) and found.isfinite().all():
        assert (found[2:] >= found[:2]).all()
        limit = torch.tensor([4.0, 7.0]) * 62.5 * 1.001 + found.abs().max() * 1e-6
        assert (found[2:] - found[:2] <= limit).all()
    elif any(map(math.isnan, deltas)):
        assert found.isnan().any()
    clipped = clip(found[None, None], torch.tensor([[20, 30]]))[0, 0]
    inside = (clipped >= 0) & (clipped <= torch.tensor([30.0, 20, 30, 20]))
    assert (inside | clipped.isnan()).all()


options = st.sampled_from(
    [(0.7, 0.3, 0.5, True), (0.5, 0.5, 0.5, False), (0.5, 0.4, 1.0, True), (1.0, 0.0, 0.1, True)]
)
truth_row = st.tuples(some_box, st.sampled_from((-1, 0, 2)), st.sampled_from((False, False, True)))


def loop_match(boxes, rows, fg_iou, bg_iou, crowd_overlap, low_quality):
    """Matches of one image, box by box."""
    objects = [
        row
        for row, (box, label, crowd) in enumerate(rows)
        if label >= 0 and not crowd and sound(box) and area(box) > 0 and box[2] > box[0]
    ]
    regions = [box for box, label, crowd in rows if label >= 0 and crowd and sound(box)]
    good = [index for index, box in enumerate(boxes) if sound(box)]
    best_of = {
        row: max((loop_iou(rows[row][0], boxes[index])[0] for index in good), default=0) for row in objects
    }
    found = []
    for index, box in enumerate(boxes):
        if index not in good:
            found.append((None, False, False))
            continue
        ious = [(loop_iou(rows[row][0], box)[0], row) for row in objects]
        best, row = max(ious, key=lambda pair: (pair[0], -pair[1]), default=(-1, None))
        learns = best >= np.float32(fg_iou)
        if low_quality:
            learns |= any(iou == best_of[other] and iou > 0 for iou, other in ious)
        shared = max((loop_iou(region, box)[1] for region in regions), default=0)
        ignored = shared > 0 and shared >= np.float32(crowd_overlap) * area(box)
        found.append((row, learns, best < np.float32(bg_iou) and not learns and not ignored))
    return found


@quick
@given(
    st.lists(some_box, max_size=5),
    st.lists(st.lists(truth_row, min_size=3, max_size=3), min_size=1, max_size=2),
    options,
)
def test_matches_are_those_of_a_loop(boxes, images, how):
    truth = torch.stack([tensor([box for box, _, _ in rows]) for rows in images])
    labels = torch.tensor([[label for _, label, _ in rows] for rows in images])
    crowd = torch.tensor([[crowd for _, _, crowd in rows] for rows in images])
    expected = [loop_match(boxes, rows, *how) for rows in images]
    for way in WAYS.values():
        with way():
            index, positive, negative = match_boxes(tensor(boxes)[None], truth, labels, crowd, *how)
        assert index.shape == (len(images), len(boxes))
        for image, matches in enumerate(expected):
            for column, (row, learns, teaches) in enumerate(matches):
                assert bool(positive[image, column]) == learns
                assert bool(negative[image, column]) == teaches
                assert row is None or index[image, column] == row
                assert not learns or labels[image, index[image, column]] >= 0


@quick
@given(
    st.lists(st.tuples(st.sampled_from("pni"), st.sampled_from((0.0, 0.25, 0.5, 1.0))), max_size=8),
    st.integers(1, 6),
    st.sampled_from((0.25, 0.5, 1.0)),
)
def test_samples_are_as_large_as_they_may_be(rows, size, fraction):
    positive = torch.tensor([[kind == "p" for kind, _ in rows]], dtype=torch.bool)
    negative = torch.tensor([[kind == "n" for kind, _ in rows]], dtype=torch.bool)
    keys = torch.tensor([[key for _, key in rows]])
    chosen = sample(positive, negative, keys, size, fraction)
    taken = chosen.index[0][chosen.valid[0]].tolist()
    positives = chosen.index[0][chosen.positive[0]].tolist()
    assert len(set(taken)) == len(taken) and set(positives) <= set(taken)
    number = min(int(size * fraction), int(positive.sum()))
    assert len(positives) == number and all(positive[0, row] for row in positives)
    assert len(taken) == number + min(size - number, int(negative.sum()))
    rest = [row for row in taken if row not in positives]
    assert all(negative[0, row] for row in rest)
    for group, every in ((positives, positive), (rest, negative)):  # the largest keys are taken
        left = [float(keys[0, row]) for row in range(len(rows)) if every[0, row] and row not in group]
        assert not group or not left or min(float(keys[0, row]) for row in group) >= max(left)


def loop_nms(boxes, scores, groups, threshold):
    kept = []
    usable = [row for row in range(len(boxes)) if sound(boxes[row]) and math.isfinite(scores[row])]
    for row in sorted(usable, key=lambda row: -scores[row]):
        close = [loop_iou(boxes[row], boxes[other])[0] for other in kept if groups[other] == groups[row]]
        # Where both areas round to 0 the boxes do not count as close, whatever the kernel computes in.
        if not any(iou > np.float32(threshold) for iou in close):
            kept.append(row)
    return sorted(kept)


candidate = st.tuples(
    some_box,
    st.sampled_from((0.9, 0.9, 0.5, 0.25, 0.0, -1.0, math.nan, math.inf, -math.inf)),
    st.integers(0, 1),
)


@quick
@given(st.lists(candidate, max_size=8), st.sampled_from((0.0, 0.25, 0.5, 0.7)))
@example(
    [((0, 0, 4, 4), 0.9, 0), ((0, 0, 4, 3), 0.5, 0), ((0, 0, 1e20, 4), 0.25, 1)], 0.5
)  # by far the largest
@example([((0, 0, 4, 4), 0.9, 0), ((-5, -5, 1, 1), 0.5, 1), ((-5, -5, 1, 2), 0.25, 1)], 0.5)  # below 0
def test_suppression_is_greedy_by_each_way(rows, threshold):
    boxes, scores, groups = ([row[column] for row in rows] for column in range(3))
    for one in boxes:  # ways that round differently may differ at the threshold
        for other in boxes:
            iou = loop_iou(one, other)[0]
            assume(iou == threshold or not abs(iou - threshold) < 1e-4 or iou == 0)
    expected = loop_nms(boxes, scores, groups, threshold)
    inputs = tensor(boxes)[None], torch.tensor([scores]), torch.tensor([groups], dtype=torch.int64)
    valid = torch.ones(1, len(rows), dtype=torch.bool)
    for way in WAYS.values():
        with way():
            keep = nms_keep(*inputs, valid, threshold)
        assert keep[0].nonzero().flatten().tolist() == expected


@quick
@given(
    st.lists(
        st.tuples(some_box, st.sampled_from((0.9, 0.5, 0.04, math.nan, math.inf)), st.integers(0, 1)),
        min_size=1,
        max_size=8,
    )
)
def test_detections_of_odd_candidates_are_boxes_inside_the_image(rows):
    boxes, scores, labels = ([row[column] for row in rows] for column in range(3))
    for way in WAYS.values():
        with way():
            found = select_detections(
                tensor(boxes)[None],
                torch.tensor([scores]),
                torch.tensor([labels]),
                torch.tensor([[6, 7]]),
                detections_per_image=5,
            )
        count = int(found.count)
        kept = found.boxes[0, :count]
        assert found.boxes.isfinite().all() and found.scores.isfinite().all()
        assert (
            (kept[:, 2:] > kept[:, :2]).all()
            and (kept >= 0).all()
            and (kept <= torch.tensor([7.0, 6, 7, 6])).all()
        )
        assert (found.scores[0, :count] > 0.05).all() and found.scores[0, :count].diff().le(0).all()
        assert (found.labels[0, :count] // 2).eq(0).all() and found.labels[0, count:].eq(-1).all()
