"""The table at the start of training, and voxels that are far from those of the other scans."""

import logging

import numpy as np
import pytest

from scan_cases import fitted, labels, save, write
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Placement, Preparation
from trunkline.data.scans.summary import far_spacing, trained_spacing
from trunkline.data.shared.summary import require_learnable


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "scans")


def test_numbers_are_those_of_the_label_files(folder):
    save(folder / "images/train/none.nii.gz", np.ones((7, 8, 8), np.float32))
    ignored = np.zeros((7, 8, 8), np.uint8)
    ignored[:2] = 255
    save(folder / "labels/train/none.nii.gz", ignored)
    found = fitted(folder).summaries()
    sizes = [12 * 14 * 10, 13 * 12 * 11, 8 * 12 * 14, 7 * 8 * 8]
    organ = [
        int((labels(shape, n) == 1).sum())
        for n, shape in enumerate([(12, 14, 10), (13, 12, 11), (8, 12, 14)])
    ]
    assert dict(found["train"].counts) == {
        "cases": 4,
        "without foreground": 1,
        "voxels": sum(sizes),
        "background": sum(sizes) - sum(organ) - 3 - 2 * 64,
        "foreground": sum(organ) + 3,
        "ignored": 128,
        "classes never seen": 0,
    }
    assert found["train"].learnable == sum(organ) + 3 and found["val"].counts["cases"] == 2


@pytest.mark.parametrize("ids", [0, 255])
def test_nothing_to_learn_is_refused(folder, ids):
    for path in (folder / "labels/train").iterdir():
        path.unlink()
    for path in (folder / "images/train").iterdir():
        shape = {"case0": (12, 14, 10), "case1": (13, 12, 11), "case2": (8, 12, 14)}[path.name[:5]]
        save(folder / "labels/train" / path.name, np.full(shape, ids, np.uint8))
    found = fitted(folder).summaries()
    assert found["train"].counts["classes never seen"] == (3 if ids else 2)
    with pytest.raises(ValueError, match="hold nothing to learn; all voxels are background or ignored"):
        require_learnable(found)


def test_without_a_cache_nothing_is_read_for_the_table(folder, monkeypatch):
    made = fitted(folder, cache="none")
    monkeypatch.setattr("trunkline.data.scans.prepare.cache.prepare_case", None)  # would fail
    found = made.summaries()
    assert found["train"].counts["foreground"] > 0  # known, since patches had to be fitted
    assert dict(found["val"].counts) == {"cases": 2} and found["val"].learnable == 2


def place(spacing, orientation=((0, 1), (1, 1), (2, 1))):
    count = len(spacing)
    grid = Grid((4,) * count, np.diag([*spacing, *[1] * (4 - count)]).astype(float))
    return Placement(grid, orientation[:count], ((0, 4),) * count, (4,) * count, spacing)


@pytest.mark.parametrize(
    ("spacing", "trained", "words"),
    [
        ((1, 1, 3), (1, 1, 3), None),
        ((1, 1, 4.9), (1, 1, 1), None),
        ((1, 1, 5.1), (1, 1, 1), "5.1 times as large along axis 2"),
        ((0.001, 0.001, 0.003), (1, 1, 3), "1000 times as small along axis 0"),
        ((1000, 1000, 3000), (1, 1, 3), "1000 times as large along axis 0"),
        ((1, 1, 1), (), None),
        ((100, 100), (1, 1), None),
        ((1, 1, 1), (1, 1), None),
    ],
)
def test_a_factor_of_five_is_far(spacing, trained, words):
    text = far_spacing(place(spacing), trained)
    assert (text is None) == (words is None)
    if words:
        assert words in text and "mm, those of the training" in text and "unit" in text


def test_spacings_are_compared_after_turning():
    turned = place((9, 1, 1), ((2, 1), (0, -1), (1, 1)))
    assert turned.turned_spacing == (1, 1, 9)
    assert far_spacing(turned, (1, 1, 9)) is None
    assert trained_spacing([place((1, 1, 2)), place((1, 1, 4)), turned], None) == (1, 1, 4)
    assert trained_spacing([turned], [1, 2, 3]) == (1, 2, 3)


def test_training_scans_of_another_unit_are_named(tmp_path, caplog):
    root = write(tmp_path / "scans")
    micron = np.diag([0.001, 0.001, 0.001, 1])
    save(root / "images/train/case0.nii.gz", np.ones((12, 14, 10), np.float32), micron)
    save(root / "labels/train/case0.nii.gz", labels((12, 14, 10), 0), micron)
    with caplog.at_level(logging.WARNING, "trunkline"):
        made = fitted(root)
    assert (
        "1 training scan with other voxels than most:\n  "
        f"{root}/images/train/case0.nii.gz: its voxels measure 0.001 x 0.001 x 0.001 mm, those of the "
        "training 1 x 1 x 1 mm, 1000 times as small along axis 0"
    ) in caplog.text
    assert made.volume_settings().spacing == (1, 1, 1)
    wanted = Preparation(spacing=[2, 2, 2], intensity=[Intensity(scale="none")])
    assert fitted(write(tmp_path / "other"), preparation=wanted).volume_settings().spacing == [2, 2, 2]


def test_scans_of_one_value_are_named(folder, caplog):
    save(folder / "images/train/case1.nii.gz", np.full((13, 12, 11), 7, np.float32))
    fitted(folder)
    assert "1 case with a channel of one value everywhere once prepared: case1 (channel 0)" in caplog.text
