"""What every task shares: composition, normalisation, weights, and the guard against non-finite losses."""

import pytest
import torch

from trunkline.backbones import FPN, ResNet
from trunkline.heads import FasterRCNN
from trunkline.tasks.detection.task import Detection


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
