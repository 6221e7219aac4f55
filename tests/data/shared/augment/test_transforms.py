"""Augmentation: boxes follow the pixels, configuration errors are named, randomness comes from the seed."""

import pickle

import numpy as np
import pytest

from trunkline.data.shared.augment.transforms import Augmentation, AugmentationError, ImageAugmentation

LABELS = np.array([4, 0, 2])
CROWD = np.array([False, True, False])
BOXES = np.array([[0, 0, 10, 20], [30, 5, 40, 30], [12, 8, 28, 22]], dtype=np.float32)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, size=(30, 40, 3), dtype=np.uint8)


def test_horizontal_flip_by_hand(image):
    flip = Augmentation([{"HorizontalFlip": {"p": 1.0}}])
    flipped, boxes, labels, crowd = flip(image, BOXES, LABELS, CROWD, seed=0)
    assert np.array_equal(flipped, image[:, ::-1])
    expected = [[30, 0, 40, 20], [0, 5, 10, 30], [12, 8, 28, 22]]  # x -> 40 - x
    np.testing.assert_allclose(boxes, expected, atol=1e-5)
    assert labels.tolist() == LABELS.tolist() and crowd.tolist() == CROWD.tolist()
    assert boxes.dtype == np.float32


def test_crop_clips_boxes_and_drops_what_is_left_of_too_little(image):
    crop = {"Crop": {"x_min": 8, "y_min": 0, "x_max": 35, "y_max": 30, "p": 1.0}}
    # Of the first box 2 of 10 columns stay (20 %), of the second 5 of 10 (50 %), of the third all.
    cropped, boxes, labels, crowd = Augmentation([crop], min_visibility=0.1)(image, BOXES, LABELS, CROWD, 0)
    assert np.array_equal(cropped, image[:, 8:35])
    np.testing.assert_allclose(boxes, [[0, 0, 2, 20], [22, 5, 27, 30], [4, 8, 20, 22]], atol=1e-5)
    assert labels.tolist() == [4, 0, 2]
    _, boxes, labels, crowd = Augmentation([crop], min_visibility=0.3)(image, BOXES, LABELS, CROWD, 0)
    assert labels.tolist() == [0, 2] and crowd.tolist() == [True, False]
    np.testing.assert_allclose(boxes, [[22, 5, 27, 30], [4, 8, 20, 22]], atol=1e-5)


def test_wholly_visible_boxes_pass_the_highest_demand(image):
    crop = {"Crop": {"x_min": 8, "y_min": 0, "x_max": 40, "y_max": 30, "p": 1.0}}
    assert Augmentation([crop], min_visibility=1.0)(image, BOXES, LABELS, CROWD, 0)[2].tolist() == [0, 2]


def test_small_remains_are_dropped(image):
    crop = {"Crop": {"x_min": 8, "y_min": 0, "x_max": 40, "y_max": 30, "p": 1.0}}
    keep = Augmentation([crop], min_visibility=0.0, min_box_size=2.0)
    assert keep(image, BOXES, LABELS, CROWD, 0)[2].tolist() == [4, 0, 2]
    drop = Augmentation([crop], min_visibility=0.0, min_box_size=2.5)  # 2 pixels of the first box are left
    assert drop(image, BOXES, LABELS, CROWD, 0)[2].tolist() == [0, 2]


def test_boxes_that_leave_the_crop_are_dropped_even_if_all_do(image):
    crop = {"Crop": {"x_min": 0, "y_min": 24, "x_max": 10, "y_max": 30, "p": 1.0}}
    _, boxes, labels, crowd = Augmentation([crop])(image, BOXES, LABELS, CROWD, 0)
    assert boxes.shape == (0, 4) and labels.shape == (0,) and crowd.shape == (0,)


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [{"HorizontalFlip": {"p": 1.0}}],
        [{"RandomSizedBBoxSafeCrop": {"height": 16, "width": 16, "p": 1.0}}],
        [{"BBoxSafeRandomCrop": {"p": 1.0}}],
        [{"RandomCrop": {"height": 8, "width": 8, "p": 1.0}}],
    ],
)
def test_an_image_without_boxes_stays_one(image, transforms):
    none = np.zeros((0, 4), dtype=np.float32)
    _, boxes, labels, crowd = Augmentation(transforms)(image, none, LABELS[:0], CROWD[:0], seed=0)
    assert boxes.shape == (0, 4) and boxes.dtype == np.float32
    assert labels.dtype == LABELS.dtype and crowd.dtype == bool


