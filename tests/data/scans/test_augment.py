"""Augmentation: image and mask stay aligned, what comes from outside is ignored, errors."""

import math

import numpy as np
import pytest
import torch

from scan_cases import blocks, noise
from trunkline.data.scans.augment import _INTENSITY, _SPATIAL, USABLE, ScanAugmentation, default_transforms
from trunkline.data.shared.augment.checks import AugmentationError

CUBE = (12, 12, 12)
ARGUMENTS = {
    "RandAffine": {"rotate_range": [0.5, 0.5, 0.5], "translate_range": [3, 3, 3]},
    "RandRotate": {"range_x": 0.6},
    "Rand2DElastic": {"spacing": [4, 4], "magnitude_range": [1, 2], "rotate_range": [0.4]},
    "Rand3DElastic": {"sigma_range": [2, 3], "magnitude_range": [30, 60]},
    "RandZoom": {"min_zoom": 0.5, "max_zoom": 0.9},
    "RandFlip": {"spatial_axis": 0},
    "RandScaleIntensity": {"factors": 0.5},
    "RandScaleIntensityFixedMean": {"factors": 0.5},
    "RandShiftIntensity": {"offsets": 1.0},
    "RandStdShiftIntensity": {"factors": 0.5},
    "RandCoarseDropout": {"holes": 2, "spatial_size": 3},
    "RandCoarseShuffle": {"holes": 2, "spatial_size": 3},
    "RandGibbsNoise": {"alpha": [0.5, 0.9]},
}


def only(name, shape, **arguments):
    return ScanAugmentation([{name: {"prob": 1.0} | ARGUMENTS.get(name, {}) | arguments}], shape)


# -- image and mask together


@pytest.mark.parametrize("shape", [(12, 15), (12, 13, 15)])
@pytest.mark.parametrize("name", _SPATIAL)
def test_mask_and_image_stay_aligned_and_what_is_uncovered_is_ignored(name, shape):
    if name == ("Rand3DElastic" if len(shape) == 2 else "Rand2DElastic"):
        return
    if name == "RandRotate90":
        shape = shape[:1] * len(shape)
    nearest = {
        key: "nearest-exact" if name == "RandZoom" else "nearest"
        for key in _SPATIAL[name][0]
        if key == "mode"
    }
    options = (
        {"rotate_range": [0.5], "translate_range": [3, 3]} if name == "RandAffine" and len(shape) == 2 else {}
    )
    augmentation = only(name, shape, **nearest, **options)
    mask = blocks(shape)
    moved = ignored = 0
    for seed in range(5):
        image, labels = augmentation(torch.stack([mask + 10.0, 20.0 - mask]), mask, seed)
        inside = labels != 255
        assert torch.equal(image[0][inside], labels[inside] + 10.0) and not image[:, ~inside].any()
        assert torch.equal(image[1][inside], 20.0 - labels[inside])
        moved += not torch.equal(labels, mask)
        ignored += int((~inside).sum())
        assert labels.dtype == torch.uint8 and image.dtype == torch.float32
    assert moved >= 3
    assert (ignored > 0) == (name not in ("RandFlip", "RandAxisFlip", "RandRotate90"))


def test_a_quarter_turn_is_that_of_numpy_with_interpolation_too():
    image, mask = noise(CUBE), blocks(CUBE)
    mask[3, 4, 5] = 255
    quarter = [math.pi / 2, math.pi / 2 + 1e-9]
    for axis, plane in enumerate([(1, 2), (0, 2), (0, 1)]):
        ranges = [quarter if a == axis else [0, 1e-12] for a in range(3)]
        turned, labels = only("RandAffine", CUBE, rotate_range=ranges, translate_range=None)(image, mask, 0)
        matches = [
            (turned - torch.rot90(image, k, [p + 1 for p in plane])).abs().max() < 1e-3
            and torch.equal(labels, torch.rot90(mask, k, plane))
            for k in (1, 3)
        ]
        assert sum(matches) == 1


def test_corners_that_a_turn_uncovers_are_ignored():
    side, angle = 41, math.radians(30)
    augmentation = only(
        "RandAffine", (side, side), rotate_range=[[angle, angle + 1e-9]], translate_range=None
    )
    image, labels = augmentation(torch.ones(1, side, side), torch.zeros(side, side, dtype=torch.uint8), 0)
    y, x = np.indices((side, side)) - side // 2
    ahead = np.maximum(
        abs(x * math.cos(angle) + y * math.sin(angle)), abs(y * math.cos(angle) - x * math.sin(angle))
    )
    ignored = labels.numpy() == 255
    assert ignored[ahead > side / 2 + 0.01].all() and not ignored[ahead < side / 2 - 0.01].any()
    assert not image[0].numpy()[ahead > side / 2 + 1].any() and (labels.numpy()[~ignored] == 0).all()
    kept, labels = only(
        "RandAffine",
        (side, side),
        rotate_range=[[angle, angle + 1e-9]],
        translate_range=None,
        padding_mode="border",
    )(torch.ones(1, side, side), torch.zeros(side, side, dtype=torch.uint8), 0)
    assert (kept > 0.99).all() and np.array_equal(labels.numpy() == 255, ignored)


def test_ignored_voxels_and_the_largest_label_survive():
    mask = torch.tensor([[0, 254, 255], [1, 2, 3]], dtype=torch.uint8)
    _, labels = only("RandFlip", (2, 3), spatial_axis=1)(torch.zeros(1, 2, 3), mask, 0)
    assert labels.tolist() == [[255, 254, 0], [3, 2, 1]]


