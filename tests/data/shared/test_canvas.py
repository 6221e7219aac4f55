"""Scaling, canvases, and the batches that a sampler makes of images of many shapes."""

import math
from collections import Counter

import numpy as np
import pytest

from trunkline.data.shared.canvas import (
    CanvasBatchSampler,
    choose_canvas,
    default_canvases,
    scaled_size,
    scaled_sizes,
)

COCO_CANVASES = [
    (800, 832), (832, 800), (800, 1088), (1088, 800), (800, 1216), (1216, 800), (800, 1344), (1344, 800),
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), (1067, 800)),
        ((426, 640), (800, 1202)),  # 1201.88
        ((360, 640), (750, 1333)),  # 1422 would be too long: 360 * 1333 / 640 = 749.8
        ((100, 1000), (133, 1333)),
        ((800, 800), (800, 800)),
        ((1, 4000), (1, 1333)),  # a third of a pixel is one pixel
    ],
)
def test_shorter_side_is_scaled_within_the_limit(size, expected):
    assert scaled_size(size, 800, 1333) == expected


def test_scaling_never_leaves_its_limits():
    sizes = np.random.default_rng(0).integers(1, 3000, size=(2000, 2))
    scaled = scaled_sizes(sizes, 777, 1234)
    assert scaled.max() <= 1234 and scaled.min(axis=1).max() <= 777
    reached = (scaled.max(axis=1) == 1234) | (scaled.min(axis=1) == 777)
    assert reached.all()
    fitted = scaled_sizes(sizes, 777, 1234, canvas=(320, 640))
    assert (fitted <= (320, 640)).all() and (fitted <= scaled).all()


def test_canvas_limits_the_scale():
    assert scaled_size((480, 640), 800, 1333, canvas=(1088, 800)) == (600, 800)
    assert scaled_size((480, 640), 800, 1333, canvas=(800, 1088)) == (800, 1067)


def test_default_canvases_of_coco():
    assert sorted(default_canvases([800], 1333)) == sorted(COCO_CANVASES)


def test_default_canvases_follow_the_short_side():
    canvases = default_canvases([320], 533)
    assert set(canvases) == {(320, 352), (320, 448), (320, 480), (320, 544)} | {
        (352, 320), (448, 320), (480, 320), (544, 320),
    }  # fmt: skip


def test_default_canvases_of_many_scales_come_in_two_sizes():
    canvases = default_canvases([640, 672, 704, 736, 768, 800], 1333)
    assert {min(canvas) for canvas in canvases} == {704, 800}
    assert set(COCO_CANVASES) <= set(canvases)


def test_a_long_side_equal_to_the_short_one_gives_squares():
    assert default_canvases([128], 128) == [(128, 128)]


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (500, 500), (360, 640), (333, 500)])
def test_default_canvases_hold_usual_images_unshrunk(size):
    scaled = scaled_size(size, 800, 1333)
    canvas = choose_canvas([scaled], COCO_CANVASES)
    assert scaled[0] <= canvas[0] and scaled[1] <= canvas[1]


def test_smallest_canvas_that_holds_all_is_chosen():
    canvases = [(100, 100), (100, 60), (60, 100), (60, 60)]
    assert choose_canvas([(60, 60)], canvases) == (60, 60)
    assert choose_canvas([(61, 60)], canvases) == (100, 60)
    assert choose_canvas([(50, 61), (20, 20)], canvases) == (60, 100)
    assert choose_canvas([(50, 61), (61, 20)], canvases) == (100, 100)


def test_where_none_holds_the_one_that_shrinks_least_is_chosen():
    assert choose_canvas([(200, 100)], [(100, 100), (120, 60), (50, 300)]) == (120, 60)


@pytest.mark.parametrize("canvases", [None, []])
def test_without_canvases_the_batch_is_rounded_up_to_32(canvases):
    assert choose_canvas([(33, 10), (20, 64)], canvases) == (64, 64)


def many_sizes(count=203, seed=0):
    """Mostly landscape and portrait, a few squares and panoramas."""
    rng = np.random.default_rng(seed)
    shapes = np.array([(48, 64), (64, 48), (60, 60), (40, 160), (43, 64)])
    return shapes[rng.choice(5, size=count, p=(0.5, 0.25, 0.1, 0.05, 0.1))]


CANVASES = default_canvases([64], 107)


def make(sizes, shuffle, batch_size=4, short_sides=(64,), canvases=CANVASES, **options):
    return CanvasBatchSampler(sizes, batch_size, short_sides, 107, canvases, shuffle=shuffle, **options)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("canvases", [CANVASES, None])
def test_evaluation_sees_each_image_once_over_all_ranks(world_size, canvases):
    sizes = many_sizes()
    seen = Counter()
    for rank in range(world_size):
        sampler = make(sizes, False, rank=rank, world_size=world_size, canvases=canvases)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        seen.update(request.index for batch in batches for request in batch)
    assert seen == Counter(range(len(sizes)))


