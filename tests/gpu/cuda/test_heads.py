"""Every head gives on a GPU what it gives on the CPU, and trains in half precision."""

import contextlib
import copy
import io
from types import SimpleNamespace

import pytest
import torch

from trunkline.backbones import FPN, ResNet
from trunkline.heads import FCN, Classifier, DeepLabV3, DeepLabV3Plus, FasterRCNN, SemanticFPN, UNet
from trunkline.heads.detection import RoIOptions, RPNOptions

pytestmark = pytest.mark.gpu

SIZE, CLASSES = (96, 128), 4
ALL = {"batch_size": 100_000, "positive_fraction": 1.0}  # of which nothing is drawn by chance


def faster_rcnn(levels):
    return FasterRCNN(levels, CLASSES, rpn=RPNOptions(**ALL), roi=RoIOptions(**ALL))


HEADS = {
    "faster_rcnn": faster_rcnn,
    "fcn": lambda levels: FCN(levels, CLASSES, dropout=0.0),
    "deeplab_v3": lambda levels: DeepLabV3(levels, CLASSES, channels=16, dropout=0.0),
    "deeplab_v3_plus": lambda levels: DeepLabV3Plus(levels, CLASSES, channels=16, dropout=0.0),
    "unet": lambda levels: UNet(levels, CLASSES),
    "semantic_fpn": lambda levels: SemanticFPN(levels, CLASSES),
    "classifier": lambda levels: Classifier(levels, CLASSES),
}
PYRAMIDS = ("faster_rcnn", "semantic_fpn")


class Network(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        trunk = ResNet(18, norm="frozen_batch")
        self.trunk = FPN(trunk, channels=32) if name in PYRAMIDS else trunk
        self.head = HEADS[name](self.trunk.levels)

    def forward(self, image):
        return self.head(self.trunk(image), image.shape[2:])

    def losses(self, batch):
        return self.head.losses(self(batch.image), batch)


def batch_on(device, name):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, 3, 2, generator=generator) * 50
    extent = 10 + 30 * torch.rand(2, 3, 2, generator=generator)
    labels = torch.tensor([[0, 1, 3], [2, -1, -1]])
    fields = {
        "image": torch.randn(2, 3, *SIZE, generator=generator),
        "image_sizes": torch.tensor([SIZE] * 2),
        "boxes": torch.cat([corner, corner + extent], -1),
        "labels": torch.tensor([1, 3]) if name == "classifier" else labels,
        "label": torch.tensor([1, 3]),
        "crowd": torch.zeros(2, 3, dtype=torch.bool),
        "mask": torch.randint(CLASSES, (2, *SIZE), generator=generator),
    }
    return SimpleNamespace(**{key: value.to(device) for key, value in fields.items()})


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_are_those_of_the_cpu(name, device, exact):
    ours, reference = Network(name).to(device), Network(name)
    losses = ours.losses(batch_on(device, name))
    expected = reference.losses(batch_on("cpu", name))
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        assert losses[key].device.type == device.type
        torch.testing.assert_close(losses[key].cpu(), value, rtol=1e-3, atol=1e-4)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for key, parameter in ours.named_parameters():
        gradient = reference.get_parameter(key).grad
        assert (parameter.grad is None) == (gradient is None), key
        if gradient is not None:
            largest = float(gradient.abs().max())
            torch.testing.assert_close(
                parameter.grad.cpu(), gradient, rtol=0.02, atol=0.02 * largest + 1e-6, msg=key
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", HEADS)
def test_steps_in_half_precision_lower_the_loss(name, dtype, device):
    network, batch = Network(name).to(device, memory_format=torch.channels_last), batch_on(device, name)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16, init_scale=2.0**8)
    values = []
    for _ in range(4):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype):
            loss = sum(network.losses(batch).values())
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(loss.item())
    assert all(torch.isfinite(torch.tensor(values)))
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", HEADS)
def test_a_checkpoint_of_the_gpu_opens_on_the_cpu(name, device):
    network = Network(name).to(device)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = Network(name)
    other.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value.cpu())


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_deterministic_step_of_a_detector_repeats_itself(device, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    first = Network("faster_rcnn").to(device)
    batch, gradients = batch_on(device, "faster_rcnn"), []
    with deterministic():
        for network in (first, copy.deepcopy(first)):
            torch.manual_seed(2)  # of the order in which boxes are drawn, and so of the sums
            sum(network.losses(batch).values()).backward()
            gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
