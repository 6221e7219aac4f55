"""The data module for segmentation: checks before training, loaders, workers, sizes, several processes."""

import csv
import logging
import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from trunkline.data.segmentation.dataset import SegmentationBatchSampler
from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared import loading
from trunkline.data.shared.augment import AugmentationError
from trunkline.data.shared.class_table import MaskError
from trunkline.data.shared.io import ImageError, read_image, resize, resize_mask
from trunkline.data.synthetic.pictures import write_segmentation

SMALL = {"batch_size": 4, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_segmentation(tmp_path_factory.mktemp("made") / "shapes", 13, 9, (40, 52), progress=False)


@pytest.fixture
def own(tmp_path):
    """A dataset that a test may damage."""
    return write_segmentation(tmp_path / "own", 4, 3, (32, 40), progress=False)


def fitted(root, stage="fit", **options):
    made = ImageSegmentation(str(root), **SMALL | options)
    made.setup(stage)
    return made


def change(path, edit):
    """Edit the values of a mask."""
    with Image.open(path) as image:
        values = np.array(image)
    edit(values)
    Image.fromarray(values).save(path)


def inside(batch, n):
    """Return picture ``[h, w, 3]`` and mask of one row, and check that they are padded to 32 alone."""
    height, width = batch.image_sizes[n].tolist()
    image, mask = batch.image[n], batch.mask[n]
    assert tuple(mask.shape) == tuple(image.shape[1:]) == (-(-height // 32) * 32, -(-width // 32) * 32)
    assert not image[:, height:].any() and not image[:, :, width:].any()
    assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all()
    return image[:, :height, :width].permute(1, 2, 0), mask[:height, :width]


# -- batches


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
    flipped = {i for batch in fitted(folder).train_dataloader() for i in batch.image_ids.tolist()}
    assert flipped == set(range(13))


def test_a_horizontal_flip_is_the_default(folder):
    made, plain = fitted(folder, seed=2, batch_size=1), fitted(folder, seed=2, batch_size=1, augment=[])
    kinds = Counter()
    for one, other in zip(made.train_dataloader(), plain.train_dataloader(), strict=True):
        (image, mask), (picture, labels) = inside(one, 0), inside(other, 0)
        turned = torch.equal(mask, labels.flip(1)) and torch.equal(image, picture.flip(1))
        same = torch.equal(mask, labels) and torch.equal(image, picture)
        kinds["turned" if turned and not same else "same" if same else "neither"] += 1
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
                assert name == "truth" or torch.equal(value, getattr(other, name)), name
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


# -- sampler


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [False, True])
def test_ranks_share_pictures_and_each_has_a_batch(world_size, spread):
    rng = np.random.default_rng(0)
    sizes = rng.choice([10, 20], size=(23, 2))
    samplers = [
        SegmentationBatchSampler(sizes, 4, rank=rank, world_size=world_size, spread=spread)
        for rank in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(some) for some in batches] and all(batches)
    shown = [request.index for some in batches for batch in some for request in batch]
    assert sorted(shown) == list(range(23))
    for batch in (batch for some in batches for batch in some):
        assert len({tuple(sizes[request.index]) for request in batch}) == 1 and len(batch) <= 4


def test_the_order_of_evaluation_is_mixed_but_always_the_same_and_that_of_prediction_the_index():
    def order(spread):
        sampler = SegmentationBatchSampler(np.full((40, 2), 8), 8, spread=spread)
        return [request.index for batch in sampler for request in batch]

    assert order(False) == list(range(40)) and order(True) == order(True) != order(False)
    assert max(order(True)[:8]) > 20


def test_few_pictures_still_reach_every_rank():
    sizes = np.full((3, 2), 8)
    lengths = [len(SegmentationBatchSampler(sizes, 8, rank=rank, world_size=3)) for rank in range(3)]
    assert lengths == [1, 1, 1]


# -- checks before training


def test_pixels_are_counted_once(folder, monkeypatch):
    made = ImageSegmentation(str(folder), **SMALL)
    with pytest.raises(RuntimeError, match="setup"):
        made.label_counts("segmentation")
    made.prepare_data()
    made.setup()
    counts = np.zeros(256, dtype=np.int64)
    for path in (folder / "masks/train").iterdir():
        with Image.open(path) as mask:
            counts += np.bincount(np.array(mask).reshape(-1), minlength=256)
    late = fitted(folder, check_masks=False)
    assert late.label_counts("segmentation") == counts[:4].tolist()
    monkeypatch.setattr(type(made.splits["train"].masks), "survey", None)
    assert made.label_counts("segmentation") == counts[:4].tolist() and made.image_layout() == (3, 2)
    made.prepare_data()  # looks at nothing twice
    made.setup("test")
    made.prepare_data()
    assert made.splits["test"] is made.splits["val"]


def test_unknown_values_are_listed_with_files_and_pixels(own):
    change(own / "masks/train/000001.png", lambda v: v.__setitem__((0, slice(0, 3)), 9))
    change(own / "masks/train/000002.png", lambda v: v.__setitem__((1, slice(0, 2)), [9, 77]))
    change(own / "masks/val/000001.png", lambda v: v.__setitem__((0, 0), 77))
    words = (
        r"(?s)3 of 7 masks hold what is no class:.*train/000001.png: value 9 \(3 pixels\).*train/000002.png: "
        r"values 9 \(1 pixels\), 77 \(1 pixels\).*val/000001.png: value 77.*in all: 9 \(4 pixels\), 77 \(2 "
        r"pixels\)\nthe classes are 0 background, 1 circle"
    )
    with pytest.raises(MaskError, match=words):
        ImageSegmentation(str(own), **SMALL).prepare_data()
    ImageSegmentation(str(own), ignore=[9, 77], **SMALL).prepare_data()
    made = fitted(own, check_masks=False)
    made.prepare_data()
    with pytest.raises(MaskError, match=r"00000\d.png: value.* which no class has; data.check_masks finds"):
        list(made.train_dataloader())


def test_only_the_first_twenty_files_are_listed(tmp_path):
    root = write_segmentation(tmp_path / "many", 25, 1, (32, 32), progress=False)
    for path in (root / "masks/train").iterdir():
        change(path, lambda v: v.__setitem__((0, 0), 9))
    with pytest.raises(MaskError, match=r"(?s)25 of 26 masks.*\.\.\. and 5 more\nin all: 9 \(25 pixels\)"):
        ImageSegmentation(str(root), **SMALL).prepare_data()


def test_masks_of_another_size_are_listed(own):
    Image.new("L", (33, 31)).save(own / "masks/train/000003.png")
    name = "000003"
    with Image.open(own / f"images/train/{name}.jpg") as image:
        width, height = image.size
    words = f"(?s)1 of 7 pictures do not fit their masks.*{name}.jpg has {width}x{height} pixels .*.png 33x31"
    for masks in (True, False):
        with pytest.raises(MaskError, match=words):
            ImageSegmentation(str(own), check_masks=masks, **SMALL).prepare_data()
    made = fitted(own, check_masks=False, check_images="off")
    made.prepare_data()
    with pytest.raises(MaskError, match=f"{name}.jpg has {width}x{height} pixels"):
        list(made.train_dataloader())


def test_a_turned_picture_with_a_mask_of_its_stored_pixels_is_explained(own):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = own / "images/train/000001.jpg"
    Image.new("RGB", (40, 32)).save(path, exif=exif)
    Image.new("L", (40, 32)).save(own / "masks/train/000001.png")
    with pytest.raises(
        MaskError, match="has 32x40 .* 40x32: the picture's EXIF orientation turns it by a quarter"
    ):
        ImageSegmentation(str(own), **SMALL).prepare_data()
    Image.new("L", (32, 40)).save(own / "masks/train/000001.png")
    made = fitted(own)
    made.prepare_data()
    assert len(list(made.train_dataloader())) == 1


def test_damaged_files_are_listed_before_training(own):
    path = own / "masks/train/000002.png"
    path.write_bytes(path.read_bytes()[:200])
    (own / "images/val/000001.jpg").write_bytes(b"x")
    with pytest.raises(
        ImageError, match="(?s)2 of 7 pictures cannot be used.*000002.png: damaged.*000001.jpg: is no"
    ):
        ImageSegmentation(str(own), **SMALL).prepare_data()
    photo = own / "images/train/000001.jpg"
    photo.write_bytes(photo.read_bytes()[:-300])
    with pytest.raises(ImageError, match="3 of 7 pictures"):
        ImageSegmentation(str(own), check_images="decode", **SMALL).prepare_data()
    made = fitted(own, check_masks=False, check_images="off")
    made.prepare_data()
    with pytest.raises(ImageError, match="damaged"):
        list(made.train_dataloader())
    with pytest.raises(ImageError, match="(?s)1 of 3 pictures cannot be used.*val/000001.jpg"):
        made.val_dataloader()


def binary(root, values, classes=None):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(root / f"images/{split}/a.png")
        Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (4, 6))).save(
            root / f"masks/{split}/a.png"
        )
    if classes:
        (root / "classes.csv").write_text(classes)
    return root


