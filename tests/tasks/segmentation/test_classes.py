"""Classes, class weights and images must fit head and checkpoint of a segmentation task."""

import pytest
import torch
from segmentation_tasks import Memory, TinyTrunk, segmenter, trainer

from trunkline.heads import FCN, Classifier
from trunkline.heads.segmentation.losses import CrossEntropy
from trunkline.tasks.segmentation.task import SemanticSegmentation


def test_classes_must_fit_the_head_and_the_checkpoint(tmp_path):
    for number in (2, 4):
        with pytest.raises(
            ValueError,
            match=f"--model.head.num_classes is {number}, but the data have 3 classes: road, tree, sky. Set "
            r"--model.head.num_classes auto \(or 3\)",
        ):
            trainer(tmp_path).validate(segmenter(number), Memory())
    task = segmenter()
    task.on_load_checkpoint({"classes": [{"id": 1, "name": "cat", "colour": [0, 0, 0]}]})
    with pytest.raises(ValueError, match=r"trained on the classes \[1 cat\].*class 0 is '1 cat' there"):
        trainer(tmp_path).validate(task, Memory())
    small = segmenter(2)  # more classes than the checkpoint's network has: other data, not another network
    small.on_load_checkpoint({"classes": [{"id": 1, "name": "cat", "colour": [0, 0, 0]}]})
    with pytest.raises(ValueError, match="trained on the classes"):
        trainer(tmp_path).validate(small, Memory())


def test_balanced_weights_come_from_the_data_and_return_from_the_checkpoint(tmp_path):
    head = {"loss": CrossEntropy(class_weights="balanced")}
    task = segmenter(head=head)
    run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    run.fit(task, Memory())
    # 40 pixels, 2 classes occur: 40 / (2 * 30), 40 / (2 * 10), and 1 for the class without pixels
    assert task.head.loss.class_weights == pytest.approx([2 / 3, 2.0, 1.0])
    run.save_checkpoint(tmp_path / "one.ckpt")
    fresh = segmenter(head={"loss": CrossEntropy(class_weights="balanced")})
    trainer(tmp_path).validate(fresh, Memory(), ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert fresh.head.loss.class_weights == pytest.approx([2 / 3, 2.0, 1.0])
    resumed, data = segmenter(head={"loss": CrossEntropy(class_weights="balanced")}), Memory()
    data.pixel_counts = lambda: torch.tensor([1, 1, 1])  # more data than before: the run goes on as it was
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=1, limit_val_batches=0)
    run.fit(resumed, data, ckpt_path=tmp_path / "one.ckpt")
    assert run.global_step == 2 and resumed.head.loss.class_weights == pytest.approx([2 / 3, 2.0, 1.0])


def test_images_of_another_number_of_channels_are_an_error_before_training(tmp_path):
    task = SemanticSegmentation(backbone=TinyTrunk(1), head=lambda levels: FCN(levels, 3))
    with pytest.raises(ValueError, match="the images have 3 channels, the trunk takes 1"):
        trainer(tmp_path).fit(task, Memory())


def test_a_head_or_data_of_another_kind_is_an_error_before_training(tmp_path):
    with pytest.raises(ValueError, match="head is a Classifier, .*SemanticSegmentation takes heads for segm"):
        SemanticSegmentation(backbone=TinyTrunk(), head=lambda levels: Classifier(levels, 3))
    data = Memory()
    data.label_kinds, calls = ("detection",), []
    task = segmenter()
    task.trunk.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="model.head is a FCN, which learns masks; Memory has boxes: set"):
        trainer(tmp_path).fit(task, data)
    assert not calls
    data.label_kinds, data.listed = ("segmentation",), ()  # a module that says nothing about its classes
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(task, data)
    assert calls
