import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import MultiScaleRoIAlign, roi_align

from trunkline.heads.detection.boxes import device_paths
from trunkline.heads.detection.pooling import _atlas_corners, level_of_box, pool_boxes

STRIDES = [(4, 4), (8, 8), (16, 16), (32, 32)]


def awkward_boxes(height, width, number):
    """Boxes of all sizes inside the canvas, among them slivers and pixels at every border."""
    torch.manual_seed(1)
    center = torch.rand(2, number, 2) * torch.tensor([width, height])
    half = torch.exp(torch.rand(2, number, 2) * 6 - 1) / 2
    boxes = torch.cat([center - half, center + half], dim=-1)
    boxes[..., 0::2] = boxes[..., 0::2].clamp(0, width)
    boxes[..., 1::2] = boxes[..., 1::2].clamp(0, height)
    fixed = [[0, 0, width, height], [width - 1, height - 1, width, height], [0, 0, 1, 1], [0, 0, 0, 0]]
    fixed += [[width - 2, 0, width, height], [0, height - 0.01, width, height], [width - 1, 10, width, 11]]
    fixed += [[width, height, width, height], [0, 3, 2, height], [width - 9.1, height - 7.3, width, height]]
    boxes[:, : len(fixed)] = torch.tensor(fixed, dtype=torch.float32)
    return boxes