def test_masks_of_0_and_255_are_explained_and_work_with_either_remedy(tmp_path):
    root = binary(tmp_path, [0, 255, 255])
    for options in ({}, {"classes": ["background", "cell"]}):
        with pytest.raises(
            MaskError, match=r"all labelled training pixels .*mask_values \[0, 255\], or a CSV"
        ):
            ImageSegmentation(str(root), **options).prepare_data()
    made = fitted(root, classes=["background", "cell"], mask_values=[0, 255])
    made.prepare_data()
    assert made.label_counts("segmentation") == [8, 16] and [
        c.id for c in made.label_classes("segmentation")
    ] == [0, 255]
    (root / "classes.csv").write_text("id,name\n0,background\n255,cell\n")
    made = fitted(root)
    made.prepare_data()
    assert made.splits["train"].masks.mask(0)[0].tolist() == [0, 1, 1, 0, 1, 1]


def test_masks_that_are_wholly_ignored_are_an_error_in_training_alone(tmp_path):
    root = binary(tmp_path, [255], "id,name\n0,a\n1,b\n")
    with pytest.raises(MaskError, match="all training pixels are ignored .*two classes or more"):
        ImageSegmentation(str(root), **SMALL).prepare_data()
    Image.fromarray(np.resize(np.array([0, 1], dtype=np.uint8), (4, 6))).save(root / "masks/train/a.png")
    made = fitted(root)
    made.prepare_data()
    assert (next(iter(made.val_dataloader())).mask == 255).all()


