"""Whole runs on one GPU: weight averaging, distributed training, compiled steps, predictions."""

import pytest
import torch
from memory_tasks import Everything, single, trainer
from pytorch_lightning.strategies import DDPStrategy

from trunkline.backbones import FPN, ResNet
from trunkline.heads import FasterRCNN
from trunkline.tasks.base import compilation
from trunkline.tasks.detection import Detection
from trunkline.tasks.run.averaging import WeightEMA

pytestmark = pytest.mark.gpu

NAMES = ["boxes", "land", "scene"]


def fit(folder, name, device, strategy="auto", **options):
    """Train on the device; return the task, its average, and where that was at the end of the run."""
    torch.manual_seed(1)
    task = single(name, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), **options)
    average = Watched(decay=0.5)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    placed = {"accelerator": accelerator, "devices": 1, "strategy": strategy, "callbacks": [average]}
    trainer(folder, max_epochs=2, limit_val_batches=1, **placed).fit(task, Everything(name))
    return task, average


class Watched(WeightEMA):
    """Notes where the average is."""

    def on_train_batch_end(self, trainer, pl_module, *rest):
        super().on_train_batch_end(trainer, pl_module, *rest)
        self.devices = {value.device.type for value in self._average_model.module.parameters()}
        self.devices |= {value.device.type for value in pl_module.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_average_and_constants_are_where_the_model_is(tmp_path, name, device):
    task, average = fit(tmp_path, name, device)
    assert average.devices == {device.type}
    assert all(torch.isfinite(value).all() for value in task.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_distributed_training_on_one_device(tmp_path, name, device):
    backend = "nccl" if device.type == "cuda" else "gloo"
    strategy = DDPStrategy(process_group_backend=backend, static_graph=True)
    try:
        task, _ = fit(tmp_path, name, device, strategy)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert all(torch.isfinite(value).all() for value in task.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_trains(tmp_path, name, device, monkeypatch):
    if (
        device.type == "cpu" or name == "boxes"
    ):  # for which Inductor takes a minute; row step_compiled does it
        monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    plain, _ = fit(tmp_path, name, device)
    compiled, _ = fit(tmp_path, name, device, compile=True)
    torch._dynamo.reset()
    for key, value in plain.named_parameters():
        assert torch.isfinite(compiled.get_parameter(key)).all()
        if name != "boxes":  # which draws other boxes on a GPU
            torch.testing.assert_close(compiled.get_parameter(key), value, rtol=1e-2, atol=1e-2, msg=key)


@pytest.mark.parametrize("tf32", [True, False])
def test_the_optimised_copy_is_made_and_agrees(device, tf32):
    torch.manual_seed(0)
    task = Detection(
        backbone=ResNet(50, norm="batch"),
        neck=lambda trunk: FPN(trunk, channels=256),
        head=lambda levels: FasterRCNN(levels, 4),
    )
    task = task.to(device).eval()
    image = torch.randint(0, 256, (1, 3, 128, 160), dtype=torch.uint8, device=device)
    sizes = torch.tensor([[128, 160]], device=device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        copy = task.optimised()  # which compares the two by itself
        assert len(copy(image, sizes).count) == len(task(image, sizes).count) == 1
