"""Data at addresses and in tar shards give the batches of the same files on a disk."""

import http.server
import multiprocessing
import shutil
import subprocess
import tarfile
import threading
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.classification.module import ImageClassification
from trunkline.data.detection.module import CocoDetection
from trunkline.data.multitask.module import CocoDetectionAndMasks
from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared.fingerprint import fingerprint_of
from trunkline.data.shared.objects import ObjectError
from trunkline.data.shared.storage import located


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def memory():
    """A bucket in memory; fsspec keeps it for the process."""
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def uploaded(folder, address):
    """Copy a folder to an address."""
    filesystem, path = fsspec.core.url_to_fs(address)
    filesystem.put(f"{folder}/", path, recursive=True)
    return address


def shards_of(folder, where, count=2, inside="."):
    """Make tar shards of a folder by the program tar, as the documentation says."""
    where.mkdir(parents=True, exist_ok=True)
    files = sorted(
        str(file.relative_to(folder)) for file in Path(folder, inside).rglob("*") if file.is_file()
    )
    for number in range(count):
        some = "\n".join(files[number::count])
        command = ["tar", "-C", str(folder), "-cf", str(where / f"part-{number:03}.tar"), "-T", "-"]
        subprocess.run(command, input=some.encode(), check=True)
    return f"{where}/part-*.tar"


def batches_of(data, stage="fit"):
    if stage == "predict":
        data.setup(stage)
        return list(data.predict_dataloader())
    data.prepare_data()
    data.setup(stage)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    return [*loader, *data.val_dataloader()]


def flat(value):
    """Return tensors and plain values of a batch, in order."""
    if isinstance(value, torch.Tensor):
        return [value.numpy().tobytes(), tuple(value.shape)]
    if isinstance(value, dict):
        return [item for key in sorted(value) for item in flat(value[key])]
    if isinstance(value, list | tuple):
        return [item for each in value for item in flat(each)]
    return flat(vars(value)) if type(value).__module__.startswith("trunkline") else [value]


def same(one, other):
    assert len(one) == len(other) > 1
    for a, b in zip(one, other, strict=True):
        assert flat(a) == flat(b)
    return True


FLIP = [{"HorizontalFlip": {"p": 0.5}}]
BOXES = {"batch_size": 2, "workers": 0, "short_side": 64, "long_side": 96, "augment": FLIP, "seed": 3}
MASKS = {"batch_size": 2, "workers": 0, "augment": FLIP, "seed": 3}
CLASSES = {"batch_size": 2, "workers": 0, "size": 32, "augment": FLIP, "seed": 3}


def test_boxes_at_an_address(shapes, memory):
    local = batches_of(CocoDetection(str(shapes), **BOXES))
    address = uploaded(shapes, f"{memory}/coco")
    assert same(local, batches_of(CocoDetection(address, **BOXES)))


def test_images_in_shards_are_those_of_the_disk_for_a_resumed_run(shapes, tmp_path):
    shards = shards_of(shapes / "images" / "train", tmp_path / "train")
    found = []
    for place in (f"{shapes}/images/train", shards, f"file://{shards}"):
        data = CocoDetection(str(shapes), train_images=place, **BOXES)
        found.append(fingerprint_of(data.read_split("train")))
    assert found[0] == found[1] == found[2]


def test_boxes_in_shards_with_annotations_on_the_disk(shapes, tmp_path):
    local = batches_of(CocoDetection(str(shapes), **BOXES, reduced_decoding=True))
    images = {split: shards_of(shapes / "images" / split, tmp_path / split) for split in ("train", "val")}
    data = CocoDetection(
        str(shapes), train_images=images["train"], val_images=images["val"], **BOXES, reduced_decoding=True
    )
    assert same(local, batches_of(data))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_processes_read_addresses_and_shards(shapes, tmp_path, method):
    shards = shards_of(shapes / "images" / "val", tmp_path / "val")
    for place in (f"file://{shards}", f"file://{shapes}/images/val")[: 2 if method == "fork" else 1]:
        data = CocoDetection(str(shapes), val_images=place, **BOXES)
        data.prepare_data()
        data.setup("validate")
        expected = list(data.val_dataloader())
        loader = data.val_dataloader()
        loader.num_workers = 2 if method == "fork" else 1  # to start one takes long
        loader.prefetch_factor = 2
        loader.multiprocessing_context = multiprocessing.get_context(method)
        assert same(expected, list(loader))


def test_sizes_stay_where_the_tensors_are_moved_to_the_memory_of_spawned_processes(shapes):
    data = CocoDetection(str(shapes), **BOXES)
    data.setup("validate")
    expected = [batch.image_ids.tolist() for batch in data.val_dataloader()]
    loader = data.val_dataloader()
    index = data.index_of("val")
    index.sizes.share_memory_()
    _ = np.zeros((64, 2), np.int64)  # takes the memory that was given back, where it was
    assert [batch.image_ids.tolist() for batch in loader] == expected
    assert not any(
        np.shares_memory(value, index.sizes.numpy())
        for value in vars(loader.sampler).values()
        if isinstance(value, np.ndarray)
    )


def test_masks_at_an_address_and_in_shards(masked_shapes, memory, tmp_path):
    local = batches_of(ImageSegmentation(str(masked_shapes), **MASKS))
    address = uploaded(masked_shapes, f"{memory}/masks")
    assert same(local, batches_of(ImageSegmentation(address, **MASKS)))
    shards = shards_of(masked_shapes, tmp_path / "tars")
    places = {f"{s}_{what}": f"{shards}/{what}/{s}" for s in ("train", "val") for what in ("images", "masks")}
    assert same(local, batches_of(ImageSegmentation(str(masked_shapes), **places, **MASKS)))
    assert same(local, batches_of(ImageSegmentation(shards, **MASKS)))


