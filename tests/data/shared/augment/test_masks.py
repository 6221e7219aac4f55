"""Augmentation of images with a mask: labels follow the pixels, and none are made up."""

import inspect

import albumentations
import numpy as np
import pytest

from trunkline.data.shared.augment.transforms import Augmentation, AugmentationError, MaskAugmentation

LABELS = np.array([4, 0, 2])
CROWD = np.array([False, True, False])
BOXES = np.array([[0, 0, 10, 20], [30, 5, 40, 30], [12, 8, 28, 22]], dtype=np.float32)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, size=(30, 40, 3), dtype=np.uint8)


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
