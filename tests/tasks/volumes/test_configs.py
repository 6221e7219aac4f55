"""Every shipped config for scans trains, saves, reloads and predicts."""

import numpy as np
import pytest
import torch
from volume_tasks import QUIET, TINY, command

from trunkline.data.scans.formats.files import read_scan
from trunkline.data.scans.prepare.prepare import prepare

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
    assert torch.load(saved, weights_only=True)["global_step"] == cli.trainer.global_step > 0
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
