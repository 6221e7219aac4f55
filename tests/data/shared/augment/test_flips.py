"""Pipelines of flips alone: in everything what albumentations makes of the same seed."""

import numpy as np
import pytest

from trunkline.data.shared.augment.transforms import Augmentation, ImageAugmentation, MaskAugmentation

SIZE = (60, 90)  # height and width
PIPELINES = [
    [],
    [{"HorizontalFlip": None}],
    [{"VerticalFlip": {"p": 0.0}}, {"HorizontalFlip": {"p": 0.5}}],
    [{"HorizontalFlip": {"p": 0.3}}, {"VerticalFlip": {"p": 0.6}}, {"HorizontalFlip": {"p": 1.0}}],
]


@pytest.fixture
def data():
    """A picture, its mask, and 30 boxes, some less than a pixel wide, two a rounding error outside."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, 30, (30, 2))], axis=1).astype(np.float32)
    boxes[:5, 2:] = boxes[:5, :2] + (0.9, 30)
    boxes[5] = (80, 50, 90.001, 60.0004)
    boxes[6] = (-0.0001, 10, 20, 20)
    labels = np.arange(30)
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return image, boxes, labels, labels % 3 == 0, rng.integers(0, 9, SIZE, dtype=np.uint8)


def general(augmentation):
    """The same pipeline by albumentations."""
    assert augmentation.flips is not None
    augmentation.flips = None
    return augmentation


@pytest.mark.parametrize("steps", PIPELINES)
@pytest.mark.parametrize("min_box_size", [1.0, 8.0])
def test_flips_with_boxes_and_mask_are_those_of_albumentations(steps, min_box_size, data):
    image, boxes, labels, crowd, mask = data
    fast = Augmentation(steps, min_box_size=min_box_size)
    slow = general(Augmentation(steps, min_box_size=min_box_size))
    seen = set()
    for seed in range(40):
        one, other = (way(image, boxes, labels, crowd, seed, mask) for way in (fast, slow))
        np.testing.assert_allclose(one[1], other[1], atol=1e-4)
        assert one[1].dtype == np.float32 and len(one[1]) < len(boxes)
        for mine, theirs in zip((one[0], *one[2:]), (other[0], *other[2:]), strict=True):
            assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype
        seen.add(one[0].tobytes())
    assert len(seen) == {0: 1, 1: 2, 2: 2, 3: 4}[len(steps)]


@pytest.mark.parametrize("steps", PIPELINES)
def test_flips_of_pictures_and_masks_are_those_of_albumentations(steps, data):
    image, *_, mask = data
    with_mask, alone = MaskAugmentation(steps), ImageAugmentation(steps)
    slow_with_mask, slow_alone = general(MaskAugmentation(steps)), general(ImageAugmentation(steps))
    for seed in range(40):
        expected = slow_with_mask(image, mask, seed)
        assert all(map(np.array_equal, with_mask(image, mask, seed), expected))
        assert np.array_equal(alone(image, seed), slow_alone(image, seed))


@pytest.mark.parametrize(
    "step",
    [
        {"RandomRotate90": None},
        {"OneOf": {"transforms": [{"HorizontalFlip": None}]}},
        {"RandomBrightnessContrast": None},
    ],
)
def test_anything_beside_flips_goes_to_albumentations(step):
    for kind in (Augmentation, MaskAugmentation, ImageAugmentation):
        assert kind([{"HorizontalFlip": None}, step]).flips is None


def test_boxes_of_exactly_the_least_size_stay(data):
    """albumentations loses some of them by rounding."""
    image, boxes, labels, crowd, _ = data
    boxes, labels, crowd = boxes[7:], labels[7:], crowd[7:]
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + 1], axis=1)
    flip = Augmentation([{"HorizontalFlip": None}, {"VerticalFlip": None}])
    for seed in range(10):
        kept = flip(image, boxes, labels, crowd, seed)[1]
        np.testing.assert_allclose(kept[:, 2:] - kept[:, :2], 1, atol=1e-4)
        assert len(kept) == len(boxes)


def test_boxes_may_be_in_pixels_of_a_larger_image(data):
    image, boxes, labels, crowd, _ = data
    flip = Augmentation([{"HorizontalFlip": {"p": 1.0}}])
    small, found, _, _ = flip(image[::2, ::2].copy(), boxes, labels, crowd, 0, size=SIZE)
    assert np.array_equal(small, image[::2, ::2][:, ::-1])
    np.testing.assert_allclose(found, flip(image, boxes, labels, crowd, 0)[1])


def test_the_given_boxes_are_not_written_to(data):
    image, boxes, labels, crowd, _ = data
    before = boxes.copy()
    result = Augmentation([])(image, boxes, labels, crowd, 0)
    for array in result[1:]:
        array[:] = 0
    assert np.array_equal(boxes, before) and labels[-1] == 29 and crowd[0]
