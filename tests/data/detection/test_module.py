"""The data module under a trainer: epochs, resuming, overfitting, several processes, prediction."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
import pytorch_lightning as pl

from trunkline.data.detection.module import CocoDetection
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.locate import DataNotFoundError
from trunkline.data.shared.module import DataContractError

SMALL = {"short_side": 64, "long_side": 107, "batch_size": 4, "workers": 0}


def test_trainer_shuffles_each_epoch_and_repeats_with_the_seed(root, recorder, trainer):
    def run(**options):
        model = recorder()
        module = CocoDetection(str(root), seed=5, **SMALL)
        trainer(max_epochs=3, **options).fit(model, module)
        return model

    one, two = run(), run()
    assert one.seen == two.seen and len(one.seen) == 18
    order = [[ids for epoch, ids, _ in one.seen if epoch == number] for number in range(3)]
    assert order[0] != order[1] != order[2]
    assert Counter(one.validated) == Counter(3 * list(range(1, 11)))


def test_resuming_continues_with_the_next_epochs_order(root, tmp_path, recorder, trainer):
    straight = recorder()
    trainer(max_epochs=3).fit(straight, CocoDetection(str(root), seed=5, **SMALL))
    first = trainer(max_epochs=2)
    first.fit(recorder(), CocoDetection(str(root), seed=5, **SMALL))
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = recorder()
    module = CocoDetection(str(root), seed=5, **SMALL)
    trainer(max_epochs=3).fit(resumed, module, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.seen == [row for row in straight.seen if row[0] == 2]


def test_overfit_batches_repeats_the_same_batches(root, recorder, trainer):
    model = recorder()
    options = {"overfit_batches": 2, "max_epochs": 2}
    trainer(**options).fit(model, CocoDetection(str(root), **SMALL))
    rows = [row[1:] for row in model.seen]
    assert len(rows) == 4 and rows[:2] == rows[2:] and rows[0] != rows[1]


def test_test_stage_uses_validation_data_unless_test_data_is_given(root, recorder, trainer):
    model = recorder()
    module = CocoDetection(str(root), **SMALL)
    trainer().test(model, module, verbose=False)
    assert sorted(model.validated) == list(range(1, 11)) and len(module.splits["test"]) == 10
    given = {"test_images": "images/train", "test_annotations": "annotations/instances_train.json"}
    model = recorder()
    trainer().test(model, CocoDetection(str(root), **given, **SMALL), verbose=False)
    assert sorted(model.validated) == list(range(1, 22))


def test_test_data_under_root_are_used_and_their_lack_is_said(own, recorder, trainer, caplog):
    with caplog.at_level(logging.WARNING, "trunkline"):
        module = CocoDetection(str(own), **SMALL)
        trainer().test(recorder(), module, verbose=False)
    assert "there are no test data: the val data take their place" in caplog.text
    assert module.evaluation_truth("detection", "test") == module.evaluation_truth("detection", "validate")
    content = json.loads((own / "annotations/instances_train.json").read_text())
    kept = {row["id"] for row in content["images"][:2]}
    content["images"] = content["images"][:2]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    (own / "annotations/instances_test.json").write_text(json.dumps(content))
    (own / "images/train").rename(own / "images/test")
    caplog.clear()
    model, module = recorder(), CocoDetection(str(own), **SMALL)
    with caplog.at_level(logging.WARNING, "trunkline"):
        trainer().test(model, module, verbose=False)
    assert sorted(model.validated) == sorted(kept) and "val" not in module.splits
    assert not [record for record in caplog.records if record.name == "trunkline"]
    truth = module.evaluation_truth("detection", "test")
    assert {row["id"] for row in truth["images"]} == kept
    assert len(truth["annotations"]) == len(content["annotations"])


def test_the_module_fulfils_the_contract_with_tasks(root):
    module = CocoDetection(str(root), **SMALL)
    assert module.label_kinds == ("detection",) and module.image_layout() == (3, 2)
    assert module.label_classes("detection") == () and module.evaluation_truth("detection", "fit") is None
    module.setup("fit")
    assert [category.id for category in module.label_classes("detection")] == [1, 3, 7]
    truth = module.evaluation_truth("detection", "fit")
    assert truth == module.splits["val"].as_coco() and len(truth["images"]) == 10
    for call in (
        lambda: module.label_classes("segmentation"),
        lambda: module.label_counts("detection"),
        lambda: module.evaluation_truth("segmentation", "fit"),
    ):
        with pytest.raises(DataContractError, match="CocoDetection has no "):
            call()
    with pytest.raises(RuntimeError, match="predict data have not been read"):
        module.prediction_paths()


@pytest.mark.slow
def test_two_processes_share_the_images_without_any_setting(root, tmp_path, recorder, trainer):
    """Lightning would shard once more by default; each image must still be seen exactly once."""
    model = recorder()
    saver = SaveSeen(tmp_path)
    options = {"devices": 2, "strategy": "ddp_spawn", "max_epochs": 1, "callbacks": [saver]}
    trainer(**options).fit(model, CocoDetection(str(root), **SMALL | {"batch_size": 2}))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    trained = [Counter(i for _, ids, _ in rank["seen"] for i in ids) for rank in ranks]
    assert set(trained[0] | trained[1]) == set(range(1, 22))
    assert trained[0].total() == trained[1].total() == 12
    assert sorted(ranks[0]["validated"] + ranks[1]["validated"]) == list(range(1, 11))


class SaveSeen(pl.Callback):
    """Writes what each rank saw to a file."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        content = {"seen": pl_module.seen, "validated": pl_module.validated}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(content))


