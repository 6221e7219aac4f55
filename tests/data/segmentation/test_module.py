"""The data module for segmentation: batches, workers, sizes, several processes."""

import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from mask_files import SMALL, fitted
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared import loading
from trunkline.data.shared.augment.transforms import AugmentationError
from trunkline.data.shared.io import read_image, resize, resize_mask


def inside(batch, n):
    """Return picture ``[h, w, 3]`` and mask of one row, and check that they are padded to 32 alone."""
    height, width = batch.image_sizes[n].tolist()
    image, mask = batch.image[n], batch.mask[n]
    assert tuple(mask.shape) == tuple(image.shape[1:]) == (-(-height // 32) * 32, -(-width // 32) * 32)
    assert not image[:, height:].any() and not image[:, :, width:].any()
    assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all()
    return image[:, :height, :width].permute(1, 2, 0), mask[:height, :width]


def test_evaluation_shows_every_picture_once_at_native_size(folder):
    made = fitted(folder, augment=[{"HorizontalFlip": {"p": 1.0}}])
    batches = list(made.val_dataloader())
    assert sorted(i for batch in batches for i in batch.image_ids.tolist()) == list(range(9))
    for batch in batches:
        assert (batch.image_sizes == batch.image_sizes[0]).all()
        assert torch.equal(batch.image_sizes, batch.original_sizes)
        assert len(batch.truth) == len(batch)
        for n, i in enumerate(batch.image_ids.tolist()):
            picture, labels = inside(batch, n)
            assert torch.equal(picture, torch.from_numpy(read_image(made.splits["val"].path(i))))
            with Image.open(made.splits["val"].masks.name(i)) as mask:
                values = torch.from_numpy(np.array(mask))
            assert torch.equal(batch.truth[n], values) and torch.equal(labels, values)
    assert [batch.image_ids.tolist() for batch in made.val_dataloader()] == [
        b.image_ids.tolist() for b in batches
    ]


@pytest.mark.parametrize("limit", [None, 22])
def test_evaluation_can_resize_and_keeps_the_truth(folder, limit):
    made = fitted(folder, eval_short_side=20, eval_long_side=limit, eval_batch_size=2)
    for batch in made.val_dataloader():
        assert len(batch) <= 2
        for n, i in enumerate(batch.image_ids.tolist()):
            height, width = batch.original_sizes[n].tolist()
            scale = min(20 / min(height, width), (limit or 1e9) / max(height, width))
            size = tuple(int(np.floor(side * scale + 0.5)) for side in (height, width))
            assert tuple(batch.image_sizes[n].tolist()) == size
            pixels = resize(read_image(made.splits["val"].path(i)), size)
            picture, mask = inside(batch, n)
            assert torch.equal(picture, torch.from_numpy(pixels))
            labels = made.splits["val"].masks.mask(i)
            assert torch.equal(batch.truth[n], torch.from_numpy(labels))
            assert torch.equal(mask, torch.from_numpy(resize_mask(labels, size)))


def test_training_batches_are_augmented_padded_and_full(folder):
    crop = [{"RandomCrop": {"height": 48, "width": 36, "pad_if_needed": True}}]
    made = fitted(folder, augment=crop, seed=1)
    batches = list(made.train_dataloader())
    assert [len(batch) for batch in batches] == [4] * 4
    assert all((batch.image_sizes == torch.tensor([48, 36])).all() for batch in batches)
    assert all(batch.image.shape == (4, 3, 64, 64) and batch.mask.shape == (4, 64, 64) for batch in batches)
    assert all(batch.truth == () for batch in batches)
    plain = fitted(folder, augment=[])
    for batch in plain.train_dataloader():
        for n, i in enumerate(batch.image_ids.tolist()):
            height, width = batch.image_sizes[n].tolist()
            labels = torch.from_numpy(plain.splits["train"].masks.mask(i))
            assert torch.equal(batch.mask[n, :height, :width], labels)
            assert (batch.mask[n, height:] == 255).all() and (batch.mask[n, :, width:] == 255).all()
    shown = {i for batch in fitted(folder).train_dataloader() for i in batch.image_ids.tolist()}
    assert shown == set(range(13))


def test_a_flip_turns_picture_and_mask_and_null_means_no_augmentation(folder):
    flip = [{"HorizontalFlip": {"p": 0.5}}]
    made, plain = (fitted(folder, seed=2, batch_size=1, augment=augment) for augment in (flip, []))
    null, default = fitted(folder, seed=2, batch_size=1, augment=None), fitted(folder, seed=2, batch_size=1)
    kinds = Counter()
    for one, other, *same in zip(*(m.train_dataloader() for m in (made, plain, null, default)), strict=True):
        (image, mask), (picture, labels) = inside(one, 0), inside(other, 0)
        turned = torch.equal(mask, labels.flip(1)) and torch.equal(image, picture.flip(1))
        equal = torch.equal(mask, labels) and torch.equal(image, picture)
        kinds["turned" if turned and not equal else "same" if equal else "neither"] += 1
        assert all(torch.equal(b.image, other.image) and torch.equal(b.mask, other.mask) for b in same)
    assert kinds["neither"] == 0 and kinds["turned"] > 2 and kinds["same"] > 2


def test_workers_deliver_what_the_main_process_does(folder, monkeypatch):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    augment = [
        {"RandomScale": {"scale_limit": [-0.5, 1.0], "p": 1.0}},
        {"Rotate": None},
        {"ColorJitter": None},
    ]
    loaders = [
        fitted(folder, augment=augment, seed=3, workers=workers).train_dataloader() for workers in (0, 2)
    ]
    assert loaders[1].num_workers == 2 and loaders[1].persistent_workers
    shown = []
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        batches = [list(loader) for loader in loaders]
        shown.append([batch.image_ids.tolist() for batch in batches[0]])
        for one, other in zip(*batches, strict=True):
            for name, value in vars(one).items():
                assert name in ("truth", "failed", "kept", "raw") or torch.equal(
                    value, getattr(other, name)
                ), name
    assert shown[0] != shown[1]


def test_prediction_has_no_masks_and_keeps_the_order_where_sizes_allow(folder):
    made = fitted(folder, "predict", predict=str(folder / "images/val"), eval_short_side=16)
    batches = list(made.predict_dataloader())
    assert sorted(i for batch in batches for i in batch.image_ids.tolist()) == list(range(9))
    for batch in batches:
        assert (
            (batch.mask == 255).all()
            and batch.truth == ()
            and batch.image_ids.tolist() == sorted(batch.image_ids.tolist())
        )
        assert batch.image_sizes.amin(dim=1).tolist() == [16] * len(batch)
        for n, i in enumerate(batch.image_ids.tolist()):
            assert tuple(batch.original_sizes[n].tolist()) == read_image(made.prediction_paths()[i]).shape[:2]
    assert [path.stem for path in made.prediction_paths().values()] == [f"{n:06d}" for n in range(1, 10)]
    assert [entry.name for entry in made.label_classes("segmentation")] == [
        "background",
        "circle",
        "rectangle",
        "triangle",
    ]
    some = [folder / "images/val/000003.jpg", folder / "images/val/000001.jpg"]
    made = ImageSegmentation(predict=some, **SMALL)
    made.setup("predict")
    assert list(made.prediction_paths().values()) == some and made.label_classes("segmentation") == ()
    with pytest.raises(FileNotFoundError, match="nothing to predict on"):
        fitted(folder, "predict")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"eval_short_side": 0}, "eval_short_side is 0"),
        ({"eval_short_side": 20, "eval_long_side": 19}, "eval_long_side is 19"),
        ({"eval_long_side": 19}, "eval_long_side is 19; it limits"),
        ({"min_pixels": -1}, "min_pixels is -1"),
    ],
)
def test_wrong_numbers_are_errors(options, words):
    with pytest.raises(ValueError, match=words):
        ImageSegmentation(**options)