def test_boxes_a_rounding_error_outside_do_not_stop_it(image):
    boxes = np.array([[-1e-4, 0, 10, 30.0001], [20, 10, 40.00005, 20]], dtype=np.float32)
    _, result, _, _ = Augmentation([{"VerticalFlip": {"p": 1.0}}])(image, boxes, LABELS[:2], CROWD[:2], 0)
    np.testing.assert_allclose(result, [[0, 0, 10, 30], [20, 10, 40, 20]], atol=1e-3)
    assert (result >= 0).all() and (result <= (40, 30, 40, 30)).all()


def test_one_pixel_box_survives_a_flip(image):
    box = np.array([[39, 29, 40, 30]], dtype=np.float32)
    _, boxes, _, _ = Augmentation([{"HorizontalFlip": {"p": 1.0}}])(image, box, LABELS[:1], CROWD[:1], 0)
    np.testing.assert_allclose(boxes, [[0, 29, 1, 30]], atol=1e-5)


def test_colour_leaves_boxes_alone_and_changes_pixels(image):
    colour = Augmentation([{"RandomBrightnessContrast": {"p": 1.0}}])
    changed, boxes, labels, _ = colour(image, BOXES, LABELS, CROWD, seed=3)
    np.testing.assert_allclose(boxes, BOXES, atol=1e-5)
    assert not np.array_equal(changed, image) and changed.shape == image.shape


def test_many_random_crops_agree_with_the_pixels():
    """A lit rectangle on black: the returned box is where the light is."""
    image = np.zeros((50, 70, 3), dtype=np.uint8)
    image[10:40, 20:60] = 255
    box = np.array([[20, 10, 60, 40]], dtype=np.float32)
    pipeline = Augmentation(
        [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": None}, {"RandomCrop": {"height": 30, "width": 30}}],
        min_visibility=0.0,
    )
    shapes = set()
    for seed in range(40):
        result, boxes, _, _ = pipeline(image, box, LABELS[:1], CROWD[:1], seed)
        ys, xs = np.nonzero(result[:, :, 0])
        np.testing.assert_allclose(boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1e-4)
        shapes.add(tuple(boxes[0].round().tolist()))
    assert len(shapes) > 20


def flips(pipeline, seeds):
    """Whether the picture was mirrored (left to right, top to bottom), for each seed."""
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, 0] = 255
    none = np.zeros((0, 4), dtype=np.float32)
    found = []
    for seed in seeds:
        lit = np.argwhere(pipeline(image, none, LABELS[:0], CROWD[:0], seed)[0][:, :, 0])[0]
        found.append((bool(lit[1]), bool(lit[0])))
    return found


def test_the_seed_decides_whatever_came_before():
    pipeline = Augmentation([{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}])
    first = flips(pipeline, range(200))
    assert flips(pipeline, range(200)) == first
    assert flips(pipeline, reversed(range(200))) == first[::-1]
    assert flips(pickle.loads(pickle.dumps(pipeline)), range(200)) == first


def test_transforms_are_independent_of_each_other():
    """Seeding each transform alike would flip both ways or not at all."""
    pipeline = Augmentation([{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}])
    found = flips(pipeline, range(400))
    for case in ((False, False), (False, True), (True, False), (True, True)):
        assert 60 < found.count(case) < 140  # 100 expected, sigma 8.7


