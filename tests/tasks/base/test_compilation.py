"""The compiled training step: one graph per shape, the same weights, and an error where it cannot be."""

import copy
import pickle

import pytest
import torch
from memory_tasks import Everything, single, trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler

from trunkline.heads import FCN
from trunkline.tasks.base import compilation
from trunkline.tasks.base.compilation import TrainingStep
from trunkline.tasks.run.averaging import WeightEMA

GRAPHS = torch._dynamo.utils.counters["stats"]


@pytest.fixture(autouse=True)
def aot_eager(monkeypatch):
    """Dynamo and AOTAutograd as on a GPU, without the minutes of code generation after them."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    GRAPHS.clear()
    yield
    torch._dynamo.reset()


def fit(folder, name, data=None, **options):
    torch.manual_seed(1)
    task = single(name, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), **options)
    steps = trainer(folder, max_epochs=2, limit_val_batches=1, callbacks=[WeightEMA(decay=0.5)])
    steps.fit(task, data or Everything(name))
    return task


@pytest.mark.parametrize("name", ["land", "scene", pytest.param("boxes", marks=pytest.mark.slow)])
def test_weights_equal_those_of_the_plain_step_with_one_graph_per_shape(tmp_path, name, caplog):
    plain = fit(tmp_path, name)
    assert not GRAPHS["unique_graphs"]
    with caplog.at_level("INFO", "trunkline"):
        compiled = fit(tmp_path, name, compile=True)
    assert GRAPHS["unique_graphs"] == 2  # batches of two and of three images, in two epochs with validations
    assert caplog.text.count("compiling the training step for images of") == 2
    assert "3 x 3 x 16 x 24 (shape 2)" in caplog.text and "compiled again" not in caplog.text
    states = plain.state_dict(), compiled.state_dict()
    assert states[0].keys() == states[1].keys()
    # Which proposals a detector learns from may depend on the rounding of their scores.
    atol = 5e-4 if name == "boxes" else 1e-5
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=atol, msg=key)


def test_copies_and_checkpoints_know_nothing_of_it(tmp_path):
    task = fit(tmp_path, "scene", compile=True)
    copied = copy.deepcopy(task)
    assert copied._training_losses._compiled is None is not task._training_losses._compiled
    assert copied._training_losses.mode is True
    assert pickle.loads(pickle.dumps(task._training_losses)).mode is True
    assert copied.state_dict().keys() == single("scene").state_dict().keys()
    batch = Everything("scene").batches[0]
    for one in (task, task.optimised()):
        assert one.eval()(batch.image, batch.image_sizes).probabilities.shape == (2, 3)


class Listening(FCN):
    """Looks at a value on the host in its losses."""

    def losses(self, raw, targets):
        losses = super().losses(raw, targets)
        if float(losses["cross_entropy"]) > 1000:
            raise ValueError("too much")
        return losses


def test_what_cannot_be_one_graph_ends_the_run_and_is_named(tmp_path):
    head = {"head": lambda levels: Listening(levels, 3, channels=4)}
    fit(tmp_path, "land", **head)
    with pytest.raises(RuntimeError, match=r"cannot be compiled as one graph.*test_compilation.py.*false"):
        fit(tmp_path, "land", **head, compile=True)


class Refusing(FCN):
    def losses(self, raw, targets):
        raise ValueError("the labels are wrong")


def test_an_error_of_the_step_itself_comes_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="the labels are wrong"):
        fit(tmp_path, "land", head=lambda levels: Refusing(levels, 3), compile=True)


def test_more_shapes_than_graphs_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "MOST_GRAPHS", 1)
    with pytest.raises(RuntimeError, match=r"have had 1 shapes, and this one \(images of \[3, 3, 16, 24\]\)"):
        fit(tmp_path, "scene", compile=True)


class Counting(FCN):
    """Has a number that changes from step to step, which a graph cannot contain."""

    seen = 0

    def losses(self, raw, targets):
        self.seen += 1
        return {name: loss * self.seen for name, loss in super().losses(raw, targets).items()}


def test_compiling_anew_for_known_shapes_is_said_once(tmp_path, caplog):
    fit(tmp_path, "land", head=lambda levels: Counting(levels, 3, channels=4), compile=True)
    assert GRAPHS["unique_graphs"] > 2
    assert caplog.text.count("was compiled again for shapes that it knows") == 1


@pytest.mark.parametrize(
    ("value", "mode"),
    [(True, None), ("reduce-overhead", "reduce-overhead"), ("max-autotune", "max-autotune")],
)
def test_the_word_reaches_torch_and_what_cuda_graphs_return_is_copied(monkeypatch, value, mode):
    made, marked, returned = [], [], {"loss": torch.ones(())}
    monkeypatch.setattr(torch, "compile", lambda f, **k: made.append(k) or (lambda task, batch: returned))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(1))
    step, batch = TrainingStep(lambda task, batch: None, value), Everything("land").batches[0]
    losses = [step(None, batch)["loss"] for _ in range(2)]
    assert made == [{"fullgraph": True, "dynamic": False, "mode": mode, "backend": "aot_eager"}]
    captured = value is not True
    assert len(marked) == 2 * captured
    returned["loss"].fill_(5)  # as the next step would
    assert [loss.item() for loss in losses] == [1 if captured else 5] * 2


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_refuse_gradients_of_several_batches(tmp_path, mode):
    run = trainer(tmp_path, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=rf"model.compile {mode} .*accumulate_grad_batches cannot be 2; set"):
        run.fit(single("scene", compile=mode), Everything("scene"))
    TrainingStep(lambda task, batch: {}, True).check(2)
    TrainingStep(lambda task, batch: {}, mode).check(1)


def test_cuda_graphs_refuse_a_schedule_of_gradients_of_several_batches(tmp_path):
    run = trainer(tmp_path, max_epochs=2, callbacks=[GradientAccumulationScheduler({1: 2})])
    with pytest.raises(ValueError, match=r"accumulate_grad_batches cannot be 2"):
        run.fit(single("scene", compile="reduce-overhead"), Everything("scene"))


def test_where_there_are_no_cuda_graphs_is_said_once(monkeypatch, caplog):
    skips = torch._dynamo.utils.counters["inductor"]

    def skipping(task, batch):
        skips["cudagraph_skips"] += 1
        return {}

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for mode in ("reduce-overhead", True):
        step = TrainingStep(skipping if mode is not True else lambda task, batch: {}, mode)
        for _ in range(2):
            step(None, Everything("land").batches[0])
    assert caplog.text.count("reduce-overhead has no CUDA graphs on this cpu") == 1
    assert caplog.text.count("torch runs part of the training step without CUDA graphs") == 1
