"""The classification task: normalisation, training, metrics."""

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from trunkline.backbones import ResNet
from trunkline.heads import Classifier
from trunkline.tasks.base.network import IMAGENET_MEAN, IMAGENET_STD
from trunkline.tasks.classification.task import Classification


def probabilities_of(task, data):
    with torch.no_grad():
        return torch.cat([task.eval()(b.image, b.image_sizes).probabilities for b in data.batches])


def labels_of(data):
    return torch.cat([batch.label for batch in data.batches])


def test_torchvisions_classifier_scores_the_same_through_the_task(tmp_path):
    """Everything between uint8 pixels and probabilities takes part, on weights read from a file."""
    torch.manual_seed(0)
    peer = resnet18(num_classes=7).eval()
    for module in peer.modules():  # statistics as training leaves them
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path / "resnet18.pth"
    torch.save(peer.state_dict(), path)
    task = Classification(
        backbone=ResNet(depth=18), head=lambda levels: Classifier(levels, 7), weights=str(path)
    ).eval()
    image = torch.randint(0, 256, (2, 3, 75, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = peer((image.float() / 255 - mean) / std)
        sizes = torch.tensor([[75, 96]] * 2)
        torch.testing.assert_close(task.raw(image, sizes).logits, expected, atol=1e-4, rtol=1e-4)
        found = task(image, sizes).probabilities
    torch.testing.assert_close(found, expected.softmax(1), atol=1e-4, rtol=1e-4)


def test_scans_are_taken_as_they_are_and_zero_outside(tiny):
    volume = torch.randn(2, 1, 3, 4, 5, dtype=torch.float64)
    out = tiny.classifier(ndim=3).normalise(volume, torch.tensor([[3, 4, 5], [2, 3, 1]]))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0], volume[0].float())
    inside = torch.zeros(1, 3, 4, 5)
    inside[:, :2, :3, :1] = 1
    torch.testing.assert_close(out[1], volume[1].float() * inside)


def test_volumes_of_bytes_are_normalised_per_channel(tiny):
    task = tiny.classifier(ndim=3, pixel_mean=(0.25, 0.5), pixel_std=(0.5, 2.0))
    volume = torch.randint(0, 256, (1, 2, 3, 4, 5), dtype=torch.uint8)
    out = task.normalise(volume, torch.tensor([[3, 4, 5]]))
    torch.testing.assert_close(out[0, 0], (volume[0, 0].double() / 255 - 0.25).div(0.5).float())
    torch.testing.assert_close(out[0, 1], (volume[0, 1].double() / 255 - 0.5).div(2.0).float())


def test_images_of_other_channels_than_pixel_mean_are_an_error(tiny):
    grey, sizes = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([[8, 8]])
    with pytest.raises(ValueError, match="1 channels, pixel_mean 3 .*--model.pixel_mean"):
        tiny.classifier().normalise(grey, sizes)
    one = tiny.classifier(pixel_mean=(0.5,), pixel_std=(0.25,)).normalise(grey, sizes)
    assert one.unique().tolist() == [-2.0]


def test_channels_last_reaches_volumes(tiny):
    task = tiny.classifier(ndim=3, channels_last=True)
    assert task.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    out = task.normalise(torch.randn(2, 2, 3, 4, 5), torch.tensor([[3, 4, 5]] * 2))
    assert out.is_contiguous(memory_format=torch.channels_last_3d) and not out.is_contiguous()


def test_usual_optimiser_is_that_of_the_imagenet_recipe_unless_another_is_given(tiny):
    def options_of(task):
        (optimizer,), _ = task.configure_optimizers()
        return {name: optimizer.defaults[name] for name in ("lr", "momentum", "weight_decay")}

    assert options_of(tiny.classifier()) == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    given = tiny.classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.3))
    assert options_of(given) == {"lr": 0.3, "momentum": 0, "weight_decay": 0}


@pytest.mark.parametrize("mixing", [{}, {"mixup": 1.0}, {"cutmix": 1.0}])
def test_loss_of_a_step_is_that_of_the_mixed_batch(tiny, mixing):
    task, batch = tiny.classifier(**mixing), tiny.Memory().batches[0]
    task.log = task.log_dict = lambda *_, **__: None
    torch.manual_seed(3)
    loss = task.training_step(batch, 0)
    torch.manual_seed(3)
    image, label = task.mixing(task.normalise(batch.image, batch.image_sizes), batch.label, 3)
    features = task.backbone(image)[0].mean((2, 3))
    torch.testing.assert_close(loss, F.cross_entropy(task.head.fc(features), label))
    assert bool(mixing) == (label.ndim == 2)


