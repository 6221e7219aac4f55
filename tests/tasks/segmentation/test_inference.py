"""Sliding windows, flips and scales against MONAI, slow loops and predictors whose answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from monai.inferers.utils import _get_scan_interval

from trunkline.tasks.segmentation.inference import (
    InferenceOptions,
    probabilities,
    window_starts,
    window_weights,
)


def image_of(shape, channels=3, images=2, seed=0):
    return torch.randn(images, channels, *shape, generator=torch.Generator().manual_seed(seed))


def network(ndim):
    """Sees its surroundings, so that windows differ where they overlap."""
    torch.manual_seed(1)
    layer = (torch.nn.Conv2d, torch.nn.Conv3d)[ndim - 2](3, 4, 5, padding=2)
    return layer.requires_grad_(False)


class Recorder:
    """A predictor that keeps what it was given."""

    def __init__(self, run=lambda x: x):
        self.run, self.seen = run, []

    def __call__(self, image):
        self.seen.append(image.clone())
        return self.run(image)


# -- one run


@pytest.mark.parametrize("shape", [(7, 9), (3, 4, 5)])
def test_by_default_one_run_and_a_softmax(shape):
    image, run = image_of(shape), Recorder()
    found = probabilities(run, image, InferenceOptions())
    torch.testing.assert_close(found, image.softmax(1))
    assert len(run.seen) == 1 and torch.equal(run.seen[0], image)


def test_half_precision_logits_become_float32_probabilities():
    image = image_of((6, 8))
    for options in (InferenceOptions(), InferenceOptions(window=4), InferenceOptions(scales=(0.5, 1.0))):
        found = probabilities(lambda x: x.bfloat16(), image, options)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(1), torch.ones(2, 6, 8))


def test_no_gradients_are_kept():
    image = image_of((6, 8)).requires_grad_()
    assert not probabilities(lambda x: x, image, InferenceOptions(window=4)).requires_grad


# -- windows


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("length", "window"), [(10, 10), (11, 10), (64, 10), (37, 16), (5, 1), (100, 7)])
def test_windows_lie_where_monais_do(length, window, overlap):
    step = _get_scan_interval((length,), (window,), 1, (overlap,))
    expected = [place[0].start for place in dense_patch_slices((length,), (window,), step)]
    assert window_starts(length, window, overlap) == expected


def test_windows_by_hand():
    assert window_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert window_starts(11, 4, 0.5) == [0, 2, 4, 6, 7]
    assert window_starts(11, 4, 0.0) == [0, 4, 7]
    assert window_starts(4, 4, 0.5) == [0]


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.parametrize("window", [(8, 9), (1, 5), (4, 6, 5), (64, 64)])
def test_weights_equal_monais(window, weights):
    found = window_weights(window, weights, torch.device("cpu"))
    torch.testing.assert_close(found, compute_importance_map(window, weights, 0.125))
    assert found.min() >= 1e-3 and found.shape == window


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.8])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((21, 34), (8, 8)),
        ((21, 34), (9, 16)),
        ((5, 34), (8, 8)),  # smaller along one axis
        ((5, 6), (8, 9)),  # smaller along both, by even and odd numbers
        ((8, 8), (8, 8)),
        ((7, 12, 9), (4, 6, 5)),
        ((3, 12, 4), (4, 6, 5)),
    ],
)
def test_equals_monais_sliding_window(shape, window, overlap, weights):
    image, run = image_of(shape), network(len(shape))
    options = InferenceOptions(window, overlap, weights, window_batch=3)
    expected = sliding_window_inference(
        image, window, 3, lambda x: run(x).softmax(1), overlap, weights, sigma_scale=0.125
    )
    torch.testing.assert_close(probabilities(run, image, options), expected)


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.parametrize("shape", [(21, 34), (3, 5), (1, 1), (7, 12, 9), (2, 3, 4)])
def test_predictors_that_see_one_pixel_are_exact(shape, weights):
    """Whatever the windows and their weights, also in volumes smaller than a window."""
    image = image_of(shape)
    found = probabilities(lambda x: x, image, InferenceOptions(6, 0.5, weights))
    torch.testing.assert_close(found, image.softmax(1))


def test_average_by_hand():
    """Windows 0-3 and 2-5 of a row of six; the first says 0.9, the second 0.5: 0.7 where they overlap."""
    answers = iter([0.9, 0.5])

    def run(image):
        return torch.tensor([(p := next(answers)), 1 - p]).log().reshape(1, 2, 1, 1).expand(1, 2, 1, 4)

    found = probabilities(run, torch.zeros(1, 3, 1, 6), InferenceOptions((1, 4), 0.5, "constant", 1))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.9, 0.9, 0.7, 0.7, 0.5, 0.5]))
    answers = iter([0.9, 0.5])
    found = probabilities(run, torch.zeros(1, 3, 1, 6), InferenceOptions((1, 4), 0.5, "gaussian", 1))
    # Offsets from the middle: third pixel 0.5 and -1.5, with a standard deviation of half a pixel.
    near, far = math.exp(-0.5), math.exp(-4.5)
    share = (0.9 * near + 0.5 * far) / (near + far)
    torch.testing.assert_close(found[0, 0, 0, 2:4], torch.tensor([share, 1.4 - share]))


def test_windows_are_run_in_batches():
    image = image_of((8, 8))  # 3 x 3 windows of each of two images
    for size, calls in ((1, [1] * 18), (4, [4] * 4 + [2]), (100, [18])):
        run = Recorder()
        found = probabilities(run, image, InferenceOptions(4, 0.5, window_batch=size))
        assert [len(seen) for seen in run.seen] == calls
        torch.testing.assert_close(found, image.softmax(1))
    assert run.seen[0].shape == (18, 3, 4, 4)
    torch.testing.assert_close(run.seen[0][0], image[0, :, :4, :4])
    torch.testing.assert_close(run.seen[0][-1], image[1, :, 4:, 4:])


def test_small_images_lie_in_the_middle_of_zeros():
    image, run = image_of((2, 3), images=1), Recorder()
    probabilities(run, image, InferenceOptions((4, 8)))
    expected = torch.zeros(1, 3, 4, 8)
    expected[:, :, 1:3, 2:5] = image
    torch.testing.assert_close(run.seen, [expected])


def test_one_number_is_a_window_of_equal_sides():
    image = image_of((8, 8, 8))
    run = Recorder()
    probabilities(run, image, InferenceOptions(window=5))
    assert run.seen[0].shape[2:] == (5, 5, 5)


# -- flips and scales


@pytest.mark.parametrize("shape", [(5, 8), (3, 4, 6)])
def test_flip_averages_with_the_mirrored_image(shape):
    """The answer is the position along the last axis, so mirroring it makes all positions the mean one."""

    def run(image):
        position = torch.linspace(0.1, 0.9, image.shape[-1]).expand(len(image), 1, *image.shape[2:])
        return torch.cat([position, 1 - position], 1).log()

    found = probabilities(run, image_of(shape), InferenceOptions(flip=True))
    torch.testing.assert_close(found, torch.full((2, 2, *shape), 0.5))
    image, net = image_of(shape), network(len(shape))
    for window in (None, 3):
        plain = InferenceOptions(window)
        mirrored = probabilities(net, image.flip(-1), plain).flip(-1)
        expected = (probabilities(net, image, plain) + mirrored) / 2
        torch.testing.assert_close(probabilities(net, image, InferenceOptions(window, flip=True)), expected)


def test_scales_resize_the_image_and_the_answer():
    image, run = image_of((6, 10)), Recorder()
    found = probabilities(run, image, InferenceOptions(scales=(0.5, 1.0, 1.75)))
    assert [tuple(seen.shape[2:]) for seen in run.seen] == [(3, 5), (6, 10), (10, 18)]
    expected = torch.zeros_like(image)
    for size in ((3, 5), (6, 10), (10, 18)):
        scaled = F.interpolate(image, size, mode="bilinear", align_corners=False)
        back = F.interpolate(scaled.softmax(1), (6, 10), mode="bilinear", align_corners=False)
        expected += back / 3
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 6, 10))


def test_scales_in_three_dimensions_of_an_affine_answer():
    """Probabilities that grow evenly along an axis survive resizing, but for the pixels at its ends."""
    line = torch.linspace(0.2, 0.8, 12).reshape(1, 1, 12, 1, 1).expand(1, 1, 12, 6, 4)

    def run(image):
        return torch.cat([image, 1 - image], 1).log()

    found = probabilities(run, line, InferenceOptions(scales=(0.5, 1.0, 2.0)))
    torch.testing.assert_close(found[:, :1, 1:-1], line[:, :, 1:-1])
    assert found.shape == (1, 2, 12, 6, 4)


def test_everything_at_once():
    image, net = image_of((14, 20)), network(2)
    options = InferenceOptions(8, 0.25, "constant", 5, True, (0.5, 1.5))
    expected = torch.zeros(2, 4, 14, 20)
    for size in ((7, 10), (21, 30)):
        scaled = F.interpolate(image, size, mode="bilinear", align_corners=False)
        for view in (scaled, scaled.flip(3)):
            found = sliding_window_inference(view, (8, 8), 5, lambda x: net(x).softmax(1), 0.25)
            found = found if view is scaled else found.flip(3)
            expected += F.interpolate(found, (14, 20), mode="bilinear", align_corners=False) / 4
    torch.testing.assert_close(probabilities(net, image, options), expected)


def test_a_scale_never_leaves_nothing():
    found = probabilities(lambda x: x, image_of((2, 3)), InferenceOptions(scales=(0.01,)))
    assert found.shape == (2, 3, 2, 3) and found.isfinite().all()


# -- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"window": (8, 0)}, r"window is \(8, 0\)"),
        ({"window": ()}, r"window is \(\)"),
        ({"overlap": 1.0}, "overlap must lie in 0 to below 1, got 1.0"),
        ({"overlap": -0.1}, "overlap must lie in 0 to below 1"),
        ({"weights": "triangle"}, "weights is 'triangle'; allowed are 'gaussian', 'constant'"),
        ({"window_batch": 0}, "window_batch must be at least 1, got 0"),
        ({"scales": ()}, "scales must be one or more positive numbers"),
        ({"scales": (1.0, 0.0)}, "scales must be one or more positive numbers"),
        ({"scales": (math.inf,)}, "scales must be one or more positive numbers"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=r"inference\." + message):
        InferenceOptions(**options)


def test_windows_and_answers_must_fit_the_image():
    with pytest.raises(ValueError, match=r"inference\.window is \(4, 4\); give one number, or 3"):
        probabilities(lambda x: x, image_of((4, 5, 6)), InferenceOptions((4, 4)))
    with pytest.raises(ValueError, match=r"size of the image, \[4, 6\], got \[2, 3\]"):
        probabilities(lambda x: x[:, :, ::2, ::2], image_of((4, 6)), InferenceOptions())


def test_plain_is_what_runs_once_on_the_whole_image():
    assert InferenceOptions().plain and InferenceOptions(window_batch=8, overlap=0.1).plain
    for options in ({"window": 8}, {"flip": True}, {"scales": (0.5,)}, {"scales": (1.0, 1.0)}):
        assert not InferenceOptions(**options).plain