def test_nested_choices_are_built_and_seeded():
    pipeline = Augmentation(
        [{"OneOf": {"transforms": [{"HorizontalFlip": {"p": 1.0}}, {"VerticalFlip": {"p": 1.0}}], "p": 1.0}}]
    )
    found = flips(pipeline, range(100))
    assert found == flips(pipeline, range(100)) and set(found) == {(True, False), (False, True)}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"HorizontalFlop": {}}, ["no transform 'HorizontalFlop'", "did you mean HorizontalFlip"]),
        ({"horizontalflip": {}}, ["did you mean HorizontalFlip"]),
        ({"Qqqq": {}}, ["no transform 'Qqqq'", "albumentations"]),
        ({"DualTransform": {}}, ["no transform 'DualTransform'"]),
        ({"HorizontalFlip": {"probability": 0.5}}, ["HorizontalFlip", "no argument 'probability'"]),
        ({"RandomCrop": {"hight": 5, "width": 5}}, ["no argument 'hight'", "did you mean 'height'"]),
        ({"RandomCrop": {"height": 5}}, ["RandomCrop", "width"]),
        ({"RandomCrop": {"height": -5, "width": 5}}, ["RandomCrop", "height"]),
        ({"HorizontalFlip": {"p": 2.0}}, ["HorizontalFlip"]),
        ({"OneOf": {"transforms": [{"HorizontalFlop": {}}]}}, ["did you mean HorizontalFlip"]),
        ({"OverlayElements": {}}, ["OverlayElements", "boxes"]),
        ({"MaskDropout": {}}, ["MaskDropout", "mask"]),
        ({"Mosaic": {}}, ["Mosaic"]),
        ({"Normalize": {}}, ["Normalize", "normalised on the device"]),
        ({"ToTensorV2": {}}, ["ToTensorV2", "normalised on the device"]),
        ({"A": {}, "B": {}}, ["mapping of one name"]),
        ("HorizontalFlip", ["mapping of one name"]),
    ],
)
def test_wrong_entry_is_an_error_that_names_it(entry, words):
    with pytest.raises(AugmentationError) as caught:
        Augmentation([entry])
    for word in words:
        assert word in str(caught.value)


def test_a_mapping_instead_of_a_list_is_an_error():
    with pytest.raises(AugmentationError, match="list of single-key mappings"):
        Augmentation({"HorizontalFlip": {"p": 0.5}})


def test_visibility_is_a_share():
    with pytest.raises(AugmentationError, match="min_visibility is 10"):
        Augmentation([], min_visibility=10)


def test_failure_on_an_image_names_its_size(image):
    crop = Augmentation([{"RandomCrop": {"height": 100, "width": 100, "p": 1.0}}])
    with pytest.raises(AugmentationError, match="30x40 pixels .* Crop size"):
        crop(image, BOXES, LABELS, CROWD, 0)


def test_a_transform_that_loses_colours_is_refused(image):
    grey = Augmentation([{"ToGray": {"num_output_channels": 1, "p": 1.0}}])
    with pytest.raises(AugmentationError, match="8-bit RGB"):
        grey(image, BOXES, LABELS, CROWD, 0)


# -- images alone


def test_images_alone_follow_the_same_rules(image):
    flip = ImageAugmentation([{"HorizontalFlip": {"p": 1.0}}, {"VerticalFlip": {"p": 1.0}}])
    assert np.array_equal(flip(image, 0), image[::-1, ::-1])
    assert np.array_equal(ImageAugmentation([])(image, 0), image)
    crop = ImageAugmentation([{"RandomCrop": {"height": 100, "width": 100, "p": 1.0}}])
    with pytest.raises(AugmentationError, match="30x40 pixels .* Crop size"):
        crop(image, 0)
    with pytest.raises(AugmentationError, match="8-bit RGB"):
        ImageAugmentation([{"ToGray": {"num_output_channels": 1, "p": 1.0}}])(image, 0)


def test_the_seed_decides_for_images_alone_and_transforms_are_independent(image):
    pipeline = ImageAugmentation([{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}])
    cases = [image[::a, ::b].tobytes() for a in (1, -1) for b in (1, -1)]
    found = [cases.index(pipeline(image, seed).tobytes()) for seed in range(400)]
    assert [cases.index(pipeline(image, seed).tobytes()) for seed in reversed(range(400))] == found[::-1]
    for case in range(4):
        assert 60 < found.count(case) < 140  # 100 expected, sigma 8.7


def test_images_alone_come_without_boxes_masks_and_other_images():
    for name in ("MaskDropout", "Mosaic", "OverlayElements", "BBoxSafeRandomCrop"):
        with pytest.raises(AugmentationError, match=f"{name} needs .*, which classification data lacks"):
            ImageAugmentation([{name: {}}])
    for entry, words in (({"Normalize": {}}, "on the device"), ({"HorizontalFlop": {}}, "did you mean")):
        with pytest.raises(AugmentationError, match=words):
            ImageAugmentation([{"OneOf": {"transforms": [entry]}}])
