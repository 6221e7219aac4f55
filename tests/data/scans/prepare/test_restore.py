"""Restoring by planes beside the resize of all scores at once, and the memory that it takes."""

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from trunkline.data.scans.formats.scan import Grid, Scan
from trunkline.data.scans.prepare.prepare import Placement, Preparation, place, prepare
from trunkline.data.scans.prepare.restore import Restorer

OBLIQUE = np.array([[0.1, -2.0, 0.3, 5], [1.5, 0.1, 0, -30], [0, 0.2, -4, 12], [0, 0, 0, 1]])
HOWS = {
    "same": {},
    "finer": {"spacing": [0.9, 1.1, 1.7]},
    "coarser": {"spacing": [5, 3.1, 9]},
    "mixed, cropped, turned": {"spacing": [2.5, 4, 1], "crop": True, "orientation": "SPL"},
    "coarse axis": {"spacing": [1.9, 1.6, 6], "anisotropy": 1.5, "crop": True},
    "cropped alone": {"crop": True, "orientation": "IPR"},
}


def most_likely(scores):
    return scores.argmax(dim=0).to(torch.uint8)


def make(shape=(11, 8, 6), affine=OBLIQUE):
    voxels = np.zeros((1, *shape), np.float32)
    voxels[(0, *[slice(min(1, size - 1), max(1, size - 2)) for size in shape])] = 1
    return Scan(voxels, Grid(shape, affine), np.dtype(np.float32))


def at_once(scores, placement, codes="RAS"):
    """Resize all scores with scipy, decide, and turn back with nibabel."""
    orders = [0 if axis == placement.coarse else 1 for axis in range(len(placement.shape))]
    values = scores.numpy().astype(np.float64)
    for axis, (size, order) in enumerate(zip(placement.box_shape, orders, strict=True), 1):
        factors = [size / values.shape[axis] if a == axis else 1 for a in range(values.ndim)]
        if size != values.shape[axis]:
            values = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    own, wanted = io_orientation(placement.grid.affine), axcodes2ornt(codes)
    flat = len(placement.grid.shape) == 2
    forth, back = ornt_transform(own, wanted), ornt_transform(wanted, own)
    blank = np.zeros(placement.grid.shape, np.uint8)
    turned = blank if flat else np.ascontiguousarray(apply_orientation(blank, forth))
    turned[tuple(slice(*side) for side in placement.box)] = values.argmax(axis=0)
    return turned if flat else apply_orientation(turned, back)


def add(restorer, planes, decide=most_likely):
    for block, scores in restorer.blocks(planes):
        restorer.write(block, decide(scores))


def restored(scores, placement, axis, step, decide=most_likely, **options):
    restorer = Restorer(placement, axis, **options)
    for start in range(0, scores.shape[axis + 1], step):
        add(restorer, scores.narrow(axis + 1, start, min(step, scores.shape[axis + 1] - start)), decide)
    return restorer.labels()


def random_scores(placement, classes=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(classes, *placement.shape, generator=generator)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_equals_the_resize_of_all_scores_at_once(how, axis):
    placement = place(make(), Preparation(**how))
    scores = random_scores(placement)
    expected = at_once(scores, placement, how.get("orientation", "RAS"))
    assert expected.any()
    for step in (1, 2, 3, 100):
        for most_values in (1, 300, 2000, 2**26):
            got = restored(scores, placement, axis, step, most_values=most_values)
            assert got.dtype == np.uint8
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("shape", [(9, 7), (1, 7), (6, 5, 1), (1, 1, 1), (1, 6, 2)])
@pytest.mark.parametrize("scale", [0.4, 1, 3])
def test_pictures_and_single_planes(shape, scale):
    scan = make(shape, np.eye(4))
    placement = place(scan, Preparation(spacing=[scale] * len(shape), crop=True))
    scores = random_scores(placement)
    for axis in range(len(shape)):
        assert np.array_equal(restored(scores, placement, axis, 2), at_once(scores, placement))


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "ASR"])
def test_labels_come_back_to_the_voxels_they_were_made_of(orientation):
    labels = np.random.default_rng(0).integers(0, 3, (11, 8, 6)).astype(np.uint8)
    scan = Scan(labels[None].astype(np.float32), Grid(labels.shape, OBLIQUE), np.dtype(np.uint8))
    # Without resampling and with one to exactly twice as many voxels, by the nearest
    for spacing, anisotropy in ((None, 3), ([float(s) / 2 for s in scan.grid.spacing], 3)):
        how = Preparation(orientation if spacing is None else None, spacing, True, anisotropy=anisotropy)
        prepared = prepare(scan, how, labels)
        scores = torch.nn.functional.one_hot(torch.from_numpy(prepared.mask).long(), 3)
        scores = scores.movedim(-1, 0).float()
        assert np.array_equal(restored(scores, prepared.placement, 1, 3), labels)


