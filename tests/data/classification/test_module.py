"""The data module for classification: arguments, loaders, workers, several processes."""

import json
import shutil
from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
from class_files import SMALL, class_names, fitted, rows

from trunkline.data.classification.module import ImageClassification
from trunkline.data.classification.transforms import PictureTransform
from trunkline.data.shared import loading
from trunkline.data.shared.augment.transforms import AugmentationError
from trunkline.data.shared.io import ImageError, read_image


def test_validation_batches_hold_every_file_once_as_evaluation_wants_it(folder):
    made = fitted(folder, resize=36, augment=[{"HorizontalFlip": {"p": 1.0}}])
    batches = list(made.val_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 2]
    ids = torch.cat([batch.image_ids for batch in batches]).tolist()
    assert sorted(ids) == list(range(10))
    transform = PictureTransform(32, 36)
    for i, (image, label) in rows(batches).items():
        path = made.splits["val"].path(i)
        assert torch.equal(image, transform(read_image(path))) and image.dtype == torch.uint8
        assert class_names(made)[label] == path.split("/")[-2]
    assert batches[0].image_sizes.tolist() == [[32, 32]] * 4 and batches[0].label.dtype == torch.int64
    assert batches[0].image.is_contiguous()


@pytest.mark.parametrize(
    ("source", "method"),
    [("folder", "fork"), ("archive", "fork"), pytest.param("archive", "spawn", marks=pytest.mark.slow)],
)
def test_workers_deliver_what_the_main_process_does(source, method, request, monkeypatch):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    augment = [{"RandomResizedCrop": {"size": [32, 32]}}, {"ColorJitter": None}]
    options = {"augment": augment, "policy": "rand_augment", "random_erasing": 0.3, "seed": 3}
    root = request.getfixturevalue(source)
    loaders = [fitted(root, **options, workers=workers).train_dataloader() for workers in (0, 2)]
    assert loaders[1].num_workers == 2 and loaders[1].persistent_workers
    loaders[1].multiprocessing_context = method
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        batches = [list(loader) for loader in loaders]
        assert len(batches[0]) == len(batches[1]) == 6
        for one, other in zip(*batches, strict=True):
            for name, value in vars(one).items():
                assert name in ("failed", "kept", "raw") or torch.equal(value, getattr(other, name)), name


def test_the_first_validation_batches_show_all_classes_always_the_same_and_prediction_keeps_the_order(folder):
    made = fitted(folder, batch_size=5, predict=str(folder / "val" / "circle"))
    first = [next(iter(made.val_dataloader())) for _ in range(2)]
    assert len(class_names(made)) == len(first[0].label.unique()) == 3
    assert torch.equal(first[0].image_ids, first[1].image_ids)
    made.setup("predict")
    ids = [i for batch in made.predict_dataloader() for i in batch.image_ids.tolist()]
    assert ids == list(range(len(ids))) and len(ids) > 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_with_its_remedy_also_by_loader_processes(folder, tmp_path, workers):
    shutil.copytree(folder, tmp_path / "shapes")
    path = min((tmp_path / "shapes" / "train" / "circle").glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-200])
    made = fitted(tmp_path / "shapes", workers=workers)
    made.prepare_data()  # the header is sound
    with pytest.raises(ImageError) as caught:
        list(made.train_dataloader())
    text = str(caught.value)
    assert text.startswith(f"{path}: damaged image") and "\n" not in text
    remedy = "replace or remove it (--data.check_images decode finds all such files first)"
    assert text.endswith(f"{remedy}; --data.on_bad_image skip goes on without such images")
    assert caught.traceback[-1].frame.f_globals["__name__"].startswith("trunkline.")


def test_a_zip_trains_as_its_folders_do(folder, archive):
    one, other = rows(fitted(folder).train_dataloader()), rows(fitted(archive).train_dataloader())
    assert one.keys() == other.keys() == set(range(21))
    assert all(torch.equal(one[i][0], other[i][0]) and one[i][1] == other[i][1] for i in one)


def test_a_picture_is_flipped_in_half_of_the_epochs(folder):
    plain = rows(fitted(folder, augment=[]).train_dataloader())
    loader = fitted(folder, augment=[{"HorizontalFlip": {"p": 0.5}}]).train_dataloader()
    flipped = 0
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)
        for i, (image, _) in rows(loader).items():
            same = torch.equal(image, plain[i][0])
            # Flipped before resizing and cutting: up to one grey level and no shift, as sizes are even.
            assert same or (image.int() - plain[i][0].flip(-1).int()).abs().max() <= 1
            flipped += not same
    assert 60 < flipped < 108  # 84 expected, sigma 6.5


def test_null_means_no_augmentation_as_an_empty_list_does(folder):
    plain = rows(fitted(folder, augment=[]).train_dataloader())
    for made in (fitted(folder, augment=None), fitted(folder)):
        assert all(torch.equal(image, plain[i][0]) for i, (image, _) in rows(made.train_dataloader()).items())


@pytest.mark.parametrize("options", [{"policy": "trivial_augment_wide"}, {"random_erasing": 1.0}])
def test_policy_and_erasing_reach_training_only(folder, options):
    plain, made = fitted(folder, augment=[]), fitted(folder, augment=[], **options)
    one, other = rows(plain.train_dataloader()), rows(made.train_dataloader())
    assert sum(not torch.equal(one[i][0], other[i][0]) for i in one) > 14
    one, other = rows(plain.val_dataloader()), rows(made.val_dataloader())
    assert all(torch.equal(one[i][0], other[i][0]) for i in one)


