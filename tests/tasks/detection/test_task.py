"""The detection task: coordinates, categories, one forward pass, evaluation, checkpoints."""

from dataclasses import dataclass

import pytest
import pytorch_lightning as pl
import torch

from trunkline.backbones import FPN, ResNet
from trunkline.data.detection.batches import DetectionBatch
from trunkline.data.detection.module import CocoDetection
from trunkline.evaluation.detection.evaluator import CocoEvaluator
from trunkline.heads import FCN, Classifier, FasterRCNN
from trunkline.tasks.detection.task import Detection


def detector(num_classes=3, **arguments):
    return Detection(
        backbone=ResNet(depth=18),
        neck=lambda trunk: FPN(trunk, channels=16),
        head=lambda levels: FasterRCNN(levels, num_classes=num_classes),
        **arguments,
    )


def data_module(folder, **arguments):
    settings = {"batch_size": 4, "workers": 0, "short_side": 64, "long_side": 96, **arguments}
    return CocoDetection(root=folder, **settings)


def trainer(folder, **arguments):
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **arguments},
    )


@dataclass
class Boxes:
    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    count: torch.Tensor


@pytest.mark.parametrize("head", [FCN, Classifier])
def test_a_head_of_another_kind_is_an_error(head):
    with pytest.raises(ValueError, match=f"model.head is a {head.__name__}, .*takes heads for detection"):
        Detection(backbone=ResNet(depth=10), head=lambda levels: head(levels, num_classes=3))