def test_wrong_augmentation_is_found_in_setup_and_named_with_the_file(folder):
    with pytest.raises(AugmentationError, match="did you mean HorizontalFlip"):
        fitted(folder, augment=[{"HorizontalFlop": None}])
    made = fitted(folder, augment=[{"RandomCrop": {"height": 99, "width": 99}}])
    with pytest.raises(AugmentationError, match=r"0000\d\d.\w+: augmentation failed on"):
        list(made.train_dataloader())


def test_arguments_are_kept_without_paths(folder):
    made = ImageSegmentation(folder, predict=[folder / "a.jpg"], **SMALL)
    assert made.hparams.root == str(folder) and made.hparams.predict == [str(folder / "a.jpg")]
    assert made.hparams.ignore == [] and made.batch_size == 4


class Recorder(pl.LightningModule):
    """Trains nothing and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, tuple(batch.image_ids.tolist()), int(batch.mask.long().sum())))
        return self.weight.sum() * 0

    def validation_step(self, batch, batch_idx):
        self.validated += batch.image_ids.tolist()

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_trainer_shuffles_each_epoch_and_repeats_with_the_seed(folder, trainer):
    def run():
        model = Recorder()
        trainer(max_epochs=3).fit(model, ImageSegmentation(str(folder), seed=5, **SMALL))
        return model

    one, two = run(), run()
    assert one.seen == two.seen and len(one.seen) == 12
    order = [[ids for epoch, ids, _ in one.seen if epoch == number] for number in range(3)]
    assert order[0] != order[1] != order[2]
    assert Counter(one.validated) == Counter(3 * list(range(9)))


def test_overfit_batches_repeats_the_same_batches_and_testing_uses_validation_data(folder, trainer, caplog):
    model = Recorder()
    made = ImageSegmentation(str(folder), **SMALL)
    trainer(overfit_batches=2, max_epochs=2).fit(model, made)
    seen = [row[1:] for row in model.seen]
    assert len(seen) == 4 and seen[:2] == seen[2:] and seen[0] != seen[1]
    model.validated = []
    trainer().test(model, made, verbose=False)
    assert sorted(model.validated) == list(range(9)) and "the val data take their place" in caplog.text


def test_two_processes_share_the_pictures(folder):
    trained, validated = [], []
    for rank in range(2):
        made = fitted(folder, batch_size=2)
        done = SimpleNamespace(current=SimpleNamespace(processed=0), is_last_batch=False)
        made.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, num_devices=2, overfit_batches=0,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=done)),
        )  # fmt: skip
        loader = pickle.loads(pickle.dumps(made.train_dataloader().dataset)), made.train_dataloader().sampler
        trained.append(Counter(sample.image_id for batch in loader[1] for sample in loader[0][batch]))
        validated += [i for batch in made.val_dataloader() for i in batch.image_ids.tolist()]
    assert set(trained[0] | trained[1]) == set(range(13)) and trained[0].total() == trained[1].total() == 8
    assert sorted(validated) == list(range(9))
