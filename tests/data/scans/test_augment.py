"""Augmentation: image and mask stay aligned, what comes from outside is ignored, the default acts."""

import math

import numpy as np
import pytest
import torch

from trunkline.data.scans.augment import _INTENSITY, _SPATIAL, USABLE, ScanAugmentation, default_transforms
from trunkline.data.shared.augment import AugmentationError

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


def blocks(shape, seed=0):
    """Return a mask of labels 0..4 in blocks of 3 voxels a side."""
    coarse = np.random.default_rng(seed).integers(0, 5, [-(-side // 3) for side in shape], dtype=np.uint8)
    for axis in range(len(shape)):
        coarse = coarse.repeat(3, axis)
    return torch.from_numpy(coarse[tuple(map(slice, shape))].copy())


def noise(shape, channels=2, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(channels, *shape)).astype(np.float32))


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
    augmentation = ScanAugmentation(None, CUBE)
    for seed in range(20):
        augmentation(image, mask, seed)
    assert torch.equal(image, noise(CUBE)) and torch.equal(mask, blocks(CUBE))


# -- randomness


@pytest.mark.parametrize("shape", [(16, 20), (12, 14, 16)])
def test_the_seed_alone_decides(shape):
    first, second = ScanAugmentation(None, shape), ScanAugmentation(None, shape)
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

    augmentation = ScanAugmentation(None, CUBE)
    augmentation(noise(CUBE), blocks(CUBE), 0)
    assert get_track_meta() is True


# -- nnU-Net's recipe


@pytest.mark.parametrize(("shape", "times"), [((8, 10), 50), ((6, 7, 8), 150)])
def test_the_default_acts_as_often_as_in_the_paper(shape, times):
    augmentation = ScanAugmentation(None, shape)
    counts = np.zeros(len(augmentation.steps))
    for seed in range(times):
        augmentation(noise(shape, 1), blocks(shape), seed)
        counts += [transform._do_transform for _, transform in augmentation.steps]
    names = [place.split()[1] for place, _ in augmentation.steps]
    wanted = {
        "RandAffine": 0.2, "RandZoom": 0.2, "RandGaussianNoise": 0.1, "RandGaussianSmooth": 0.2,
        "RandScaleIntensity": 0.15, "RandScaleIntensityFixedMean": 0.15, "RandSimulateLowResolution": 0.25,
        "RandFlip": 0.5,
    }  # fmt: skip
    chances = [wanted.get(name) for name in names]
    assert names[7:9] == ["RandAdjustContrast"] * 2 and names[9:] == ["RandFlip"] * len(shape)
    chances[7:9] = [0.1, 0.3]
    spread = np.sqrt(times * np.array(chances) * (1 - np.array(chances)))
    assert (abs(counts - times * np.array(chances)) < 4 * spread).all()


def effects(number, shape=(24, 24, 24), seeds=12, image=None):
    """Return what one step of the default makes of a noise image, for several seeds."""
    ((name, arguments),) = default_transforms(shape)[number].items()
    augmentation = ScanAugmentation([{name: arguments | {"prob": 1.0}}], shape)
    image = noise(shape, 1) if image is None else image
    return image, [augmentation(image, blocks(shape), seed)[0] for seed in range(seeds)]


def test_noise_of_the_default_has_a_spread_of_up_to_a_tenth():
    image, results = effects(2, seeds=40)
    spreads = [float((result - image).std()) for result in results]
    assert 0.08 < max(spreads) < 0.103 and min(spreads) < 0.02 and abs(np.mean(spreads) - 0.05) < 0.015


def test_smoothing_of_the_default_is_that_of_a_gaussian_of_half_to_one_voxel():
    from scipy.ndimage import gaussian_filter

    point = torch.zeros(1, 25, 25, 25)
    point[0, 12, 12, 12] = 1
    _, results = effects(3, (25, 25, 25), image=point)
    place = torch.arange(25.0) - 12
    for result in results:
        sigmas = [
            float((result[0].sum([a for a in range(3) if a != axis]) * place**2).sum() ** 0.5)
            for axis in range(3)
        ]
        assert all(0.45 < sigma < 1.1 for sigma in sigmas)
    low, high = (gaussian_filter(point[0].numpy(), sigma).max() for sigma in (1.0, 0.5))
    assert all(0.95 * low < float(result.max()) < 1.05 * high for result in results)


def test_brightness_and_contrast_of_the_default_scale_by_up_to_a_quarter():
    image, results = effects(4, seeds=30)
    factors = [float((result / image).median()) for result in results]
    assert all(
        torch.allclose(result, image * f, atol=1e-4) for result, f in zip(results, factors, strict=True)
    )
    assert 0.75 <= min(factors) < 0.85 and 1.15 < max(factors) <= 1.25
    image, results = effects(5, seeds=30)
    mean = image.mean()
    slopes = []
    for result in results:
        middle = (image - mean).abs() < 1  # what is not at the limits of the range
        slopes.append(float(((result - mean) / (image - mean))[middle].median()))
        wanted = (mean + slopes[-1] * (image - mean)).clamp(image.min(), image.max())
        assert torch.allclose(result, wanted, atol=1e-2)
    assert 0.75 <= min(slopes) < 0.85 and 1.15 < max(slopes) <= 1.25


def test_lower_resolution_of_the_default_blurs_and_gamma_keeps_mean_and_spread():
    image, results = effects(6)
    rough = [float(result.diff(dim=1).std() / image.diff(dim=1).std()) for result in results]
    assert max(rough) < 1.01 and min(rough) < 0.7
    skewed = image.exp()
    for number, sign in ((7, -1), (8, 1)):
        _, results = effects(number, seeds=5, image=skewed)
        for result in results:
            assert abs(result.mean() - skewed.mean()) < 1e-3 and abs(result.std() - skewed.std()) < 1e-2
            # the power of the values between 0 and 1: exact up to the scale that keeps the spread
            unit = (sign * skewed - (sign * skewed).min()) / (skewed.max() - skewed.min())
            fits = [
                np.corrcoef(unit.flatten() ** g, sign * result.flatten())[0, 1]
                for g in np.linspace(0.7, 1.5, 161)
            ]
            assert max(fits) > 0.99999


@pytest.mark.parametrize(("shape", "short"), [((4, 16, 16), 0), ((16, 4, 16), 1), ((16, 16, 4), 2)])
def test_flat_patches_are_turned_and_scaled_in_their_plane(shape, short):
    planes = torch.arange(shape[short], dtype=torch.uint8)
    mask = planes.reshape([-1 if a == short else 1 for a in range(3)]).expand(shape).contiguous()
    for number in (0, 1):
        ((name, arguments),) = default_transforms(shape)[number].items()
        augmentation = ScanAugmentation([{name: arguments | {"prob": 1.0}}], shape)
        uncovered = 0
        for seed in range(10):
            _, labels = augmentation(mask[None].float(), mask, seed)
            assert ((labels == mask) | (labels == 255)).all()
            uncovered += int((labels == 255).sum())
        assert uncovered
    cube = ScanAugmentation(default_transforms(CUBE)[:1], CUBE).steps[0][1].rand_affine.rand_affine_grid
    assert [round(math.degrees(angle)) for angle in cube.rotate_range] == [30, 30, 30]


def test_scaling_of_the_default_is_by_one_factor_between_seven_tenths_and_fourteen():
    shape = (33, 33, 33)
    ball = (sum((np.indices(shape) - 16.0) ** 2) < 64).astype(np.uint8)  # radius 8
    ((name, arguments),) = default_transforms(shape)[1].items()
    augmentation = ScanAugmentation([{name: arguments | {"prob": 1.0}}], shape)
    factors = []
    for seed in range(40):
        _, labels = augmentation(torch.zeros(1, *shape), torch.from_numpy(ball), seed)
        voxels = np.argwhere(labels.numpy() == 1)
        widths = voxels.max(0) - voxels.min(0) + 1
        assert widths.max() - widths.min() <= 1
        factors.append((len(voxels) / ball.sum()) ** (1 / 3))
    assert 0.65 < min(factors) < 0.8 and 1.3 < max(factors) < 1.48


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
