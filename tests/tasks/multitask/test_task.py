"""Several heads on one trunk: one pass, gradients of each head, metrics and files of both, one YAML file."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from trunkline.backbones import FPN, ResNet
from trunkline.data.multitask.module import CocoDetectionAndMasks
from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.heads import FasterRCNN, SemanticFPN
from trunkline.tasks.detection.task import Detection
from trunkline.tasks.multitask.task import MultiTask
from trunkline.tasks.segmentation.task import SemanticSegmentation

HEADS = {
    "boxes": lambda levels: FasterRCNN(levels, num_classes=3),
    "stuff": lambda levels: SemanticFPN(levels, num_classes=4, channels=8),
}


def parts():
    return {"backbone": ResNet(depth=18), "neck": lambda trunk: FPN(trunk, channels=16)}


def multi(heads=HEADS, **arguments):
    torch.manual_seed(0)
    return MultiTask(heads=heads, **parts(), **arguments)


def data_module(root, **arguments):
    settings = {"batch_size": 4, "workers": 0, "short_side": 64, "long_side": 96, **arguments}
    return CocoDetectionAndMasks(root=str(root), **settings)


def trainer(folder, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=folder, **{**settings, **quiet, **arguments})


def first_batch(root):
    data = data_module(root)
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def test_the_gradient_of_each_head_reaches_trunk_and_neck_and_no_other_head(shapes_with_masks):
    task, batch = multi(), first_batch(shapes_with_masks)
    losses = task.head.losses(task.raw(batch.image, batch.image_sizes), batch)
    assert {name.partition("/")[0] for name in losses} == {"boxes", "stuff"}
    for mine, other in (("boxes", "stuff"), ("stuff", "boxes")):
        task.zero_grad()
        sum(v for name, v in losses.items() if name.startswith(mine)).backward(retain_graph=True)
        for part in (task.trunk.conv1, task.trunk.layer4, task.backbone.lateral, task.head.heads[mine]):
            grads = [p.grad for p in part.parameters() if p.grad is not None]
            assert grads and sum(float(g.abs().sum()) for g in grads) > 0
        assert all(p.grad is None for p in task.head.heads[other].parameters())


def test_the_summed_gradient_is_that_of_the_weighted_heads(shapes_with_masks):
    batch, grads = first_batch(shapes_with_masks), []
    task = multi(loss_weights={"stuff": 0.25})
    task.eval()  # nothing random between the passes but the sampling of boxes
    for chosen in ("boxes", "stuff", ""):
        task.zero_grad()
        torch.manual_seed(1)
        losses = task.head.losses(task.raw(batch.image, batch.image_sizes), batch)
        sum(v for name, v in losses.items() if name.startswith(chosen)).backward()
        grads.append(task.trunk.conv1.weight.grad.clone())
    torch.testing.assert_close(grads[2], grads[0] + grads[1], rtol=1e-3, atol=1e-5)
    whole = multi()
    whole.eval()
    raw = whole.raw(batch.image, batch.image_sizes)
    plain = whole.head.losses(raw, batch)["stuff/cross_entropy"]
    quarter = task.head.losses(raw, batch)["stuff/cross_entropy"]
    assert quarter.item() == pytest.approx(0.25 * plain.item())


def test_the_trunk_runs_once_per_step_also_in_validation(shapes_with_masks, tmp_path):
    task, trunk, neck = multi(), [], []
    task.trunk.register_forward_hook(lambda *_: trunk.append(task.training))
    task.backbone.register_forward_hook(lambda *_: neck.append(task.training))
    run = trainer(tmp_path, limit_train_batches=2, limit_val_batches=1)
    run.fit(task, data_module(shapes_with_masks))
    assert trunk == neck == [True, True, False]


def test_each_head_gives_what_it_gives_alone(shapes_with_masks, tmp_path):
    """Validation metrics, losses and predictions equal those of two tasks with one head each."""
    task, data = multi(), data_module(shapes_with_masks)
    torch.nn.init.normal_(task.head.heads["boxes"].roi.classifier.weight, std=0.3)
    boxes = Detection(head=HEADS["boxes"], **parts())
    stuff = SemanticSegmentation(head=HEADS["stuff"], **parts())
    for name, alone in (("boxes", boxes), ("stuff", stuff)):
        alone.backbone.load_state_dict(task.backbone.state_dict())
        alone.head.load_state_dict(task.head.heads[name].state_dict())
    found = trainer(tmp_path).validate(task, data, verbose=False)[0]
    total = 0.0
    for name, alone in (("boxes", boxes), ("stuff", stuff)):
        torch.manual_seed(2)
        logged = trainer(tmp_path).validate(alone, data_module(shapes_with_masks), verbose=False)[0]
        for figure, value in logged.items():
            stage, _, rest = figure.partition("/")
            if rest == "loss":
                total += value
            elif not rest.startswith(("rpn", "roi")):  # which sample boxes at random
                assert found[f"{stage}/{name}/{rest}"] == pytest.approx(value, nan_ok=True), figure
    assert {"val/boxes/AP", "val/stuff/mIoU", "val/boxes/rpn_box", "val/stuff/cross_entropy"} <= set(found)
    assert found["val/loss"] == pytest.approx(total, rel=0.05)
    assert task.branches["boxes"].result.images == task.branches["stuff"].result.images == 6


def test_predict_writes_both_and_draws_them_on_one_picture(shapes_with_masks, tmp_path):
    task = multi()
    torch.nn.init.normal_(task.head.heads["boxes"].roi.classifier.weight, std=0.3)
    data = data_module(shapes_with_masks, predict=str(shapes_with_masks / "images" / "val"))
    run, out = trainer(tmp_path), tmp_path / "out"
    run.callbacks.append(task.prediction_writer(out, True, 0.0))
    predicted = run.predict(task, data)
    assert set(predicted[0][0]) == {"boxes", "stuff"}
    assert {path.name for path in out.iterdir()} == {"boxes", "stuff", "images.json", "pictures"}
    results = json.loads((out / "boxes" / "predictions.json").read_text())
    assert len(results) == sum(len(found["boxes"]["boxes"]) for batch in predicted for found in batch) > 0
    by_name = {path.stem: path for path in (out / "stuff" / "masks").iterdir()}
    assert set(by_name) == {path.stem for path in (shapes_with_masks / "images" / "val").iterdir()}
    for batch in predicted:
        for found in batch:
            path = data.prediction_paths()[found["boxes"]["image_id"]]
            with Image.open(by_name[path.stem]) as mask:
                assert (np.asarray(mask) == found["stuff"]["mask"].numpy()).all()
                assert mask.size == Image.open(path).size
    assert len(list((out / "pictures").iterdir())) == 6


def test_classes_of_both_heads_go_with_the_checkpoint(shapes_with_masks, tmp_path):
    task = multi()
    run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    run.fit(task, data_module(shapes_with_masks))
    run.save_checkpoint(tmp_path / "one.ckpt")
    stored = torch.load(tmp_path / "one.ckpt", weights_only=True)["branches"]
    assert [row["name"] for row in stored["boxes"]["classes"]] == ["circle", "rectangle", "triangle"]
    assert [row["id"] for row in stored["stuff"]["classes"]] == [0, 1, 3, 7]
    fresh = multi()
    fresh.on_load_checkpoint(torch.load(tmp_path / "one.ckpt", weights_only=True))
    assert fresh.branches["stuff"].class_names == ["nothing", "circle", "rectangle", "triangle"]
    (shapes_with_masks / "classes.csv").write_text("id,name\n0,nothing\n1,circle\n3,square\n7,triangle\n")
    with pytest.raises(ValueError, match="class 2 is '3 rectangle' there and '3 square' here"):
        trainer(tmp_path).validate(fresh, data_module(shapes_with_masks))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"boxes": HEADS["boxes"], "a-b": HEADS["stuff"]}, "'a-b' cannot name a head"),
        ({"items": HEADS["stuff"]}, "'items' cannot name a head, PyTorch uses the word"),
    ],
)
def test_heads_that_cannot_take_part_are_errors(heads, message):
    with pytest.raises(ValueError, match=message):
        multi(heads=heads)


def test_data_without_the_annotations_of_a_head_is_an_error_before_training(masked_shapes, tmp_path):
    data = ImageSegmentation(root=str(masked_shapes), workers=0)
    with pytest.raises(ValueError, match="heads.boxes is a FasterRCNN, which learns boxes; ImageSegm.*masks"):
        trainer(tmp_path).fit(multi(), data)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_the_evaluator_reaches_the_boxes(backend, shapes_with_masks, tmp_path):
    task = multi(evaluator=backend)
    trainer(tmp_path, limit_val_batches=1).validate(task, data_module(shapes_with_masks), verbose=False)
    assert task.branches["boxes"].evaluators[0].backend == backend


def test_too_few_classes_name_the_head_to_change(shapes_with_masks, tmp_path):
    heads = {**HEADS, "stuff": lambda levels: SemanticFPN(levels, num_classes=3, channels=8)}
    with pytest.raises(ValueError, match="heads.stuff.num_classes is 3, but the data have 4 classes: "):
        trainer(tmp_path).fit(multi(heads=heads), data_module(shapes_with_masks))


def test_a_network_with_one_head_fills_trunk_neck_and_that_head(tmp_path):
    torch.manual_seed(5)
    detector = Detection(head=HEADS["boxes"], **parts())
    segmenter = SemanticSegmentation(head=HEADS["stuff"], **parts())
    for name, alone in (("boxes", detector), ("stuff", segmenter)):
        path = tmp_path / f"{name}.pt"
        torch.save(alone.state_dict(), path)
        before = multi().state_dict()
        state = multi(weights=str(path)).state_dict()
        for key, value in state.items():
            head = key.removeprefix("head.heads.")
            if key.startswith("backbone."):
                assert torch.equal(value, alone.state_dict()[key])
            elif head.startswith(name):
                assert torch.equal(value, alone.state_dict()[f"head.{head.removeprefix(f'{name}.')}"])
            else:
                assert torch.equal(value, before[key])


def test_weights_of_the_same_heads_load_whole(tmp_path):
    task = multi()
    torch.nn.init.normal_(task.head.heads["stuff"].predictor.weight)
    torch.save(task.state_dict(), tmp_path / "both.pt")
    for key, value in multi(weights=str(tmp_path / "both.pt")).state_dict().items():
        assert torch.equal(value, task.state_dict()[key]), key
