"""Masks and keypoints through augmentation: they follow the pixels of their image."""

import numpy as np
import pytest

from trunkline.data.shared.augment.instances import Instances, keypoints_inside
from trunkline.data.shared.augment.transforms import Augmentation, AugmentationError

SIZE = (30, 40)  # height and width
BOTH = ("masks", "keypoints")
LABELS, CROWD = np.arange(3), np.zeros(3, dtype=bool)
BOXES = np.array([[2, 3, 14, 20], [18, 4, 36, 25], [10, 25, 30, 29]], dtype=np.float32)
# Of each object the first two keypoints are partners.
PARTNERS = np.array([[1, 0, 2]] * 3)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def instances():
    """Blocks as masks; keypoints in the centres of pixels, the last of each object hidden."""
    masks = np.zeros((3, *SIZE), dtype=np.uint8)
    keypoints = np.zeros((3, 3, 3), dtype=np.float32)
    for mask, points, (x1, y1, x2, y2) in zip(masks, keypoints, BOXES.astype(int).tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
        points[:] = [(x1 + 1.5, y1 + 2.5, 2), (x2 - 1.5, y1 + 1.5, 2), (x1 + 4.5, y2 - 2.5, 1)]
    return Instances(masks, keypoints, PARTNERS)


def augmented(steps, image, instances, seed=0, flips=True, **options):
    augmentation = Augmentation(steps, carried=BOTH, **options)
    if not flips:
        augmentation.flips = None  # by albumentations then
    return augmentation(image, BOXES, LABELS, CROWD, seed, instances=instances)


@pytest.mark.parametrize("min_box_size", [1.0, 15.0])
def test_flips_are_those_of_albumentations(min_box_size, image, instances):
    steps = [{"HorizontalFlip": None}, {"VerticalFlip": {"p": 0.6}}]
    seen = set()
    for seed in range(30):
        one, other = (
            augmented(steps, image, instances, seed, flips, min_box_size=min_box_size)
            for flips in (True, False)
        )
        assert np.array_equal(one[-1].masks, other[-1].masks) and len(one[-1].masks) == len(one[1])
        np.testing.assert_allclose(one[-1].keypoints, other[-1].keypoints, atol=1e-4)
        assert one[-1].keypoints.dtype == other[-1].keypoints.dtype == np.float32
        assert np.array_equal(one[-1].partners, other[-1].partners)
        assert len(one[1]) == (3 if min_box_size == 1 else 1)
        seen.add(one[-1].keypoints.tobytes())
    assert len(seen) == 4


MOVING = [
    {"Transpose": {"p": 1.0}},
    {"RandomRotate90": {"p": 1.0}},
    {"D4": {"p": 1.0}},
    {"OneOf": {"transforms": [{"HorizontalFlip": {"p": 1.0}}, {"VerticalFlip": {"p": 1.0}}], "p": 0.7}},
    {"RandomCrop": {"height": 22, "width": 28, "p": 1.0}},
    {"PadIfNeeded": {"min_height": 50, "min_width": 60, "p": 1.0}},
]


@pytest.mark.parametrize("step", MOVING)
def test_masks_and_keypoints_follow_their_pixels(step, instances):
    """The picture shows each object, and its keypoints as one lit pixel each, in colours of their own."""
    picture = np.zeros((*SIZE, 3), dtype=np.uint8)
    for row, (mask, points) in enumerate(zip(instances.masks, instances.keypoints, strict=True)):
        picture[mask == 1, 0] = 50 + row
        for number, (x, y, _) in enumerate(points):
            picture[int(y), int(x), 1] = 100 + 10 * row + number
    orientations = set()
    for seed in range(20):
        steps = [step, {"HorizontalFlip": {"p": 0.5}}]
        result, _, labels, _, moved = augmented(steps, picture, instances, seed, min_visibility=0.0)
        assert len(labels) == len(moved.masks) == len(moved.keypoints)
        for row, mask, points in zip(labels, moved.masks, moved.keypoints, strict=True):
            assert np.array_equal(mask == 1, result[:, :, 0] == 50 + row)
            places = [np.argwhere(result[:, :, 1] == 100 + 10 * row + number) for number in range(3)]
            x, y = points[:, 0], points[:, 1]
            centres = [tuple(place[0, ::-1] + 0.5) if len(place) else (0.0, 0.0) for place in places]
            found = list(zip(x.tolist(), y.tolist(), strict=True))
            straight = close(found, centres)
            swapped = close(found, [centres[1], centres[0], centres[2]])
            assert straight or swapped
            lit = [len(place) > 0 for place in places]
            assert (points[:, 2] > 0).sum() == sum(lit)
            assert points[2, 2] == (1 if lit[2] else 0)  # the hidden one stays hidden
            if straight != swapped:
                orientations.add(swapped)
    assert orientations == {False, True}


def close(points, expected):
    return np.allclose(points, expected, atol=1e-3)


@pytest.mark.parametrize("turned", [{"HorizontalFlip": {"p": 1.0}}, {"VerticalFlip": {"p": 1.0}}])
def test_left_and_right_are_exchanged_in_mirror_images_alone(turned, image, instances):
    """Also where the flip is hidden in a pipeline that turns, bends and resizes."""
    rest = [
        {"Rotate": {"limit": (50, 70), "p": 1.0}},
        {"Affine": {"scale": 0.5, "p": 1.0}},
        {"ElasticTransform": {"alpha": 5, "sigma": 5, "p": 1.0}},
        {"Resize": {"height": 77, "width": 55, "p": 1.0}},
    ]
    for flips, mirrored in (([], False), ([turned], True), ([turned, turned], False)):
        for seed in range(5):
            steps = [*flips, *rest]
            with_partners = augmented(steps, image, instances, seed, min_visibility=0.0)[-1]
            same = instances._replace(partners=np.array([[0, 1, 2]] * 3))
            without = augmented(steps, image, same, seed, min_visibility=0.0)[-1]
            order = [1, 0, 2] if mirrored else [0, 1, 2]
            assert np.array_equal(with_partners.keypoints, without.keypoints[:, order])


def test_keypoints_stay_near_their_pixels_when_sizes_change(image, instances):
    """albumentations scales the centres of pixels from the centre of the first one: half a pixel at most."""
    steps = [{"Resize": {"height": 60, "width": 80, "p": 1.0}}]
    moved = augmented(steps, image, instances)[-1]
    np.testing.assert_allclose(moved.keypoints[:, :, :2], 2 * instances.keypoints[:, :, :2], atol=0.51)
    assert np.array_equal(moved.masks, np.repeat(np.repeat(instances.masks, 2, axis=1), 2, axis=2))


@pytest.mark.parametrize(
    "step",
    [
        {"PadIfNeeded": {"min_height": 50, "min_width": 60}},
        {"Rotate": {"limit": (45, 45), "p": 1.0}},
        {"CoarseDropout": {"hole_height_range": (9, 9), "hole_width_range": (9, 9), "p": 1.0}},
    ],
)
def test_uncovered_and_blanked_pixels_belong_to_no_object(step, image, instances):
    whole = instances._replace(masks=np.ones_like(instances.masks))
    white = np.full_like(image, 255)
    result, *_, moved = augmented([step], white, whole)
    blank = result[:, :, 0] < 128
    assert blank.sum() > 50 and set(np.unique(moved.masks)) == {0, 1}
    for mask in moved.masks:
        assert (mask == blank).sum() <= 0.1 * blank.sum()  # interpolated at the edges of a turn


def test_objects_and_a_mask_of_all_pixels_travel_together(image, instances):
    mask = np.random.default_rng(1).integers(0, 9, SIZE, dtype=np.uint8)
    steps = [{"HorizontalFlip": {"p": 1.0}}, {"Transpose": {"p": 1.0}}]
    augmentation = Augmentation(steps, carried=BOTH)
    *_, moved_mask, moved = augmentation(image, BOXES, LABELS, CROWD, 0, mask, instances=instances)
    assert np.array_equal(moved_mask, mask[:, ::-1].T)
    assert np.array_equal(moved.masks, instances.masks[:, :, ::-1].transpose(0, 2, 1))


def test_what_cannot_be_carried_is_refused():
    with pytest.raises(AugmentationError, match="Morphological would change the labels"):
        Augmentation([{"Morphological": None}], carried=["masks"])
    with pytest.raises(AugmentationError, match="mask_interpolation 1 would blend labels"):
        Augmentation([{"Rotate": {"mask_interpolation": 1}}], carried=["masks"])
    with pytest.raises(AugmentationError, match="MaskDropout needs mask, which detection data lacks"):
        Augmentation([{"MaskDropout": None}], carried=["masks"])
    Augmentation([{"Morphological": None}, {"Rotate": {"mask_interpolation": 1}}])


def test_one_kind_is_carried_without_the_other(image, instances):
    for steps in ([{"HorizontalFlip": {"p": 1.0}}], [{"HorizontalFlip": {"p": 1.0}}, {"RandomGamma": None}]):
        masks = Augmentation(steps, carried=["masks"])(
            image, BOXES, LABELS, CROWD, 0, instances=Instances(instances.masks)
        )[-1]
        assert masks.keypoints is None and np.array_equal(masks.masks, instances.masks[:, :, ::-1])
        points = Augmentation(steps, carried=["keypoints"])(
            image, BOXES, LABELS, CROWD, 0, instances=instances._replace(masks=None)
        )[-1]
        assert points.masks is None and np.allclose(points.keypoints[0, 1, :2], [40 - 3.5, 5.5])


def test_keypoints_outside_are_not_labelled():
    given = np.array([[[-0.1, 5, 2], [0, 0, 1], [40, 30, 2], [40.1, 5, 2], [5, np.nan, 2], [7, 7, 0]]])
    expected = [[0] * 3, [0, 0, 1], [40, 30, 2], [0] * 3, [0] * 3, [0] * 3]
    assert keypoints_inside(given, SIZE)[0].tolist() == expected


def test_the_given_instances_are_not_written_to(image, instances):
    before = [column.copy() for column in instances]
    for seed in range(5):
        for flips in (True, False):
            augmented([{"HorizontalFlip": None}, {"VerticalFlip": None}], image, instances, seed, flips)
    assert all(map(np.array_equal, instances, before))