@pytest.mark.parametrize(("ndim", "several"), [(2, False), (3, False), (2, True)])
def test_training_learns_to_tell_the_classes(tiny, tmp_path, ndim, several):
    data = tiny.Memory(sizes=(6,) * 4, several=several, ndim=ndim)
    task = tiny.classifier(
        ndim=ndim,
        head={"multi_label": several},
        optimizer=lambda p: torch.optim.Adam(p, lr=0.03),
    )
    tiny.trainer(tmp_path, max_epochs=40).fit(task, data)
    name = "mAP" if several else "accuracy"
    untrained = tiny.classifier(ndim=ndim, head={"multi_label": several})
    tiny.trainer(tmp_path).validate(untrained, data, verbose=False)
    # The labels of several classes follow the ids, not the pictures: they can only be learnt in part.
    assert task.result.metrics[name] > (untrained.result.metrics[name] if several else 0.95)


def test_not_finite_loss_names_the_images(tiny, tmp_path):
    task = tiny.classifier()
    torch.nn.init.constant_(task.head.fc.bias, float("inf"))
    with pytest.raises(FloatingPointError, match=r"images with ids \[0, 1, 2, 3\].*annotations"):
        tiny.trainer(tmp_path).fit(task, tiny.Memory())


def test_logged_metrics_equal_a_slow_count(tiny, tmp_path):
    """Uneven batches, and an image without label that counts for nothing."""
    task, data = tiny.classifier(), tiny.Memory(unknown=(5, 9))
    logged = tiny.trainer(tmp_path).validate(task, data, verbose=False)[0]
    probabilities, labels = probabilities_of(task, data), labels_of(data)
    known = labels >= 0
    assert known.sum() == 9
    right = probabilities.argmax(1) == labels
    assert logged["val/accuracy"] == pytest.approx(right[known].float().mean().item())
    means = [right[labels == k].float().mean().item() for k in range(3)]
    assert logged["val/mean_class_accuracy"] == pytest.approx(sum(means) / 3)
    loss = F.nll_loss(probabilities.log()[known], labels[known])
    assert logged["val/loss"] == pytest.approx(loss.item(), rel=1e-5) == logged["val/classification"]
    assert task.result.images == 9


def test_five_best_guesses_are_logged_for_more_than_five_classes(tiny, tmp_path):
    data = tiny.Memory(names=[f"c{k}" for k in range(8)])
    task = tiny.classifier(num_classes=8)
    logged = tiny.trainer(tmp_path).test(task, data, verbose=False)[0]
    best = probabilities_of(task, data).argsort(1, descending=True)[:, :5]
    expected = (best == labels_of(data)[:, None]).any(1).float().mean().item()
    assert logged["test/accuracy_top5"] == pytest.approx(expected) and expected > 0
    assert {"test/accuracy", "test/mean_class_accuracy", "test/loss"} <= logged.keys()


def test_several_labels_are_evaluated(tiny, tmp_path):
    task, data = tiny.classifier(head={"multi_label": True}), tiny.Memory(several=True)
    logged = tiny.trainer(tmp_path).validate(task, data, verbose=False)[0]
    probabilities, labels = probabilities_of(task, data), labels_of(data)
    right = ((probabilities >= 0.5) == labels.bool()).all(1).float().mean().item()
    assert logged["val/subset_accuracy"] == pytest.approx(right)
    assert logged["val/loss"] == pytest.approx(F.binary_cross_entropy(probabilities, labels).item(), rel=1e-5)
    assert 0 < logged["val/mAP"] <= 1 and 0 <= logged["val/F1"] <= 1


def test_weight_averaging_validates_and_saves_the_average(tiny, tmp_path):
    """After two steps with decay 0.5 the weights are the mean of those after each step."""
    task = tiny.classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    seen = []
    task.on_train_batch_end = lambda *_: seen.append(task.head.fc.weight.detach().clone())
    ema = pl.callbacks.EMAWeightAveraging(decay=0.5)
    tiny.trainer(tmp_path, limit_train_batches=2, callbacks=[ema]).fit(task, tiny.Memory())
    torch.testing.assert_close(task.head.fc.weight.detach(), 0.5 * seen[0] + 0.5 * seen[1])


def test_network_runs_once_per_step_also_in_validation(tiny, tmp_path):
    task, calls = tiny.classifier(), []
    task.backbone.register_forward_hook(lambda *_: calls.append(task.training))
    tiny.trainer(tmp_path, limit_train_batches=2, limit_val_batches=1).fit(task, tiny.Memory())
    assert calls == [True, True, False]
