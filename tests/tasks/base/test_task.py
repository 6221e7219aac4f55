"""What every task shares: composition, normalisation, weights, and the guard against non-finite losses."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.backbones import FPN, ResNet
from trunkline.heads import FasterRCNN
from trunkline.tasks.detection.task import Detection

SIZES = torch.tensor([[8, 8]])


def detector(**arguments):
    return Detection(
        backbone=ResNet(depth=18),
        neck=lambda trunk: FPN(trunk, channels=16),
        head=lambda levels: FasterRCNN(levels, num_classes=3),
        **arguments,
    )


def test_normalise_equals_padding_after_normalising_each_image():
    task = detector(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.25, 2.0))
    image = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    sizes = torch.tensor([[6, 8], [4, 5]])
    out = task.normalise(image, sizes)
    for b, (h, w) in enumerate(sizes.tolist()):
        for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
            expected = torch.zeros(6, 8)
            expected[:h, :w] = (image[b, c, :h, :w].double() / 255 - mean).div(std).float()
            torch.testing.assert_close(out[b, c], expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalise_passes_twice_over_uint8_images_and_compiles_to_the_same(channels_last):
    task = detector(channels_last=channels_last)
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [40, 50]])
    names, large = [], []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            names.append(str(function).split(".")[1])
            if result.numel() == image.numel() and names[-1] != "empty":
                large.append(names[-1])
            return result

    with Counting():
        plain = task.normalise(image, sizes)
    assert large == ["addcmul", "mul_"]
    computing = [name for name in names if name not in ("view", "select", "unsqueeze", "slice", "empty")]
    assert len(computing) <= 7, names
    compiled = torch.compile(task.normalise, fullgraph=True, dynamic=False, backend="aot_eager")(image, sizes)
    assert torch.equal(compiled, plain) and compiled.stride() == plain.stride()


@pytest.mark.parametrize("kind", ["autocast", "weights"])
def test_normalise_gives_what_the_first_convolution_would_round_to(kind):
    task = detector()
    image, sizes = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8), torch.tensor([[8, 7]])
    full = task.normalise(image, sizes)
    if kind == "weights":
        half = task.bfloat16().normalise(image, sizes)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = task.normalise(image, sizes)
    assert half.dtype == torch.bfloat16 and torch.equal(half, full.bfloat16())


def test_constants_of_normalising_go_where_the_task_goes():
    task = detector(pixel_mean=(0.5,), pixel_std=(0.25,)).to("meta")
    assert task.pixel_factor.is_meta and "pixel_factor" not in task.state_dict()
    assert task.normalise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device="meta"), SIZES.to("meta")).is_meta


def test_pixel_std_of_zero_is_an_error():
    with pytest.raises(ValueError, match="pixel_std"):
        detector(pixel_std=(0.0, 1.0, 1.0))


def test_channels_last_reaches_weights_and_images():
    task = detector(channels_last=True)
    assert task.backbone.bottom_up.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    out = task.normalise(torch.zeros(2, 3, 6, 8, dtype=torch.uint8), torch.tensor([[6, 8], [6, 8]]))
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()


def test_trunk_is_what_lies_below_the_neck():
    task = detector()
    assert task.trunk is task.backbone.bottom_up and isinstance(task.trunk, ResNet)


def test_weights_fill_the_whole_task(tmp_path):
    source = detector()
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    loaded = detector(weights=str(path))
    for name, value in source.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_names_the_loss_and_the_images(bad):
    task = detector()
    losses = {"rpn_box": torch.tensor(bad), "roi_box": torch.tensor(1.0)}
    with pytest.raises(FloatingPointError, match=r"rpn_box = (nan|inf).*ids \[7, 9\]"):
        task.loss_check.total(losses, torch.tensor([7, 9]), 0)


def test_total_loss_is_the_sum_in_float32():
    total = detector().loss_check.total(
        {"a": torch.tensor(1.5, dtype=torch.bfloat16), "b": torch.tensor(2.25)}, torch.tensor([1]), 0
    )
    assert total.dtype == torch.float32 and total.item() == 3.75


@pytest.mark.parametrize(("device", "shards"), [("meta", True), ("meta", False), ("cpu", False)])
def test_setup_prepares_the_device(monkeypatch, device, shards):
    set_to = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    strategy = SimpleNamespace(
        root_device=torch.device(device),
        restore_checkpoint_after_setup=shards,
        precision_plugin=SimpleNamespace(),
    )
    monkeypatch.setattr(
        Detection,
        "trainer",
        SimpleNamespace(strategy=strategy, datamodule=None, precision="32-true"),
        raising=False,
    )
    task = detector(matmul_precision="high")
    task.setup("fit")
    assert set_to == ([] if device == "cpu" else ["high"])
    places = {task.pixel_factor.device.type, task.head.rpn.anchors.base.device.type}
    assert places == {"meta" if shards else "cpu"}  # strategies that shard never call .to()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_volumes_in_bfloat16_are_not_trained_on_a_cpu(tiny, tmp_path, precision):
    run = tiny.trainer(tmp_path, precision=precision)
    with pytest.raises(ValueError, match=r"wrong gradients of 3-D .* --trainer.precision 32-true"):
        run.fit(tiny.classifier(ndim=3), tiny.Memory(ndim=3))
    images = tiny.classifier()  # which are not concerned
    tiny.trainer(tmp_path, precision=precision, limit_val_batches=0).fit(images, tiny.Memory())
