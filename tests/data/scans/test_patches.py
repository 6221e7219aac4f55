"""Training patches: where they lie, what is read of a scan, which are drawn."""

import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from trunkline.data.scans.dataset import PatchDataset
from trunkline.data.scans.patches import (
    PatchRequest,
    PatchSampler,
    check_patch,
    coarsest_axis,
    cut,
    extent,
    fit_patch,
    foreground_voxel,
    patch_start,
)
from trunkline.data.scans.prepare.prepare import Preparation


def indexed(shape):
    """Return ``[1, *S]`` float32 whose values tell the indices: i * 10^4 + j * 10^2 + k."""
    digits = np.indices(shape).reshape(len(shape), -1)
    weights = 100.0 ** np.arange(len(shape))[::-1]
    return (weights @ digits).reshape(1, *shape).astype(np.float32)


def indices_of(values, axes=3):
    return np.stack([np.asarray(values).astype(int) // 100**p % 100 for p in range(axes)[::-1]], axis=-1)


class Cases:
    """Prepared cases of given masks; images tell the indices, and a second channel which case it is."""

    cache = "memory"

    def __init__(self, *masks, spacing=(1.0, 1.0, 1.0), wanted=None):
        self.how = Preparation(spacing=wanted)
        self.prepared, self.found = [], []
        for number, mask in enumerate(masks):
            image = np.concatenate([indexed(mask.shape), np.full((1, *mask.shape), number, np.float32)])
            place = SimpleNamespace(shape=mask.shape, spacing=spacing)
            self.prepared.append(SimpleNamespace(image=image, mask=mask, placement=place))
            labels = [k for k in np.unique(mask).tolist() if k not in (0, 255)]
            self.found.append({k: np.argwhere(mask == k).astype(np.int32) for k in labels})
        self.cases = [SimpleNamespace(images=(f"case{n}.nii",)) for n in range(len(masks))]

    def __len__(self):
        return len(self.prepared)

    def __getitem__(self, index):
        return self.prepared[index]

    def locations(self, index):
        return self.found[index]


class Watched:
    """An array that writes down how much of it is read."""

    def __init__(self, array):
        self.array, self.shape, self.ndim, self.dtype, self.read = (
            array,
            array.shape,
            array.ndim,
            array.dtype,
            0,
        )

    def __getitem__(self, key):
        part = self.array[key]
        self.read += part.size
        return part


# -- cutting


@pytest.mark.parametrize("start", [(0, 0, 0), (1, 2, 3), (-2, -3, 2), (3, 4, -4), (-1, -1, -1), (4, 5, 6)])
def test_a_window_equals_that_of_the_padded_scan(start):
    array = indexed((5, 6, 7))
    padded = np.pad(array, [(0, 0)] + [(10, 10)] * 3, constant_values=-1)
    where = tuple(slice(first + 10, first + 13) for first in start)
    found = cut(array, start, (3, 3, 3), -1)
    assert np.array_equal(found, padded[(slice(None), *where)]) and found.dtype == np.float32
    assert np.array_equal(cut(array[0], start, (3, 3, 3), -1), found[0])


def test_nothing_but_the_window_is_read_and_the_copy_may_be_written(tmp_path):
    watched = Watched(indexed((20, 20, 20)))
    cut(watched, (3, 4, 18), (4, 4, 4), 0)
    assert watched.read == 4 * 4 * 2
    np.save(tmp_path / "a.npy", indexed((5, 6, 7)))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    found = cut(mapped, (0, 0, 0), (5, 6, 7), 0)
    found += 1
    assert type(found) is np.ndarray and mapped[0, 0, 0, 0] == 0


def test_starts_are_uniform_over_all_places_inside():
    rng = np.random.default_rng(0)
    counts = Counter(patch_start((6, 3, 9), (4, 3, 8), rng) for _ in range(3000))
    assert set(counts) == {(i, 0, k) for i in range(3) for k in range(2)}
    assert all(abs(count - 500) < 5 * np.sqrt(500) for count in counts.values())


@pytest.mark.parametrize(
    ("shape", "size", "centre", "start"),
    [
        ((20,), (5,), [10], 8),  # 8..12, the middle is 10
        ((20,), (4,), [10], 8),
        ((20,), (5,), [1], 0),
        ((20,), (5,), [19], 15),
        ((5,), (5,), [0], 0),
        ((3,), (6,), [0], -1),  # padded by 1 before and 2 behind
        ((3,), (7,), [2], -2),
    ],
)
def test_a_centre_is_in_the_middle_as_far_as_the_patch_stays_inside(shape, size, centre, start):
    rng = np.random.default_rng(0)
    assert patch_start(shape, size, rng, np.array(centre)) == (start,)
    if shape[0] <= size[0]:
        assert patch_start(shape, size, rng) == (start,)


# -- the dataset


def test_content_tells_where_a_patch_comes_from_and_the_mask_from_the_same_place():
    masks = [np.random.default_rng(n).integers(0, 4, (9, 11, 13), dtype=np.uint8) for n in range(2)]
    dataset = PatchDataset(Cases(*masks), (4, 5, 6))
    seen = set()
    for seed in range(40):
        sample = dataset[PatchRequest(seed % 2, seed % 3 == 0, seed)]
        places = indices_of(sample.image[0])
        first = places[0, 0, 0]
        seen.add(tuple(first))
        assert np.array_equal(places - first, np.moveaxis(np.indices((4, 5, 6)), 0, -1))
        assert (sample.image[1] == seed % 2).all() and sample.id == seed % 2
        assert np.array_equal(sample.mask, masks[seed % 2][tuple(np.moveaxis(places, -1, 0))])
    assert len(seen) > 30


def test_foreground_patches_are_centred_on_each_class_equally_often():
    mask = np.zeros((21, 21, 21), dtype=np.uint8)
    mask[2:10, 3:10, 4:10] = 1  # 336 voxels against one
    mask[15, 14, 13] = 2
    mask[:, :, 20] = 255
    dataset = PatchDataset(Cases(mask), (3, 3, 3))
    middles = Counter()
    for seed in range(400):
        sample = dataset[PatchRequest(0, True, seed)]
        middles[int(sample.mask[1, 1, 1])] += 1
    assert set(middles) == {1, 2} and abs(middles[1] - 200) < 50
    anywhere = [dataset[PatchRequest(0, False, seed)].mask[1, 1, 1] for seed in range(400)]
    assert np.mean([int(k) == 1 for k in anywhere]) < 0.15  # 336 of 19^3 middles are 5 %


@pytest.mark.parametrize("label", [0, 255])
def test_a_case_of_background_alone_gives_patches_from_anywhere(label):
    dataset = PatchDataset(Cases(np.full((5, 5, 5), label, dtype=np.uint8)), (2, 2, 2))
    starts = {tuple(indices_of(dataset[PatchRequest(0, True, s)].image[0])[0, 0, 0]) for s in range(200)}
    assert len(starts) > 50
    assert foreground_voxel({label: np.zeros((3, 3))}, np.random.default_rng(0)) is None
    assert foreground_voxel({1: np.zeros((0, 3))}, np.random.default_rng(0)) is None


def test_small_scans_are_padded_on_both_sides_with_ignored_voxels():
    dataset = PatchDataset(Cases(np.full((3, 4, 9), 2, dtype=np.uint8)), (6, 4, 5))
    for foreground in (False, True):
        sample = dataset[PatchRequest(0, foreground, 3)]
        assert sample.image.shape == (2, 6, 4, 5) and sample.mask.shape == (6, 4, 5)
        assert (sample.mask[1:4] == 2).all() and (sample.mask[[0, 4, 5]] == 255).all()
        assert not sample.image[:, [0, 4, 5]].any()
        assert np.array_equal(indices_of(sample.image[0, 1:4])[..., 0], np.indices((3, 4, 5))[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_lie_across_the_chosen_axis(axis):
    mask = np.zeros((7, 8, 9), dtype=np.uint8)
    mask[3, 4, 5] = 1
    dataset = PatchDataset(Cases(mask), (3, 5), slice_axis=axis)
    others = [a for a in range(3) if a != axis]
    depths = set()
    for seed in range(100):
        sample = dataset[PatchRequest(0, False, seed)]
        places = indices_of(sample.image[0])  # [3, 5, 3]
        depths.add(int(places[0, 0, axis]))
        assert (places[..., axis] == places[0, 0, axis]).all()
        assert np.array_equal(
            places[..., others] - places[0, 0, others], np.moveaxis(np.indices((3, 5)), 0, -1)
        )
    assert depths == set(range(mask.shape[axis]))
    sample = dataset[PatchRequest(0, True, 0)]
    assert sample.mask.tolist() == [[0] * 5, [0, 0, 1, 0, 0], [0] * 5]


def test_pictures_give_patches_of_two_axes():
    mask = np.random.default_rng(0).integers(0, 3, (12, 15), dtype=np.uint8)
    sample = PatchDataset(Cases(mask), (4, 6))[PatchRequest(0, False, 5)]
    places = indices_of(sample.image[0], axes=2)
    assert np.array_equal(places - places[0, 0], np.moveaxis(np.indices((4, 6)), 0, -1))
    assert np.array_equal(sample.mask, mask[places[..., 0], places[..., 1]])


def test_augmentation_gets_the_patch_and_a_seed_of_its_own():
    given = []

    def swap(image, mask, seed):
        given.append(seed)
        return -image, mask + 1

    cases = Cases(np.ones((6, 6, 6), dtype=np.uint8))
    plain, changed = PatchDataset(cases, (3, 3, 3)), PatchDataset(cases, (3, 3, 3), augmentation=swap)
    for seed in (1, 2, 1):
        a, b = (dataset[PatchRequest(0, True, seed)] for dataset in (plain, changed))
        assert (a.image == -b.image).all() and (b.mask == 2).all()
    assert given[0] == given[2] != given[1]


# -- the sampler


def test_an_epoch_has_the_given_steps_and_share_of_foreground():
    sampler = PatchSampler(count=5, batch_size=3, steps=200, foreground=0.33)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 200 and all(len(batch) == 3 for batch in batches)
    requests = [request for batch in batches for request in batch]
    wanted = [request.foreground for request in requests]
    assert sum(wanted) == 198  # 0.33 * 600
    assert all(32 <= sum(wanted[start : start + 100]) <= 34 for start in range(0, 501, 50))
    counts = Counter(request.index for request in requests)
    assert set(counts) == set(range(5)) and all(abs(count - 120) < 50 for count in counts.values())
    assert len({request.seed for request in requests}) == 600
    for share, number in ((0.0, 0), (1.0, 600)):
        again = PatchSampler(5, 3, 200, share)
        assert sum(request.foreground for batch in again for request in batch) == number


def test_draws_depend_on_seed_and_epoch_alone():
    def drawn(seed, epoch):
        sampler = PatchSampler(4, 2, 10, 0.5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(1, 3) != drawn(2, 3)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_draw_different_patches_and_keep_the_share_together(world_size):
    ranks = [
        [
            request
            for batch in PatchSampler(4, 2, 30, 0.5, rank=rank, world_size=world_size)
            for request in batch
        ]
        for rank in range(world_size)
    ]
    assert [len(requests) for requests in ranks] == [60] * world_size
    assert len({request.seed for requests in ranks for request in requests}) == 60 * world_size
    assert sum(request.foreground for requests in ranks for request in requests) == 30 * world_size


def test_each_rank_gets_its_share_of_the_foreground():
    """With every second patch of an epoch one rank of two would otherwise never see any."""
    for rank in (0, 1):
        batches = list(PatchSampler(4, 2, 30, 0.5, rank=rank, world_size=2))
        assert [sum(request.foreground for request in batch) for batch in batches] == [1] * 30


# -- fitting patch and scans


def test_the_coarsest_axis_is_the_last_of_equal_ones():
    assert coarsest_axis((1, 3, 1)) == 1
    assert coarsest_axis((3, 1, 1)) == 0
    assert coarsest_axis((1, 1, 1)) == 2
    assert coarsest_axis((1.0, 0.999, 0.5)) == 1
    assert (
        extent((4, 5), 0) == (1, 4, 5) and extent((4, 5), 1) == (4, 1, 5) and extent((4, 5), None) == (4, 5)
    )


def test_the_axis_of_slices_is_found_once_and_small_scans_are_counted(caplog):
    caplog.set_level(logging.INFO, logger="trunkline")
    masks = [np.zeros(shape, dtype=np.uint8) for shape in [(9, 9, 9), (9, 5, 9), (8, 9, 9)]]
    cases = Cases(*masks, spacing=(1.0, 5.0, 1.0))
    assert (
        fit_patch(cases, (9, 9), None) == 1 and "axis 1 of prepared scans (spacing 1 x 5 x 1" in caplog.text
    )
    assert "1 of 3 training scans are smaller than the patch of 9x1x9 voxels" in caplog.text
    assert fit_patch(cases, (9, 9), 0) == 0
    rounded = Cases(*masks, spacing=(3.0, 3.11, 3.08), wanted=[3.0, 3.0, 3.0])
    assert fit_patch(rounded, (9, 9), None) == 2
    caplog.clear()
    assert fit_patch(cases, (8, 5, 9), None) is None and not caplog.text


def test_patches_that_do_not_fit_the_scans_are_errors():
    cases = Cases(np.zeros((9, 9), dtype=np.uint8), spacing=(1.0, 1.0))
    assert fit_patch(cases, (4, 4), None) is None
    with pytest.raises(ValueError, match=r"data.patch is \[4, 4, 4\], but case0.nii has 2 axes"):
        fit_patch(cases, (4, 4, 4), None)
    with pytest.raises(ValueError, match="and data.slice_axis 1, but case0.nii has 2 axes"):
        fit_patch(cases, (4, 4), 1)


@pytest.mark.parametrize(
    ("patch", "axis", "words"),
    [
        ([4], None, r"data.patch is \[4\]; it is 2 or 3 numbers"),
        ([4, 4, 4, 4], None, "data.patch"),
        ([4, 0], None, "each at least 1"),
        ([4, 4, 4], 1, "data.slice_axis is 1, but data.patch"),
        ([4, 4], 3, "data.slice_axis is 3; it is an axis"),
        (None, 0, "data.slice_axis has no effect without data.patch"),
    ],
)
def test_patches_without_sense_are_errors(patch, axis, words):
    with pytest.raises(ValueError, match=words):
        check_patch(patch, axis)
    check_patch([1, 2], 2)
    check_patch(None, None)
