"""The recipe of nnU-Net for augmentation: each step acts as often and as much as there; configs hold it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from scan_cases import blocks, noise
from trunkline.data.scans.augment import ScanAugmentation, default_transforms

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "scans"
CUBE = (12, 12, 12)


@pytest.mark.parametrize("name", ["unet_2d_membrane", "unet_3d_ct_organs", "unet_3d_hippocampus"])
def test_configs_hold_the_recipe_for_their_patch(name):
    """Exactly: a digit less would change what training sees."""
    data = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["init_args"]
    assert data["augment"] == default_transforms(data["patch"])


@pytest.mark.parametrize(("shape", "times"), [((8, 10), 50), ((6, 7, 8), 150)])
def test_the_default_acts_as_often_as_in_the_paper(shape, times):
    augmentation = ScanAugmentation(default_transforms(shape), shape)
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
