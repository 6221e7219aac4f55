"""Evaluators of a user beside the standard ones: logged, printed and written alike."""

import csv
import json

import pytest
import yaml
from memory_tasks import Everything, multi, single, trainer
from own_parts import BoxCount, PixelCount
from pytorch_lightning.loggers import CSVLogger

from trunkline.cli import main
from trunkline.evaluation.classification import ClassificationEvaluator
from trunkline.evaluation.detection import CocoEvaluator
from trunkline.evaluation.segmentation import SegmentationEvaluator


def validated(task, data, folder, stage="validate"):
    run = trainer(folder, logger=CSVLogger(folder, name="", version="log"))
    return getattr(run, stage)(task, data, verbose=False)[0]


@pytest.mark.parametrize(("stage", "where"), [("validate", "val"), ("test", "test")])
def test_own_metrics_are_logged_printed_and_written_beside_the_standard_ones(tmp_path, capsys, stage, where):
    task = single("land", evaluators=[SegmentationEvaluator(), PixelCount()])
    logged = validated(task, Everything("land"), tmp_path, stage)
    assert {f"{where}/mIoU", f"{where}/first_share"} <= set(logged)
    assert 0 < logged[f"{where}/first_share"] < 1
    printed = capsys.readouterr().out
    assert "first_share" in printed and "mean intersection over union" in printed
    written = json.loads((tmp_path / "log" / where / "metrics.json").read_text())
    assert written["metrics"]["first_share"] == pytest.approx(logged[f"{where}/first_share"])
    assert written["metrics"]["mIoU"] == pytest.approx(logged[f"{where}/mIoU"])
    rows = list(csv.DictReader((tmp_path / "log" / where / "metrics_per_class.csv").open()))
    assert [row["class"] for row in rows] == ["water", "soil", "rock"]
    assert {"IoU", "predicted"} <= set(rows[0])
    assert sum(float(row["predicted"]) for row in rows) == pytest.approx(1)
    assert float(rows[0]["predicted"]) == pytest.approx(logged[f"{where}/first_share"])
    assert [row["predicted"] for row in written["classes"]] == pytest.approx(
        [float(row["predicted"]) for row in rows]
    )
    assert (tmp_path / "log" / where / "shares.png").is_file()  # its picture
    assert task.result is task.branch.results[0] and "IoU" in task.result.text()


def test_own_metrics_may_take_the_place_of_the_standard_ones(tmp_path, capsys):
    logged = validated(single("land", evaluators=[PixelCount()]), Everything("land"), tmp_path)
    assert "val/first_share" in logged and "val/mIoU" not in logged
    written = json.loads((tmp_path / "log/val/metrics.json").read_text())
    assert set(written["metrics"]) == {"first_share"}


def test_an_evaluator_knows_what_the_data_say(tmp_path):
    evaluator = PixelCount()
    validated(single("land", evaluators=[evaluator]), Everything("land"), tmp_path)
    assert evaluator.names == ("water", "soil", "rock") and not evaluator.context.fitting
    trainer(tmp_path).fit(single("land", evaluators=[evaluator]), Everything("land"))
    assert evaluator.context.fitting


def test_two_metrics_of_one_name_are_an_error(tmp_path):
    task = single("land", evaluators=[SegmentationEvaluator(), PixelCount(metric="mIoU")])
    with pytest.raises(ValueError, match="two evaluators have a metric named 'mIoU'; remove one"):
        trainer(tmp_path).validate(task, Everything("land"))
    task = single("land", evaluators=[SegmentationEvaluator(), PixelCount(column="IoU")])
    with pytest.raises(ValueError, match="two evaluators have a metric of classes named 'IoU'"):
        validated(task, Everything("land"), tmp_path)


def test_truth_goes_to_the_evaluators_that_need_it(tmp_path):
    task = single("boxes", evaluators=[CocoEvaluator(), BoxCount()])
    logged = validated(task, Everything("boxes"), tmp_path)
    assert {"val/AP", "val/boxes_per_image"} <= set(logged)
    # Where nobody needs the truth, the data are not asked for it.
    unasked = type(
        "Unasked", (Everything,), {"evaluation_truth": lambda *_: pytest.fail("truth was asked for")}
    )
    logged = validated(single("boxes", evaluators=[BoxCount()]), unasked("boxes"), tmp_path / "other")
    assert logged["val/boxes_per_image"] > 0 and "val/AP" not in logged


def test_each_of_several_heads_has_a_list_of_its_own(tmp_path):
    task = multi(evaluators={"land": [PixelCount()], "boxes": [CocoEvaluator(), BoxCount()]})
    logged = validated(task, Everything(), tmp_path)
    assert {"val/land/first_share", "val/boxes/boxes_per_image", "val/boxes/AP"} <= set(logged)
    assert {"val/sky/mIoU", "val/scene/accuracy"} <= set(logged)  # as if nothing were given
    assert not {"val/land/mIoU", "val/sky/first_share"} & set(logged)
    kinds = [[type(e) for e in task.branches[name].evaluators] for name in ("sky", "scene")]
    assert kinds == [[SegmentationEvaluator], [ClassificationEvaluator]]


def test_a_name_that_no_head_has_is_an_error():
    with pytest.raises(ValueError, match=r"names \['lnad'\]; give one list for each of \['boxes', 'land',"):
        multi(evaluators={"lnad": [PixelCount()]})
    with pytest.raises(ValueError, match=r"names \[''\]; give one list for each of \['boxes', "):
        multi(evaluators=[PixelCount()])
    with pytest.raises(ValueError, match=r"names \['land'\]; give a list, for there is one head"):
        single("land", evaluators={"land": [PixelCount()]})


def test_evaluators_are_chosen_in_yaml(monkeypatch, masked_shapes, tmp_path, capsys):
    config = {
        "model": {
            "class_path": "SemanticSegmentation",
            "init_args": {
                "backbone": {"class_path": "CifarResNet", "init_args": {"depth": 8, "width": 4}},
                "head": {"class_path": "FCN", "init_args": {"num_classes": 4, "channels": 4}},
                "evaluators": [
                    {"class_path": "SegmentationEvaluator"},
                    {"class_path": "own_parts.PixelCount", "init_args": {"metric": "background_share"}},
                ],
            },
        },
        "data": {
            "class_path": "ImageSegmentation",
            "init_args": {"root": str(masked_shapes), "batch_size": 2, "workers": 0},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "default_root_dir": str(tmp_path / "runs"),
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["trunkline"])
    main(["validate", f"--config={tmp_path / 'own.yaml'}"])
    (path,) = (tmp_path / "runs").rglob("val/metrics.json")
    assert {"mIoU", "background_share"} <= set(json.loads(path.read_text())["metrics"])
    (table,) = (tmp_path / "runs").rglob("val/metrics_per_class.csv")
    assert {"IoU", "predicted"} <= set(next(csv.DictReader(table.open())))
    assert "background_share" in capsys.readouterr().out
