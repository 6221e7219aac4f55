import math

import pytest
import torch
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder

from trunkline.heads.detection import (
    box_loss,
    box_losses,
    clip,
    decode,
    encode,
    iou_loss,
    large_enough,
    pairwise_intersection,
    pairwise_iou,
)
from trunkline.heads.detection.boxes import device_paths, rows_needed, runs_on_cpu

UNIT, TEN = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)


def random_boxes(*shape, size=100.0):
    corner = torch.rand(*shape, 2) * size
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * size / 2], dim=-1)


def test_iou_by_hand():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]], [[5.0, 5, 15, 25], [0, 0, 4, 4]]])
    others = torch.tensor([[[5.0, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]]])
    # Image 0: half of each overlaps, 50 of 150. Image 1: 10 x 5 of 200 + 100 - 50.
    intersections = [[[50, 0, 0], [0, 0, 0]], [[50, 0, 0], [0, 0, 0]]]
    assert pairwise_intersection(boxes, others).tolist() == intersections
    expected = torch.tensor([[[50 / 150, 0, 0], [0, 0, 0]], [[50 / 250, 0, 0], [0, 0, 0]]])
    torch.testing.assert_close(pairwise_iou(boxes, others), expected)


def test_iou_is_torchvisions_in_every_image():
    torch.manual_seed(0)
    boxes, others = random_boxes(3, 7), random_boxes(3, 20)
    expected = torch.stack([ops.box_iou(a, b) for a, b in zip(boxes, others, strict=True)])
    torch.testing.assert_close(pairwise_iou(boxes, others), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("weights", [UNIT, TEN])
def test_coding_is_torchvisions(weights):
    torch.manual_seed(0)
    boxes, references, deltas = random_boxes(50), random_boxes(50), torch.randn(50, 4) * 3
    deltas[0] = 1e4  # exp() of this would overflow
    coder = BoxCoder(weights)
    torch.testing.assert_close(encode(boxes, references, weights), coder.encode_single(boxes, references))
    torch.testing.assert_close(decode(deltas, references, weights), coder.decode_single(deltas, references))


def test_decode_by_hand_and_inverse():
    reference = torch.tensor([[10.0, 20, 30, 60]])  # centre 20 40, sides 20 40
    deltas = torch.tensor([[0.5, -0.25, math.log(2), 0.0]])  # centre 30 30, sides 40 40
    torch.testing.assert_close(decode(deltas, reference, UNIT), torch.tensor([[10.0, 10, 50, 50]]))
    torch.testing.assert_close(encode(torch.tensor([[10.0, 10, 50, 50]]), reference, UNIT), deltas)
    # Growth stops at 1000/16: 20 * 62.5 = 1250 around 20.
    grown = decode(torch.tensor([[0.0, 0, 99, 0]]), reference, UNIT)
    torch.testing.assert_close(grown, torch.tensor([[-605.0, 20, 645, 60]]))


def test_decode_computes_in_float32():
    reference = torch.tensor([[1000.25, 0, 1001.25, 1]])  # bfloat16 has no 1000.25
    decoded = decode(torch.zeros(1, 4, dtype=torch.bfloat16), reference, UNIT)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, reference, rtol=0, atol=0)


def test_clip_uses_each_images_own_height_and_width():
    boxes = torch.tensor([[[-5.0, -5, 500, 500]], [[10, 20, 500, 500]]])
    sizes = torch.tensor([[30, 40], [100, 50]])
    assert clip(boxes, sizes).tolist() == [[[0, 0, 40, 30]], [[10, 20, 50, 100]]]


def test_large_enough():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.5], [0, 0, math.nan, 9]])
    assert large_enough(boxes, 2.0).tolist() == [True, False, False]


def test_boxes_without_area_are_never_large_enough():
    boxes = torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9], [3, 3, 9, 3], [4, 4, 4, 4], [0, 0, 1e-30, 1]])
    boxes = torch.cat([boxes, torch.full((1, 4), float("nan"))])
    nonempty = (
        (boxes[:, 2] - boxes[:, 0] > 0) & (boxes[:, 3] - boxes[:, 1] > 0)
    ).tolist()  # detectron2's rule
    assert large_enough(boxes, 0.0).tolist() == nonempty == [True, False, False, False, True, False]
    assert large_enough(boxes, 1e-3).tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("giou", ops.generalized_box_iou_loss),
        ("diou", ops.distance_box_iou_loss),
        ("ciou", ops.complete_box_iou_loss),
    ],
)
def test_iou_losses_and_their_gradients_are_torchvisions(kind, reference):
    torch.manual_seed(0)
    ours = random_boxes(200).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    targets = random_boxes(200)
    targets[:100] = ours.detach()[:100] + torch.rand(100, 4)  # half of them overlap much
    loss, expected = iou_loss(ours, targets, kind), reference(theirs, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_box_loss_counts_learning_rows_only(kind):
    torch.manual_seed(0)
    references, targets = random_boxes(4), random_boxes(4)
    deltas = torch.randn(4, 4, requires_grad=True)
    learns = torch.tensor([True, False, True, False])
    options = {"weights": TEN, "kind": kind, "beta": 0.1}
    expected = box_loss(deltas[learns], references[learns], targets[learns], torch.ones(2).bool(), **options)
    references[1], targets[3] = 0, math.nan  # a row without area, a row without sense
    loss = box_loss(deltas, references, targets, learns, **options)
    torch.testing.assert_close(loss, expected)
    each = box_losses(deltas, references, targets, learns, **options)
    assert torch.equal(each.sum(), loss) and each.gt(0).tolist() == learns.tolist()
    loss.backward()
    assert torch.isfinite(deltas.grad).all()
    assert deltas.grad[~learns].abs().sum() == 0 and deltas.grad[learns].abs().sum() > 0


def test_smooth_l1_by_hand():
    square = torch.tensor([[0.0, 0, 10, 10]])
    deltas = torch.tensor([[0.5, 3.0, 0.0, 0.0]])  # the target is 0: quadratic below beta, linear above
    loss = box_loss(deltas, square, square, torch.tensor([True]), weights=UNIT, kind="smooth_l1", beta=1.0)
    assert loss.item() == pytest.approx(0.5 * 0.5**2 + 3.0 - 0.5)


@pytest.mark.parametrize(
    ("valid", "rows"),
    [([[1, 1, 0, 0], [1, 0, 0, 0]], 2), ([[0, 0, 1, 0], [1, 0, 0, 0]], 3), ([[0] * 4] * 2, 1), ([[]], 0)],
)
def test_rows_needed_end_with_the_last_valid_one(valid, rows):
    assert rows_needed(torch.tensor(valid).bool()) == rows


def test_one_switch_sends_tensors_of_the_cpu_the_way_of_devices():
    x, valid = torch.zeros(1), torch.tensor([[True, False]])
    assert runs_on_cpu(x) and rows_needed(valid) == 1
    with device_paths():
        with device_paths():
            assert not runs_on_cpu(x)
        assert not runs_on_cpu(x) and rows_needed(valid) == 2
    assert runs_on_cpu(x)
    with pytest.raises(KeyError), device_paths():
        raise KeyError
    assert runs_on_cpu(x) and not runs_on_cpu(torch.zeros(1, device="meta"))
