"""What is copied from a device: the results of a batch together, its ids and sizes not at all."""

from dataclasses import replace

import pytest
import torch
from memory_tasks import Everything, multi, single

from trunkline.tasks.base import transfer
from trunkline.tasks.base.losses import LossCheck, LossMeans
from trunkline.tasks.base.transfer import to_main_memory
from trunkline.tasks.classification import branch as classes
from trunkline.tasks.detection import branch as boxes
from trunkline.tasks.segmentation import branch as masks


def elsewhere(batch):
    """The batch as it is on a device: what the host keeps can be read there alone.

    Fields that no layer needs lie on the device without data, where reading a value is an error.
    """
    here = {name: getattr(batch, name) for name in batch.host_fields}
    stays = ("image_sizes", "label")
    there = {name: value if name in stays else value.to("meta") for name, value in here.items()}
    return replace(batch, kept={name: (there[name], here[name]) for name in here}, **there)


def same(one, other):
    assert len(one) == len(other) > 0
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            equal = (
                torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
            )
            assert equal, name


@pytest.fixture
def copies(monkeypatch):
    """The copies that branches ask for, one entry each."""
    asked = []

    def counted(*tensors):
        asked.append(len(tensors))
        return to_main_memory(*tensors)

    for module in (classes, boxes, masks):
        monkeypatch.setattr(module, "to_main_memory", counted)
    return asked


@pytest.mark.parametrize(("name", "stage", "number"), [
    ("boxes", "validate", 1), ("boxes", "predict", 1), ("land", "validate", 0), ("land", "predict", 1),
    ("scene", "validate", 1), ("scene", "predict", 1),
])  # fmt: skip
def test_a_batch_is_evaluated_with_one_copy_and_without_its_fields(name, stage, number, copies):
    task, data = single(name).eval(), Everything(name)
    task.branch.prepare(data, stage)
    with torch.no_grad():
        for batch in data.batches:
            _, expected = task.infer(batch)
            copies.clear()
            moved = elsewhere(batch)
            _, found = task.infer(moved)
            same(found[""], expected[""])
            assert len(copies) == number
            if stage == "validate":
                task.branch.reset()
                task.branch.update(found[""], moved)
                assert len(copies) == number
                assert task.branch.picture_title(moved, 0) == f"image {int(batch.image_ids[0])}"
                assert task.picture(moved, 0, {"": found[""][0]}) is not None


def test_several_heads_copy_once_each(copies):
    task, data = multi().eval(), Everything()
    for branch in task.branches.values():
        branch.prepare(data, "validate")
    with torch.no_grad():
        task.infer(data.batches[0])
    assert len(copies) == 2  # boxes and classes; masks are counted where they are


def test_a_training_step_reads_no_field_of_the_batch():
    for name in ("boxes", "land", "scene"):
        task, batch = single(name), elsewhere(Everything(name).batches[0])
        task.log = task.log_dict = lambda *_, **__: None
        torch.manual_seed(0)
        assert torch.isfinite(task.training_step(batch, 0))


class OnDevice(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    @property
    def is_cuda(self):
        return True


@pytest.fixture
def device(monkeypatch):
    """Copies and events of a device, in the order in which they are asked for."""
    happened, empty = [], torch.empty

    class Event:
        def record(self):
            happened.append("record")

        def synchronize(self):
            happened.append("synchronise")

    def made(*shape, pin_memory=False, **options):
        assert pin_memory
        happened.append("copy")
        return empty(*shape, **options)

    monkeypatch.setattr(transfer.torch.cuda, "Event", Event)
    monkeypatch.setattr(transfer.torch, "empty", made)
    return happened


def test_several_tensors_synchronise_once(device):
    given = [torch.rand(2, 3), torch.arange(4), torch.tensor(True)]
    copied = to_main_memory(*(value.as_subclass(OnDevice) for value in given))
    assert device == ["copy"] * 3 + ["record", "synchronise"]
    for one, other in zip(copied, given, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    assert to_main_memory() == []


def test_the_losses_of_an_evaluation_synchronise_once_at_its_end(device):
    means = LossMeans()
    for value in (1.0, 4.0):
        losses = {name: torch.tensor(value * k).as_subclass(OnDevice) for k, name in enumerate("abc")}
        means.add(losses, 2)
    assert not device
    assert means.gathered() == {"a": 0.0, "b": 2.5, "c": 5.0, "loss": 7.5}
    assert device.count("synchronise") == 1


def test_the_check_of_losses_looks_at_the_step_before(device):
    check, ids = LossCheck(), torch.tensor([5])
    bad = {"a": torch.tensor(float("nan")).as_subclass(OnDevice)}
    check.total(bad, ids, 3)
    assert "synchronise" not in device
    with pytest.raises(FloatingPointError, match=r"step 3 .*ids \[5\]"):
        check.total(bad, ids, 4)
    assert device.count("synchronise") == 1