def test_predict_takes_a_folder(root, recorder, trainer):
    module = CocoDetection(predict=str(root / "images/val"), **SMALL)
    outputs = trainer().predict(recorder(), module)
    files = sorted((root / "images/val").iterdir())
    assert sorted(i for ids in outputs for i in ids) == list(range(1, 11))
    assert module.prediction_paths() == dict(enumerate(files, start=1))
    assert module.label_classes("detection") == ()


def test_predict_batches_have_no_boxes(root):
    module = CocoDetection(predict=str(root / "images/val/000001.jpg"), **SMALL)
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert len(batch) == 1 and (batch.labels == -1).all() and not batch.boxes.any()


def test_predict_takes_a_list_and_names_classes_from_root(root):
    files = [
        str(root / "images/val/000003.jpg"),
        str(root / "images/train"),
        str(root / "images/val/000003.jpg"),
    ]
    module = CocoDetection(str(root), predict=files, **SMALL)
    module.setup("predict")
    assert len(module.splits["predict"]) == 22 and module.prediction_paths()[1] == Path(files[0])
    assert [category.name for category in module.label_classes("detection")] == [
        "circle",
        "rectangle",
        "triangle",
    ]


def test_predict_takes_a_json_with_its_ids(root):
    module = CocoDetection(predict=str(root / "annotations/instances_val.json"), **SMALL)
    module.setup("predict")
    assert module.splits["predict"].image_ids.tolist() == list(range(1, 11))
    assert module.prediction_paths()[2] == root / "images/val/000002.jpg"
    assert len(module.splits["predict"].boxes) == 0 and len(module.label_classes("detection")) == 3


def test_predict_json_with_images_elsewhere(root, tmp_path):
    content = json.loads((root / "annotations/instances_val.json").read_text())
    del content["annotations"]
    source = tmp_path / "list.json"
    source.write_text(json.dumps(content))
    with pytest.raises(DataNotFoundError, match=r"looked for 000001.jpg in[\s\S]*give data.predict_images"):
        CocoDetection(predict=str(source), **SMALL).setup("predict")
    module = CocoDetection(predict=str(source), predict_images=str(root / "images/val"), **SMALL)
    module.setup("predict")
    assert module.prediction_paths()[1].exists()


def test_predict_problems_are_named(root, tmp_path):
    with pytest.raises(DataNotFoundError, match="data.predict"):
        CocoDetection(str(root), **SMALL).setup("predict")
    with pytest.raises(DataNotFoundError, match="no such file or folder: .*gone"):
        CocoDetection(predict=str(tmp_path / "gone"), **SMALL).setup("predict")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match="no image in .*empty"):
        CocoDetection(predict=str(tmp_path / "empty"), **SMALL).setup("predict")
    for name in ("a.jpg", "b.png"):
        (tmp_path / "empty" / name).write_text("no image")
    with pytest.raises(ImageError, match=r"2 of 2 images cannot be used:\n.*a.jpg.*\n.*b.png"):
        CocoDetection(predict=str(tmp_path / "empty"), **SMALL).setup("predict")