def test_outside_of_the_crop_is_0():
    placement = place(make(), Preparation(crop=True))
    labels = restored(torch.ones(2, *placement.shape), placement, 0, 4, decide=lambda s: s[1].byte() * 7)
    assert np.array_equal(labels, make().voxels[0].astype(np.uint8) * 7)


def test_half_precision_scores_are_decided_in_float32():
    placement = place(make(), Preparation(spacing=[1, 1, 1]))
    scores = random_scores(placement).bfloat16()
    seen = []

    def decide(values):
        seen.append(values.dtype)
        return most_likely(values)

    got = restored(scores, placement, 2, 5, decide=decide)
    assert set(seen) == {torch.float32}
    assert np.array_equal(got, at_once(scores.float(), placement))


@pytest.mark.parametrize("axis", [0, 2])
def test_blocks_are_as_small_as_asked(axis):
    placement = place(make((30, 20, 10)), Preparation(spacing=[1, 2, 3]))
    largest = []

    def decide(values):
        largest.append(values.numel())
        return most_likely(values)

    restored(random_scores(placement), placement, axis, 7, decide=decide, most_values=8000)
    assert max(largest) <= 2000
    assert max(largest) > 500


def test_only_the_planes_that_are_still_needed_are_kept():
    for prepared, own in ((40, 100), (100, 40), (50, 50)):
        shape = (own, 4, 4)
        whole = tuple((0, size) for size in shape)
        placement = Placement(
            Grid(shape, np.eye(4)), ((0, 1), (1, 1), (2, 1)), whole, (prepared, 4, 4), (1,) * 3
        )
        restorer = Restorer(placement, 0)
        for _ in range(prepared // 10):
            add(restorer, torch.zeros(2, 10, 4, 4))
            kept = restorer._kept
            assert kept is None or kept.shape[1] <= 2
            assert kept is None or kept.untyped_storage().nbytes() == kept.numel() * 4


def test_nothing_is_copied_when_nothing_is_resized():
    placement = place(make(), Preparation(orientation=None))
    scores = random_scores(placement)
    memory = scores.untyped_storage().data_ptr()

    def decide(values):
        assert values.untyped_storage().data_ptr() == memory
        return most_likely(values)

    assert np.array_equal(restored(scores, placement, 0, 4, decide=decide), scores.argmax(dim=0))


def test_wrong_use_is_an_error():
    placement = place(make(), Preparation(orientation=None))
    with pytest.raises(ValueError, match="axis is 3"):
        Restorer(placement, 3)
    with pytest.raises(ValueError, match="most_values is 0"):
        Restorer(placement, 0, 0)
    restorer = Restorer(placement, 0)
    with pytest.raises(ValueError, match=r"scores have the shape \[2, 3, 8, 5\]"):
        add(restorer, torch.zeros(2, 3, 8, 5))
    with pytest.raises(ValueError, match=r"scores have the shape \[3, 8, 6\]"):
        add(restorer, torch.zeros(3, 8, 6))
    add(restorer, torch.zeros(2, 10, 8, 6))
    with pytest.raises(RuntimeError, match="10 of 11 planes along axis 0"):
        restorer.labels()
    with pytest.raises(ValueError, match="12 planes came in along axis 0"):
        add(restorer, torch.zeros(2, 2, 8, 6))