def test_classes_by_folders_at_an_address_and_in_shards(class_folders, memory, tmp_path):
    local = batches_of(ImageClassification(str(class_folders), **CLASSES))
    address = uploaded(class_folders, f"{memory}/classes")
    assert same(local, batches_of(ImageClassification(address, **CLASSES)))
    shards = {s: shards_of(class_folders / s, tmp_path / s) for s in ("train", "val")}
    assert same(local, batches_of(ImageClassification(**shards, **CLASSES)))


def test_classes_by_a_table(class_folders, memory, tmp_path):
    lines = ["path,split,label"]
    for split in ("train", "val"):
        files = sorted((class_folders / split).rglob("*.*"))
        lines += [f"{file.relative_to(class_folders)},{split},{file.parent.name}" for file in files]
    copy = shutil.copytree(class_folders, tmp_path / "copy")
    (copy / "table.csv").write_text("\n".join(lines))
    local = batches_of(ImageClassification(str(copy / "table.csv"), **CLASSES))
    address = uploaded(copy, f"{memory}/tables")
    assert same(local, batches_of(ImageClassification(f"{address}/table.csv", **CLASSES)))
    alone = tmp_path / "alone" / "table.csv"
    alone.parent.mkdir()
    shutil.copy(copy / "table.csv", alone)
    settings = {"train": str(alone), "val": str(alone)} | CLASSES
    assert same(local, batches_of(ImageClassification(address, **settings)))
    assert same(
        local, batches_of(ImageClassification(shards_of(class_folders, tmp_path / "tars"), **settings))
    )


def test_boxes_and_masks_at_an_address(shapes_with_masks, memory):
    local = batches_of(CocoDetectionAndMasks(root=str(shapes_with_masks), **BOXES))
    address = uploaded(shapes_with_masks, f"{memory}/both")
    assert same(local, batches_of(CocoDetectionAndMasks(root=address, **BOXES)))


def test_prediction_on_addresses_and_shards(shapes, memory, tmp_path):
    folder = shapes / "images" / "val"
    settings = {name: value for name, value in BOXES.items() if name != "augment"}
    local = CocoDetection(predict=str(folder), **settings)
    expected = [batch.image for batch in batches_of(local, "predict")]
    address = uploaded(folder, f"{memory}/photos")
    shards = shards_of(folder, tmp_path / "tars")
    for place in (address, shards):
        data = CocoDetection(predict=place, **settings)
        found = [batch.image for batch in batches_of(data, "predict")]
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
        names = [str(path) for path in data.prediction_paths().values()]
        assert names == [f"{place}/{path.name}" for path in local.prediction_paths().values()]


def test_prediction_goes_on_without_a_missing_file(shapes, memory):
    address = uploaded(shapes / "images" / "val", f"{memory}/some")
    fsspec.filesystem("memory").pipe("/bucket/some/000_bad.jpg", b"no image")
    data = CocoDetection(predict=address, batch_size=2, workers=0)
    data.setup("predict")
    (failed,) = data.prediction_failures()
    assert failed.file_name == f"{address}/000_bad.jpg" and failed.file_name in failed.error


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Lists folders, and sends whole files whatever part is asked for."""

    def log_message(self, *words):
        pass


def test_a_web_server_that_lists_its_folders(shapes):
    handler = partial(Quiet, directory=str(shapes))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert same(
            batches_of(CocoDetection(str(shapes), **BOXES)), batches_of(CocoDetection(address, **BOXES))
        )
        assert located(f"{address}/images/val").files() == located(f"file://{shapes}/images/val").files()
        server.shutdown()


@pytest.mark.parametrize("name", ["scans", "zip"])
def test_what_is_not_read_from_addresses_is_refused_with_a_remedy(name, memory, class_folders):
    filesystem = fsspec.filesystem("memory")
    for split in ("train", "val"):
        for kind in ("a", "b"):
            filesystem.pipe(f"/bucket/scans/{split}/{kind}/1.nii.gz", b"scan")
    filesystem.pipe("/bucket/zip/train.zip", b"PK")
    filesystem.pipe("/bucket/zip/val.zip", b"PK")
    data = ImageClassification(f"{memory}/{name}", **CLASSES)
    with pytest.raises((ValueError, OSError), match="copy (them|it) to") as caught:
        data.setup("fit")
    assert memory in str(caught.value)


def test_whole_scans_at_an_address_are_refused(memory):
    from trunkline.data.scans.module import ScanSegmentation

    with pytest.raises(ObjectError, match="copy them to a disk, or mount"):
        ScanSegmentation(root=f"{memory}/scans", patch=(8, 8, 8)).setup("fit")


def test_a_file_of_the_annotations_that_is_not_there_is_named(shapes, memory):
    address = uploaded(shapes, f"{memory}/short")
    gone = next(iter(sorted((shapes / "images" / "train").iterdir()))).name
    fsspec.filesystem("memory").rm(f"/bucket/short/images/train/{gone}")
    data = CocoDetection(address, **BOXES)
    with pytest.raises(ValueError, match=f"{memory}/short/images/train/{gone}: no such file"):
        data.prepare_data()


def test_names_that_are_no_plain_ascii(memory, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("à b#1.png", "100%.png", "q?[x].png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    shards = tmp_path / "s.tar"
    with tarfile.open(shards, "w") as archive:
        archive.add(folder, arcname=".")
    for place in (uploaded(folder, f"{memory}/odd"), f"file://{folder}", str(shards)):
        data = ImageSegmentation(predict=place, batch_size=3, workers=0)
        assert len(batches_of(data, "predict")[0].image_ids) == 3
