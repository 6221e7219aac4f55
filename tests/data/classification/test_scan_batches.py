"""Scans with classes through the data module: batches, augmentation, arguments, checks."""

import numpy as np
import pytest
import torch
from class_files import SMALL, class_names, fitted, rows
from PIL import Image

from trunkline.data.classification.module import ImageClassification
from trunkline.data.shared.io import ImageError


def test_layout_is_that_of_the_files(scans, folder):
    with pytest.raises(RuntimeError, match="setup"):
        ImageClassification(str(folder)).image_layout()
    assert fitted(folder).image_layout() == (3, 2) and fitted(scans).image_layout() == (1, 3)
    for name in ("ill/0", "ill/1", "ill/2", "well/0"):  # most of them
        np.save(scans / f"val/{name}.npy", np.zeros((4, 5, 6, 7), dtype=np.float32))
    made = ImageClassification(str(scans), **SMALL)
    made.setup("validate")
    assert made.image_layout() == (4, 3)


@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8, 8)), ((4, 5, 6), (4, 5, 6))])
def test_scans_become_batches_of_volumes(scans, size, shape):
    made = fitted(scans, size=size)
    made.prepare_data()
    batch = next(iter(made.train_dataloader()))
    assert batch.image.shape == (4, 1, *shape) and batch.image.dtype == torch.float32
    assert batch.image_sizes.tolist() == [list(shape)] * 4 and class_names(made) == ["ill", "well"]
    assert torch.equal(batch.image.isfinite().all(), torch.tensor(True))


def test_scan_augmentation_reaches_training_only(scans):
    plain, made = fitted(scans, size=6), fitted(scans, size=6, flip_axes=[0], intensity=0.1)
    one, other = rows(plain.val_dataloader()), rows(made.val_dataloader())
    assert all(torch.equal(one[i][0], other[i][0]) for i in one)
    one, other = rows(plain.train_dataloader()), rows(made.train_dataloader())
    assert all(not torch.equal(one[i][0], other[i][0]) for i in one)
    flips = [abs(np.corrcoef(one[i][0].flatten(), other[i][0].flatten())[0, 1]) < 0.9 for i in one]
    assert 0 < sum(flips) < len(flips)


@pytest.mark.parametrize(
    "options",
    [
        {"augment": [{"HorizontalFlip": None}]},
        {"policy": "rand_augment"},
        {"random_erasing": 0.1},
        {"resize": 40},
        {"interpolation": "bicubic"},
    ],
)
def test_arguments_for_pictures_are_refused_for_scans(scans, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} cannot be used: the data are scans"):
        fitted(scans, **options)


def test_pictures_among_scans_are_an_error(scans, folder):
    Image.new("RGB", (4, 4)).save(scans / "train/well/p.png")
    with pytest.raises(ImageError, match=r"ill/0.npy is a scan and .*well/p.png a 2D image"):
        fitted(scans)
    (scans / "train/well/p.png").unlink()
    with pytest.raises(ImageError, match=r"(?s)one split holds scans and another 2D images.*train.*val"):
        (folder.parent / "both.csv").write_text(
            f"path,label,split\n{scans}/train/ill/0.npy,a,train\n{folder}/val/circle/000001.jpg,a,val\n"
        )
        fitted(folder.parent / "both.csv", allow_outside_root=True)


def test_scans_with_other_channels_are_found_before_training(scans):
    np.save(scans / "val/well/1.npy", np.zeros((2, 5, 6, 7), dtype=np.float32))
    words = (
        r"(?s)train/ill/0.npy: a scan of 1 channel, as most are, but.*val/well/1.npy: a scan of 2 channels"
    )
    for mode in ("header", "decode"):
        with pytest.raises(ImageError, match=words):
            ImageClassification(str(scans), check_images=mode, **SMALL).prepare_data()
    np.save(scans / "train/ill/0.npy", np.zeros((2, 5, 6, 7), dtype=np.float32))
    with pytest.raises(
        ImageError, match=r"ill/1.npy: a scan of 1 channel, .*\n.*ill/0.npy.*\n.*well/1.npy.*\n"
    ):
        ImageClassification(str(scans), **SMALL).prepare_data()  # the odd ones are listed, not the many
    made = fitted(scans, check_images="off", size=4, eval_batch_size=6)
    with pytest.raises(ValueError, match=r"has shape \[\d, 4, 4, 4\], image id \d of its batch \[\d"):
        list(made.val_dataloader())


def test_infinite_voxels_are_found_by_decoding(scans):
    np.save(scans / "train/ill/1.npy", np.full((5, 6, 7), np.inf))
    ImageClassification(str(scans), **SMALL).prepare_data()
    with pytest.raises(ImageError, match=r"ill/1.npy: 210 of 210 voxels are infinite or not a number"):
        ImageClassification(str(scans), check_images="decode", **SMALL).prepare_data()
