"""The fingerprint of a dataset equals what numpy says of its voxels."""

import re

import numpy as np
import pytest
from PIL import Image

from trunkline.data.scans.cases.cases import CasesError, find_dataset
from trunkline.data.scans.formats.files import write_labels, write_scan
from trunkline.data.scans.formats.scan import Grid
from trunkline.planning.fingerprint import MOST_SAMPLES, read_fingerprint

CLASSES = ["background", "organ", "tumour"]


def write_case(root, split, name, voxels, ids, affine=None, suffix=".nii.gz"):
    """Write ``voxels`` [C, *S] and ``ids`` [*S]."""
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    image = root / "images" / split / f"{name}{suffix}"
    write_scan(image, voxels, Grid(ids.shape, affine))
    write_labels(root / "labels" / split / f"{name}{suffix}", ids, like=image, dtype="uint8")


@pytest.fixture()
def root(tmp_path):
    """Two training cases and one to validate, of two channels, turned differently."""
    rng = np.random.default_rng(0)
    affines = (
        np.diag([1.0, 2.0, 3.0, 1.0]),
        [[0, 2.5, 0, 0], [-1.5, 0, 0, 5], [0, 0, 3, 0], [0, 0, 0, 1]],  # i runs to the back, j to the right
        np.diag([-1.0, -2.0, 4.0, 1.0]),
    )
    for number, (split, affine) in enumerate(zip(("train", "train", "val"), affines, strict=True)):
        shape = (6 + number, 7, 5)
        voxels = rng.normal(100 * number, 20, (2, *shape)).astype(np.float32)
        voxels[1] = np.round(voxels[1])
        ids = rng.choice([0, 1, 2, 255], shape, p=[0.6, 0.2, 0.1, 0.1])
        write_case(tmp_path, split, f"case_{number}", voxels, ids, affine)
        np.savez(tmp_path / f"truth_{number}.npz", voxels=voxels, ids=ids)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def truth(root):
    stored = [np.load(root / f"truth_{number}.npz") for number in range(3)]
    return [one["voxels"].astype(np.float64) for one in stored], [one["ids"] for one in stored]


@pytest.mark.parametrize("workers", [0, 3])
def test_equals_numpy(root, workers):
    found = read_fingerprint(find_dataset(root), workers=workers)
    voxels, ids = truth(root)
    # The second case's axes are exchanged by the turn to RAS; flips leave sizes and spacings.
    assert found.shapes.tolist() == [[6, 7, 5], [7, 7, 5], [8, 7, 5]]
    np.testing.assert_allclose(found.spacings, [[1, 2, 3], [2.5, 1.5, 3], [1, 2, 4]], rtol=1e-6)
    assert found.cropped.tolist() == found.shapes.tolist() and found.removed == 0
    assert found.counts.tolist() == [[int((x == k).sum()) for k in (0, 1, 2, 255)] for x in ids]
    assert (
        found.foreground
        and found.axes == 3
        and [c.name for c in found.channels] == ["channel_0", "channel_1"]
    )
    for number, channel in enumerate(found.channels):
        inside = np.concatenate([v[number][(i == 1) | (i == 2)] for v, i in zip(voxels, ids, strict=True)])
        expected = [inside.mean(), inside.std(), np.median(inside), inside.min(), inside.max()]
        values = [channel.mean, channel.std, channel.median, channel.minimum, channel.maximum]
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        np.testing.assert_allclose([channel.low, channel.high], np.percentile(inside, [0.5, 99.5]), rtol=1e-6)
        assert channel.lowest == pytest.approx(min(v[number].min() for v in voxels))
    assert [channel.whole for channel in found.channels] == [False, True]


def test_of_each_case_ten_thousand_voxels_count_whatever_its_size(tmp_path):
    """20,000 voxels of one case are 0, and 5,000 of another are 1: a third of the sample, not a fifth."""
    for name, count, value in (("a", 20_000, 0), ("b", 5_000, 1)):
        ids = np.zeros((30, 30, 30), dtype=np.uint8)
        ids.reshape(-1)[3_000 : 3_000 + count] = 1
        write_case(
            tmp_path, "train" if name == "a" else "val", name, np.full((1, 30, 30, 30), value, np.int16), ids
        )
    dataset = find_dataset(tmp_path, classes=["background", "organ"])
    (channel,) = read_fingerprint(dataset).channels
    assert MOST_SAMPLES == 10_000 and channel.mean == pytest.approx(5_000 / 15_000)


def test_the_sample_is_spread_over_the_foreground_and_the_same_each_time(tmp_path):
    ids = np.zeros((40, 40, 40), dtype=np.uint8)
    ids[5:] = 1
    values = np.arange(64_000, dtype=np.float32).reshape(1, 40, 40, 40)
    write_case(tmp_path, "train", "a", values, ids)
    write_case(tmp_path, "val", "b", values[:, :2, :2, :2], ids[:2, :2, :2])
    dataset = find_dataset(tmp_path, classes=["background", "organ"])
    (channel,) = read_fingerprint(dataset).channels
    inside = np.arange(8_000, 64_000)
    error = inside.std() / np.sqrt(MOST_SAMPLES)  # of a mean
    assert 0 < abs(channel.mean - inside.mean()) < 4 * error
    assert 8_000 <= channel.minimum < 8_100 and 63_900 < channel.maximum < 64_000
    assert read_fingerprint(dataset).channels == (channel,)


