"""Prediction with the checkpoints of several folds."""

import pytest
import torch
from volume_tasks import QUIET, command

from trunkline.tasks.volumes.task import VolumeSegmentation


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
