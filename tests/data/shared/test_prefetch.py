"""Copies to the device ahead of the step: the order of calls, by stand-ins for CUDA's streams."""

from contextlib import contextmanager

import pytest
import torch
from pytorch_lightning import Trainer

from trunkline.data.shared import prefetch
from trunkline.data.shared.failed import FailedBatch, FailedImage
from trunkline.data.shared.loading import ImageBatchSampler, PlainErrorLoader, batch_loader

GPU = torch.device("cuda", 0)


class Cuda:
    """Writes down what happens to streams, events and batches."""

    def __init__(self, monkeypatch):
        self.calls, self.open = [], "step"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self, "side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(self, "step"))
        monkeypatch.setattr(torch.cuda, "stream", self.entered)
        prefetch._side_stream.cache_clear()

    @contextmanager
    def entered(self, stream):
        before, self.open = self.open, stream.name
        yield
        self.open = before


class Stream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def record_event(self):
        return f"event {len(self.cuda.calls)}"

    def wait_event(self, event):
        self.cuda.calls.append((self.name, "waits", event))


class OnDevice(torch.Tensor):
    """A tensor that says it is on the GPU."""

    @property
    def is_cuda(self):
        return True

    def record_stream(self, stream):
        stream.cuda.calls.append((stream.name, "uses", int(self)))


class Numbered:
    """A batch that moves by ``to``, as all do."""

    def __init__(self, cuda, number, tensor=None):
        self.cuda, self.number, self.tensor = cuda, number, tensor

    def to(self, device):
        assert device == GPU
        self.cuda.calls.append((self.cuda.open, "copies", self.number))
        return {"number": self.number, "image": torch.tensor(self.number).as_subclass(OnDevice)}


@pytest.fixture
def cuda(monkeypatch):
    yield Cuda(monkeypatch)
    prefetch._side_stream.cache_clear()


def served(cuda, source):
    for batch in prefetch.prefetched(source, GPU):
        cuda.calls.append(("step", "computes", batch["number"]))


def test_each_copy_is_queued_before_the_step_ahead_of_it_and_its_step_waits_for_it(cuda):
    served(cuda, (Numbered(cuda, n) for n in range(3)))
    assert cuda.calls == [
        ("side", "copies", 0),
        ("side", "copies", 1),
        ("step", "waits", "event 1"),  # recorded right after the copy of batch 0
        ("step", "uses", 0),
        ("step", "computes", 0),
        ("side", "copies", 2),
        ("step", "waits", "event 2"),
        ("step", "uses", 1),
        ("step", "computes", 1),
        ("step", "waits", "event 6"),
        ("step", "uses", 2),
        ("step", "computes", 2),
    ]


def test_one_batch_and_none(cuda):
    served(cuda, [Numbered(cuda, 7)])
    assert [call[1] for call in cuda.calls] == ["copies", "waits", "uses", "computes"]
    assert list(prefetch.prefetched([], GPU)) == []


def test_a_batch_that_fails_costs_none_before_it(cuda):
    def source():
        yield Numbered(cuda, 0)
        yield Numbered(cuda, 1)
        raise ValueError("image 5 is damaged")

    with pytest.raises(ValueError, match="image 5 is damaged"):
        served(cuda, source())
    assert [call[2] for call in cuda.calls if call[1] == "computes"] == [0, 1]


def test_a_batch_without_readable_images_passes(cuda):
    failed = FailedBatch([FailedImage(1, "a.jpg", "is no image")])
    assert list(prefetch.prefetched([failed], GPU)) == [failed]


def test_loaders_copy_ahead_for_a_gpu_only(cuda):
    cuda_loader = PlainErrorLoader([Numbered(cuda, 0)], batch_size=None, collate_fn=lambda b: b, device=GPU)
    assert [batch["number"] for batch in cuda_loader] == [0] and cuda.calls[0] == ("side", "copies", 0)
    cuda.calls.clear()
    cpu = PlainErrorLoader(
        [Numbered(cuda, 0)], batch_size=None, collate_fn=lambda b: b, device=torch.device("cpu")
    )
    assert [batch.number for batch in cpu] == [0] and not cuda.calls


def test_loaders_take_the_device_of_the_trainer():
    sampler = ImageBatchSampler(4, 2)
    made = batch_loader(range(4), sampler, list, 0, Trainer(accelerator="cpu", logger=False, barebones=True))
    assert made.device == torch.device("cpu") and not made.pin_memory
