"""Two processes give the metrics of one, however the images fall to them."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline.evaluation.detection.evaluator import CocoEvaluator


@pytest.fixture(scope="module")
def found(real_like, tmp_path_factory):
    """Run four rounds in two processes; return the output of both ranks and what one process finds."""
    truth, predictions = real_like
    folder = tmp_path_factory.mktemp("gather")
    image_ids = list(predictions)
    everything = [(image_id, 0.0) for image_id in image_ids]
    uneven = (everything[:27], everything[27:])
    one_idle = ([], everything)
    # As samplers fill up: images of rank 0 again on rank 1 (moved far off, to tell them apart), and rank 1's
    # own last image again.
    filled = (everything[::2], [*everything[1::2], *((image_id, 500.0) for image_id in image_ids[:6:2])])
    filled[1].append((image_ids[-1], 500.0))
    rounds = [uneven, one_idle, filled, ([], [])]
    (folder / "input.pickle").write_bytes(pickle.dumps((truth, predictions, rounds)))
    worker = Path(__file__).with_name("gather_worker.py")
    subprocess.run([sys.executable, worker, folder], check=True, timeout=120)
    ranks = [pickle.loads((folder / f"output{rank}.pickle").read_bytes()) for rank in (0, 1)]
    alone = CocoEvaluator(truth)
    for image_id in image_ids:
        alone.add(image_id, *predictions[image_id])
    return ranks, alone


@pytest.mark.parametrize("number", [0, 1, 2], ids=["uneven", "one idle", "repeated images"])
def test_every_rank_finds_what_one_process_finds(found, number):
    ranks, alone = found
    expected = alone.compute()
    for rank in ranks:
        images, result, rows = rank[number]
        assert images == 40
        assert result.metrics == expected.metrics
        for row, other in zip(result.per_class, expected.per_class, strict=True):
            assert row[:3] == other[:3]
            assert row.ap == other.ap or math.isnan(row.ap) and math.isnan(other.ap)
        assert sorted(map(str, rows)) == sorted(map(str, alone.results()))


def test_both_ranks_hold_the_same_rows_in_the_same_order(found):
    ranks, _ = found
    for one, other in zip(*ranks, strict=True):
        assert one[2] == other[2]


def test_no_images_anywhere(found):
    ranks, _ = found
    assert [rank[3] for rank in ranks] == [(0, None, [])] * 2


def test_gather_alone_does_nothing(real_like):
    truth, predictions = real_like
    evaluator = CocoEvaluator(truth)
    for image_id, rows in predictions.items():
        evaluator.add(image_id, *rows)
    before = evaluator.results()
    evaluator.gather()
    assert before == evaluator.results()
