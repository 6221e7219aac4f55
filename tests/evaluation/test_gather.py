"""Two processes give the metrics of one, however the images fall to them."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline.evaluation.detection.evaluator import CocoEvaluator
from trunkline.evaluation.files import write_json


@pytest.fixture(scope="module")
def outputs(real_like, contract_cases, tmp_path_factory):
    """Run four rounds and all contract cases in two processes; return the outputs of both ranks."""
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
    cases = {name: case[:3] for name, case in contract_cases.items()}
    (folder / "input.pickle").write_bytes(pickle.dumps((truth, predictions, rounds, cases)))
    worker = Path(__file__).with_name("gather_worker.py")
    subprocess.run([sys.executable, worker, folder], check=True, timeout=120)
    return [pickle.loads((folder / f"output{rank}.pickle").read_bytes()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def ranks(outputs):
    return [rounds for rounds, _ in outputs]


@pytest.fixture(scope="module")
def alone(contract_cases):
    return contract_cases["boxes"].direct


@pytest.mark.parametrize("number", [0, 1, 2], ids=["uneven", "one idle", "repeated images"])
def test_every_rank_finds_what_one_process_finds(ranks, alone, number):
    expected = alone.compute()
    for rank in ranks:
        images, result, rows = rank[number]
        assert images == 40
        assert result.metrics == expected.metrics
        for row, other in zip(result.per_class, expected.per_class, strict=True):
            assert row[:3] == other[:3]
            assert row.ap == other.ap or math.isnan(row.ap) and math.isnan(other.ap)
        assert sorted(map(str, rows)) == sorted(map(str, alone.results()))


def test_both_ranks_hold_the_same_rows_in_the_same_order(ranks):
    for one, other in zip(*ranks, strict=True):
        assert one[2] == other[2]


def test_no_images_anywhere(ranks):
    assert [rank[3] for rank in ranks] == [(0, None, [])] * 2


@pytest.mark.parametrize("kind", ["boxes", "masks", "classes", "several classes", "scans"])
def test_every_evaluator_gathers(outputs, contract_cases, kind, tmp_path):
    expected = write_json(tmp_path / "one", contract_cases[kind].direct.compute().as_dict()).read_text()
    for rank, (_, by_contract) in enumerate(outputs):
        written = write_json(tmp_path / f"{rank}", by_contract[kind].as_dict())
        assert written.read_text() == expected


def test_gather_alone_does_nothing(real_like):
    truth, predictions = real_like
    evaluator = CocoEvaluator(truth)
    for image_id, rows in predictions.items():
        evaluator.add(image_id, *rows)
    before = evaluator.results()
    evaluator.gather()
    assert before == evaluator.results()
