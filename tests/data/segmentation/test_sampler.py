"""The sampler of pictures with masks: sizes, ranks, order."""

import numpy as np
import pytest

from trunkline.data.segmentation.dataset import SegmentationBatchSampler


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [False, True])
def test_ranks_share_pictures_and_each_has_a_batch(world_size, spread):
    rng = np.random.default_rng(0)
    sizes = rng.choice([10, 20], size=(23, 2))
    samplers = [
        SegmentationBatchSampler(sizes, 4, rank=rank, world_size=world_size, spread=spread)
        for rank in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(some) for some in batches] and all(batches)
    shown = [request.index for some in batches for batch in some for request in batch]
    assert sorted(shown) == list(range(23))
    for batch in (batch for some in batches for batch in some):
        assert len({tuple(sizes[request.index]) for request in batch}) == 1 and len(batch) <= 4


def test_the_order_of_evaluation_is_mixed_but_always_the_same_and_that_of_prediction_the_index():
    def order(spread):
        sampler = SegmentationBatchSampler(np.full((40, 2), 8), 8, spread=spread)
        return [request.index for batch in sampler for request in batch]

    assert order(False) == list(range(40)) and order(True) == order(True) != order(False)
    assert max(order(True)[:8]) > 20


def test_few_pictures_still_reach_every_rank():
    sizes = np.full((3, 2), 8)
    lengths = [len(SegmentationBatchSampler(sizes, 8, rank=rank, world_size=3)) for rank in range(3)]
    assert lengths == [1, 1, 1]
