"""Augmentation: boxes follow the pixels, configuration errors are named, randomness comes from the seed."""

import inspect
import pickle

import albumentations
import numpy as np
import pytest

from trunkline.data.shared.augment import Augmentation, AugmentationError, ImageAugmentation, MaskAugmentation

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


# -- images with a mask


@pytest.fixture
def mask():
    """Blocks of the labels 7, 13 and 200: neither 0 nor 255, nor anything between two others."""
    blocks = np.random.default_rng(1).choice(np.array([7, 13, 200], dtype=np.uint8), size=(5, 5))
    return np.kron(blocks, np.ones((6, 8), dtype=np.uint8))  # [30, 40]


def test_the_mask_follows_the_pixels(image, mask):
    """The same pipeline on a picture of the mask: the pixels tell where each label has to be."""
    picture = np.repeat(mask[:, :, None], 3, axis=2)
    pipeline = MaskAugmentation(
        [{"HorizontalFlip": None}, {"VerticalFlip": None}, {"RandomRotate90": None}]
        + [{"RandomCrop": {"height": 20, "width": 24}}]
    )
    shapes = set()
    for seed in range(40):
        result, labels = pipeline(picture, mask, seed)
        assert np.array_equal(result[:, :, 0], labels) and labels.shape == (20, 24)
        shapes.add(labels.tobytes())
        again = pipeline(picture, mask, seed)[1]
        assert np.array_equal(again, labels)
    assert len(shapes) > 30
    same, labels = MaskAugmentation([])(image, mask, 0)
    assert np.array_equal(same, image) and np.array_equal(labels, mask)


ARGUMENTS = {
    "Affine": {"rotate": (-40, 40), "scale": (0.5, 1.5), "shear": (-20, 20)},
    "AtLeastOneBBoxRandomCrop": {"height": 10, "width": 10},
    "CenterCrop": {"height": 40, "width": 20, "pad_if_needed": True},
    "CoarseDropout": {"hole_height_range": (5, 9), "hole_width_range": (5, 9)},
    "ConstrainedCoarseDropout": {"mask_indices": [7, 13, 200]},
    "Crop": {"x_max": 50, "y_max": 20, "pad_if_needed": True},
    "CropAndPad": {"px": 7, "keep_size": False},
    "CropNonEmptyMaskIfExists": {"height": 20, "width": 20},
    "ElasticTransform": {"alpha": 300, "sigma": 8},
    "GridElasticDeform": {"num_grid_xy": (4, 4), "magnitude": 8},
    "LongestMaxSize": {"max_size": 77},
    "Pad": {"padding": 9},
    "PadIfNeeded": {"min_height": 60, "min_width": 60},
    "Perspective": {"scale": (0.1, 0.2), "fit_output": True},
    "PiecewiseAffine": {"scale": (0.1, 0.1), "nb_rows": 3, "nb_cols": 3},
    "PixelDropout": {"dropout_prob": 0.3},
    "RandomCrop": {"height": 60, "width": 60, "pad_if_needed": True},
    "RandomResizedCrop": {"size": (33, 47)},
    "RandomSizedBBoxSafeCrop": {"height": 10, "width": 10},
    "RandomSizedCrop": {"min_max_height": (10, 20), "size": (33, 47)},
    "Resize": {"height": 33, "width": 47},
    "Rotate": {"limit": (20, 60)},
    "SmallestMaxSize": {"max_size": 77},
    "ThinPlateSpline": {"scale_range": (0.4, 0.4)},
    "XYMasking": {"num_masks_x": 2, "num_masks_y": 2, "mask_x_length": 5, "mask_y_length": 5},
}
REFUSED = (  # they need boxes or other images, change labels, or are for volumes
    "AtLeastOneBBoxRandomCrop, BBoxSafeRandomCrop, CenterCrop3D, CoarseDropout3D, CubicSymmetry, "
    "GridElasticDeform, Morphological, Mosaic, OverlayElements, Pad3D, PadIfNeeded3D, RandomCrop3D, "
    "RandomCropNearBBox, RandomSizedBBoxSafeCrop"
)
UNCOVERING = (
    "Affine CenterCrop CoarseDropout CropAndPad Erasing FrequencyMasking GridDropout MaskDropout Pad "
    "PadIfNeeded RandomCrop Rotate SafeRotate ShiftScaleRotate ThinPlateSpline XYMasking"
)
DUAL = [
    name
    for name, value in vars(albumentations).items()
    if inspect.isclass(value) and issubclass(value, albumentations.DualTransform)
    if name not in ("DualTransform", "Transform3D", "Lambda")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(DUAL))
def test_no_transform_makes_up_labels(name, image, mask):
    """Whatever moves or blanks pixels leaves labels that were there, and 255."""
    entry = {name: {"p": 1.0, **ARGUMENTS.get(name, {})}}
    if name in REFUSED.split(", "):
        with pytest.raises(AugmentationError, match=name):
            MaskAugmentation([entry])
        return
    pipeline = MaskAugmentation([entry])
    found = set()
    for seed in range(8):
        result, labels = pipeline(image, mask, seed)
        assert labels.shape == result.shape[:2] and labels.dtype == np.uint8
        found |= set(labels.flatten().tolist())
    assert found - {255} == {7, 13, 200}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNCOVERING.split())
