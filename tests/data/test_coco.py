"""The data set and the data module: from files to padded batches."""

import io
import json
import logging
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image

from trunkline.data import coco
from trunkline.data.augment import Augmentation, AugmentationError
from trunkline.data.canvas import Request
from trunkline.data.coco import CocoDetection
from trunkline.data.coco_dataset import CocoDetectionDataset
from trunkline.data.coco_index import read_coco
from trunkline.data.coco_records import AnnotationError
from trunkline.data.io import ImageError
from trunkline.data.locate import DataNotFoundError
from trunkline.data.synthetic import write_detection

SMALL = {"short_side": 64, "long_side": 107, "batch_size": 4, "workers": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_detection(tmp_path_factory.mktemp("coco") / "shapes", train=21, val=10, size=(64, 80))


@pytest.fixture
def own(tmp_path):
    """A copy-like dataset that a test may damage."""
    return write_detection(tmp_path / "own", train=6, val=4, size=(48, 64))


class Recorder(pl.LightningModule):
    """Trains nothing and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[int, ...], int]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        pixels = int(batch.image.long().sum())
        self.seen.append((self.current_epoch, tuple(batch.image_ids.tolist()), pixels))
        return self.weight.sum() * 0

    def validation_step(self, batch, batch_idx):
        self.validated += batch.image_ids.tolist()

    def test_step(self, batch, batch_idx):
        self.validated += batch.image_ids.tolist()

    def predict_step(self, batch, batch_idx):
        return batch.image_ids.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {
        "accelerator": "cpu",
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        **quiet,
        **options,
    }
    return pl.Trainer(default_root_dir=folder, **options)


# ---------------------------------------------------------------- data set


@pytest.fixture
def dataset(tmp_path):
    """One 30 x 40 picture with a red rectangle exactly in its box, and a crowd region."""
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    picture[6:18, 10:30] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "red.png")
    content = {
        "images": [{"id": 5, "file_name": "red.png", "height": 30, "width": 40}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 6, 20, 12]},
            {"id": 2, "image_id": 5, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
        "categories": [{"id": 2, "name": "sky"}, {"id": 9, "name": "red"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    index = read_coco(tmp_path / "boxes.json", tmp_path)
    return lambda augment=None: CocoDetectionDataset(index, augment and Augmentation(augment), long_side=200)


def test_sample_is_resized_with_its_boxes(dataset):
    sample = dataset()[Request(0, 60, (64, 96))]
    assert sample.image.shape == (3, 60, 80) and sample.image.dtype == torch.uint8
    assert sample.image.is_contiguous()
    assert sample.boxes.tolist() == [[20, 12, 60, 36], [0, 0, 80, 60]]
    assert sample.labels.tolist() == [1, 0] and sample.crowd.tolist() == [False, True]
    assert (sample.image_id, sample.original_size, sample.canvas) == (5, (30, 40), (64, 96))
    inside = sample.image[:, 13:35, 21:59]
    assert (inside[0] > 250).all() and (inside[1:] < 5).all()
    assert (sample.image[0, 38:] == 0).all()


def test_sample_is_made_to_fit_its_canvas(dataset):
    sample = dataset()[Request(0, 60, (96, 64))]
    assert sample.image.shape == (3, 48, 64)
    assert sample.boxes.tolist() == [[16, pytest.approx(9.6), 48, pytest.approx(28.8)], [0, 0, 64, 48]]


def test_long_side_limits_the_sample(dataset):
    limited = dataset()
    limited.long_side = 40
    assert limited[Request(0, 60, (64, 96))].image.shape == (3, 30, 40)


def test_augmentation_comes_before_resizing(dataset):
    crop = [{"Crop": {"x_min": 0, "y_min": 0, "x_max": 20, "y_max": 30, "p": 1.0}}]
    sample = dataset(crop)[Request(0, 40, (96, 64))]  # 30 x 20 is scaled by two
    assert sample.image.shape == (3, 60, 40)
    assert sample.boxes.tolist() == [[20, 12, 40, 36], [0, 0, 40, 60]]
    assert sample.original_size == (30, 40)


def test_seed_of_the_request_decides_the_flip(dataset):
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 32, "y_max": 30, "p": 1.0}}
    flipping = dataset([crop, {"HorizontalFlip": {"p": 0.5}}])

    def lefts():
        return [flipping[Request(0, 30, (32, 64), seed)].boxes[0, 0].item() for seed in range(30)]

    assert {round(left) for left in lefts()} == {10, 2}  # 10..30 of 32, or mirrored 2..22
    assert lefts() == lefts()


def test_the_shared_boxes_are_not_written_to(dataset):
    data = dataset([{"HorizontalFlip": {"p": 1.0}}])
    sample = data[Request(0, 60, (64, 96))]
    sample.labels.fill_(7)
    sample.crowd.fill_(True)
    assert data.index.boxes.tolist() == [[10, 6, 30, 18], [0, 0, 40, 30]]
    assert data.index.labels.tolist() == [1, 0] and data.index.crowd.tolist() == [False, True]


def test_another_size_than_annotated_is_an_error(dataset):
    data = dataset()
    Image.new("RGB", (20, 20)).save(data.index.path(0))
    with pytest.raises(ImageError, match=r"red.png: is 20x20 .* say 30x40"):
        data[Request(0, 60, (64, 96))]


def test_failing_augmentation_names_the_file(dataset):
    with pytest.raises(AugmentationError, match="red.png: augmentation failed on 30x40"):
        dataset([{"RandomCrop": {"height": 99, "width": 99, "p": 1.0}}])[Request(0, 60, (64, 96))]


def test_pickled_for_a_worker_it_is_small(root):
    index = read_coco(root / "annotations/instances_train.json", root / "images/train")
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(CocoDetectionDataset(index, Augmentation(coco.FLIP)))
    assert buffer.tell() < 20_000


# ---------------------------------------------------------------- loaders


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_deliver_what_the_main_process_does(root, method, monkeypatch):
    monkeypatch.setattr(coco.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    crop = {"RandomSizedBBoxSafeCrop": {"height": 40, "width": 40}}
    augment = [{"HorizontalFlip": None}, {"RandomBrightnessContrast": None}, crop]
    single = CocoDetection(str(root), augment=augment, seed=3, **SMALL)
    several = CocoDetection(str(root), augment=augment, seed=3, **SMALL | {"workers": 2})
    for module in (single, several):
        module.setup("fit")
    loaders = single.train_dataloader(), several.train_dataloader()
    assert loaders[1].num_workers == 2 and loaders[1].persistent_workers
    loaders[1].multiprocessing_context = method
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        batches = [list(loader) for loader in loaders]
        assert len(batches[0]) == len(batches[1]) == 6
        for one, other in zip(*batches, strict=True):
            for name, value in vars(one).items():
                assert torch.equal(value, getattr(other, name)), name


def test_train_batches_are_padded_with_zeros_and_hold_every_box(root):
    module = CocoDetection(str(root), augment=[], **SMALL)
    module.setup()
    boxes = {}
    for batch in module.train_dataloader():
        assert tuple(batch.image.shape[-2:]) in module.canvases and batch.image.dtype == torch.uint8
        for n, (height, width) in enumerate(batch.image_sizes.tolist()):
            assert not batch.image[n, :, height:].any() and not batch.image[n, :, :, width:].any()
            real = batch.labels[n] >= 0
            limit = torch.tensor([width, height, width, height])
            assert (batch.boxes[n, real] <= limit).all() and (batch.boxes[n, ~real] == 0).all()
            scale = batch.original_sizes[n].flip(0) / batch.image_sizes[n].flip(0)
            boxes[int(batch.image_ids[n])] = batch.boxes[n, real] * scale.repeat(2)
    index = module.train_index
    assert len(boxes) == len(index) == 21
    for n, image_id in enumerate(index.image_ids.tolist()):
        torch.testing.assert_close(boxes[image_id], index.boxes[index.rows(n)], atol=1e-3, rtol=0)


def test_each_epoch_flips_other_images(root):
    module = CocoDetection(str(root), **SMALL)
    module.setup("fit")
    loader = module.train_dataloader()

    def lefts(epoch):
        loader.sampler.set_epoch(epoch)
        return {
            int(image_id): row[0, 0].item()
            for batch in loader
            for image_id, row in zip(batch.image_ids, batch.boxes, strict=True)
        }

    first, second = lefts(0), lefts(1)
    changed = sum(abs(first[image_id] - second[image_id]) > 0.5 for image_id in first)
    assert 2 < changed < 19 and lefts(0) == first


def test_validation_is_not_augmented_and_sees_each_image_once(root):
    module = CocoDetection(str(root), augment=[{"HorizontalFlip": {"p": 1.0}}], **SMALL)
    module.setup("validate")
    seen = Counter()
    for batch in module.val_dataloader():
        seen.update(batch.image_ids.tolist())
        for image_id, row, size in zip(batch.image_ids, batch.boxes, batch.image_sizes, strict=True):
            n = module.val_index.image_ids.tolist().index(int(image_id))
            boxes = module.val_index.boxes[module.val_index.rows(n)]
            scale = size.flip(0) / module.val_index.sizes[n].flip(0)
            torch.testing.assert_close(row[: len(boxes)], boxes * scale.repeat(2), atol=1e-3, rtol=0)
    assert seen == Counter(module.val_index.image_ids.tolist()) and module.train_index is None


def test_batch_sizes_take_effect(root):
    module = CocoDetection(str(root), **SMALL | {"eval_batch_size": 2})
    module.setup("fit")
    assert {len(batch) for batch in module.train_dataloader()} == {4}
    assert max(len(batch) for batch in module.val_dataloader()) == 2
    module = CocoDetection(str(root), **SMALL)
    module.setup("validate")
    assert max(len(batch) for batch in module.val_dataloader()) > 2


def test_workers_are_limited_by_cores_and_batches(root, monkeypatch):
    monkeypatch.setattr(coco.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)

    def count(workers, **options):
        module = CocoDetection(str(root), **SMALL | {"workers": workers, **options})
        module.setup("fit")
        return module.train_dataloader().num_workers

    assert [count(0), count(2), count(16)] == [0, 2, 3]
    assert count(16, batch_size=21) == 1


def test_multi_scale_training_and_evaluation_at_the_largest(root):
    module = CocoDetection(str(root), **SMALL | {"short_side": [32, 64], "batch_size": 2}, augment=[])
    module.setup("fit")
    assert {int(size.min()) for batch in module.train_dataloader() for size in batch.image_sizes} == {32, 64}
    assert {int(size.min()) for batch in module.val_dataloader() for size in batch.image_sizes} == {64}


@pytest.mark.parametrize(
    ("canvases", "shapes"), [([(100, 200)], {(100, 200)}), ([], {(64, 64), (64, 96), (96, 64)})]
)
def test_canvases_take_effect(root, canvases, shapes):
    module = CocoDetection(str(root), canvases=canvases, **SMALL)
    module.setup("validate")
    assert {tuple(batch.image.shape[-2:]) for batch in module.val_dataloader()} <= shapes


def test_images_without_boxes_can_be_skipped_in_training_only(root):
    module = CocoDetection(str(root), skip_images_without_boxes=True, **SMALL)
    module.setup("fit")
    assert len(module.train_index) == 20 and (module.train_index.offsets.diff() > 0).all()
    assert len(module.val_index) == 10 and (module.val_index.offsets.diff() == 0).any()


def test_the_seed_of_seed_everything_is_used_unless_another_is_given(root, monkeypatch):
    def first(**options):
        module = CocoDetection(str(root), **SMALL, **options)
        module.setup("fit")
        return next(iter(module.train_dataloader().sampler))

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert first() == first(seed=0) != first(seed=11)
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert first() == first(seed=11) and first(seed=0) != first()


def test_min_visibility_reaches_the_augmentation(root):
    crop = [{"RandomCrop": {"height": 20, "width": 20, "p": 1.0}}]

    def boxes(share):
        module = CocoDetection(str(root), augment=crop, min_visibility=share, **SMALL)
        module.setup("fit")
        return sum(int((batch.labels >= 0).sum()) for batch in module.train_dataloader())

    assert boxes(0.9) < boxes(0.0)


# ---------------------------------------------------------------- with Lightning


def test_trainer_shuffles_each_epoch_and_repeats_with_the_seed(root, tmp_path):
    def run(**options):
        model = Recorder()
        module = CocoDetection(str(root), seed=5, **SMALL)
        trainer(tmp_path, max_epochs=3, **options).fit(model, module)
        return model

    one, two = run(), run()
    assert one.seen == two.seen and len(one.seen) == 18
    order = [[ids for epoch, ids, _ in one.seen if epoch == number] for number in range(3)]
    assert order[0] != order[1] != order[2]
    assert Counter(one.validated) == Counter(3 * list(range(1, 11)))


def test_resuming_continues_with_the_next_epochs_order(root, tmp_path):
    straight = Recorder()
    trainer(tmp_path, max_epochs=3).fit(straight, CocoDetection(str(root), seed=5, **SMALL))
    first = trainer(tmp_path, max_epochs=2)
    first.fit(Recorder(), CocoDetection(str(root), seed=5, **SMALL))
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Recorder()
    module = CocoDetection(str(root), seed=5, **SMALL)
    trainer(tmp_path, max_epochs=3).fit(resumed, module, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.seen == [row for row in straight.seen if row[0] == 2]


def test_overfit_batches_repeats_the_same_batches(root, tmp_path):
    model = Recorder()
    options = {"overfit_batches": 2, "max_epochs": 2}
    trainer(tmp_path, **options).fit(model, CocoDetection(str(root), **SMALL))
    rows = [row[1:] for row in model.seen]
    assert len(rows) == 4 and rows[:2] == rows[2:] and rows[0] != rows[1]


def test_test_stage_uses_validation_data_unless_test_data_is_given(root, tmp_path):
    model = Recorder()
    module = CocoDetection(str(root), **SMALL)
    trainer(tmp_path).test(model, module, verbose=False)
    assert sorted(model.validated) == list(range(1, 11)) and len(module.test_index) == 10
    given = {"test_images": "images/train", "test_annotations": "annotations/instances_train.json"}
    model = Recorder()
    trainer(tmp_path).test(model, CocoDetection(str(root), **given, **SMALL), verbose=False)
    assert sorted(model.validated) == list(range(1, 22))


@pytest.mark.slow
def test_two_processes_share_the_images_without_any_setting(root, tmp_path):
    """Lightning would shard once more by default; each image must still be seen exactly once."""
    model = Recorder()
    saver = SaveSeen(tmp_path)
    options = {"devices": 2, "strategy": "ddp_spawn", "max_epochs": 1, "callbacks": [saver]}
    trainer(tmp_path, **options).fit(model, CocoDetection(str(root), **SMALL | {"batch_size": 2}))
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


# ---------------------------------------------------------------- prediction


def test_predict_takes_a_folder(root, tmp_path):
    module = CocoDetection(predict=str(root / "images/val"), **SMALL)
    outputs = trainer(tmp_path).predict(Recorder(), module)
    files = sorted((root / "images/val").iterdir())
    assert sorted(i for ids in outputs for i in ids) == list(range(1, 11))
    assert module.predict_paths == dict(enumerate(files, start=1))
    assert module.categories == ()


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
    assert len(module.predict_index) == 22 and module.predict_paths[1] == Path(files[0])
    assert [category.name for category in module.categories] == ["circle", "rectangle", "triangle"]


def test_predict_takes_a_json_with_its_ids(root):
    module = CocoDetection(predict=str(root / "annotations/instances_val.json"), **SMALL)
    module.setup("predict")
    assert module.predict_index.image_ids.tolist() == list(range(1, 11))
    assert module.predict_paths[2] == root / "images/val/000002.jpg"
    assert len(module.predict_index.boxes) == 0 and len(module.categories) == 3


def test_predict_json_with_images_elsewhere(root, tmp_path):
    content = json.loads((root / "annotations/instances_val.json").read_text())
    del content["annotations"]
    source = tmp_path / "list.json"
    source.write_text(json.dumps(content))
    with pytest.raises(DataNotFoundError, match=r"looked for 000001.jpg in[\s\S]*give data.predict_images"):
        CocoDetection(predict=str(source), **SMALL).setup("predict")
    module = CocoDetection(predict=str(source), predict_images=str(root / "images/val"), **SMALL)
    module.setup("predict")
    assert module.predict_paths[1].exists()


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


# ---------------------------------------------------------------- finding files, and what is wrong with them


@pytest.mark.parametrize("images", ["images/{}", "{}2017", "images/{}2017", "images"])
@pytest.mark.parametrize("annotations", ["instances_{}.json", "instances_{}2017.json"])
def test_usual_layouts_are_found(tmp_path, images, annotations):
    (tmp_path / "annotations").mkdir()
    for number, split in enumerate(("train", "val")):
        path = tmp_path / images.format(split) / f"{split}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
        content = {
            "images": [{"id": number, "file_name": path.name, "height": 30, "width": 40}],
            "annotations": [],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (tmp_path / "annotations" / annotations.format(split)).write_text(json.dumps(content))
    module = CocoDetection(str(tmp_path), **SMALL)
    module.prepare_data()
    module.setup("fit")
    assert module.train_index.path(0) == tmp_path / images.format("train") / "train.png"
    assert module.val_index.path(0) == tmp_path / images.format("val") / "val.png"


def test_explicit_paths_are_relative_to_root(own):
    (own / "images" / "train").rename(own / "pictures")
    (own / "annotations" / "instances_train.json").rename(own / "boxes.json")
    module = CocoDetection(str(own), train_images="pictures", train_annotations="boxes.json", **SMALL)
    module.setup("fit")
    assert module.train_index.path(0).exists()
    paths = {"train_images": str(own / "pictures"), "train_annotations": str(own / "boxes.json")}
    module = CocoDetection(**paths, **SMALL)  # no root
    module.setup("fit")
    assert len(module.train_index) == 6 and module.val_index is None and module.val_dataloader() == []


def test_what_was_looked_for_is_listed(own):
    (own / "annotations" / "instances_train.json").unlink()
    with pytest.raises(DataNotFoundError) as caught:
        CocoDetection(str(own), **SMALL).setup("fit")
    for word in ("instances_train.json", "instances_train2017.json", "data.train_annotations"):
        assert word in str(caught.value)
    with pytest.raises(DataNotFoundError, match="data.train_annotations: .*x.json does not exist"):
        CocoDetection(str(own), train_annotations="x.json", **SMALL).setup("fit")
    with pytest.raises(DataNotFoundError, match="no train data: give data.root"):
        CocoDetection(**SMALL).setup("fit")


def test_training_without_validation_is_said_and_validation_without_it_an_error(own, caplog):
    (own / "annotations" / "instances_val.json").unlink()
    module = CocoDetection(str(own), **SMALL)
    with caplog.at_level(logging.WARNING, "trunkline"):
        module.setup("fit")
    assert module.val_index is None and module.val_dataloader() == []
    assert "training without validation" in caplog.text
    with pytest.raises(DataNotFoundError, match="instances_val.json"):
        CocoDetection(str(own), **SMALL).setup("validate")
    with pytest.raises(DataNotFoundError, match="val_annotations"):
        CocoDetection(str(own), val_annotations="gone.json", **SMALL).setup("fit")


def test_differing_categories_are_an_error(own):
    source = own / "annotations" / "instances_val.json"
    source.write_text(source.read_text().replace('"triangle"', '"pyramid"'))
    with pytest.raises(
        AnnotationError, match=r"val annotations differ .*pyramid \(id 7\), triangle \(id 7\)"
    ):
        CocoDetection(str(own), **SMALL).setup("fit")


def test_images_are_checked_before_training(own, tmp_path):
    (own / "images" / "train" / "000001.jpg").unlink()
    Image.new("RGB", (9, 9)).save(own / "images" / "val" / "000002.jpg")
    with pytest.raises(ImageError, match="image id 1: .*000001.jpg: no such file"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), CocoDetection(str(own), **SMALL))
    with pytest.raises(ImageError, match="image id 2: .*is 9x9 pixels"):
        trainer(tmp_path).validate(Recorder(), CocoDetection(str(own), **SMALL), verbose=False)
    module = CocoDetection(str(own), check_images="off", **SMALL)
    module.prepare_data()
    module.setup("fit")


def test_decoding_check_finds_damage_in_the_pixels(own):
    path = own / "images" / "train" / "000001.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    CocoDetection(str(own), **SMALL).prepare_data()
    with pytest.raises(ImageError, match="image id 1: .*damaged"):
        CocoDetection(str(own), check_images="decode", **SMALL).prepare_data()


def test_bad_boxes_follow_the_option(own):
    source = own / "annotations" / "instances_train.json"
    content = json.loads(source.read_text())
    content["annotations"][0]["bbox"][2] = 0
    source.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"instances_train.json: bad boxes[\s\S]*annotation id 1,"):
        CocoDetection(str(own), **SMALL).setup("fit")
    module = CocoDetection(str(own), on_bad_box="drop", **SMALL)
    module.setup("fit")
    assert len(module.train_index.boxes) == len(content["annotations"]) - 1


def test_bad_augmentation_is_an_error_at_setup(root):
    with pytest.raises(AugmentationError, match="did you mean HorizontalFlip"):
        CocoDetection(str(root), augment=[{"HorizontalFlop": None}], **SMALL).setup("fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"long_side": 0}, "long_side"),
        ({"short_side": 2000}, r"short_side 2000 .*long_side \(1333\)"),
        ({"short_side": []}, "short_side"),
        ({"short_side": [0, 5]}, "short_side"),
    ],
)
def test_impossible_numbers_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CocoDetection("x", **options)


def test_loader_before_setup_is_an_error(root):
    with pytest.raises(RuntimeError, match="setup"):
        CocoDetection(str(root)).train_dataloader()


def test_arguments_come_from_yaml(root, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
data:
  class_path: trunkline.data.coco.CocoDetection
  init_args:
    root: {root}
    short_side: [32, 48]
    canvases: [[64, 96]]
    on_bad_box: clip
    augment:
      - HorizontalFlip: {{p: 1.0}}
      - RandomCrop: {{height: 32, width: 32}}
      - VerticalFlip:
"""
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(CocoDetection, "data")
    module = parser.instantiate(parser.parse_args([f"--config={config}", "--data.batch_size=3"])).data
    module.setup("fit")
    assert next(iter(module.train_dataloader())).image.shape == (3, 3, 64, 96)
    assert [type(transform).__name__ for transform in module._augmentation.compose] == [
        "HorizontalFlip", "RandomCrop", "VerticalFlip",
    ]  # fmt: skip
    with pytest.raises(ArgumentError, match="on_bad_box"):
        parser.parse_args([f"--config={config}", "--data.on_bad_box=repair"])


def test_help_explains_the_arguments(capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(CocoDetection, "data")
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=trunkline.data.coco.CocoDetection"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--data.long_side LONG_SIDE limit of the longer side after resizing, in pixels." in shown
