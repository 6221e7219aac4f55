"""Every data module goes on without files that are damaged, gone or folders, or names them."""

import logging
import os
import shutil
from pathlib import Path

import pytest

from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.multitask import CocoDetectionAndMasks
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.shared.faults import BadImagesError
from trunkline.data.synthetic.scans import write_scans

SMALL = {"workers": 0, "batch_size": 2}
KINDS = ["detection", "segmentation", "masks", "classification", "multitask"]


def damage(path, how):
    """Spoil a file in one of the ways that storage does."""
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "corrupt":
        path.write_bytes(b"no image at all")
    elif how == "folder":
        path.mkdir()
    else:
        assert how == "deleted"


@pytest.fixture
def made(request, tmp_path):
    """Make a data module over a copy of small data; returns it with its image files by split."""

    def make(kind, **options):
        source = {"detection": "shapes", "classification": "class_folders", "multitask": "shapes"}
        given = request.getfixturevalue(source.get(kind, "masked_shapes"))
        root = tmp_path / "copy"
        shutil.copytree(given, root)
        if kind == "multitask":
            from mask_files import fill_boxes

            fill_boxes(root)
        options = {"root": str(root), **SMALL, **options}
        classes = {
            "detection": CocoDetection,
            "classification": ImageClassification,
            "multitask": CocoDetectionAndMasks,
        }
        data = classes.get(kind, ImageSegmentation)(**options)
        return data, root

    return make


def file_of(data, kind, split, position=1):
    index = data.splits[split]
    if kind == "masks":
        return Path(index.masks.name(position))
    return Path(index.path(position))


@pytest.mark.parametrize("how", ["corrupt", "truncated", "deleted", "folder"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_replaced_in_training_and_left_out_of_validation(kind, how, made):
    data, _ = made(kind, on_bad_image="skip")
    data.setup("fit")
    count = len(list(data.train_dataloader()))
    trained, validated = (file_of(data, kind, split) for split in ("train", "val"))
    damage(trained, how)
    damage(validated, how)
    batches = list(data.train_dataloader())
    assert len(batches) == count and all(len(batch) == 2 for batch in batches)
    failed = [image for batch in batches for image in batch.failed]
    assert failed and all(str(trained) in image.error for image in failed)
    assert len({image.image_id for image in failed}) == 1
    assert not any(failed[0].image_id in batch.image_ids.tolist() for batch in batches)
    left = list(data.val_dataloader())
    assert sum(map(len, left)) == len(data.splits["val"]) - 1
    assert [str(validated) in image.error for batch in left for image in batch.failed] == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_without_skip_the_file_and_the_remedy_are_named(kind, made):
    data, _ = made(kind)
    data.setup("fit")
    bad = file_of(data, kind, "train")
    damage(bad, "deleted")
    with pytest.raises(ValueError, match="--data.on_bad_image skip") as raised:
        list(data.train_dataloader())
    assert str(bad) in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_checks_before_the_run_count_against_the_budget(kind, made, caplog):
    data, root = made(kind, on_bad_image="skip", max_bad_images=1)
    other = type(data)(root=str(root), on_bad_image="skip", max_bad_images=1, **SMALL)
    for each in (data, other):
        each.setup("fit")
    damage(file_of(data, kind, "train", 0), "corrupt")
    with caplog.at_level(logging.WARNING, "trunkline"):
        data.prepare_data()
    assert any("will be skipped" in record.getMessage() for record in caplog.records)
    assert list(data.train_dataloader())
    damage(file_of(data, kind, "train", 1), "corrupt")
    with pytest.raises(ValueError, match=r"2 of .* cannot be used \(data.max_bad_images is 1\)"):
        other.prepare_data()


def test_the_count_of_a_run_is_in_its_state(made):
    data, _ = made("detection", on_bad_image="skip", max_bad_images=1)
    data.setup("fit")
    first, second = file_of(data, "detection", "train", 0), file_of(data, "detection", "train", 1)
    damage(first, "deleted")
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch, 0)
    resumed, _ = data.state_dict(), damage(second, "deleted")
    again = CocoDetection(root=data.hparams.root, on_bad_image="skip", max_bad_images=1, **SMALL)
    again.setup("fit")
    again.load_state_dict(resumed)
    with pytest.raises(BadImagesError, match="2 images cannot be read"):
        for batch in again.train_dataloader():
            again.on_after_batch_transfer(batch, 0)


# -- scans


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    return write_scans(root / "data", train=3, val=2, progress=False)


def scan_data(root, cache, **options):
    return ScanSegmentation(
        root=str(root), patch=[16, 16, 16], steps_per_epoch=4, cache_folder=str(cache), **SMALL, **options
    )  # fmt: skip


def test_a_scan_that_cannot_be_prepared_is_left_out(scans, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(scans, root)
    whole = scan_data(root, tmp_path / "cache")
    whole.prepare_data()
    bad = Path(whole.splits["train"].cases[0].images[0])
    damage(bad, "truncated")
    with pytest.raises(ValueError, match=str(bad)):
        scan_data(root, tmp_path / "other").prepare_data()
    data = scan_data(root, tmp_path / "other", on_bad_image="skip")
    with caplog.at_level(logging.WARNING, "trunkline"):
        data.prepare_data()
        data.setup("fit")
    assert any(str(bad) in record.getMessage() for record in caplog.records)
    assert len(data.splits["train"]) == len(whole.splits["train"]) - 1
    assert len(list(data.train_dataloader())) == 4


def test_a_scan_that_goes_during_training_is_replaced_and_left_out(scans, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(scans, root)
    data = scan_data(root, tmp_path / "cache", on_bad_image="skip")
    data.prepare_data()
    data.setup("fit")
    gone, label = data.splits["train"].cases[0].images[0], data.splits["val"].cases[0].label
    shutil.rmtree(tmp_path / "cache")
    os.unlink(gone)
    os.unlink(label)
    failed = [image for batch in data.train_dataloader() for image in batch.failed]
    assert {image.file_name for image in failed} == {gone}
    left = list(data.val_dataloader())
    assert [len(batch) for batch in left] == [0, 1]
    assert left[0].failed[0].file_name == data.splits["val"].cases[0].images[0]