@pytest.mark.parametrize(("pool_size", "sampling_ratio"), [(7, 2), (3, 1), (5, 3)])
@pytest.mark.parametrize("canonical_size", [60, 30])
def test_values_and_gradients_are_torchvisions(pool_size, sampling_ratio, canonical_size, place):
    height, width = 128, 192
    ours = [torch.rand(2, 3, height // step, width // step, requires_grad=True) for step, _ in STRIDES]
    theirs = [feature.detach().clone().requires_grad_() for feature in ours]
    boxes = awkward_boxes(height, width, 300)
    pool = MultiScaleRoIAlign(
        ["0", "1", "2", "3"], pool_size, sampling_ratio, canonical_scale=canonical_size, canonical_level=4
    )
    expected = pool(dict(zip("0123", theirs, strict=True)), list(boxes), [(height, width)] * 2)
    pooled = pool_boxes(
        ours,
        STRIDES,
        boxes,
        pool_size=pool_size,
        sampling_ratio=sampling_ratio,
        canonical_size=canonical_size,
    )
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)
    weights = torch.randn_like(expected) / 10
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad.abs().sum() > 0  # every level is pooled from
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def per_level(features, boxes, canonical_size, pool_size, sampling_ratio, aligned):
    """One ``roi_align`` of torchvision for every level, each for the boxes that belong to it."""
    level = level_of_box(boxes, 4, 4, canonical_size, 4).flatten()
    image = torch.arange(float(len(boxes))).repeat_interleave(boxes.shape[1])
    regions = torch.cat([image[:, None], boxes.flatten(0, 1)], dim=1)
    pooled = torch.zeros(len(regions), features[0].shape[1], pool_size, pool_size)
    for index, (feature, (step, _)) in enumerate(zip(features, STRIDES, strict=True)):
        rows = (level == index).nonzero().squeeze(1)
        found = roi_align(feature, regions[rows], pool_size, 1 / step, sampling_ratio, aligned)
        pooled = pooled.index_add(0, rows, found)
    return pooled


@pytest.mark.parametrize(
    ("sampling_ratio", "aligned"), [(2, True), (1, True), (3, True), (0, True), (0, False)]
)
@pytest.mark.parametrize("pool_size", [7, 2])
def test_aligned_and_adaptive_values_and_gradients_are_torchvisions(
    sampling_ratio, aligned, pool_size, place
):
    height, width = 128, 192
    ours = [torch.rand(2, 3, height // step, width // step, requires_grad=True) for step, _ in STRIDES]
    theirs = [feature.detach().clone().requires_grad_() for feature in ours]
    # Coordinates that every level can express exactly: how many samples there are depends on the last bit.
    boxes = (awkward_boxes(height, width, 300) * 64).round() / 64
    expected = per_level(theirs, boxes, 40, pool_size, sampling_ratio, aligned)
    pooled = pool_boxes(
        ours,
        STRIDES,
        boxes,
        pool_size=pool_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        canonical_size=40,
    )
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)
    weights = torch.randn_like(expected) / 10
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad.abs().sum() > 0
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_adaptive_sampling_of_any_box_is_close_to_torchvisions():
    features = [torch.rand(2, 3, 128 // step, 192 // step) for step, _ in STRIDES]
    boxes = awkward_boxes(128, 192, 400)
    pooled = pool_boxes(features, STRIDES, boxes, sampling_ratio=0, aligned=True, canonical_size=40)
    expected = per_level(features, boxes, 40, 7, 0, True)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=5e-4)  # boxes move by 2^-14 of a cell


def test_an_aligned_sample_in_the_middle_of_a_pixel_is_its_value():
    feature = torch.arange(64.0).view(1, 1, 8, 8)
    box = torch.tensor([[[8.0, 16, 40, 32]]])  # rows 2 and 3, columns 1 to 4 of a level of stride 8
    aligned = pool_boxes([feature], [(8, 8)], box, pool_size=2, sampling_ratio=0, aligned=True)
    # A cell is one row of two pixels: means of pixels 17 18 | 19 20 and, below, 25 26 | 27 28.
    assert aligned.flatten().tolist() == [17.5, 19.5, 25.5, 27.5]
    assert pool_boxes([feature], [(8, 8)], box, pool_size=2, sampling_ratio=0).flatten().tolist() == [
        22.0,
        24.0,
        30.0,
        32.0,
    ]


def test_one_level_is_plain_roi_align(place):
    feature, boxes = torch.randn(2, 3, 16, 24), awkward_boxes(128, 192, 50)
    regions = torch.cat([torch.arange(2.0).repeat_interleave(50)[:, None], boxes.flatten(0, 1)], dim=1)
    expected = roi_align(feature, regions, 7, 1 / 8, 2)
    torch.testing.assert_close(pool_boxes([feature], [(8, 8)], boxes), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_levels_do_not_mix(aligned, place):
    # Every level is one constant, so any sample that strayed into a neighbour would show.
    values = [1.0, 10.0, 100.0, 1000.0]
    features = [
        torch.full((2, 1, -(-100 // s), -(-150 // s)), v) for (s, _), v in zip(STRIDES, values, strict=True)
    ]
    boxes = awkward_boxes(96, 144, 400)
    expected = torch.tensor(values)[level_of_box(boxes, 4, 4, 40, 4).flatten()]
    pooled = pool_boxes(features, STRIDES, boxes, canonical_size=40, aligned=aligned)
    torch.testing.assert_close(pooled, expected[:, None, None, None].expand_as(pooled))


def test_a_box_beyond_a_map_that_was_rounded_down_reads_its_border(place):
    feature = torch.arange(16.0).view(1, 1, 4, 4)
    box = torch.tensor([[[8.0, 8, 40, 40]]])  # the map covers 32 pixels
    inside = torch.tensor([[[8.0, 8, 32, 32]]])
    torch.testing.assert_close(pool_boxes([feature], [(8, 8)], box), pool_boxes([feature], [(8, 8)], inside))


def test_strides_may_differ_between_axes(place):
    feature = torch.rand(1, 2, 32, 8)
    box = torch.tensor([[[16.0, 8, 64, 32]]])
    expected = roi_align(feature, torch.tensor([[0.0, 2, 4, 8, 16]]), 3, 1.0, 2)  # x / 8, y / 2
    torch.testing.assert_close(pool_boxes([feature], [(2, 8)], box, pool_size=3), expected)


def test_level_by_hand():
    # 224 pixels belong to level 4 (stride 16, index 2); half as many to level 3; a tiny one to the finest.
    sides = torch.tensor([224.0, 223, 112, 111, 448, 5000, 1, 0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=-1)
    assert level_of_box(boxes, 4, 4, 224, 4).tolist() == [2, 1, 1, 0, 3, 3, 0, 0]
    assert level_of_box(boxes, 8, 3, 224, 4).tolist() == [1, 0, 0, 0, 2, 2, 0, 0]
    assert level_of_box(boxes, 4, 4, 112, 3)[0] == 2
    assert level_of_box(boxes, 4, 4, 224, 5)[0] == 3


def test_atlas_places_do_not_overlap():
    sizes = [(5, 7), (3, 4), (2, 2), (1, 1)]
    corners, (rows, columns) = _atlas_corners(sizes)
    taken = torch.zeros(rows, columns)
    for (height, width), (row, column) in zip(sizes, corners, strict=True):
        # with the margins: one cell before the level, two behind it
        assert row >= 1 and column >= 1 and row + height + 2 <= rows and column + width + 2 <= columns
        taken[row - 1 : row + height + 2, column - 1 : column + width + 2] += 1
    assert taken.max() == 1


def test_half_precision_maps_are_pooled_in_float32(place):
    features = [torch.rand(2, 3, 128 // step, 192 // step, dtype=torch.bfloat16) for step, _ in STRIDES]
    boxes = awkward_boxes(128, 192, 50)
    pooled = pool_boxes(features, STRIDES, boxes)
    expected = pool_boxes([feature.float() for feature in features], STRIDES, boxes)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, expected.bfloat16())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_ways_of_devices_are_those_of_the_cpu(seed, kind, deterministic):
    """Maps down to one cell, boxes without area, off the canvas, at borders of levels, and none at all."""
    torch.manual_seed(seed)
    images, height, width = [(1, 64, 96), (3, 32, 32), (2, 128, 64)][seed % 3]
    maps = [torch.randn(images, 4, height // step, width // step).to(kind) for step, _ in STRIDES]
    center = torch.rand(images, 40, 2) * torch.tensor([width, height])
    half = torch.exp(torch.rand(images, 40, 2) * 6 - 2) / 2
    boxes = torch.cat([center - half, center + half], dim=-1).clamp(min=0)  # beyond the far borders too
    boxes[:, :4] = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 9], [0, 0, 30, 30], [2, 2, 62, 62]])
    boxes = boxes[:, :0] if seed == 5 else boxes
    found = []
    for place in (contextlib.nullcontext(), device_paths()):
        leaves = [level.clone().requires_grad_() for level in maps]
        torch.use_deterministic_algorithms(deterministic)
        try:
            with place:
                pooled = pool_boxes(leaves, STRIDES, boxes, canonical_size=30, aligned=seed % 2 == 1)
                torch.manual_seed(seed)
                (pooled.float() * torch.randn(pooled.shape)).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        found.append([pooled, *(leaf.grad for leaf in leaves)])
    exact = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[kind]
    for ours, other in zip(*found, strict=True):
        assert ours.dtype == other.dtype == kind
        torch.testing.assert_close(ours, other, rtol=exact, atol=exact)


def test_deterministic_mode_takes_no_kernel_with_another_order_of_additions_each_time(on_devices):
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.name())
            return func(*args, **(kwargs or {}))

    seen = set()
    leaf = torch.randn(1, 3, 8, 8, requires_grad=True)
    box = torch.tensor([[[0.0, 0, 20, 20]]])
    for deterministic, kernel in ((True, False), (False, True)):
        torch.use_deterministic_algorithms(deterministic)
        try:
            with Names():
                pool_boxes([leaf], [(4, 4)], box).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        assert ("torchvision::_roi_align_backward" in seen) == kernel