def test_boxes_return_to_the_original_pixels():
    """A 50x100 image resized to 25x200: heights double, widths halve."""
    batch = DetectionBatch(
        image=torch.zeros(2, 3, 32, 224, dtype=torch.uint8),
        image_sizes=torch.tensor([[25, 200], [32, 64]]),
        boxes=torch.zeros(2, 1, 4),
        labels=torch.full((2, 1), -1),
        crowd=torch.zeros(2, 1, dtype=torch.bool),
        image_ids=torch.tensor([5, 6]),
        original_sizes=torch.tensor([[50, 100], [32, 64]]),
    )
    found = Boxes(
        boxes=torch.tensor([[[10.0, 5, 20, 25], [0, 0, 0, 0]], [[1, 2, 3, 4], [5, 6, 7, 8]]]),
        scores=torch.tensor([[0.9, 0.0], [0.8, 0.7]]),
        labels=torch.tensor([[2, -1], [0, 1]]),
        count=torch.tensor([1, 2]),
    )
    first, second = detector().branch.to_original(found, batch)
    assert first["image_id"] == 5 and second["image_id"] == 6
    assert first["boxes"].tolist() == [[5.0, 10.0, 10.0, 50.0]]
    assert first["scores"].tolist() == pytest.approx([0.9]) and first["labels"].tolist() == [2]
    assert second["boxes"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_category_ids_are_restored():
    task = detector()
    assert task.branch.category_ids(torch.tensor([0, 2])).tolist() == [1, 3]
    task.branch.adopt([{"id": 4, "name": "cell"}, {"id": 9, "name": "plate"}])
    assert task.branch.category_ids(torch.tensor([1, 0, 2])).tolist() == [9, 4, 10]
    assert task.class_names == ["cell", "plate", "class 2"]


def test_more_categories_than_classes_is_an_error_before_training(shapes, tmp_path):
    with pytest.raises(
        ValueError, match="num_classes is 2, but the data have 3 classes: circle, rectangle, tr"
    ):
        trainer(tmp_path).fit(detector(num_classes=2), data_module(shapes))


def test_categories_other_than_the_checkpoints_are_an_error():
    task = detector()
    task.on_load_checkpoint({"categories": [{"id": 1, "name": "cat"}]})
    with pytest.raises(ValueError, match="1 cat.*2 dog"):
        task.branch.adopt([{"id": 2, "name": "dog"}])


def test_predicting_trusts_the_checkpoints_categories(shapes, tmp_path):
    """Annotations that happen to lie under data.root say nothing about what the checkpoint knows."""
    task = detector()
    task.branch.adopt([{"id": 5, "name": "cat"}])
    run = trainer(tmp_path)
    run.strategy.connect(task)
    run.save_checkpoint(tmp_path / "cats.ckpt")
    fresh = detector()
    data = data_module(shapes, predict=str(shapes / "images" / "val"))
    trainer(tmp_path).predict(fresh, data, ckpt_path=tmp_path / "cats.ckpt", return_predictions=False)
    assert fresh.branch.classes == [{"id": 5, "name": "cat"}]


def test_network_runs_once_per_step_also_in_validation(shapes, tmp_path):
    task, calls = detector(), []
    task.trunk.register_forward_hook(lambda *_: calls.append(task.training))
    trainer(tmp_path, limit_train_batches=2, limit_val_batches=1).fit(task, data_module(shapes))
    assert calls == [True, True, False]


def test_validation_metrics_equal_an_evaluation_by_hand(shapes, tmp_path):
    """The logged metrics are those of pycocotools on the same predictions; the losses add up."""
    torch.manual_seed(0)
    task, data = detector(evaluator="pycocotools"), data_module(shapes, eval_batch_size=4)
    # An untrained head hardly scores anything: widen its scores so that there is something to count.
    torch.nn.init.normal_(task.head.roi.classifier.weight, std=0.3)
    logged = trainer(tmp_path).validate(task, data, verbose=False)[0]
    evaluator, images = CocoEvaluator(data.evaluation_truth("detection", "validate"), backend="faster"), 0
    task.eval()
    with torch.no_grad():
        for batch in data.val_dataloader():
            raw = task.raw(batch.image, batch.image_sizes)
            for found in task.branch.to_original(task.head.predict(raw, batch.image_sizes), batch):
                evaluator.add(
                    found["image_id"],
                    found["boxes"],
                    found["scores"],
                    task.branch.category_ids(found["labels"]),
                )
            images += len(batch)
    assert images == 6
    for name, value in evaluator.compute().metrics.items():
        assert logged[f"val/{name}"] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    assert logged["val/loss"] == pytest.approx(
        sum(logged[f"val/{name}"] for name in ("rpn_objectness", "rpn_box", "roi_class", "roi_box")), rel=1e-5
    )


def test_nan_in_a_batch_stops_the_run_with_the_image_ids(shapes, tmp_path):
    task = detector()
    with torch.no_grad():
        task.backbone.output[0].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"images with ids \[\d+"):
        trainer(tmp_path).fit(task, data_module(shapes))


def test_batch_without_any_box_trains_as_background(shapes, tmp_path):
    task, data = detector(), data_module(shapes)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    batch.boxes.zero_()
    batch.labels.fill_(-1)
    losses = task.head.losses(task.raw(batch.image, batch.image_sizes), batch)
    total = task.loss_check.total(losses, batch.image_ids, 0)
    total.backward()
    assert (
        losses["rpn_box"].item() == 0
        and losses["roi_box"].item() == 0
        and losses["rpn_objectness"].item() > 0
    )
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in task.parameters())


def test_ema_callback_averages_and_saves(shapes, tmp_path):
    """After one step with decay 0.5 the saved weights are the mean of the start and the trained ones."""
    task = detector(optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    before = task.backbone.lateral[0].weight.detach().clone()
    ema = pl.callbacks.EMAWeightAveraging(decay=0.5)
    run = trainer(tmp_path, limit_train_batches=2, limit_val_batches=1, callbacks=[ema])
    seen = []
    task.on_train_batch_end = lambda *_: seen.append(task.backbone.lateral[0].weight.detach().clone())
    run.fit(task, data_module(shapes))
    # torch's AveragedModel copies at its first update and averages from the second on
    expected = 0.5 * seen[0] + 0.5 * seen[1]
    assert not torch.equal(before, seen[0])
    torch.testing.assert_close(task.backbone.lateral[0].weight.detach(), expected)
