"""Examples of detection train two steps by the command, and do what they say: trunk, neck, head, metric."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from trunkline.backbones import DenseNet, FeatureLevel
from trunkline.tasks.detection import Detection

SMALL = ["--data.short_side=64", "--data.long_side=96"]


def coco_metrics(truth, results):
    """Return AP and AR100 by pycocotools."""
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[8]


def annotations(root):
    return json.loads((root / "annotations" / "instances_val.json").read_text())


def test_the_trunk_learns_and_comes_back_from_a_checkpoint(runs, shapes, learned):
    cli = runs.fit("plain_trunk", shapes, *SMALL, "--model.backbone.width=8")
    trunk = cli.model.trunk
    assert type(trunk).__name__ == "PlainTrunk" and learned(cli, trunk)
    image = torch.rand(2, 3, 65, 97)
    for level, x in zip(trunk.levels, trunk.eval()(image), strict=True):
        step = level.stride[0]
        assert tuple(x.shape) == (2, level.channels, -(-65 // step), -(-97 // step))
    assert [level.channels for level in trunk.levels] == [8, 16, 32, 64]
    assert cli.trainer.callback_metrics["val/AP"] >= 0
    reloaded = Detection.load_from_checkpoint(runs.checkpoint(), map_location="cpu")
    for expected, x in zip(trunk(image), reloaded.trunk.eval()(image), strict=True):
        assert torch.equal(x, expected)


def test_the_neck_sits_between_trunk_and_head(runs, shapes, learned):
    cli = runs.fit("path_aggregation", shapes, *SMALL, "--model.backbone.width=8")
    neck = cli.model.backbone
    assert type(neck).__name__ == "PathAggregation" and learned(cli, neck)
    assert type(cli.model.trunk).__name__ == "ResNet"
    groups = {group["name"]: len(group["params"]) for group in cli.trainer.optimizers[0].param_groups}
    trunk = sum(n for name, n in groups.items() if name.startswith("trunk"))
    assert trunk == len(list(cli.model.trunk.parameters()))  # the rate of the trunk is the trunk's alone


def test_the_neck_takes_trunks_that_round_sizes_down_and_works_as_written(example):
    neck = example("path_aggregation").PathAggregation(DenseNet(121), channels=4).eval()
    image = torch.rand(1, 3, 75, 107)
    pyramid, maps = neck.pyramid(image), neck(image)
    assert [x.shape for x in maps] == [x.shape for x in pyramid]
    assert torch.equal(maps[0], pyramid[0])
    coarsest = maps[-1].clone()
    with torch.no_grad():
        for layer in neck.down:  # nothing comes up: what remains is the pyramid through the output layer
            layer.weight.zero_()
            layer.bias.zero_()
        assert torch.equal(neck(image)[-1], neck.output[-1](pyramid[-1]).relu())
    assert not torch.equal(neck(image)[-1], coarsest)


LEVELS = [FeatureLevel(8, (8, 8)), FeatureLevel(8, (16, 16))]


def test_retinanet_starts_from_its_prior_and_its_class_loss_is_torchvisions(example):
    torch.manual_seed(0)
    head = example("retinanet").RetinaNet(LEVELS, num_classes=3, depth=1, prior=0.02)
    raw = head([torch.randn(1, 8, 8, 10), torch.randn(1, 8, 4, 5)], (64, 80))
    assert raw.logits.sigmoid().mean().item() == pytest.approx(0.02, abs=0.002)
    boxes = torch.tensor([[4.0, 6, 40, 44], [30, 20, 76, 60]])
    labels = torch.tensor([2, 0])
    targets = SimpleNamespace(
        image_sizes=torch.tensor([[64, 80]]),
        boxes=boxes[None],
        labels=labels[None],
        crowd=torch.zeros(1, 2, dtype=torch.bool),
    )
    losses = head.losses(raw, targets)
    matched = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, raw.anchors))
    wanted = torch.zeros_like(raw.logits[0])
    wanted[matched >= 0, labels[matched[matched >= 0]]] = 1
    counted = matched != Matcher.BETWEEN_THRESHOLDS
    total = sigmoid_focal_loss(raw.logits[0][counted], wanted[counted], reduction="sum")
    assert losses["class"].item() == pytest.approx((total / (matched >= 0).sum()).item(), rel=1e-5)
    assert losses["box"] > 0
    empty = SimpleNamespace(**{**vars(targets), "labels": torch.tensor([[-1, -1]])})
    assert head.losses(raw, empty)["box"] == 0


@pytest.mark.slow
def test_retinanet_trains_and_predicts_in_another_process_what_was_evaluated(runs, shapes, learned, tmp_path):
    cli = runs.fit("retinanet", shapes, *SMALL, "--model.backbone.width=8", "--model.head.score_threshold=0")
    assert type(cli.model.head).__name__ == "RetinaNet" and learned(cli, cli.model.head)
    assert {"train/class", "train/box", "val/class", "val/box"} <= set(cli.trainer.callback_metrics)
    out, place = tmp_path / "out", tmp_path / "third"
    place.mkdir()
    command = [sys.executable, "-m", "trunkline", "predict", "--config", runs.config("retinanet")]
    command += [f"--ckpt_path={runs.checkpoint()}", f"--output.folder={out}", "--trainer.logger=false"]
    command += [f"--data.predict={shapes}/annotations/instances_val.json", f"--data.root={shapes}", *SMALL]
    command += ["--model.backbone.width=8", "--model.head.score_threshold=0", "--data.workers=0"]
    command += ["--trainer.accelerator=cpu", "--output.pictures=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "predictions.json").read_text())
    assert len(results) == 100 * 6
    precision, recall = coco_metrics(annotations(shapes), results)
    metrics = runs.metrics()
    assert metrics["AP"] == pytest.approx(precision, abs=1e-4)
    assert metrics["AR100"] == pytest.approx(recall, abs=1e-4) and recall > 0


def test_the_metric_stands_beside_those_of_coco_and_is_right(runs, shapes, capsys):
    evaluators = [
        {"class_path": "CocoEvaluator"},
        {"class_path": "count_error.CountError", "init_args": {"min_score": 0.2}},
    ]
    words = ["--model.backbone.width=8", f"--model.evaluators={json.dumps(evaluators)}", *SMALL]
    cli = runs.fit("count_error", shapes, *words)
    printed, metrics = capsys.readouterr().out, runs.metrics()
    assert "Average Precision" in printed and "count_error" in printed
    assert cli.trainer.callback_metrics["val/count_error"].item() == pytest.approx(metrics["count_error"])
    out = runs.predict(shapes / "annotations" / "instances_val.json", f"--data.root={shapes}")
    truth, rows = annotations(shapes), json.loads((out / "predictions.json").read_text())
    counts = {image["id"]: 0 for image in truth["images"]}
    for row in rows:
        counts[row["image_id"]] += row["score"] >= 0.2
    assert sum(counts.values()) > 0
    for row in truth["annotations"]:
        counts[row["image_id"]] -= 1
    assert metrics["count_error"] == pytest.approx(np.mean(np.abs(list(counts.values()))))
    assert metrics["count_bias"] == pytest.approx(np.mean(list(counts.values())))
    assert "AP" in metrics


def test_the_metric_counts_an_image_of_two_processes_once(example, monkeypatch):
    module = example("count_error")
    metric, other = module.CountError(0.5), {4: (1, 0), 5: (0, 2)}
    batch = SimpleNamespace(labels=torch.tensor([[0, 1, -1]]), crowd=torch.tensor([[False, False, False]]))
    metric.update([{"image_id": 4, "scores": torch.tensor([0.9, 0.5, 0.1])}], batch)
    assert metric.compute().metrics == {"count_error": 0.0, "count_bias": 0.0}
    monkeypatch.setattr(module, "gather_objects", lambda item: [item, other])
    metric.gather()
    assert metric.compute().metrics == {"count_error": 1.5, "count_bias": -0.5}
    metric.reset()
    assert np.isnan(metric.compute().metrics["count_error"])


def test_the_shipped_config_of_the_metric_names_both_evaluators(runs, shapes):
    cli = runs.fit("count_error", shapes, *SMALL, "--model.backbone.width=8")
    assert [type(e).__name__ for e in cli.model.branch.evaluators] == ["CocoEvaluator", "CountError"]
    assert cli.model.branch.evaluators[1].min_score == 0.3
