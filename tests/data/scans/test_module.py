"""The data module for scans: random patches to train on."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from scan_cases import SHAPES, SMALL, fitted, labels, names_of, write
from trunkline.data.scans.augment import default_transforms
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare.prepare import Preparation
from trunkline.data.shared import loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scans"))


def expected(values):
    """Return the label that the file has where a voxel of such a value lies."""
    case, rest = divmod(int(values), 10**6)
    i, j, k = rest // 10**4, rest // 100 % 100, rest % 100
    shape = [shape for sizes in SHAPES.values() for shape in sizes][case]
    return {0: 0, 1: 1, 4: 2}[int(labels(shape, case)[i, j, k])]


@pytest.mark.parametrize("cache", ["disk", "memory", "none"])
def test_patches_hold_the_voxels_and_labels_of_the_files(folder, tmp_path, cache):
    options = {"cache_folder": str(tmp_path / "kept")} if cache == "disk" else {}
    made = fitted(folder, cache=cache, steps_per_epoch=6, batch_size=3, **options)
    assert names_of(made) == ["background", "organ", "lesion"]
    assert made.volume_settings().regions == {} and made.image_layout() == (1, 3)
    loader = made.train_dataloader()
    assert len(loader) == 6
    for batch in loader:
        assert batch.image.shape == (3, 1, 6, 7, 8) and batch.image.dtype == torch.float32 and len(batch) == 3
        assert batch.mask.dtype == torch.uint8 and batch.image_sizes.tolist() == [[6, 7, 8]] * 3
        for image, mask, case in zip(batch.image, batch.mask, batch.image_ids.tolist(), strict=True):
            assert (image // 1e6 == case).all()
            for place in np.ndindex(6, 7, 8):
                if sum(place) % 5 == 0:
                    assert int(mask[place]) == expected(image[0][place])
    assert bool(options) == any(tmp_path.rglob("*.npy"))


def test_counts_of_voxels_are_those_of_the_training_labels(folder):
    made = ScanSegmentation(str(folder), **SMALL)
    for ask in (
        lambda: made.label_counts("volumes"),
        made.image_layout,
        made.train_dataloader,
        made.predict_dataloader,
    ):
        with pytest.raises(RuntimeError, match="setup"):
            ask()
    made.setup()
    counts = made.label_counts("volumes")
    total = sum(int(np.prod(shape)) for shape in SHAPES["train"])
    assert counts == [total - 3 * 45 - 3, 3 * 45, 3]


def test_the_share_of_foreground_is_kept(folder):
    def shares(foreground):
        made = fitted(folder, foreground=foreground, patch=[1, 1, 1], batch_size=20, steps_per_epoch=10)
        return torch.cat([batch.mask.flatten() for batch in made.train_dataloader()])

    assert (shares(1.0) != 0).all() and {1, 2} == set(shares(1.0).tolist())
    assert 90 <= int((shares(0.5) != 0).sum()) <= 125  # the others find 3 % by chance
    assert int((shares(0.0) != 0).sum()) < 20


def test_seed_and_epoch_decide_and_workers_do_not(folder, monkeypatch):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    loaders = [
        fitted(
            folder, augment=default_transforms(SMALL["patch"]), workers=workers, steps_per_epoch=3, seed=5
        ).train_dataloader()
        for workers in (0, 2)
    ]
    assert [loader.num_workers for loader in loaders] == [0, 2]
    shown = []
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        both = [list(loader) for loader in loaders]
        for one, other in zip(*both, strict=True):
            for name, value in vars(one).items():
                there = getattr(other, name)
                assert torch.equal(value, there) if isinstance(value, torch.Tensor) else value == there, name
        shown.append(torch.stack([batch.image for batch in both[0]]))
    assert not torch.equal(*shown)
    other = fitted(
        folder, augment=default_transforms(SMALL["patch"]), steps_per_epoch=3, seed=6
    ).train_dataloader()
    assert not torch.equal(torch.stack([batch.image for batch in other]), shown[0])


def test_augmentation_is_that_of_the_arguments(folder):
    flip = [{"RandFlip": {"prob": 1.0, "spatial_axis": 1}}]
    plain, turned = (fitted(folder, augment=a, steps_per_epoch=2).train_dataloader() for a in ([], flip))
    for one, other in zip(plain, turned, strict=True):
        assert torch.equal(one.image.flip(3), other.image) and torch.equal(one.mask.flip(2), other.mask)
    without = fitted(folder, augment=None, steps_per_epoch=2).train_dataloader()
    for one, other in zip(plain, without, strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)


def test_preparation_reaches_patches_and_cases(folder):
    made = fitted(folder, preparation=Preparation(spacing=[2.0, 1.0, 1.0]), patch=[3, 4, 4])
    (batch, *_) = made.train_dataloader()
    assert abs(float(batch.image.mean())) < 3 and float(batch.image.max()) < 10
    case = next(iter(made.val_dataloader()))
    assert case.image.shape == (1, 4, 10, 11) or case.image.shape == (1, 5, 10, 11)
    assert case.truth.shape == (9, 10, 11)


def test_slices_lie_across_the_coarsest_axis(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="trunkline")
    root = write(tmp_path, affine=np.diag([1.0, 4.0, 1.0, 1.0]))
    made = fitted(root, patch=[5, 6], steps_per_epoch=4)
    assert made.slice_axis == 1 and made.image_layout() == (1, 2) and "axis 1" in caplog.text
    for batch in made.train_dataloader():
        assert batch.image.shape == (2, 1, 5, 6) and batch.mask.shape == (2, 5, 6)
        j = batch.image // 100 % 100
        assert (j == j[:, :, :1, :1]).all()
    made = fitted(root, patch=[5, 6], slice_axis=0)
    i = next(iter(made.train_dataloader())).image // 10**4 % 100
    assert made.slice_axis == 0 and (i == i[:, :, :1, :1]).all()
    assert next(iter(made.val_dataloader())).image.ndim == 4


def test_small_scans_are_padded_and_counted_in_the_log(folder, caplog):
    made = fitted(folder, patch=[10, 4, 4], steps_per_epoch=10)
    assert "1 of 3 training scans are smaller than the patch of 10x4x4 voxels" in caplog.text
    for batch in made.train_dataloader():
        for mask, case in zip(batch.mask, batch.image_ids.tolist(), strict=True):
            assert (mask[[0, 9]] == 255).all() == (case == 2) and (mask[1:9] != 255).all()


def pictures(root):
    for split in ("train", "val"):
        for n in range(2):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            grey = np.add.outer(np.arange(20) * 10, np.arange(24)).astype(np.uint8)
            Image.fromarray(grey).save(root / f"images/{split}/{split}{n}.png")
            Image.fromarray((grey > 100).astype(np.uint8)).save(root / f"labels/{split}/{split}{n}.png")
    return root


def test_pictures_are_scans_of_two_axes(tmp_path):
    root = pictures(tmp_path)
    made = fitted(root, classes=["background", "bright"], patch=[8, 9], steps_per_epoch=3)
    assert made.image_layout() == (1, 2) and made.slice_axis is None
    for batch in made.train_dataloader():
        assert batch.image.shape == (2, 1, 8, 9) and torch.equal(batch.mask, (batch.image[:, 0] > 100).byte())
    case = next(iter(made.val_dataloader()))
    assert case.image.shape == (1, 20, 24) and np.array_equal(case.truth, case.image[0] > 100)
    for options in ({"patch": [8, 8, 8]}, {"patch": [8, 8], "slice_axis": 1}):
        with pytest.raises(ValueError, match=r"data.patch is \[8, 8.*train0.png has 2 axes"):
            fitted(root, classes=["background", "bright"], **options)
