"""Intensities: each option by its effect on numbers worked out with numpy, and options that make no sense."""

import numpy as np
import pytest

from trunkline.data.scans.prepare import intensity as module
from trunkline.data.scans.prepare.intensity import Intensity, apply_intensities


@pytest.fixture(autouse=True, params=[2**20, 7], ids=["whole", "parts"])
def parts(request, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", request.param)


@pytest.fixture
def scan():
    voxels = np.random.default_rng(0).normal(300, 200, size=(4, 5, 6)).astype(np.float32)
    voxels[:2] = 0
    return voxels


def applied(scan, **options):
    result = scan.copy()
    Intensity(**options).apply(result)
    return result


def test_zscore_of_each_scan_is_the_default(scan):
    exact = scan.astype(np.float64)
    np.testing.assert_allclose(applied(scan), (exact - exact.mean()) / exact.std(), atol=1e-6)


def test_statistics_of_large_values_are_exact():
    scan = np.tile(np.array([16_000_000, 16_000_004], np.float32), 60).reshape(4, 5, 6)
    assert np.unique(applied(scan)).tolist() == [-1, 1]


def test_given_mean_and_std():
    scan = np.array([[10, 20], [30, 50]], np.float32)
    assert applied(scan, mean=20, std=10).tolist() == [[-1, 0], [1, 3]]
    assert applied(np.full((2, 2), 40, np.float32), mean=20, std=10).tolist() == [[2, 2], [2, 2]]


def test_clip_comes_before_the_statistics():
    scan = np.array([[-3000, -1000], [1000, 9000]], np.float32)
    assert applied(scan, clip=[-1000, 1000]).tolist() == [[-1, -1], [1, 1]]
    assert applied(scan, clip=[-1000, 1000], scale="none").tolist() == [[-1000, -1000], [1000, 1000]]


def test_unit_brings_the_clipping_range_to_0_and_1(scan):
    window = np.array([-1500, -1000, 0, 400, 3000], np.float32)
    np.testing.assert_allclose(applied(window, clip=[-1000, 1000], scale="unit"), [0, 0, 0.5, 0.7, 1])
    low, high = np.percentile(scan, [5, 90])
    expected = (scan.clip(low, high) - low) / (high - low)
    np.testing.assert_allclose(applied(scan, percentiles=[5, 90], scale="unit"), expected, atol=1e-6)


def test_nonzero_leaves_zeros_out_and_as_they_are(scan):
    inside = scan != 0
    chosen = scan[inside].astype(np.float64)
    got = applied(scan, nonzero=True)
    assert not got[~inside].any()
    np.testing.assert_allclose(got[inside], (chosen - chosen.mean()) / chosen.std(), atol=1e-6)
    low, high = np.percentile(chosen, [10, 80])
    got = applied(scan, nonzero=True, percentiles=[10, 80], scale="unit")
    assert not got[~inside].any()
    np.testing.assert_allclose(got[inside], (chosen.clip(low, high) - low) / (high - low), atol=1e-6)
    got = applied(scan, nonzero=True, mean=100, std=50)
    assert not got[~inside].any()
    np.testing.assert_allclose(got[inside], (chosen - 100) / 50, atol=1e-5)
    # The zeros of the file, not those that clipping makes.
    assert applied(np.array([0, -5, 5], np.float32), clip=[0, 9], scale="none", nonzero=True).tolist() == [
        0,
        0,
        5,
    ]
    assert applied(np.array([0, 3], np.float32), clip=[1, 9], scale="none", nonzero=True).tolist() == [0, 3]


@pytest.mark.parametrize("options", [{}, {"percentiles": [1, 99], "scale": "unit"}, {"nonzero": True}])
@pytest.mark.parametrize("value", [0, 0.1, -7, 3e38])
def test_constant_channels_become_0(options, value):
    assert not applied(np.full((3, 3, 3), value, np.float32), **options).any()


def test_one_entry_for_all_channels_or_one_for_each(scan):
    two = np.stack([scan, 2 * scan])
    apply_intensities(two, [Intensity(scale="none"), Intensity(mean=0, std=2)])
    np.testing.assert_array_equal(two, np.stack([scan, scan]))
    apply_intensities(two, [Intensity(mean=1, std=1)])
    np.testing.assert_array_equal(two, np.stack([scan, scan]) - 1)
    with pytest.raises(ValueError, match=r"data\.preparation\.intensity has 3 entries .* 2 channels"):
        apply_intensities(two, [Intensity()] * 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": [3, 3]}, r"intensity\.clip is \[3, 3\]; the first number must be below"),
        ({"clip": [5]}, r"intensity\.clip is \[5\]; give two numbers"),
        ({"clip": [0, float("inf")]}, r"intensity\.clip .* give two numbers"),
        ({"percentiles": [-1, 99]}, r"intensity\.percentiles .* lie in 0\.\.100"),
        ({"percentiles": [1, 101]}, r"intensity\.percentiles .* lie in 0\.\.100"),
        ({"percentiles": [99, 1]}, r"intensity\.percentiles .* first number"),
        ({"clip": [0, 1], "percentiles": [0, 1]}, "clip and percentiles are both given"),
        ({"scale": "minmax"}, r"intensity\.scale is 'minmax'"),
        ({"scale": "unit"}, "set clip or percentiles"),
        ({"mean": 3}, "mean and std go together"),
        ({"std": 3}, "mean and std go together"),
        ({"mean": 0, "std": 0}, r"intensity\.std is 0; it must be above 0"),
        ({"mean": 0, "std": float("nan")}, r"intensity\.std"),
        ({"mean": float("inf"), "std": 1}, r"intensity\.mean"),
        ({"mean": 0, "std": 1, "scale": "none"}, "no effect with scale none"),
        ({"nonzero": True, "scale": "none"}, "nonzero has no effect"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=r"data\.preparation\.intensity.*" + words.removeprefix("intensity")):
        Intensity(**options)
