"""Samplers of several ranks share the steps of one, and go on in an epoch on another number of ranks."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.data import DataLoader

from trunkline.data.scans.patches import PatchSampler
from trunkline.data.segmentation.dataset import SegmentationBatchSampler
from trunkline.data.shared.canvas import CanvasBatchSampler, choose_canvas, scaled_sizes
from trunkline.data.shared.loading import ImageBatchSampler
from trunkline.data.shared.resumed import EpochProgress, joined

COUNT = 29
SIZES = np.random.default_rng(0).integers(40, 200, (COUNT, 2))


def images(size, rank=0, world=1, shuffle=True):
    return ImageBatchSampler(COUNT, size, shuffle, 3, rank, world)


def canvases(size, rank=0, world=1, shuffle=True):
    return CanvasBatchSampler(SIZES, size, (64, 96), 160, None, shuffle, 3, rank, world)


def patches(size, rank=0, world=1):
    return PatchSampler(5, size, 7, 0.5, 3, rank, world)


def masks(size, rank=0, world=1, shuffle=False):
    sizes = np.repeat([[40, 60], [60, 40], [50, 50]], [20, 8, 1], axis=0)
    return SegmentationBatchSampler(sizes, size, shuffle, 3, rank, world)


def steps(make, size, world, epoch=1, done=()):
    """The requests of each step of all ranks together."""
    samplers = [make(size, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.leave_out(epoch, done)
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(batches) == sampler.left() for batches, sampler in zip(ranks, samplers, strict=True))
    return [[request for batch in step for request in batch] for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("make", [images, canvases, patches])
@pytest.mark.parametrize("world", [2, 4])
def test_a_step_of_several_ranks_is_one_of_a_larger_batch(make, world):
    """The same images with the same seeds, short side and canvas."""
    one, several = steps(make, 4, 1), steps(make, 4 // world, world)
    assert [Counter(step) for step in one] == [Counter(step) for step in several]


def test_all_ranks_of_a_step_share_one_canvas():
    for step in steps(canvases, 2, 3):
        scaled = scaled_sizes(SIZES[[request.index for request in step]], step[0].short_side, 160)
        assert {request.canvas for request in step} == {choose_canvas(scaled, None)}


@pytest.mark.parametrize("make", [images, canvases, masks])
@pytest.mark.parametrize("world", [1, 2, 3, 40])
def test_evaluation_has_the_batches_of_one_rank(make, world):
    """Each image once, in the same batches; a rank without one gets a batch of no image."""
    alone = [tuple(batch) for batch in make(4, shuffle=False)]
    samplers = [make(4, rank, world, shuffle=False) for rank in range(world)]
    ranks = [[tuple(batch) for batch in sampler] for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(batches) for batches in ranks]
    assert all(batches and (all(batches) or batches == [()]) for batches in ranks)
    assert Counter(batch for batches in ranks for batch in batches if batch) == Counter(alone)


@pytest.mark.parametrize("make", [images, canvases])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [[(3, 4)], [(2, 4), (1, 6)], [(5, 2), (1, 4), (2, 2)], [(1, 12)]])
def test_an_epoch_goes_on_on_another_number_of_ranks(make, world, parts):
    """What was done is found by the same parts; the rest follows once, and only the end is filled up."""
    done = []
    for number, (batches, size) in enumerate(parts):
        done += [r for step in steps(make, size, 1, done=parts[:number])[:batches] for r in step]
    rest = [request for step in steps(make, 2, world, done=parts) for request in step]
    seen = Counter(request.index for request in done)
    assert max(seen.values()) == 1
    left = COUNT - len(done)
    after = Counter(request.index for request in rest)
    assert set(after) | set(seen) == set(range(COUNT))
    filled = -(-left // (2 * world)) * 2 * world - left
    assert len(rest) == left + filled and sum(index in seen for index in after.elements()) <= filled
    assert len({request.seed for request in rest}) == len(rest)


@pytest.mark.parametrize("make", [images, canvases, patches])
def test_an_epoch_goes_on_with_the_same_steps(make):
    every = steps(make, 2, 2)
    assert steps(make, 2, 2, done=[(3, 4)]) == every[3:]
    assert steps(make, 4, 1, done=[(3, 4)]) == steps(make, 4, 1)[3:]


def test_an_epoch_of_patches_keeps_its_number_of_steps_and_draws_others():
    rest = steps(patches, 2, 4, done=[(3, 4)])
    assert len(rest) == 4 and {len(step) for step in rest} == {8}
    assert not {r.seed for s in rest for r in s} & {r.seed for s in steps(patches, 2, 4) for r in s}


def trainer(world, processed=0, completed=None, last=False, epoch=1):
    current = SimpleNamespace(
        ready=processed, started=processed, processed=processed,
        completed=processed if completed is None else completed,
    )  # fmt: skip
    progress = SimpleNamespace(current=current, is_last_batch=last)
    loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=progress),
        epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
    )
    return SimpleNamespace(fit_loop=loop, world_size=world, global_rank=0)


def resumed(state, run, sampler):
    progress = EpochProgress()
    progress.restore(state)
    progress.apply(DataLoader(range(COUNT), sampler=sampler, batch_size=None), run)
    return progress


def test_lightning_counts_the_batches_of_the_ranks_of_now(caplog):
    """Twice in one epoch, 29 images: 3 steps of 4, then 2 of 2, then steps of 8."""
    state = EpochProgress().state(trainer(2, processed=3), 2)
    assert state == {"devices": 2, "batch_size": 2, "parts": [[3, 4]]}
    run, sampler = trainer(1, processed=3), images(2)
    progress = resumed(state, run, sampler)
    assert sampler.left() == 9  # 17 images
    assert vars(run.fit_loop.epoch_loop.batch_progress.current) == dict.fromkeys(
        ("ready", "started", "processed", "completed"), 15 - 9
    )
    assert (
        "the run was on 2 device(s) with batches of 2, 4 images a step, and goes on on 1 with 2, 2"
        in caplog.text
    )
    run.fit_loop.epoch_loop.batch_progress.current.processed += 2
    state = progress.state(run, 2)
    assert state["parts"] == [[3, 4], [2, 2]]
    run, sampler = trainer(4, processed=8, completed=7), images(2, world=4)
    progress = resumed(state, run, sampler)
    assert sampler.left() == 2  # 13 images
    assert vars(run.fit_loop.epoch_loop.batch_progress.current)["completed"] == 4 - 2 - 1
    run.fit_loop.epoch_loop.batch_progress.is_last_batch = True
    assert progress.state(run, 2)["parts"] == []
    assert progress.state(trainer(4, processed=1, epoch=2), 2)["parts"] == [[1, 8]]


def test_the_same_ranks_go_on_without_a_word(caplog):
    state = EpochProgress().state(trainer(2, processed=3), 2)
    run, sampler = trainer(2, processed=3, completed=2), images(2, world=2)
    progress = resumed(state, run, sampler)
    assert sampler.left() == 5 and not caplog.text
    assert vars(run.fit_loop.epoch_loop.batch_progress.current)["completed"] == 2
    run.fit_loop.epoch_loop.batch_progress.current.processed += 1
    assert progress.state(run, 2)["parts"] == [[4, 4]]


def test_a_checkpoint_of_before_has_no_parts():
    sampler = images(2, world=2)
    resumed({}, trainer(2, processed=3), sampler)
    assert sampler.left() == 5


def test_parts_of_equal_steps_are_one():
    assert joined([(2, 4), (0, 8), (3, 4), (1, 2)]) == [(5, 4), (1, 2)]