def test_classes_without_a_pixel_are_logged(own, caplog):
    with open(own / "classes.csv", "a") as file:
        csv.writer(file).writerow([9, "hexagon", 1, 2, 3])
    caplog.set_level(logging.WARNING)
    ImageSegmentation(str(own), **SMALL).prepare_data()
    assert "the train masks have no pixel of 1 of 5 classes: hexagon" in caplog.text
    assert "the val masks have no pixel" in caplog.text


def test_training_goes_without_validation_and_says_so(own, caplog):
    for kind in ("images", "masks"):
        (own / kind / "val").rename(own / kind / "later")
    made = fitted(own)
    made.prepare_data()
    assert made.val_dataloader() == [] and "training without validation" in caplog.text
    with pytest.raises(FileNotFoundError, match="no val pictures with masks found"):
        made.setup("validate")
    with pytest.raises(RuntimeError, match="call setup"):
        made.test_dataloader()


# -- arguments


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


# -- under a trainer


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
        made.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_devices=2, overfit_batches=0)
        loader = pickle.loads(pickle.dumps(made.train_dataloader().dataset)), made.train_dataloader().sampler
        trained.append(Counter(sample.image_id for batch in loader[1] for sample in loader[0][batch]))
        validated += [i for batch in made.val_dataloader() for i in batch.image_ids.tolist()]
    assert set(trained[0] | trained[1]) == set(range(13)) and trained[0].total() == trained[1].total() == 8
    assert sorted(validated) == list(range(9))
