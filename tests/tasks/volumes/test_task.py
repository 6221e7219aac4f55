"""Segmentation of scans as a task: its labels lie where the scan lies, alone and as an ensemble."""

import nibabel
import numpy as np
import pytest
import torch
from torch import nn
from volume_tasks import oracle

from trunkline.backbones import ResidualEncoder
from trunkline.data.scans.formats.files import read_scan
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Preparation, prepare
from trunkline.heads import UNet
from trunkline.tasks.volumes.inference import VolumeInference
from trunkline.tasks.volumes.task import VolumeSegmentation


def affine_of(directions, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = np.array(directions, dtype=float).T * spacing
    affine[:3, 3] = origin
    return affine


ROTATED = [(np.cos(0.4), np.sin(0.4), 0), (-np.sin(0.4), np.cos(0.4), 0), (0, 0, 1)]


AFFINES = {
    "RAS": affine_of(np.eye(3), (1, 1, 1), (0, 0, 0)),
    "flipped": affine_of([(-1, 0, 0), (0, -1, 0), (0, 0, 1)], (0.9, 0.9, 3), (90, 120, -40)),
    "permuted": affine_of([(0, 0, -1), (1, 0, 0), (0, -1, 0)], (2, 1, 1.5), (5, 6, 7)),
    "oblique": affine_of(ROTATED, (0.8, 1.1, 2.5), (-30, 12, 100)),
    "sheared": affine_of([(1, 0, 0), (0, 1, 0), (0.2, 0, 1)], (1, 1, 2), (1, 2, 3)),
}


def blob(shape, affine, centre, radius):
    """A ball in world coordinates, mm: ``[*S]`` bool."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(world - centre, axis=-1) < radius


def write_case(path, affine, shape=(26, 22, 14), dtype=np.int16):
    """Write two balls of the intensities 100 and 200; return the truth and their centres in mm."""
    corners = affine[:3, :3] @ (np.array(shape) - 1)
    middle = affine[:3, 3] + corners / 2
    centres = [middle - 0.2 * affine[:3, 0] * shape[0], middle + 0.2 * affine[:3, 0] * shape[0]]
    size = np.linalg.norm(affine[:3, :3], axis=0) * shape
    truth = np.zeros(shape, dtype=np.uint8)
    for label, centre in enumerate(centres, 1):
        truth[blob(shape, affine, centre, 0.18 * size.min() + label)] = label
    image = nibabel.Nifti1Image((truth * 100).astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return truth, centres


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("crop", [False, True])
def test_labels_lie_where_the_scan_lies_voxel_by_voxel(tmp_path, name, crop):
    """Without resampling the answer is the threshold of the file's own voxels."""
    truth, _ = write_case(tmp_path / "a.nii.gz", AFFINES[name])
    how = Preparation(crop=crop, intensity=[Intensity(clip=[0, 100], scale="unit")])
    how = Preparation(crop=crop, intensity=[Intensity(scale="zscore", mean=0, std=100)], orientation="PIR")
    prepared = prepare(read_scan(tmp_path / "a.nii.gz"), how)
    for overlap, window in ((0.5, [8, 8, 8]), (0.25, [30, 7, 9])):
        task = oracle(window=window, overlap=overlap)
        np.testing.assert_array_equal(task.segment(prepared.image, prepared.placement), truth)


@pytest.mark.parametrize("name", AFFINES)
def test_labels_lie_where_the_scan_lies_after_resampling(tmp_path, name):
    affine = AFFINES[name]
    truth, centres = write_case(tmp_path / "a.nii.gz", affine)
    how = Preparation(spacing=[0.7, 0.8, 0.9], intensity=[Intensity(scale="zscore", mean=0, std=100)])
    prepared = prepare(read_scan(tmp_path / "a.nii.gz"), how)
    found = oracle(window=[16, 16, 16]).segment(prepared.image, prepared.placement)
    assert found.shape == truth.shape
    for label, centre in enumerate(centres, 1):
        # The shell of the brighter ball passes through the darker one's intensity.
        both = ((found == label) & (truth == label)).sum()
        assert 2 * both / ((found == label).sum() + (truth == label).sum()) > 0.75
        if label == 2:
            world = np.argwhere(found == label).mean(0) @ affine[:3, :3].T + affine[:3, 3]
            assert np.linalg.norm(world - centre) < 0.5 * np.linalg.norm(affine[:3, :3], axis=0).max()


def test_a_network_for_pictures_goes_through_a_volume(tmp_path):
    truth, _ = write_case(tmp_path / "a.nii.gz", AFFINES["flipped"])
    how = Preparation(intensity=[Intensity(scale="zscore", mean=0, std=100)])
    prepared = prepare(read_scan(tmp_path / "a.nii.gz"), how)
    for axis in (None, 0, 1):
        task = oracle(ndim=2, window=[8, 16], mirror=(0, 1))
        task.branch.slice_axis = axis
        np.testing.assert_array_equal(task.segment(prepared.image, prepared.placement), truth)


@pytest.mark.parametrize(
    ("ndim", "inference", "message"),
    [
        (3, {}, "inference.window"),
        (3, {"window": [8, 8]}, "give 3 numbers"),
        (2, {"window": [8, 8], "mirror": (2,)}, "inference.mirror"),
        (3, {"window": [8, 8, 8], "keep_largest": ("kidney",)}, "inference.keep_largest names"),
    ],
)
def test_options_that_do_not_fit_the_network_are_named(tmp_path, ndim, inference, message):
    write_case(tmp_path / "a.nii.gz", AFFINES["RAS"])
    prepared = prepare(read_scan(tmp_path / "a.nii.gz"), Preparation())
    with pytest.raises(ValueError, match=message):
        oracle(ndim, **inference).segment(prepared.image, prepared.placement)


@pytest.mark.parametrize("options", [{"window": [8, 8]}, {"mirror": (2,), "window": [8, 8]}])
def test_options_of_other_axes_are_refused_before_any_work(options):
    with pytest.raises(ValueError, match="one per axis of the network|network has 2 axes"):
        oracle(3 if "mirror" not in options else 2, **options)


def test_ids_may_be_any_of_32_bits():
    task = oracle()
    for ids, dtype in (([0, 5, 200], "uint8"), ([0, 300, 5], "uint16"), ([0, 70000, 2], "uint32")):
        task.branch.classes = [{"id": i, "name": str(i), "colour": [0, 0, 0]} for i in ids]
        assert task.branch.ids().tolist() == ids and task.branch.ids().dtype == dtype
    task.branch.classes = [{"id": i, "name": str(i), "colour": [0, 0, 0]} for i in (0, -3)]
    assert task.branch.ids().tolist() == [0, -3, 1]


def test_only_the_largest_piece_is_kept(tmp_path):
    affine = AFFINES["RAS"]
    truth, _ = write_case(tmp_path / "a.nii.gz", affine)
    voxels = truth.copy()
    voxels[:2, :2, :2] = 1  # a second piece of class 1
    nibabel.save(nibabel.Nifti1Image((voxels * 100).astype(np.int16), affine), tmp_path / "b.nii.gz")
    how = Preparation(intensity=[Intensity(scale="zscore", mean=0, std=100)])
    prepared = prepare(read_scan(tmp_path / "b.nii.gz"), how)
    plain = oracle(window=[8, 8, 8]).segment(prepared.image, prepared.placement)
    kept = oracle(window=[8, 8, 8], keep_largest=("class 1",)).segment(prepared.image, prepared.placement)
    np.testing.assert_array_equal(plain, voxels)
    np.testing.assert_array_equal(kept, truth)


def tiny(seed, regions=None, norm="instance"):
    torch.manual_seed(seed)
    return VolumeSegmentation(
        backbone=ResidualEncoder(channels=[4, 8], blocks=[1, 1], strides=[1, 2], norm=norm),
        head=lambda levels: UNet(levels, 3, norm=norm, regions=regions),
        inference=VolumeInference(window=[8, 8, 8]),
    ).eval()


def test_ensembles_average_probabilities():
    one, other = tiny(0), tiny(1)
    windows = torch.randn(2, 1, 8, 8, 8)
    expected = (one.probabilities(windows) + other.probabilities(windows)) / 2
    one._members = [other]
    torch.testing.assert_close(one.probabilities(windows), expected)
    torch.testing.assert_close(expected.sum(1), torch.ones(2, 8, 8, 8))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_whole_scans_take_the_faster_kernels_of_the_cpu(monkeypatch, tmp_path):
    calls, own = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda x, *more: calls.append(x) or own(x, *more))
    write_case(tmp_path / "a.nii.gz", AFFINES["RAS"], shape=(8, 8, 8))
    prepared = prepare(read_scan(tmp_path / "a.nii.gz"), Preparation())
    task = tiny(0)
    task.segment(prepared.image, prepared.placement)
    assert len(calls) == sum(isinstance(part, nn.Conv3d) for part in task.modules())


def test_regions_are_decided_by_their_own_probabilities(tmp_path):
    task = tiny(0, regions=[[1, 2], [2]])
    with torch.no_grad():
        task.head.score.weight.zero_()
        task.head.score.bias.copy_(torch.tensor([1.0, -1.0]))
    write_case(tmp_path / "a.nii.gz", AFFINES["RAS"])
    prepared = prepare(read_scan(tmp_path / "a.nii.gz"), Preparation())
    assert (task.segment(prepared.image, prepared.placement) == 1).all()
    with torch.no_grad():
        task.head.score.bias.copy_(torch.tensor([1.0, 1.0]))
    assert (task.segment(prepared.image, prepared.placement) == 2).all()
    assert task.branch.named_regions({"core": (2,)}) == {"class 1+class 2": (1, 2), "core": (2,)}
