"""Sliding windows over volumes: against MONAI, and on predictors whose answer is known."""

import itertools

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from trunkline.data.scans.patches import cut
from trunkline.tasks.volumes.inference import (
    VolumeInference,
    best_axis,
    keep_largest,
    mirrored,
    sliced,
    sweep,
)

CPU = torch.device("cpu")


def whole(run, image, window, axis=None, **options):
    """Join the planes of a sweep: ``[K, *S]``."""
    chosen = best_axis(image.shape[1:], window) if axis is None else axis
    parts = [part.clone() for part in sweep(run, image, window, VolumeInference(**options), CPU, axis)]
    return torch.cat(parts, 1 + chosen)


def identity(windows):
    return windows


class Blur(torch.nn.Module):
    """A small network whose answer depends on where a window ends."""

    def __init__(self, ndim, scores):
        super().__init__()
        torch.manual_seed(0)
        self.conv = (torch.nn.Conv2d, torch.nn.Conv3d)[ndim - 2](1, scores, 3, padding=1)

    @torch.no_grad()
    def forward(self, windows):
        return self.conv(windows).softmax(1)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("buffer", ["auto", "disk"])
@pytest.mark.parametrize("size", [(20, 17, 11), (6, 17, 30), (5, 6, 7), (8, 8, 8)])
def test_identity_gives_the_volume_back(axis, buffer, size):
    image = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    found = whole(identity, image, [8, 8, 8], axis, buffer=buffer)
    np.testing.assert_allclose(found.numpy(), image, atol=1e-5)


def test_values_that_grow_with_the_position_stay_as_they_are():
    """A predictor that is affine in the position inside the window, made absolute by the image itself."""
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in (23, 9, 14)], indexing="ij"))
    found = whole(lambda windows: 2 * windows + 1, grid, [7, 16, 5], overlap=0.3)
    np.testing.assert_allclose(found.numpy(), 2 * grid + 1, atol=1e-4)


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("axis", [0, 2])
def test_equals_monai(weights, overlap, axis):
    run = Blur(3, 4)
    image = np.random.default_rng(1).normal(size=(1, 19, 12, 9)).astype(np.float32)
    window = [8, 6, 12]  # longer than the volume along the last axis
    mine = whole(run, image, window, axis, weights=weights, overlap=overlap, window_batch=3)
    theirs = sliding_window_inference(
        torch.from_numpy(image)[None], window, 2, run, overlap=overlap, mode=weights, sigma_scale=0.125
    )
    torch.testing.assert_close(mine, theirs[0], atol=1e-5, rtol=1e-5)


def test_pictures_too():
    run = Blur(2, 3)
    image = np.random.default_rng(2).normal(size=(1, 40, 33)).astype(np.float32)
    theirs = sliding_window_inference(
        torch.from_numpy(image)[None], [16, 16], 1, run, overlap=0.5, mode="gaussian", sigma_scale=0.125
    )
    torch.testing.assert_close(whole(run, image, [16, 16]), theirs[0], atol=1e-5, rtol=1e-5)


def test_only_as_many_planes_are_held_as_a_window_is_deep():
    held = []

    def run(windows):
        return windows

    image = np.zeros((1, 100, 4, 4), dtype=np.float32)
    for planes in sweep(run, image, [10, 4, 4], VolumeInference(), CPU):
        held.append(planes.shape[1])
    assert sum(held) == 100 and max(held) <= 10


def test_planes_are_views_so_that_no_second_buffer_is_held():
    image = np.random.default_rng(4).normal(size=(1, 30, 4, 4)).astype(np.float32)
    parts = sweep(identity, image, [10, 4, 4], VolumeInference(), CPU)
    places = {part.untyped_storage().data_ptr() for part in parts}
    assert len(places) == 1


def test_sweeps_along_the_axis_with_most_windows():
    assert best_axis((512, 512, 400), (96, 96, 96)) == 0
    assert best_axis((100, 100, 400), (96, 96, 96)) == 2
    assert best_axis((5, 300, 5), (96, 96, 96)) == 1


def test_mirroring_averages_all_combinations():
    run = Blur(3, 2)
    windows = torch.randn(2, 1, 5, 6, 7)
    expected = 0
    for flips in itertools.product([False, True], repeat=2):
        axes = [axis for axis, flip in zip((2, 4), flips, strict=True) if flip]
        expected = expected + run(windows.flip(axes)).flip(axes)
    torch.testing.assert_close(mirrored(run, (0, 2))(windows), expected / 4)
    assert mirrored(run, ()) is run


def test_slices_of_a_volume_equal_the_pictures():
    run = Blur(2, 3)
    image = np.random.default_rng(3).normal(size=(1, 9, 4, 11)).astype(np.float32)
    found = whole(sliced(run, 1), image, [9, 1, 11], axis=1)
    for index in range(4):
        picture = torch.from_numpy(image[None, :, :, index])
        torch.testing.assert_close(found[:, :, index], run(picture)[0], atol=1e-6, rtol=1e-5)


def test_cut_pads_with_zeros():
    image = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3)
    np.testing.assert_array_equal(
        cut(image, (-1, 1), (4, 4), 0)[0], [[0] * 4, [2, 3, 0, 0], [5, 6, 0, 0], [0] * 4]
    )


def test_a_network_that_changes_the_size_is_refused():
    image = np.zeros((1, 8, 8, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="size of the window"):
        list(sweep(lambda windows: windows[..., :-1], image, [4, 4, 4], VolumeInference(), CPU))


@pytest.mark.parametrize(
    "options",
    [
        {"window": []},
        {"window": [0, 4]},
        {"overlap": 1.0},
        {"weights": "flat"},
        {"buffer": "tape"},
        {"window_batch": 0},
        {"mirror": (0, 0)},
        {"mirror": (3,)},
    ],
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=f"inference.{next(iter(options))}"):
        VolumeInference(**options)


def test_keep_largest():
    labels = np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 2], [1, 0, 0, 2]], dtype=np.uint8)
    kept = keep_largest(labels.copy(), [1])
    np.testing.assert_array_equal(kept, [[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 2]])
    kept = keep_largest(labels.copy(), [2, 1, 7])  # 7 is nowhere
    np.testing.assert_array_equal(kept, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 2]])
    assert keep_largest(np.zeros((3, 3, 3), dtype=np.uint8), [1]).sum() == 0