def test_uncovered_and_blanked_pixels_are_ignored(name, image, mask):
    """On a white picture, what is black or blank afterwards has no label, and nothing else."""
    fill = (
        {"fill": 0} if "fill" in inspect.signature(getattr(albumentations, name).__init__).parameters else {}
    )
    pipeline = MaskAugmentation(
        [{"OneOf": {"transforms": [{name: {**ARGUMENTS.get(name, {}), **fill}}], "p": 1}}]
    )
    white, differing, blank = np.full_like(image, 255), 0, 0
    for seed in range(8):
        result, labels = pipeline(white, mask, seed)
        differing += int(((labels == 255) != (result[:, :, 0] < 128)).sum())
        blank += int((labels == 255).sum())
    assert blank > 20 and differing <= 0.1 * blank  # the picture is interpolated, the mask is not


def test_what_fills_the_mask_can_be_chosen(image, mask):
    pad = {"min_height": 40, "min_width": 50, "fill_mask": 0}
    assert set(MaskAugmentation([{"PadIfNeeded": pad}])(image, mask, 0)[1].flatten()) == {0, 7, 13, 200}
    kept = MaskAugmentation([{"CoarseDropout": {"fill_mask": None, "p": 1.0}}])(image, mask, 0)[1]
    assert np.array_equal(kept, mask)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"Rotate": {"mask_interpolation": 1}}, "Rotate: mask_interpolation 1 would blend labels"),
        (
            {"OneOf": {"transforms": [{"Resize": {"height": 9, "width": 9, "mask_interpolation": 2}}]}},
            "Resize",
        ),
        ({"RandomScale": {"area_for_downscale": "image_mask"}}, "area_for_downscale image_mask would blend"),
        ({"Morphological": None}, "Morphological would change the labels"),
        ({"BBoxSafeRandomCrop": None}, "needs boxes, which segmentation data lacks"),
        ({"Mosaic": None}, "needs mosaic_metadata, which segmentation data lacks"),
        ({"HorizontalFlop": None}, "did you mean HorizontalFlip"),
        ({"Normalize": None}, "normalised on the device"),
    ],
)
def test_transforms_that_spoil_masks_are_refused(entry, words):
    with pytest.raises(AugmentationError, match=words):
        MaskAugmentation([entry])


@pytest.mark.parametrize(
    "entry",
    [
        {"RandomScale": {"scale_limit": (0.5, 0.5)}},
        {"RandomScale": {"scale_limit": (-0.3, -0.3)}},
        {"Resize": {"height": 90, "width": 170}},
        {"SmallestMaxSize": {"max_size": 150}},
        {"LongestMaxSize": {"max_size": 70}},
        {"RandomResizedCrop": {"size": (60, 60), "scale": (0.5, 0.6)}},
        {"RandomSizedCrop": {"min_max_height": (90, 90), "size": (80, 80)}},
        {"CropAndPad": {"px": -10}},
        {"Affine": {"scale": (0.7, 0.7)}},
    ],
)
def test_labels_stay_at_the_place_of_their_pixels_when_sizes_change(entry):
    """Each pixel's value and label are its column: on average they agree afterwards, but for a rounding."""
    labels = np.tile(np.arange(120, dtype=np.uint8), (120, 1))
    picture = np.repeat(2 * labels[:, :, None], 3, axis=2)
    ((name, arguments),) = entry.items()
    picture, labels = MaskAugmentation([{name: {**arguments, "p": 1.0}}])(picture, labels, 1)
    inside = (labels > 2) & (labels < 117) & (picture[:, :, 0] > 6)
    assert abs((labels[inside] - picture[:, :, 0][inside] / 2).mean()) < 0.1


def test_failure_with_a_mask_names_the_size(image, mask):
    with pytest.raises(AugmentationError, match="30x40 pixels .* Crop size"):
        MaskAugmentation([{"RandomCrop": {"height": 100, "width": 100, "p": 1.0}}])(image, mask, 0)


def test_boxes_and_mask_travel_together(image):
    mask = np.full((30, 40), 3, dtype=np.uint8)
    for value, (x1, y1, x2, y2) in zip((10, 11, 12), BOXES.astype(int).tolist(), strict=True):
        mask[y1:y2, x1:x2] = value
    pipeline = Augmentation(
        [
            {"HorizontalFlip": None},
            {"VerticalFlip": None},
            {"PadIfNeeded": {"min_height": 50, "min_width": 50}},
        ]
    )
    for seed in range(10):
        plain = pipeline(image, BOXES, LABELS, CROWD, seed)
        result, boxes, labels, crowd, moved = pipeline(image, BOXES, LABELS, CROWD, seed, mask=mask)
        for one, other in zip(plain, (result, boxes, labels, crowd), strict=True):
            assert np.array_equal(one, other)
        assert (moved == 255).sum() == 50 * 50 - 30 * 40
        for value, (x1, y1, x2, y2) in zip((10, 11, 12), boxes.round().astype(int).tolist(), strict=True):
            expected = np.zeros((50, 50), dtype=bool)
            expected[y1:y2, x1:x2] = True
            if value == 12:  # the last one lies over none of the others
                assert np.array_equal(moved == value, expected)
            assert (moved[y1:y2, x1:x2] == value).all()
    with pytest.raises(AugmentationError, match="Morphological would change"):
        Augmentation([{"Morphological": None}])(image, BOXES, LABELS, CROWD, 0, mask=mask)
    Augmentation([{"Morphological": None}])(image, BOXES, LABELS, CROWD, 0)