def test_how_much_cropping_removes(tmp_path):
    """A box of 4 x 5 x 2 of 8 x 10 x 4 voxels is left: seven eighths go. Either channel keeps a voxel."""
    voxels = np.zeros((2, 8, 10, 4), np.int16)
    voxels[0, 2:6, 3:8, 1] = 7
    voxels[1, 2:6, 3:8, 2] = -7
    ids = (voxels[0] > 0).astype(np.uint8)
    for split, name in (("train", "a"), ("val", "b")):
        write_case(tmp_path, split, name, voxels, ids)
    found = read_fingerprint(find_dataset(tmp_path, classes=["background", "organ"]))
    assert found.cropped.tolist() == [[4, 5, 2]] * 2 and found.removed == pytest.approx(7 / 8)


def test_without_foreground_all_labelled_voxels_count(tmp_path, caplog):
    ids = np.zeros((4, 4, 4), dtype=np.uint8)
    ids[2:] = 255
    voxels = np.where(ids == 0, 3, 100)[None].astype(np.int16)
    for split, name in (("train", "a"), ("val", "b")):
        write_case(tmp_path, split, name, voxels, ids)
    found = read_fingerprint(find_dataset(tmp_path, classes=["background", "organ"], ignore_id=255))
    assert not found.foreground and found.channels[0].maximum == 3
    assert "no case has a voxel of the foreground" in caplog.text


def test_all_voxels_ignored_is_an_error(tmp_path):
    ids = np.full((4, 4, 4), 255, dtype=np.uint8)
    for split, name in (("train", "a"), ("val", "b")):
        write_case(tmp_path, split, name, np.ones((1, 4, 4, 4), np.int16), ids)
    with pytest.raises(CasesError, match="all voxels of all cases are to be ignored"):
        read_fingerprint(find_dataset(tmp_path, classes=["background", "organ"], ignore_id=255))


def test_pictures_and_cases_to_test_with(tmp_path):
    """Pictures have two axes and pixels of 1; test cases are not read, so a damaged one does not matter."""
    for split, name, height in (("train", "a", 6), ("val", "b", 8)):
        for kind, value in (("images", 10 * height), ("masks", 1)):
            (tmp_path / kind / split).mkdir(parents=True)
            Image.fromarray(np.full((height, 5), value, np.uint8)).save(
                tmp_path / kind / split / f"{name}.png"
            )
    (tmp_path / "images/test").mkdir()
    (tmp_path / "images/test/c.png").write_bytes(b"damaged")
    found = read_fingerprint(find_dataset(tmp_path, classes=["background", "cell"]))
    assert (
        found.axes == 2
        and found.shapes.tolist() == [[6, 5], [8, 5]]
        and found.spacings.tolist() == [[1, 1]] * 2
    )
    assert found.channels[0].mean == pytest.approx((60 * 30 + 80 * 40) / 70)


def test_a_single_slice_of_one_voxel(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        write_case(tmp_path, split, name, np.full((1, 1, 1, 1), 5, np.int16), np.ones((1, 1, 1), np.uint8))
    found = read_fingerprint(find_dataset(tmp_path, classes=["background", "organ"]))
    assert found.shapes.tolist() == [[1, 1, 1]] * 2 and found.channels[0].std == 0


def test_errors_name_the_cases(root):
    (root / "images/train/case_1.nii.gz").write_bytes(b"no scan")
    with pytest.raises(
        CasesError, match=r"(?s)1 case of 3 cannot be read:.*case_1: .*case_1.nii.gz.*leave them out"
    ):
        read_fingerprint(find_dataset(root))


def test_cases_with_other_channels_are_named(root):
    ids = np.ones((3, 3, 3), np.uint8)
    write_case(root, "train", "case_9", np.ones((1, 3, 3, 3), np.float32), ids)
    with pytest.raises(
        CasesError, match=re.escape("case_9: 1 channel, the dataset has channel_0, channel_1")
    ):
        read_fingerprint(find_dataset(root))


def test_cases_with_other_axes_are_named(root):
    for kind, value in (("images", 9), ("labels", 1)):
        Image.fromarray(np.full((4, 4, 1), value, np.uint8)[..., 0]).save(root / kind / "val" / "flat.png")
    with pytest.raises(CasesError, match="flat: 2 axes, case_0 has 3"):
        read_fingerprint(find_dataset(root))


def test_without_labels_there_is_nothing_to_read(root):
    dataset = find_dataset(root)
    unlabelled = type(dataset)({"test": dataset.cases["val"]}, dataset.classes, dataset.channels, {}, 255)
    with pytest.raises(CasesError, match="none of the cases to train with has labels"):
        read_fingerprint(unlabelled)
