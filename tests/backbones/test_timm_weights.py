"""Weights of TimmBackbone: files, published ones, and what it refuses."""

import pytest
import timm
import torch
from timm_cases import NETWORKS, SWIN, assert_close, channels_first, ours

from trunkline.backbones.timm_backbone import TimmBackbone
from trunkline.backbones.weights.load import skip_pretrained


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "test_resnet", SWIN])
@pytest.mark.parametrize("channels", [3, 1])
def test_files_with_the_names_of_timm_or_of_the_trunk_load(name, channels, tmp_path):
    """A whole classifier of timm, and a trunk's own state."""
    whole = timm.create_model(name, **NETWORKS[name])
    torch.save(whole.state_dict(), tmp_path / "timm.pth")
    trunk = ours(name, weights=str(tmp_path / "timm.pth"), in_channels=channels).eval()
    torch.save(trunk.state_dict(), tmp_path / "own.pth")
    again = ours(name, weights=str(tmp_path / "own.pth"), in_channels=channels).eval()
    size = trunk.native_size
    image = torch.randn(1, channels, *size)
    whole.eval()
    with torch.no_grad():
        maps = trunk(image)
        assert_close(again(image), maps)
        if name == "test_vit":
            last = whole.forward_intermediates(image.expand(-1, 3, -1, -1), intermediates_only=True)[-1:]
        else:
            last = whole.forward_intermediates(image.expand(-1, 3, -1, -1), intermediates_only=True)[-4:]
        assert_close(maps, channels_first(last, [level.channels for level in trunk.levels]))


def test_a_file_of_another_network_is_refused_by_name(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    for channels in (3, 1):
        with pytest.raises(ValueError, match=r"resnet\.pth"):
            TimmBackbone("test_convnext", weights=str(tmp_path / "resnet.pth"), in_channels=channels)


def test_published_weights_are_asked_for_and_a_failure_is_explained(tmp_path):
    """timm reads a file in place of its download, so that no network is needed here."""
    whole = timm.create_model("test_convnext")
    torch.save(whole.state_dict(), tmp_path / "published.pth")
    config = {"file": str(tmp_path / "published.pth"), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.4)}
    local = {"pretrained_cfg_overlay": config}
    trunk = TimmBackbone("test_convnext", weights="timm", options=local)
    assert torch.equal(trunk.model.stem_0.weight, whole.stem[0].weight)
    assert trunk.expected_pixels == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.4))
    assert not torch.equal(
        TimmBackbone("test_convnext", options=local).model.stem_0.weight, whole.stem[0].weight
    )
    nowhere = {"pretrained_cfg_overlay": {"file": str(tmp_path / "missing.pth")}}
    with pytest.raises(OSError, match="could not fetch the weights of test_convnext .*give its path"):
        TimmBackbone("test_convnext", weights="timm", options=nowhere)
    with skip_pretrained():
        TimmBackbone("test_convnext", weights="timm", options=nowhere)
        TimmBackbone("test_convnext", weights=str(tmp_path / "missing.pth"))
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        TimmBackbone("test_convnext", weights=str(tmp_path / "missing.pth"))


def test_missing_timm_is_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'trunkline\[timm\]'"):
        TimmBackbone("resnet18")


def test_a_model_without_features_is_named(monkeypatch):
    def flat(**settings):
        raise RuntimeError("features_only not implemented for this one")

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "test_flat", flat)
    with pytest.raises(
        ValueError, match=r"cannot build test_flat as a trunk \(features_only\).*not implemented"
    ):
        TimmBackbone("test_flat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "convnxt_tiny"}, "timm has no model 'convnxt_tiny'; did you mean convnext_tiny"),
        (
            {"name": "convnext_tiny.fb_in1"},
            "timm has no weights 'fb_in1' of convnext_tiny; there are: .*fb_in1k",
        ),
        ({"name": "test_resnet", "weights": "torchvision"}, "use weights: timm"),
        ({"name": "test_resnet", "weights": "IMAGENET1K_V1"}, "use weights: timm"),
        ({"name": "test_resnet", "weights": "ResNet50_Weights.DEFAULT"}, "use weights: timm"),
        ({"name": "test_convnext2", "weights": "nowhere.pth"}, r"nowhere\.pth"),
        ({"name": "test_resnet", "in_channels": 0}, "in_channels is 0"),
        ({"name": "test_resnet", "frozen_stages": 6}, "frozen_stages is 6; test_resnet has 0 to 5"),
        ({"name": "test_byobnet", "frozen_stages": 1, "out_indices": [0]}, "frozen_stages 1 is empty"),
        ({"name": "test_vit", "frozen_stages": 1}, "frozen_stages is unknown for test_vit"),
        ({"name": "test_convnext", "freeze_batch_norm": True}, "test_convnext has no batch norm"),
        ({"name": "test_resnet", "checkpointing": True}, "set freeze_batch_norm: true as well"),
        ({"name": "test_resnet", "out_indices": [5]}, r"levels 0 to 4 of strides \[2, 4, 8, 16, 32\]"),
        ({"name": "test_resnet", "out_indices": [2, 1]}, "ascending order"),
        ({"name": "test_resnet", "out_indices": [-1, 4]}, "ascending order"),
        ({"name": "test_resnet", "out_indices": []}, "out_indices is "),
        ({"name": "test_resnet", "options": {"in_chans": 1}}, "options holds in_chans"),
        ({"name": "test_resnet", "options": {"widht": 1}}, "cannot build test_resnet .*'widht'"),
        ({"name": SWIN, "options": {"widht": 1}}, "'widht'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TimmBackbone(**arguments)


def test_checkpointing_that_timm_does_not_have_is_named():
    with pytest.raises(ValueError, match="no checkpointing for hrnet_w18_small"), torch.device("meta"):
        TimmBackbone("hrnet_w18_small", freeze_batch_norm=True, checkpointing=True)
