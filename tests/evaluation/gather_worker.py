"""Run by test_gather.py: two processes that share the images of a validation run.

Reads a pickle of (ground truth, predictions, rounds, contract cases) and writes the results of each rank: of
each round, and of each contract case, of which each rank has every second batch.
"""

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from trunkline.evaluation.detection.evaluator import CocoEvaluator


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    truth, predictions, rounds, cases = pickle.loads((folder / "input.pickle").read_bytes())
    results = []
    evaluator = CocoEvaluator(truth)
    for shares in rounds:
        evaluator.reset()
        for image_id, shift in shares[rank]:
            boxes, scores, categories = predictions[image_id]
            evaluator.add(image_id, boxes + shift, scores, categories)
        evaluator.gather()
        evaluator.gather()  # again: nothing may change
        result = evaluator.compute() if len(evaluator) else None
        results.append((len(evaluator), result, evaluator.results()))
    by_contract = {}
    for name, (kind, context, batches) in cases.items():
        evaluator = kind()
        evaluator.prepare(context)
        evaluator.reset()
        for predictions_of_batch, batch in batches[rank::2]:
            evaluator.update(predictions_of_batch, batch)
        evaluator.gather()
        by_contract[name] = evaluator.compute()
    (folder / f"output{rank}.pickle").write_bytes(pickle.dumps((results, by_contract)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, args=(Path(sys.argv[1]),), nprocs=2)
