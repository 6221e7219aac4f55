"""The classification task: normalisation, training, figures, classes, checkpoints, what is logged."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import resnet18

from trunkline.backbones import ResNet
from trunkline.heads import FCN, Classifier
from trunkline.tasks.base.network import IMAGENET_MEAN, IMAGENET_STD
from trunkline.tasks.classification.task import Classification


def probabilities_of(task, data):
    with torch.no_grad():
        return torch.cat([task.eval()(b.image, b.image_sizes).probabilities for b in data.batches])


def labels_of(data):
    return torch.cat([batch.label for batch in data.batches])


# -- the network


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


# -- training


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


# -- validation


def test_logged_figures_equal_a_slow_count(tiny, tmp_path):
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


def test_network_runs_once_per_step_also_in_validation(tiny, tmp_path):
    task, calls = tiny.classifier(), []
    task.backbone.register_forward_hook(lambda *_: calls.append(task.training))
    tiny.trainer(tmp_path, limit_train_batches=2, limit_val_batches=1).fit(task, tiny.Memory())
    assert calls == [True, True, False]


@pytest.mark.parametrize(
    ("ndim", "layout", "words"),
    [
        (
            2,
            (1, 3),
            r"scans \(three axes\), the trunk has 2; set --model.backbone.ndim 3 and .*in_channels 1",
        ),
        (
            3,
            (3, 2),
            r"pictures \(two axes\), the trunk has 3; set --model.backbone.ndim 2 and .*in_channels 3",
        ),
        (2, (1, 2), r"1 channel only, the trunk takes 3; set --model.backbone.in_channels 1,"),
        (3, (4, 3), r"4 channels, the trunk takes 1; set --model.backbone.in_channels 4,"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_images_that_the_trunk_cannot_take_are_an_error_before_the_first(
    tiny, tmp_path, stage, ndim, layout, words
):
    data, task = tiny.Memory(ndim=ndim), tiny.classifier(ndim=ndim)
    data.image_layout = lambda: layout
    task.backbone.register_forward_hook(lambda *_: pytest.fail("ran"))
    with pytest.raises(ValueError, match=words):
        getattr(tiny.trainer(tmp_path), stage)(task, data)


def test_one_image_of_a_single_cell_is_too_little_for_batch_norm(tiny, tmp_path):
    task = tiny.classifier()
    task.backbone.conv = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 8, 8), torch.nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match="--data.batch_size 2 or more"):
        tiny.trainer(tmp_path).fit(task, tiny.Memory(sizes=(1, 1)))
    tiny.trainer(tmp_path).fit(task, tiny.Memory(sizes=(2,)))


# -- classes


def test_a_head_or_data_of_another_kind_is_an_error_before_training(tiny, tmp_path):
    with pytest.raises(
        ValueError,
        match="model.head is a FCN, .*Classification takes heads for classification",
    ):
        Classification(backbone=ResNet(depth=10), head=lambda levels: FCN(levels, num_classes=3))
    data = tiny.Memory()
    data.label_kinds = ("segmentation",)
    with pytest.raises(ValueError, match="which learns classes of whole images; Memory has masks"):
        tiny.trainer(tmp_path).fit(tiny.classifier(), data)


def test_more_classes_than_the_head_is_an_error_before_training(tiny, tmp_path):
    with pytest.raises(ValueError, match="3 classes.*num_classes 2.*--model.head.num_classes 3"):
        tiny.trainer(tmp_path).fit(tiny.classifier(num_classes=2), tiny.Memory())


@pytest.mark.parametrize("several", [True, False])
def test_another_kind_of_labels_than_the_heads_is_an_error(tiny, tmp_path, several):
    task = tiny.classifier(head={"multi_label": not several})
    with pytest.raises(ValueError, match=f"--model.head.multi_label {str(several).lower()}"):
        tiny.trainer(tmp_path).validate(task, tiny.Memory(several=several))


def _names(path):
    state = torch.load(path, weights_only=True)["branches"][""]
    return [row["name"] for row in state["classes"]]


def test_classes_other_than_the_checkpoints_are_an_error(tiny, tmp_path):
    task = tiny.classifier()
    run = tiny.trainer(tmp_path)
    run.fit(task, tiny.Memory())
    run.save_checkpoint(tmp_path / "one.ckpt")
    assert _names(tmp_path / "one.ckpt") == ["dark", "grey", "light"]
    other = tiny.Memory(names=("dark", "gray", "light"))
    with pytest.raises(ValueError, match="class 1 is 'grey' there and 'gray' here.*--model.weights"):
        tiny.trainer(tmp_path).validate(tiny.classifier(), other, ckpt_path=tmp_path / "one.ckpt")
    fewer = tiny.Memory(names=("dark", "grey"))
    with pytest.raises(ValueError, match=r"\(3\), the data have \[dark, grey\] \(2\)"):
        tiny.trainer(tmp_path).validate(tiny.classifier(), fewer, ckpt_path=tmp_path / "one.ckpt")
    fresh = tiny.classifier()
    tiny.trainer(tmp_path).validate(
        fresh, tiny.Memory(), ckpt_path=tmp_path / "one.ckpt", verbose=False, weights_only=True
    )
    assert fresh.class_names == ["dark", "grey", "light"]
    assert fresh.result.metrics == task.result.metrics


def test_a_head_with_spare_classes_says_so_and_names_them(tiny, tmp_path, caplog):
    task = tiny.classifier(num_classes=4)
    tiny.trainer(tmp_path).validate(task, tiny.Memory(), verbose=False)
    assert "the data have 3 classes, the head num_classes 4; set --model.head.num_classes 3" in caplog.text
    caplog.clear()
    tiny.trainer(tmp_path).validate(tiny.classifier(), tiny.Memory(), verbose=False)
    assert "num_classes" not in caplog.text
    assert task.class_names == ["dark", "grey", "light", "class 3"]
    assert [row.name for row in task.result.per_class] == task.class_names


def test_spare_classes_are_an_error_where_each_is_a_question_of_its_own(tiny, tmp_path):
    task = tiny.classifier(num_classes=4, head={"multi_label": True})
    with pytest.raises(ValueError, match="3 classes, the head num_classes 4; set --model.head.num_classes 3"):
        tiny.trainer(tmp_path).fit(task, tiny.Memory(several=True))


def test_balanced_weights_come_from_the_training_data_and_stay_with_the_checkpoint(tiny, tmp_path):
    """8 images in 2 of 3 classes: 8 / (2 * 6), one where there is none, 8 / (2 * 2)."""
    task = tiny.classifier(head={"class_weights": "balanced"})
    run = tiny.trainer(tmp_path)
    run.fit(task, tiny.Memory())
    assert task.head.class_weights == pytest.approx([2 / 3, 1, 2])
    run.save_checkpoint(tmp_path / "one.ckpt")
    fresh = tiny.classifier(head={"class_weights": "balanced"})
    data = tiny.Memory()
    (logged,) = tiny.trainer(tmp_path).validate(fresh, data, ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert fresh.head.class_weights == task.head.class_weights
    weights, expected, images = torch.tensor([2 / 3, 1, 2]), 0.0, 0
    for batch in data.batches:
        with torch.no_grad():
            logits = fresh.raw(batch.image, batch.image_sizes).logits
        expected += F.cross_entropy(logits, batch.label, weights).item() * len(batch)
        images += len(batch)
    assert logged["val/loss"] == pytest.approx(expected / images, rel=1e-5)


# -- what is printed and written


def test_figures_and_pictures_reach_tensorboard(tiny, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = tiny.trainer(tmp_path, logger=logger, log_every_n_steps=1)
    run.fit(tiny.classifier(pictures=5), tiny.Memory())
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert sorted(board.Tags()["images"]) == ["val/confusion", "val/pictures"]
    scalars = set(board.Tags()["scalars"])
    assert {"val/accuracy", "val/mean_class_accuracy", "val/loss", "train/loss"} <= scalars
    (sheet,) = board.Images("val/pictures")
    assert (sheet.width, sheet.height) == (4 * 168 + 8, 2 * 168 + 8)  # 5 of 160 pixels, 4 in a row


@pytest.mark.parametrize(("options", "ndim"), [({"pictures": 0}, 2), ({}, 3)])
def test_no_pictures_where_none_are_asked_for_nor_of_scans(tiny, tmp_path, options, ndim):
    logger = TensorBoardLogger(tmp_path)
    task = tiny.classifier(ndim=ndim, **options)
    tiny.trainer(tmp_path, logger=logger).fit(task, tiny.Memory(ndim=ndim))
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert board.Tags()["images"] == ["val/confusion"]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_figures_and_confusion_matrix_are_written_beside_the_log(tiny, tmp_path, capsys, stage):
    logger = TensorBoardLogger(tmp_path)
    run, task = tiny.trainer(tmp_path, logger=logger, max_epochs=2), tiny.classifier()
    getattr(run, stage)(task, tiny.Memory())
    split = "test" if stage == "test" else "val"
    found = json.loads((tmp_path / "lightning_logs" / "version_0" / split / "metrics.json").read_text())
    assert found["metrics"] == task.result.metrics and found["images"] == 11
    assert np.array_equal(found["confusion"], task.result.confusion)
    assert [row["name"] for row in found["classes"]] == ["dark", "grey", "light"]
    picture = tmp_path / "lightning_logs" / "version_0" / split / "confusion.png"
    assert Image.open(picture).size[0] > 3 * 48
    text = capsys.readouterr().out
    assert text.count("mean of the classes' accuracies") == 1 and str(picture) in text
    assert text.count("grey") == 1  # the table of classes, once


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": True}])
def test_nothing_is_written_without_a_logger(tiny, tmp_path, capsys, options):
    tiny.trainer(tmp_path, **options).fit(tiny.classifier(), tiny.Memory())
    assert list(tmp_path.iterdir()) == []
    assert "accuracy" in capsys.readouterr().out


def test_several_labels_have_no_confusion_matrix(tiny, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    task = tiny.classifier(head={"multi_label": True})
    tiny.trainer(tmp_path, logger=logger).validate(task, tiny.Memory(several=True), verbose=False)
    found = json.loads((tmp_path / "lightning_logs" / "version_0" / "val" / "metrics.json").read_text())
    assert "confusion" not in found and found["classes"][0].keys() == {"name", "images", "AP", "F1"}
    assert not list(tmp_path.rglob("*.png"))


def test_weight_averaging_validates_and_saves_the_average(tiny, tmp_path):
    """After two steps with decay 0.5 the weights are the mean of those after each step."""
    task = tiny.classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    seen = []
    task.on_train_batch_end = lambda *_: seen.append(task.head.fc.weight.detach().clone())
    ema = pl.callbacks.EMAWeightAveraging(decay=0.5)
    tiny.trainer(tmp_path, limit_train_batches=2, callbacks=[ema]).fit(task, tiny.Memory())
    torch.testing.assert_close(task.head.fc.weight.detach(), 0.5 * seen[0] + 0.5 * seen[1])


@pytest.mark.parametrize(
    ("pictures", "chosen"), [(5, [[0, 2], [0, 3], [1]]), (1, [[0], [], []]), (0, [[], [], []])]
)
def test_pictures_come_from_all_over_the_data(tiny, tmp_path, pictures, chosen):
    """Three batches of up to four: of twelve places every 12/5th, rounded down, is 0, 2, 4, 7 and 9."""
    task = tiny.classifier(pictures=pictures)
    tiny.trainer(tmp_path).validate(task, tiny.Memory(), verbose=False)  # the trainer knows of three batches
    assert [task._board._chosen(size, index, True) for index, size in enumerate((4, 4, 3))] == chosen


def test_all_pictures_are_shown_where_there_are_fewer_than_asked_for(tiny, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    tiny.trainer(tmp_path, logger=logger).test(tiny.classifier(pictures=100), tiny.Memory(), verbose=False)
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    (sheet,) = board.Images("test/pictures")
    assert (sheet.width, sheet.height) == (4 * 168 + 8, 3 * 168 + 8)  # all 11