def test_interpolation_reaches_evaluation(folder):
    one, other = (rows(fitted(folder, interpolation=i).val_dataloader()) for i in ("bilinear", "bicubic"))
    transform = PictureTransform(32, 32, "bicubic")
    index = fitted(folder).splits["val"]
    assert all(torch.equal(other[i][0], transform(read_image(index.path(i)))) for i in other)
    assert any(not torch.equal(one[i][0], other[i][0]) for i in one)


def test_batch_sizes_and_repetitions_take_effect(folder):
    made = fitted(folder, eval_batch_size=5, repeated_augmentation=3)
    assert {len(batch) for batch in made.train_dataloader()} == {4}
    assert {len(batch) for batch in made.val_dataloader()} == {5}
    seen = Counter(i for batch in made.train_dataloader() for i in batch.image_ids.tolist())
    # 7 images three times, and 3 that fill up the sixth batch.
    assert seen.total() == 24 and 7 <= len(seen) <= 10 and min(Counter(seen.values())) >= 1
    assert sum(count >= 3 for count in seen.values()) == 7
    assert sorted(i for batch in made.val_dataloader() for i in batch.image_ids.tolist()) == list(range(10))


def test_workers_are_limited_by_cores_and_batches(folder, monkeypatch):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)

    def count(workers, **options):
        return fitted(folder, workers=workers, **options).train_dataloader().num_workers

    assert [count(0), count(2), count(16)] == [0, 2, 3]
    assert count(16, batch_size=21) == 1


def test_the_seed_of_seed_everything_is_used_unless_another_is_given(folder, monkeypatch):
    def first(**options):
        return next(iter(fitted(folder, **options).train_dataloader().sampler))

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert first() == first(seed=0) != first(seed=11)
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert first() == first(seed=11) and first(seed=0) != first()


def test_training_pictures_may_be_smaller_than_those_of_evaluation(folder):
    made = fitted(folder, train_size=16, resize=36)
    assert {tuple(batch.image.shape[1:]) for batch in made.train_dataloader()} == {(3, 16, 16)}
    assert {tuple(batch.image.shape[1:]) for batch in made.val_dataloader()} == {(3, 32, 32)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"size": 0}, "size is 0"),
        ({"size": (8, 0, 8)}, "size is 0"),
        ({"size": (8, 8)}, r"size is \(8, 8\); give one number, or depth"),
        ({"size": (8, 8, 8), "resize": 9}, "resize is 9"),
        ({"train_size": 0}, "train_size is 0"),
        ({"repeated_augmentation": 0}, "repeated_augmentation is 0"),
        ({"resize": 31}, r"resize is 31; it must be at least size \(32\)"),
        ({"random_erasing": 1.5}, "random_erasing is 1.5"),
        ({"intensity": -0.1}, "intensity is -0.1"),
        ({"flip_axes": [3]}, "axes are 0, 1 and 2"),
        ({"flip_axes": [1, 1]}, "each once"),
    ],
)
def test_wrong_numbers_are_errors(options, words):
    with pytest.raises(ValueError, match=words):
        ImageClassification(**SMALL | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip_axes": [0]}, "flip_axes cannot be used: the data are 2D images"),
        ({"intensity": 0.1, "flip_axes": [1]}, "flip_axes and intensity cannot be used"),
        ({"size": (8, 8, 8)}, "the images have two axes: give one number"),
    ],
)
def test_arguments_for_scans_are_refused_for_pictures(folder, options, words):
    with pytest.raises(ValueError, match=words):
        fitted(folder, **options)


def test_wrong_augmentation_is_found_in_setup(folder):
    with pytest.raises(AugmentationError, match="did you mean HorizontalFlip"):
        fitted(folder, augment=[{"HorizontalFlop": None}])


def test_arguments_are_kept_without_paths(folder):
    made = ImageClassification(folder, predict=[folder / "a.jpg"], **SMALL)
    assert made.hparams.root == str(folder) and made.hparams.predict == [str(folder / "a.jpg")]


def test_trainer_shuffles_each_epoch_and_repeats_with_the_seed(folder, recorder, trainer):
    def run():
        model = recorder()
        trainer(max_epochs=3).fit(model, ImageClassification(str(folder), seed=5, **SMALL))
        return model

    one, two = run(), run()
    assert one.seen == two.seen and len(one.seen) == 18
    order = [[ids for epoch, ids, _ in one.seen if epoch == number] for number in range(3)]
    assert order[0] != order[1] != order[2]
    assert Counter(one.validated) == Counter(3 * list(range(10)))


def test_overfit_batches_repeats_the_same_batches(folder, recorder, trainer):
    model = recorder()
    trainer(overfit_batches=2, max_epochs=2).fit(model, ImageClassification(str(folder), **SMALL))
    seen = [row[1:] for row in model.seen]
    assert len(seen) == 4 and seen[:2] == seen[2:] and seen[0] != seen[1]


@pytest.mark.slow
def test_two_processes_share_the_images_without_any_setting(archive, tmp_path, recorder, trainer):
    model = recorder()
    options = {"devices": 2, "strategy": "ddp_spawn", "max_epochs": 1, "callbacks": [SaveSeen(tmp_path)]}
    trainer(**options).fit(model, ImageClassification(str(archive), **SMALL | {"batch_size": 2}))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    trained = [Counter(i for _, ids, _ in rank["seen"] for i in ids) for rank in ranks]
    assert set(trained[0] | trained[1]) == set(range(21))
    assert trained[0].total() == trained[1].total() == 12
    assert sorted(ranks[0]["validated"] + ranks[1]["validated"]) == list(range(10))


class SaveSeen(pl.Callback):
    """Writes what each rank saw to a file."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        content = {"seen": pl_module.seen, "validated": pl_module.validated}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(content))
