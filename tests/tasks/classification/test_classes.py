"""Images, classes and class weights must fit head and checkpoint of a classification task."""

import pytest
import torch
import torch.nn.functional as F

from trunkline.backbones import FeatureLevel, ResNet
from trunkline.heads import FCN
from trunkline.tasks.classification.task import Classification


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
            r"2D \(two axes\), the trunk has 3; set --model.backbone.ndim 2 and .*in_channels 3",
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
    task.backbone.levels = (FeatureLevel(6, (8, 8)),)
    with pytest.raises(ValueError, match="--data.batch_size 2 or more"):
        tiny.trainer(tmp_path).fit(task, tiny.Memory(sizes=(1, 1)))
    tiny.trainer(tmp_path).fit(task, tiny.Memory(sizes=(2,)))


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


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_more_or_fewer_classes_than_the_head_is_an_error_before_training(
    tiny, tmp_path, stage, number, several
):
    task = tiny.classifier(num_classes=number, head={"multi_label": several})
    task.backbone.register_forward_hook(lambda *_: pytest.fail("ran"))
    with pytest.raises(
        ValueError,
        match=f"--model.head.num_classes is {number}, but the data have 3 classes: dark, grey, light. "
        r"Set --model.head.num_classes auto \(or 3\)",
    ):
        getattr(tiny.trainer(tmp_path), stage)(task, tiny.Memory(several=several))


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
    permuted = tiny.Memory(names=("light", "grey", "dark"))
    with pytest.raises(ValueError, match="class 0 is 'dark' there and 'light' here.*the same order"):
        tiny.trainer(tmp_path).validate(tiny.classifier(), permuted, ckpt_path=tmp_path / "one.ckpt")
    fewer = tiny.Memory(names=("dark", "grey"))
    with pytest.raises(ValueError, match="the data have 2 classes: dark, grey.*as it was trained"):
        tiny.trainer(tmp_path).validate(tiny.classifier(), fewer, ckpt_path=tmp_path / "one.ckpt")
    fresh = tiny.classifier()
    tiny.trainer(tmp_path).validate(
        fresh, tiny.Memory(), ckpt_path=tmp_path / "one.ckpt", verbose=False, weights_only=True
    )
    assert fresh.class_names == ["dark", "grey", "light"]
    assert fresh.result.metrics == task.result.metrics


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