@pytest.mark.parametrize("shape", [(14, 16), CUBE])
@pytest.mark.parametrize("name", _INTENSITY)
def test_intensities_change_the_image_alone(name, shape):
    options = {"upsample_mode": "bilinear"} if len(shape) == 2 and name == "RandSimulateLowResolution" else {}
    augmentation = only(name, shape, **options)
    image, mask = noise(shape), blocks(shape)
    before = image.clone()
    changed, labels = augmentation(image, mask, 3)
    again, _ = augmentation(image, mask, 3)
    assert torch.equal(labels, mask) and not torch.equal(changed, image) and torch.equal(changed, again)
    assert torch.equal(image, before) and torch.equal(mask, blocks(shape)) and type(changed) is torch.Tensor


def test_image_and_mask_given_are_not_written_to():
    image, mask = noise(CUBE), blocks(CUBE)
    augmentation = ScanAugmentation(default_transforms(CUBE), CUBE)
    for seed in range(20):
        augmentation(image, mask, seed)
    assert torch.equal(image, noise(CUBE)) and torch.equal(mask, blocks(CUBE))


# -- randomness


@pytest.mark.parametrize("shape", [(16, 20), (12, 14, 16)])
def test_the_seed_alone_decides(shape):
    first, second = (ScanAugmentation(default_transforms(shape), shape) for _ in range(2))
    image, mask = noise(shape), blocks(shape)
    results = [first(image, mask, seed) for seed in range(20)]
    for seed in reversed(range(20)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        changed, labels = second(image, mask, seed)
        assert torch.equal(changed, results[seed][0]) and torch.equal(labels, results[seed][1])
    assert len({result[0].sum().item() for result in results}) > 10


def test_equal_transforms_draw_for_themselves():
    flips = [{"RandFlip": {"prob": 0.5, "spatial_axis": axis}} for axis in range(2)]
    augmentation, mask = ScanAugmentation(flips, (3, 4)), torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    found = [augmentation(mask[None].float(), mask, seed)[1] for seed in range(200)]
    for dims in ([], [0], [1], [0, 1]):
        assert 25 < sum(torch.equal(labels, mask.flip(dims)) for labels in found) < 75


def test_no_transforms_leave_all_as_it_is():
    image, mask = noise(CUBE), blocks(CUBE)
    changed, labels = ScanAugmentation([], CUBE)(image, mask, 0)
    assert changed is image and labels is mask


def test_the_setting_of_the_library_stays():
    from monai.data import get_track_meta

    augmentation = ScanAugmentation(default_transforms(CUBE), CUBE)
    augmentation(noise(CUBE), blocks(CUBE), 0)
    assert get_track_meta() is True


# -- errors


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"RandFlop": {}},
            r"data.augment\[1\] RandFlop: MONAI has no such transform; did you mean RandFlip\?",
        ),
        ({"RandFlipd": {}}, r"did you mean RandFlip\?"),
        ({"Xyz": {}}, "no such transform; there are RandAffine"),
        (
            {"RandSpatialCrop": {"roi_size": 3}},
            "RandSpatialCrop: this transform of MONAI cannot be used here",
        ),
        ({"Flip": {}}, "cannot be used here; there are"),
        (
            {"RandFlip": {"probe": 1}},
            r"RandFlip has no argument 'probe'; did you mean 'prob'\? \(it takes prob, s",
        ),
        ({"RandFlip": {"keys": ["image"]}}, "no argument 'keys'"),
        ({"RandAffine": {"spatial_size": [3, 3, 3]}}, "no argument 'spatial_size'"),
        ({"RandFlip": {"prob": 2}}, "prob is 2; it is a probability"),
        ({"RandFlip": {"prob": "often"}}, "prob is 'often'"),
        (
            {"RandFlip": {"spatial_axis": 5}},
            r"data.augment\[1\] RandFlip failed on a patch of 12x12x12 voxels",
        ),
        ({"RandScaleIntensity": {}}, r"data.augment\[1\] RandScaleIntensity: .*factors"),
        ({"RandFlip": 0.5}, "needs its arguments as a mapping"),
        ({"RandFlip": {}, "RandZoom": {}}, "a mapping of one name"),
        ("RandFlip", "a mapping of one name"),
    ],
)
def test_wrong_entries_are_found_at_once(entry, words):
    with pytest.raises(AugmentationError, match=words):
        ScanAugmentation([{"RandFlip": None}, entry], CUBE)


def test_wrong_lists_and_changes_of_size_are_errors():
    for given in ({"RandFlip": {}}, "RandFlip", 3):
        with pytest.raises(AugmentationError, match="data.augment is a list"):
            ScanAugmentation(given, CUBE)
    # Which of the planes turns is drawn: a quarter turn of unequal sides changes the size.
    with pytest.raises(AugmentationError, match=r"RandRotate90 made .* of image .*data.patch says how large"):
        ScanAugmentation([{"RandRotate90": {"max_k": 1}}], (12, 8))
    with pytest.raises(AugmentationError, match="Rand3DElastic needs patches of 3 axes; data.patch has 2"):
        ScanAugmentation([{"Rand3DElastic": ARGUMENTS["Rand3DElastic"]}], (12, 8))


def test_every_usable_name_is_a_transform_of_the_library():
    import monai.transforms

    assert all(hasattr(monai.transforms, f"{name}d") for name in USABLE) and len(set(USABLE)) == len(USABLE)
