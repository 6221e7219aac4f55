"""The loaders of the data module: from files to padded batches, in this process and in workers."""

from collections import Counter

import pytest
import torch

from trunkline.data.detection.module import CocoDetection
from trunkline.data.shared import loading

SMALL = {"short_side": 64, "long_side": 107, "batch_size": 4, "workers": 0}
FLIP = [{"HorizontalFlip": {"p": 0.5}}]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_deliver_what_the_main_process_does(root, method, monkeypatch):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
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
                expected = getattr(other, name)
                assert torch.equal(value, expected) if torch.is_tensor(value) else value == expected, name


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
    index = module.splits["train"]
    assert len(boxes) == len(index) == 21
    for n, image_id in enumerate(index.image_ids.tolist()):
        torch.testing.assert_close(boxes[image_id], index.boxes[index.rows(n)], atol=1e-3, rtol=0)


@pytest.mark.parametrize("flipping", [True, False])
def test_each_epoch_flips_other_images_and_none_by_default(root, flipping):
    module = CocoDetection(str(root), **SMALL, **({"augment": FLIP} if flipping else {}))
    module.setup("fit")
    loader = module.train_dataloader()

    def lefts(epoch):
        loader.sampler.set_epoch(epoch)
        return {
            int(image_id): row[0, 0].item() / size[1].item()
            for batch in loader
            for image_id, row, size in zip(batch.image_ids, batch.boxes, batch.image_sizes, strict=True)
        }

    first, second = lefts(0), lefts(1)
    changed = sum(abs(first[image_id] - second[image_id]) > 0.005 for image_id in first)
    assert (2 < changed < 19 if flipping else changed == 0) and lefts(0) == first


def test_validation_is_not_augmented_and_sees_each_image_once(root):
    module = CocoDetection(str(root), augment=[{"HorizontalFlip": {"p": 1.0}}], **SMALL)
    module.setup("validate")
    seen = Counter()
    for batch in module.val_dataloader():
        seen.update(batch.image_ids.tolist())
        for image_id, row, size in zip(batch.image_ids, batch.boxes, batch.image_sizes, strict=True):
            n = module.splits["val"].image_ids.tolist().index(int(image_id))
            boxes = module.splits["val"].boxes[module.splits["val"].rows(n)]
            scale = size.flip(0) / module.splits["val"].sizes[n].flip(0)
            torch.testing.assert_close(row[: len(boxes)], boxes * scale.repeat(2), atol=1e-3, rtol=0)
    assert seen == Counter(module.splits["val"].image_ids.tolist()) and "train" not in module.splits


def test_batch_sizes_take_effect(root):
    module = CocoDetection(str(root), **SMALL | {"eval_batch_size": 2})
    module.setup("fit")
    assert {len(batch) for batch in module.train_dataloader()} == {4}
    assert max(len(batch) for batch in module.val_dataloader()) == 2
    module = CocoDetection(str(root), **SMALL)
    module.setup("validate")
    assert max(len(batch) for batch in module.val_dataloader()) > 2


def test_workers_are_limited_by_cores_and_batches(root, monkeypatch):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)

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
    assert len(module.splits["train"]) == 20 and (module.splits["train"].offsets.diff() > 0).all()
    assert len(module.splits["val"]) == 10 and (module.splits["val"].offsets.diff() == 0).any()


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
