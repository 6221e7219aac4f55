"""What a run says about its data: nothing to learn in an epoch, images left out, other data than before."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from memory_tasks import TASKS, parts, segmenter, trainer

from trunkline.data.detection import CocoDetection
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.shared.loader_errors import LoaderProcessError
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import AnchorOptions, RoIOptions
from trunkline.tasks.base.watch import ChangedDataError


def detection(root, **options):
    return CocoDetection(root=str(root), short_side=32, long_side=48, workers=0, batch_size=4, **options)


def single(name):
    """A task for the classes of the synthetic data."""
    roi = RoIOptions(hidden=16, pool_size=3, score_threshold=0.0, levels=2, detections_per_image=10)
    heads = {
        "boxes": lambda levels: FasterRCNN(levels, 3, anchors=AnchorOptions(scale=3.0), roi=roi),
        "land": lambda levels: segmenter(levels, 4),
    }
    return TASKS[name](head=heads[name], **parts())


def messages(caplog, words):
    return [each.getMessage() for each in caplog.records if words in each.getMessage()]


def fit(task, data, folder, **options):
    run = trainer(folder, **options)
    run.fit(task, data)
    return run


@pytest.mark.parametrize("name", ["boxes", "land"])
def test_an_epoch_without_an_object_is_said(name, shapes, masked_shapes, tmp_path, caplog):
    class Empty:
        """Takes all objects out of the training batches, as a crop may."""

        def on_before_batch_transfer(self, batch, index):
            if self.trainer.training:
                if name == "boxes":
                    batch.labels.fill_(-1)
                else:
                    batch.mask.fill_(255)
            return batch

    base, root = (CocoDetection, shapes) if name == "boxes" else (ImageSegmentation, masked_shapes)
    made = type("Data", (Empty, base), {})
    options = {"short_side": 32, "long_side": 48} if name == "boxes" else {}
    with caplog.at_level(logging.WARNING, "trunkline"):
        fit(
            single(name),
            made(root=str(root), workers=0, batch_size=4, **options),
            tmp_path,
            limit_val_batches=0,
        )
    what = "box" if name == "boxes" else "labelled pixel"
    (said,) = messages(caplog, "no training batch showed")
    assert said.startswith(f"epoch 0: no training batch showed a {what}") and "data.augment" in said


def test_an_epoch_with_objects_is_not(shapes, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "trunkline"):
        fit(single("boxes"), detection(shapes), tmp_path, limit_val_batches=0)
    assert not messages(caplog, "no training batch showed")


def test_metrics_count_the_images_that_they_leave_out(shapes, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    data, task = detection(root, on_bad_image="skip", check_images="off"), single("boxes")
    data.setup("validate")
    index = data.splits["val"]
    Path(index.path(2)).write_bytes(b"no image")
    task.run_folder = tmp_path / "run"
    run = trainer(tmp_path)
    with caplog.at_level(logging.WARNING, "trunkline"):
        run.validate(task, data)
    assert messages(caplog, "the metrics leave out 1 image that cannot be read")
    metrics = json.loads((tmp_path / "run/val/metrics.json").read_text())["metrics"]
    assert metrics["images_left_out"] == 1
    # The metrics are those of the other images alone.
    for path in (root / "annotations").glob("instances_val*.json"):
        content = json.loads(path.read_text())
        bad = int(index.image_ids[2])
        content["images"] = [each for each in content["images"] if each["id"] != bad]
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] != bad]
        path.write_text(json.dumps(content))
    other = single("boxes")
    other.load_state_dict(task.state_dict())
    trainer(tmp_path).validate(other, detection(root))
    expected = {name: value for name, value in metrics.items() if name != "images_left_out"}
    found = {name: None if value != value else value for name, value in other.result.metrics.items()}
    assert found == pytest.approx(expected)


# -- data that change


def relabel(root):
    for path in (root / "annotations").glob("instances_train*.json"):
        content = json.loads(path.read_text())
        kinds = sorted(each["id"] for each in content["categories"])
        first = content["annotations"][0]
        first["category_id"] = next(kind for kind in kinds if kind != first["category_id"])
        path.write_text(json.dumps(content))


def repaint(root):
    path = (
        sorted((root).rglob("*.png"))[0] if not list(root.rglob("*.jpg")) else sorted(root.rglob("*.jpg"))[0]
    )
    path.write_bytes(path.read_bytes() + b"\0")


CHANGES = {"labels": (relabel, "train: changed: labels"), "files": (repaint, "changed: files")}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_than_the_checkpoints_are_refused_or_accepted(change, shapes, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    task = single("boxes")
    run = fit(task, detection(root), tmp_path, limit_val_batches=0, enable_checkpointing=True)
    path = str(tmp_path / "run.ckpt")
    run.save_checkpoint(path)
    moved = tmp_path / "moved"
    root.rename(moved)  # another place is no other data
    options = {"limit_val_batches": 0, "max_epochs": 2}
    trainer(tmp_path, **options).fit(single("boxes"), detection(moved), ckpt_path=path)
    act, said = CHANGES[change]
    act(moved)
    with pytest.raises(ChangedDataError, match=said) as raised:
        trainer(tmp_path, **options).fit(single("boxes"), detection(moved), ckpt_path=path)
    assert "--data.on_changed_data accept" in str(raised.value)
    with caplog.at_level(logging.WARNING, "trunkline"):
        accepted = detection(moved, on_changed_data="accept")
        trainer(tmp_path, **options).fit(single("boxes"), accepted, ckpt_path=path)
    assert messages(caplog, "the run goes on with them")


# -- memory

OUT_OF_MEMORY = {
    "ram": MemoryError(),
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
    ),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_says_what_to_lower_and_keeps_the_checkpoint(kind, shapes, tmp_path, caplog):
    task = single("boxes")
    losses = task.head.losses
    options = {"limit_val_batches": 0, "enable_checkpointing": True, "max_epochs": 2}

    def full(raw, batch):
        if task.current_epoch == 1:
            raise OUT_OF_MEMORY[kind]
        return losses(raw, batch)

    task.head.losses = full
    with caplog.at_level(logging.WARNING, "trunkline"), pytest.raises(type(OUT_OF_MEMORY[kind])) as raised:
        fit(task, detection(shapes), tmp_path, **options)
    (said,) = messages(caplog, "out of memory: ")
    assert f"trunkline: {said}" in raised.value.__notes__
    for words in ("data.batch_size (now 4)", "data.short_side (now 32)", "--trainer.precision bf16-mixed"):
        assert words in said
    assert ("main memory" in said) is (kind != "device")
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 2


# -- loader processes


def test_a_loader_process_that_is_killed_ends_the_run_and_keeps_the_checkpoint(shapes, tmp_path):
    class Killed(CocoDetection):
        def on_before_batch_transfer(self, batch, index):
            if self.trainer.training and self.trainer.current_epoch == 1:
                for process in multiprocessing.active_children():
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
            return batch

    data = Killed(root=str(shapes), short_side=32, long_side=48, workers=1, batch_size=2)
    options = {"limit_val_batches": 0, "enable_checkpointing": True, "max_epochs": 3}
    with pytest.raises((LoaderProcessError, RuntimeError)) as raised:
        fit(single("boxes"), data, tmp_path, **options)
    told = [str(raised.value), *vars(raised.value).get("__notes__", ())]
    assert any("was killed" in text and "lower --data.workers (now 1)" in text for text in told)
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 4
