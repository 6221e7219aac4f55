"""Segmentation of scans as a task: what it writes lies where the scan lies, alone and as an ensemble."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from trunkline.backbones import ResidualEncoder
from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.cli import with_null_overrides, with_resolved_configs
from trunkline.data.scans.batches import EvaluationCase
from trunkline.data.scans.cases.cases import Case
from trunkline.data.scans.formats.files import read_scan
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Preparation, prepare
from trunkline.heads import UNet
from trunkline.heads.segmentation.base import RawSegmentation, SegmentationHead
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.volumes.inference import VolumeInference
from trunkline.tasks.volumes.task import VolumeSegmentation

QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
]
TINY = [
    "--data.steps_per_epoch=2",
    "--data.workers=0",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
]


def command(monkeypatch, *words):
    words = with_null_overrides(with_resolved_configs([str(word) for word in words]))
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


class Look(Backbone):
    """A trunk that hands the image on."""

    def __init__(self, ndim):
        super().__init__()
        self.levels = (FeatureLevel(1, (1,) * ndim),)
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, image):
        return [image]


class Threshold(SegmentationHead):
    """Labels 0, 1 and 2 by intensity: below 0.5, up to 1.5, above."""

    def forward(self, features, image_size):
        (x,) = features
        middle = 1 - 2 * (x - 1).abs()
        return RawSegmentation(20 * torch.cat([0.5 - x, middle.clamp(max=0.5), x - 1.5], 1))


def oracle(ndim=3, **inference):
    """A task whose answer is known: a threshold of the prepared intensities."""
    task = VolumeSegmentation(
        backbone=Look(ndim), head=lambda levels: Threshold(levels, 3), inference=VolumeInference(**inference)
    )
    return task.eval()


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


# -- by the command


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Synthetic CT volumes: 4 for training, 2 for validation."""
    from trunkline.data.synthetic.scans import write_scans

    folder = tmp_path_factory.mktemp("data") / "scans"
    write_scans(folder, train=4, val=2, seed=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def trained(scans, tmp_path_factory):
    """Two checkpoints of the demo's model, after two steps each, from different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    with pytest.MonkeyPatch.context() as patch:
        for seed in (0, 1):
            command(
                patch,
                "fit",
                "--config",
                "scans/unet_3d_demo",
                "--data.root",
                scans,
                "--seed_everything",
                seed,
                "--trainer.default_root_dir",
                folder / str(seed),
                *TINY,
                *QUIET,
            )
            paths += folder.glob(f"{seed}/**/last.ckpt")
    return paths


def test_fit_writes_figures_and_a_checkpoint_that_knows_its_classes(trained):
    checkpoint = torch.load(trained[0], weights_only=True)
    assert [row["id"] for row in checkpoint["branches"][""]["classes"]] == [0, 1, 2, 3]
    assert checkpoint["patch"] == [48, 48, 24] and len(checkpoint["regions"]) == 3
    folder = trained[0].parent.parent
    figures = json.loads((folder / "val" / "metrics.json").read_text())
    assert set(figures["figures"]) == {"mean_Dice"}  # distances take long: validate measures them
    rows = list(csv.DictReader((folder / "val_cases.csv").open()))
    assert len(rows) == 2 * 3


def test_validate_measures_distances_and_draws_every_case(monkeypatch, tmp_path, trained, scans, capsys):
    cli = command(
        monkeypatch, "validate", "--ckpt_path", trained[0], "--trainer.default_root_dir", tmp_path, *QUIET
    )
    assert {"mean_Dice", "mean_HD95_mm", "mean_surface_Dice"} <= set(cli.model.result.metrics)
    names = {path.name.removesuffix(".nii.gz") for path in (scans / "images" / "val").iterdir()}
    assert {path.stem for path in tmp_path.rglob("val/pictures/*.jpg")} == names
    assert "surface Dice" in capsys.readouterr().out


def test_predict_writes_label_volumes_on_the_scans_grids(monkeypatch, tmp_path, trained, scans):
    cli = command(
        monkeypatch,
        "predict",
        "--ckpt_path",
        trained[0],
        "--data.predict",
        scans / "images" / "val",
        "--output.folder",
        tmp_path / "out",
        "--trainer.logger=false",
        *QUIET,
    )
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    for path in sorted((scans / "images" / "val").iterdir()):
        scan, labels = nibabel.load(path), nibabel.load(tmp_path / "out" / "labels" / path.name)
        assert labels.shape == scan.shape and labels.get_data_dtype() == scan.get_data_dtype()
        np.testing.assert_array_equal(labels.affine, scan.affine)
        prepared = prepare(read_scan(path), cli.datamodule.preparation)
        expected = cli.model.segment(prepared.image, prepared.placement)
        np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)
        each = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
        mine = {row["region"]: row for row in rows if row["case"] == path.name.removesuffix(".nii.gz")}
        for k, name in enumerate(cli.model.branch.class_names):
            if k:
                assert float(mine[name]["ml"]) == pytest.approx((expected == k).sum() * each, abs=1e-3)
    assert len(list((tmp_path / "out" / "pictures").glob("*.jpg"))) == 2
    assert not (tmp_path / "out" / "failed.csv").exists()


def test_a_broken_scan_is_reported_and_the_others_are_done(monkeypatch, tmp_path, trained, scans):
    (tmp_path / "in").mkdir()
    good = sorted((scans / "images" / "val").iterdir())[0]
    (tmp_path / "in" / "good.nii.gz").write_bytes(good.read_bytes())
    (tmp_path / "in" / "bad.nii.gz").write_bytes(good.read_bytes()[:2000])
    with pytest.raises(ValueError, match="1 of 2 scans could not be segmented") as caught:
        command(
            monkeypatch,
            "predict",
            "--ckpt_path",
            trained[0],
            "--data.predict",
            tmp_path / "in",
            "--output.folder",
            tmp_path / "out",
            "--output.pictures=false",
            "--trainer.logger=false",
            *QUIET,
        )
    assert "bad.nii.gz" in str(caught.value)
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["good.nii.gz"]
    (row,) = csv.DictReader((tmp_path / "out" / "failed.csv").open())
    assert row["case"] == "bad" and "bad.nii.gz" in row["error"]
    assert not (tmp_path / "out" / "pictures").exists()


def test_a_scan_that_is_no_input_of_the_network_is_reported_without_the_training_data_too(
    monkeypatch, tmp_path, trained, scans
):
    (tmp_path / "in").mkdir()
    good = sorted((scans / "images" / "val").iterdir())[0]
    (tmp_path / "in" / "good.nii.gz").write_bytes(good.read_bytes())
    image = nibabel.load(good)
    two = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(two, image.affine), tmp_path / "in" / "a.nii.gz")  # the first
    with pytest.raises(
        ValueError, match="1 of 2 scans(.|\n)*a.nii.gz: has 2 channels, but the network takes 1"
    ):
        command(
            monkeypatch,
            "predict",
            "--ckpt_path",
            trained[0],
            "--data.root",
            tmp_path / "gone",
            "--data.predict",
            tmp_path / "in",
            "--output.folder",
            tmp_path / "out",
            "--trainer.logger=false",
            *QUIET,
        )
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["good.nii.gz"]
    picture = EvaluationCase(
        np.zeros((1, 4, 5), np.float32), None, Case("p", ("p.png",), None, "p"), None, np.array([0])
    )
    (prediction,) = oracle().predict_step(picture, 0)
    assert prediction["image_id"] == 0 and "p.png: is a picture" in prediction["error"]


@pytest.mark.parametrize("option", ["data.patch", "model.inference.window"])
def test_sizes_of_which_instance_norms_see_one_voxel_are_refused(monkeypatch, tmp_path, scans, option):
    with pytest.raises(ValueError, match=rf"{option.removeprefix('model.')} is \[8, 8, 4\].* single voxel"):
        command(
            monkeypatch,
            "fit",
            "--config",
            "scans/unet_3d_demo",
            "--data.root",
            scans,
            f"--{option}=[8,8,4]",
            "--trainer.default_root_dir",
            tmp_path,
            *TINY,
            *QUIET,
        )


def test_predict_with_the_checkpoints_of_two_folds(monkeypatch, tmp_path, trained, scans):
    path = sorted((scans / "images" / "val").iterdir())[0]
    cli = command(
        monkeypatch,
        "predict",
        "--ckpt_path",
        trained[0],
        f'--model.ensemble=["{trained[1]}"]',
        "--data.predict",
        path,
        "--output.folder",
        tmp_path,
        "--output.pictures=false",
        "--trainer.logger=false",
        *QUIET,
    )
    members = [VolumeSegmentation.load_from_checkpoint(c, map_location="cpu").eval() for c in trained]
    windows = torch.randn(1, 1, 48, 48, 24)
    with torch.no_grad():
        found = cli.model.probabilities(windows)
        expected = sum(member.probabilities(windows) for member in members) / 2
        assert not torch.allclose(members[0].probabilities(windows), expected, atol=1e-4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not any("_members" in name for name in cli.model.state_dict())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.ensemble=[nowhere.ckpt]"], "nowhere.ckpt: no such file"),
        (["--model.ensemble=[NOISE]"], "noise.ckpt cannot be read as a checkpoint"),
        (["--model.ensemble=[OTHER]", "--data.preparation.spacing=[2,2,2]"], "prepared in another way"),
    ],
)
def test_members_that_do_not_fit_are_refused(monkeypatch, tmp_path, trained, scans, words, message):
    (tmp_path / "noise.ckpt").write_bytes(bytes(range(256)))
    words = [
        word.replace("OTHER", str(trained[1])).replace("NOISE", f"{tmp_path}/noise.ckpt") for word in words
    ]
    with pytest.raises(ValueError, match=message):
        command(
            monkeypatch,
            "predict",
            "--ckpt_path",
            trained[0],
            "--data.predict",
            scans / "images" / "val",
            "--output.folder",
            tmp_path,
            "--trainer.logger=false",
            *words,
            *QUIET,
        )


def test_members_with_other_classes_are_refused_before_any_scan(trained, tmp_path):
    stored = torch.load(trained[1], weights_only=True)
    stored["branches"][""]["classes"][1]["name"] = "lung"
    torch.save(stored, tmp_path / "other.ckpt")
    task = VolumeSegmentation.load_from_checkpoint(trained[0], map_location="cpu")
    task.ensemble = [str(trained[1])]
    task._members = [task._member(task.ensemble[0], {})]
    task.on_predict_start()
    task.ensemble = [str(tmp_path / "other.ckpt")]
    task._members = [task._member(task.ensemble[0], {})]
    for start in (task.on_predict_start, task.on_validation_start, task.on_test_start):
        with pytest.raises(ValueError, match="other.ckpt segments .*, lung, .* model .*liver"):
            start()


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_names_of_unknown_classes_are_found_before_any_scan(monkeypatch, tmp_path, trained, scans, stage):
    monkeypatch.setattr(VolumeSegmentation, "segment", lambda *_: pytest.fail("a scan was segmented"))
    monkeypatch.setattr(VolumeSegmentation, "training_step", lambda *_: pytest.fail("a step was made"))
    given = {
        "fit": ["--config", "scans/unet_3d_demo", "--data.root", scans],
        "predict": ["--ckpt_path", trained[0], "--data.predict", scans / "images" / "val"],
    }
    with pytest.raises(ValueError, match="keep_largest names .'lung'.; the classes are .'liver'"):
        command(
            monkeypatch,
            stage,
            *given[stage],
            "--model.inference.keep_largest=[lung]",
            "--trainer.logger=false",
            "--trainer.default_root_dir",
            tmp_path,
            *(TINY if stage == "fit" else []),
            *QUIET,
        )


def test_tasks_and_data_of_other_kinds_are_told_apart(monkeypatch, tmp_path, scans, masked_shapes):
    scans_config = ["fit", "--config", "scans/unet_3d_demo", "--trainer.default_root_dir", tmp_path, *QUIET]
    with pytest.raises(ValueError, match="ImageSegmentation"):
        command(
            monkeypatch,
            *scans_config,
            "--data",
            "ImageSegmentation",
            "--data.root",
            masked_shapes,
            "--data.workers=0",
            "--data.augment=[]",
            "--model.backbone.ndim=2",
            "--model.backbone.strides=null",
            "--model.backbone.in_channels=3",
        )
    with pytest.raises(ValueError, match="VolumeSegmentation"):
        command(
            monkeypatch,
            "fit",
            "--config",
            "segmentation/fcn_r18_demo",
            "--data",
            "ScanSegmentation",
            "--data.root",
            scans,
            "--data.patch=[16,16]",
            "--data.augment=[]",
            "--data.cache=memory",
            "--data.workers=0",
            "--model.backbone.in_channels=1",
            "--trainer.default_root_dir",
            tmp_path,
            *QUIET,
        )


# -- every shipped config

COARSE = ["--data.preparation.spacing=[6,6,6]"]  # so that a window or two suffice
NARROW = {
    "unet_3d_hippocampus": [
        "--model.backbone.channels=[4,4,8,8]",
        "--model.head.channels=[8,4,4]",
        "--data.patch=[16,16,16]",
        *COARSE,
    ],
    "unet_3d_demo": COARSE,
    "unet_3d_ct_organs": [
        "--model.backbone.channels=[4,4,8,8,8,8]",
        "--model.head.channels=[8,8,8,4,4]",
        "--data.patch=[32,32,16]",
        *COARSE,
    ],
    "unet_2d_membrane": ["--model.backbone.width=8", "--data.patch=[32,32]"],
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Grey pictures with masks of two classes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data") / "pictures"
    random = np.random.default_rng(0)
    for split, number in (("train", 3), ("val", 1)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(number):
            mask = (random.random((40, 48)) < 0.5).astype(np.uint8)
            Image.fromarray(mask).save(folder / "masks" / split / f"{split}_{index}.png")
            Image.fromarray(mask * 100 + 50).save(folder / "images" / split / f"{split}_{index}.png")
    (folder / "classes.txt").write_text("membrane\ncell\n")
    return folder


@pytest.mark.parametrize("name", NARROW)
def test_every_config_trains_saves_reloads_and_predicts(monkeypatch, tmp_path, scans, pictures, name):
    data = pictures if "2d" in name else scans
    classes = 2 if "2d" in name else 4
    cli = command(
        monkeypatch,
        "fit",
        "--config",
        f"scans/{name}",
        "--data.root",
        data,
        "--trainer.default_root_dir",
        tmp_path,
        f"--model.head.num_classes={classes}",
        "--data.cache=memory",
        "--data.batch_size=2",
        "--trainer.precision=32",
        "--trainer.check_val_every_n_epoch=1",
        "--model.inference.mirror=[]",
        "--model.inference.overlap=0",
        *NARROW[name],
        *TINY,
        *QUIET,
    )
    assert cli.trainer.global_step == 2
    (saved,) = tmp_path.rglob("last.ckpt")
    inputs = next((data / "images" / "val").iterdir())
    reloaded = command(
        monkeypatch,
        "predict",
        "--ckpt_path",
        saved,
        "--data.predict",
        inputs,
        "--output.folder",
        tmp_path / "out",
        "--trainer.logger=false",
        "--trainer.precision=32",
        *QUIET,
    )
    prepared = prepare(read_scan(inputs), cli.datamodule.preparation)
    expected = cli.model.eval().segment(prepared.image, prepared.placement)
    np.testing.assert_array_equal(reloaded.model.segment(prepared.image, prepared.placement), expected)
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 1
