"""What a network draws: other numbers in each process, and in evaluations those of the images."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from memory_tasks import Everything, single, trainer

from trunkline.tasks.base.draws import OwnDraws, fixed_draws, seed_of


def drawn(rank, ckpt_path=None):
    torch.manual_seed(5)
    torch.rand(3)  # a model was made
    OwnDraws().on_train_start(SimpleNamespace(global_rank=rank, ckpt_path=ckpt_path), None)
    return torch.rand(4).tolist()


def test_every_process_draws_other_numbers_and_the_first_those_of_one():
    torch.manual_seed(5)
    torch.rand(3)
    alone = torch.rand(4).tolist()
    assert drawn(0) == alone == drawn(2, "last.ckpt")
    assert len({tuple(drawn(rank)) for rank in range(8)}) == 8
    assert drawn(3) == drawn(3)


def test_draws_of_an_evaluation_depend_on_the_images_and_change_no_other():
    def run(ids):
        with fixed_draws(torch.tensor(ids), torch.device("cpu")):
            return torch.rand(2).tolist()

    torch.manual_seed(1)
    one, after = run([3, -4]), torch.rand(2).tolist()
    torch.manual_seed(1)
    assert torch.rand(2).tolist() == after and run([3, -4]) == one
    assert len({str(run(ids)) for ids in ([3, -4], [-4, 3], [3], [], [2**63 - 1])}) == 5
    assert 0 <= seed_of([1]) < 2**63


def test_an_evaluation_has_the_same_losses_each_time_and_leaves_training_alone(tmp_path):
    task, data = single("boxes"), Everything("boxes")
    task.head.rpn.options = replace(task.head.rpn.options, batch_size=4)  # of more anchors
    run = trainer(tmp_path)
    torch.manual_seed(1)
    (one,), after = run.validate(task, data, verbose=False), torch.rand(1)
    torch.manual_seed(2)
    (other,) = run.validate(task, data, verbose=False)
    torch.manual_seed(1)
    assert str(one) == str(other) and one["val/rpn_objectness"] > 0 and torch.equal(torch.rand(1), after)
