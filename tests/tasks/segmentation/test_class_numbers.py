"""Masks that write the classes of a checkpoint as other values: evaluated by the names."""

import csv
import shutil

import numpy as np
import pytest
import torch
from mask_files import change
from segmentation_tasks import segmenter, trainer

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.synthetic.pictures import write_segmentation

OTHERWISE = np.array([30, 20, 0, 10, *range(4, 256)], dtype=np.uint8)  # in another order too


def renumber(folder, split):
    for path in (folder / "masks" / split).iterdir():
        change(path, lambda values: np.copyto(values, OTHERWISE[values]))


def renumber_list(path):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    text = [f"{OTHERWISE[int(row['id'])]},{row['name']}" for row in rows]
    path.write_text("\n".join(["id,name", *sorted(text)]))


def data_of(folder, **options):
    return ImageSegmentation(str(folder), batch_size=4, workers=0, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dataset, a checkpoint, and the network's metrics and confusion of the validation data."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_segmentation(folder / "data", 4, 5, (32, 40), progress=False)
    torch.manual_seed(0)
    task, run = segmenter(4), trainer(folder, limit_train_batches=1, limit_val_batches=0)
    run.fit(task, data_of(data))
    run.save_checkpoint(folder / "one.ckpt")
    task = segmenter(4)
    run = trainer(folder)
    logged = run.validate(task, data_of(data), ckpt_path=folder / "one.ckpt", verbose=False)
    return data, folder / "one.ckpt", logged, task.result.confusion


@pytest.mark.parametrize("known_before", [False, True])
def test_other_values_are_evaluated_by_name(trained, tmp_path, known_before, caplog):
    original, checkpoint, expected, confusion = trained
    folder = tmp_path / "other"
    shutil.copytree(original, folder)
    for split in ("train", "val"):
        renumber(folder, split)
    renumber_list(folder / "classes.csv")
    data, task = data_of(folder), segmenter(4)
    run = trainer(tmp_path)
    if known_before:
        run.validate(task, data_of(original), ckpt_path=checkpoint, verbose=False)
        found = run.validate(task, data, verbose=False)
    else:
        found = run.validate(task, data, ckpt_path=checkpoint, verbose=False)
    assert "they are matched by name" in caplog.text
    assert found == expected and (task.result.confusion == confusion).all() and confusion[1:].sum() > 0
    assert [row["id"] for row in task.branch.classes] == [0, 1, 2, 3]
    run.test(task, data, ckpt_path=None if known_before else checkpoint, verbose=False)
    assert (task.result.confusion == confusion).all()  # of the validation data, in their place
    data.setup("fit")  # what is read later is numbered the same way
    mask = data.splits["train"].masks.mask(0)
    assert (mask == data_of_masks(original)).all()


def data_of_masks(folder):
    made = data_of(folder)
    made.setup()
    return made.splits["train"].masks.mask(0)


def test_splits_of_one_run_may_write_other_values(trained, tmp_path, caplog):
    original, _, expected, confusion = trained
    shutil.copytree(original, tmp_path / "a")
    shutil.copytree(original, tmp_path / "b")
    renumber(tmp_path / "b", "val")
    renumber_list(tmp_path / "b/classes.csv")
    data = ImageSegmentation(
        None,
        *(
            str(tmp_path / name)
            for name in ("a/images/train", "a/masks/train", "b/images/val", "b/masks/val")
        ),
        batch_size=4,
        workers=0,
    )
    task = segmenter(4)
    run = trainer(tmp_path)
    data.setup("fit")
    assert "b/classes.csv numbers the classes otherwise than " in caplog.text
    found = run.validate(task, data, ckpt_path=trained[1], verbose=False)
    assert found == expected and (task.result.confusion == confusion).all()


def test_other_names_are_refused(trained, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(trained[0], folder)
    text = (folder / "classes.csv").read_text().replace("circle", "disc")
    (folder / "classes.csv").write_text(text)
    with pytest.raises(ValueError, match="trained on the classes .*circle.*the data have .*disc"):
        trainer(tmp_path).validate(segmenter(4), data_of(folder), ckpt_path=trained[1], verbose=False)
