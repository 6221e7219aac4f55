"""Spacing, patches and strides of a plan: numbers by hand for every heuristic."""

import math

import numpy as np
import pytest

from trunkline.planning.shape import (
    anisotropic_axis,
    choose_patch,
    first_patch,
    median_shape,
    most_patches,
    stages_of,
    target_spacing,
    widest_patch,
)

# -- spacing


def test_the_target_spacing_is_the_median_of_each_axis():
    spacings = np.array([[0.6, 0.7, 2.0], [0.8, 0.7, 1.0], [0.7, 0.9, 1.5]])
    assert target_spacing(spacings, np.full((3, 3), 100)) == ((0.7, 0.7, 1.5), None)


@pytest.mark.parametrize(
    ("along", "slices", "expected", "coarse"),
    [
        ([1, 3, *[5] * 7, 7, 9], 60, 3.0, 2),  # the second of eleven is the 10th percentile
        ([1, 3, *[5] * 7, 7, 9], 200, 5.0, None),  # 3 * 200 voxels are no fewer than 512
        ([0.1, 0.2, *[5] * 7, 7, 9], 60, 0.8, 2),  # no finer than the next coarsest axis
        ([2.3] * 11, 60, 2.3, None),  # less than 3 times 0.8
    ],
)
def test_along_a_coarse_axis_the_finer_scans_decide(along, slices, expected, coarse):
    spacings = np.array([[0.7, 0.8, mm] for mm in along])
    found = target_spacing(spacings, np.full((11, 3), [512, 512, slices]))
    assert found == ((0.7, 0.8, expected), coarse)


def test_a_coarse_axis_may_be_any():
    assert anisotropic_axis((5, 1, 1), (20, 200, 200)) == 0
    assert anisotropic_axis((1, 1), (5, 200)) is None


def test_sizes_are_those_after_resampling():
    shapes, spacings = np.array([[10, 20, 1], [30, 20, 1], [50, 20, 1]]), np.array([[1, 1, 1.0]] * 3)
    assert median_shape(shapes, spacings, (2.0, 0.5, 10.0)) == (15, 40, 1)


# -- patches and strides


def test_the_first_patch_has_the_same_length_along_each_axis():
    """256 mm to the side: the volume of 256 x 256 x 256 voxels of 1 mm^3, which 0.5 x 0.5 x 4 mm are too."""
    assert first_patch((0.5, 0.5, 4.0), (1000, 1000, 1000)) == (512, 512, 64)
    assert first_patch((1.0, 4.0), (9000, 9000)) == (4096, 1024)  # 2048 x 2048 pixels of 4 mm^2


def test_the_first_patch_is_no_larger_than_the_median_scan_and_never_too_small_to_halve():
    assert first_patch((1, 1, 1), (100, 300, 30)) == (100, 256, 30)
    assert first_patch((1, 1, 1), (3, 5, 2)) == (8, 8, 2)
    assert first_patch((1, 1), (1, 90)) == (8, 90)


def test_hippocampus_has_the_published_patch_and_steps():
    stages = stages_of((1, 1, 1), (35, 50, 35))
    assert widest_patch((1, 1, 1), (35, 50, 35)) == (40, 56, 40)
    assert stages.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)) and stages.steps == (3, 3, 3)
    assert set(stages.kernels) == {(3, 3, 3)} and len(stages.kernels) == 4
    assert stages.widths == (32, 64, 128, 256) and stages.blocks == (1, 3, 4, 6)
    assert most_patches(260 * 35 * 50 * 35, (40, 56, 40)) == 9  # 0.05 * 15,925,000 / 89,600 = 8.9


def test_strides_of_scans_with_thick_slices():
    """0.8 x 0.8 x 3 mm: after one step in the plane 1.6 x 1.6 x 3, which are alike from then on."""
    stages = stages_of((0.8, 0.8, 3.0), (160, 160, 64))
    assert stages.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert stages.kernels == ((3, 3, 1), *[(3, 3, 3)] * 5)
    assert stages.divisor == (32, 32, 16) and stages.widths == (32, 64, 128, 256, 320, 320)
    assert stages.blocks == (1, 3, 4, 6, 6, 6)


def test_widths_of_networks_for_pictures_go_further():
    stages = stages_of((1, 1), (256, 256))  # 256 / 4 = 2^6
    assert stages.widths == (32, 64, 128, 256, 512, 512, 512)


def test_one_axis_alone_is_halved_only_from_twelve_voxels_on():
    assert stages_of((1, 1), (8, 20)).steps == (1, 1)  # 4 x 10 stays
    assert stages_of((1, 1), (8, 24)).steps == (1, 2)  # 4 x 12 becomes 4 x 6


def test_there_is_always_a_step_and_nothing_to_see_along_a_single_voxel():
    stages = stages_of((1, 1, 1), (8, 8, 1))
    assert stages.steps == (1, 1, 0) and stages.kernels == ((3, 3, 1), (3, 3, 1))
    assert stages_of((1, 3), (8, 8)).steps == (1, 0)
    assert stages_of((1, 1, 1), (64, 64, 2)).kernels[0] == (3, 3, 3)


def test_patches_shrink_where_they_are_largest():
    """From 128x128x64, all of the median: z to 56, y and x to 112, z to 48.

    A step is what the size below would be a multiple of: of 64 less 16 are 48, halved 3 times, so by 8.
    """
    tried = []

    def fits(stages, patch):
        tried.append(patch)
        return math.prod(patch) <= 700_000

    patch, stages = choose_patch((1, 1, 1), (128, 128, 64), fits)
    assert tried == [(128, 128, 64), (128, 128, 56), (128, 112, 56), (112, 112, 56), (112, 112, 48)]
    assert patch == (112, 112, 48) and stages == stages_of((1, 1, 1), patch)


def test_any_dataset_gets_a_patch_that_its_stages_divide():
    rng = np.random.default_rng(0)
    for _ in range(300):
        axes = int(rng.integers(2, 4))
        spacing = tuple(10 ** rng.uniform(-1, 1, axes))
        median = tuple(int(size) for size in 10 ** rng.uniform(0, 2.8, axes))
        limit = 10 ** rng.uniform(3, 7)
        patch, stages = choose_patch(spacing, median, lambda _, patch, most=limit: math.prod(patch) <= most)
        assert math.prod(patch) <= limit and stages == stages_of(spacing, patch) and len(stages.strides) > 1
        for size, by in zip(patch, stages.divisor, strict=True):
            assert size % by == 0 and (by == 1 or size // by >= 4)
        assert not any(2 in kernel for kernel in stages.kernels)


def test_no_patch_fits():
    assert choose_patch((1, 1, 1), (40, 40, 40), lambda stages, patch: False) is None