@pytest.mark.parametrize("count", [3, 4, 9])
def test_evaluation_gives_every_rank_a_batch(count):
    """A rank without a batch leaves the others waiting: rather a smaller batch than none."""
    sizes = many_sizes()[:1].repeat(count, 0)
    ranks = [list(make(sizes, False, batch_size=8, rank=rank, world_size=3)) for rank in range(3)]
    assert all(ranks)
    found = sorted(request.index for batches in ranks for batch in batches for request in batch)
    assert found == list(range(count))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_has_one_known_canvas_that_holds_its_images(shuffle):
    sizes = many_sizes()
    for batch in make(sizes, shuffle):
        (canvas,) = {request.canvas for request in batch}
        assert canvas in CANVASES
        (short,) = {request.short_side for request in batch}
        assert short == 64
    largest = max(len(batch) for batch in make(sizes, shuffle))
    assert largest == 4


def test_evaluation_never_shrinks_an_image_that_fits_a_canvas():
    sizes = many_sizes()
    for batch in make(sizes, False):
        for index, short, canvas, _ in batch:
            assert scaled_size(sizes[index], short, 107, canvas) == scaled_size(sizes[index], short, 107)


def test_evaluation_uses_the_largest_short_side_and_ignores_the_epoch():
    sampler = make(many_sizes(), False, short_sides=(64, 32, 48))
    first = list(sampler)
    assert {request.short_side for batch in first for request in batch} == {64}
    sampler.set_epoch(3)
    assert list(sampler) == first


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_training_gives_ranks_equally_many_full_batches_and_loses_no_image(world_size, batch_size):
    sizes = many_sizes()
    expected = math.ceil(len(sizes) / (batch_size * world_size))
    for epoch in range(3):
        seen = Counter()
        for rank in range(world_size):
            sampler = make(sizes, True, batch_size=batch_size, rank=rank, world_size=world_size)
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == expected
            assert {len(batch) for batch in batches} == {batch_size}
            seen.update(request.index for batch in batches for request in batch)
        assert set(seen) == set(range(len(sizes)))
        assert seen.total() - len(sizes) < batch_size * world_size  # no more repeats than the last step needs


def test_ranks_have_equal_canvases_at_the_same_time():
    sizes = many_sizes(400)
    ranks = [list(make(sizes, True, rank=rank, world_size=2)) for rank in range(2)]
    equal = [one[0].canvas == other[0].canvas for one, other in zip(*ranks, strict=True)]
    left = len(make(sizes, True, world_size=2).groups)  # at most one mixed step per kind of canvas
    assert equal.count(False) <= left < len(equal) / 4


def test_rare_shapes_join_a_batch_instead_of_vanishing():
    sizes = np.array([(48, 64)] * 9 + [(64, 48)] * 1 + [(40, 160)] * 2)
    batches = list(make(sizes, True))
    assert {request.index for batch in batches for request in batch} == set(range(12))
    assert all(request.canvas in CANVASES for batch in batches for request in batch)


def test_drop_last_drops_the_incomplete_step_alone():
    sizes = many_sizes(203)
    sampler = make(sizes, True, batch_size=4, world_size=2, drop_last=True)
    assert len(list(sampler)) == len(sampler) == 203 // 8
    with pytest.raises(ValueError, match="3 images do not fill one step of 4 images on 1 ranks"):
        make(sizes[:3], True, drop_last=True)


def test_fewer_images_than_a_batch_are_repeated():
    (batch,) = make(np.array([(48, 64), (48, 64)]), True, batch_size=5)
    assert len(batch) == 5 and {request.index for request in batch} == {0, 1}


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        make(np.zeros((0, 2)), True)


def test_epochs_differ_and_the_seed_repeats_them():
    def epoch(number, seed=0):
        sampler = make(many_sizes(), True, short_sides=(32, 64), seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    def order(batches):
        return [request.index for batch in batches for request in batch]

    assert epoch(0) == epoch(0) and epoch(2) == epoch(2)
    assert order(epoch(0)) != order(epoch(1)) and order(epoch(0)) != order(epoch(0, seed=1))
    seeds = {request.seed for number in range(2) for batch in epoch(number) for request in batch}
    assert len(seeds) > 400  # each image of each epoch has its own


def test_several_short_sides_are_all_used_and_small_ones_get_small_canvases():
    short_sides = (32, 48, 64)
    canvases = default_canvases(short_sides, 107)
    sampler = make(many_sizes(400), True, short_sides=short_sides, canvases=canvases)
    area = {short: [] for short in short_sides}
    for batch in sampler:
        area[batch[0].short_side].append(math.prod(batch[0].canvas))
    assert all(len(found) > 15 for found in area.values())
    assert np.mean(area[32]) < np.mean(area[64])


def test_without_canvases_a_batch_is_padded_to_its_own_largest_image():
    sizes = np.array([(48, 64), (43, 64)] * 10)  # scaled to 64 x 85 and 64 x 95
    assert {batch[0].canvas for batch in make(sizes, True, canvases=None, batch_size=10)} <= {(64, 96)}


def test_requests_hold_plain_numbers():
    request = next(iter(make(many_sizes(), True)))[0]
    assert [type(value) for value in request] == [int, int, tuple, int]
    assert [type(value) for value in request.canvas] == [int, int]
