"""Heads of every kind, two of them of one kind, on labels of their own: as each alone, in one run."""

import csv
import json

import numpy as np
import pytest
import torch
from memory_tasks import CLASSES, HEADS, Everything, multi, single, trainer
from PIL import Image
from pytorch_lightning.loggers import CSVLogger


def test_every_head_learns(tmp_path):
    task = multi()
    before = {name: value.clone() for name, value in task.named_parameters()}
    run = trainer(tmp_path, max_epochs=2)
    run.fit(task, Everything())
    assert run.global_step == 4
    for name in HEADS:
        changed = [
            not torch.equal(value, before[key])
            for key, value in task.named_parameters()
            if key.startswith(f"head.heads.{name}.")
        ]
        assert changed and all(changed), name
    for loss in ("boxes/rpn_box", "land/cross_entropy", "sky/cross_entropy", "scene/classification"):
        assert f"train/{loss}" in run.callback_metrics


def test_metrics_of_each_head_are_those_of_its_own_task(tmp_path):
    task = multi()
    found = trainer(tmp_path).validate(task, Everything(), verbose=False)[0]
    for name in HEADS:
        alone = single(name)
        alone.backbone.load_state_dict(task.backbone.state_dict())
        alone.head.load_state_dict(task.head.heads[name].state_dict())
        logged = trainer(tmp_path).validate(alone, Everything(name), verbose=False)[0]
        compared = 0
        for metric, value in logged.items():
            rest = metric.removeprefix("val/")
            if rest != "loss" and not rest.startswith(("rpn", "roi")):  # which sample boxes at random
                assert found[f"val/{name}/{rest}"] == pytest.approx(value, abs=1e-6, nan_ok=True), metric
                compared += 1
        assert compared > 2, name
    assert found["val/land/mIoU"] != found["val/sky/mIoU"]


def test_predictions_go_into_a_folder_for_each_head(tmp_path):
    task, data, out = multi(), Everything(folder=tmp_path), tmp_path / "out"
    run = trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(out, True, 0.0))
    predicted = [image for batch in run.predict(task, data) for image in batch]
    assert len(predicted) == 5 and all(set(image) == set(HEADS) for image in predicted)
    assert {path.name for path in out.iterdir()} == {*HEADS, "images.json", "pictures"}
    listed = json.loads((out / "images.json").read_text())
    assert listed == [{"id": i, "file_name": str(data.paths[i])} for i in range(5)]
    boxes = json.loads((out / "boxes/predictions.json").read_text())
    assert len(boxes) == sum(len(image["boxes"]["boxes"]) for image in predicted) > 0
    assert {row["category_id"] for row in boxes} <= {4, 9}
    rows = list(csv.DictReader((out / "scene/predictions.csv").open()))
    assert [row["path"] for row in rows] == [str(data.paths[i]) for i in range(5)]
    assert list(rows[0])[3:] == ["day", "night", "dusk"]
    for name in ("land", "sky"):
        ids = np.array([c.id for c in CLASSES[name][1]])
        for image in predicted:
            path = out / name / "masks" / f"picture {image[name]['image_id']}.png"
            assert (np.asarray(Image.open(path)) == ids[image[name]["mask"].numpy()]).all()
    assert len(list((out / "pictures").glob("picture *.jpg"))) == 5


def test_a_checkpoint_brings_the_classes_of_each_head_back(tmp_path):
    task, run = multi(), trainer(tmp_path)
    run.fit(task, Everything())
    run.save_checkpoint(tmp_path / "all.ckpt")
    fresh = multi()
    fresh.on_load_checkpoint(torch.load(tmp_path / "all.ckpt", weights_only=True))
    for name, (_, classes) in CLASSES.items():
        assert fresh.branches[name].class_names == [c.name for c in classes]
        assert [row["id"] for row in fresh.branches[name].classes] == [c.id for c in classes]
    trainer(tmp_path).validate(multi(), Everything(), ckpt_path=tmp_path / "all.ckpt", verbose=False)


def test_results_lie_in_a_folder_for_each_head(tmp_path):
    run = trainer(tmp_path, logger=CSVLogger(tmp_path / "log"))
    run.validate(multi(), Everything(), verbose=False)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("metrics.json")}
    assert set(found) == set(HEADS)
    assert [row["name"] for row in found["land"]["classes"]] == ["water", "soil", "rock"]
    assert [row["name"] for row in found["sky"]["classes"]] == ["clear", "cloud"]


def test_one_metric_of_the_wrong_head_is_not_logged(tmp_path, capsys):
    logged = trainer(tmp_path).validate(multi(), Everything(), verbose=False)[0]
    assert {"val/boxes/AP", "val/land/mIoU", "val/sky/mIoU", "val/scene/accuracy"} <= set(logged)
    assert not {"val/land/AP", "val/scene/mIoU", "val/AP", "val/mIoU"} & set(logged)
    printed = capsys.readouterr().out
    assert all(f"\n{name}:\n" in printed for name in HEADS)
