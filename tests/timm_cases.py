"""Small networks of timm that the tests of TimmBackbone share."""

from trunkline.backbones.timm_backbone import TimmBackbone

SWIN = "swin_tiny_patch4_window7_224"
TINY_SWIN = {"embed_dim": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.0}
VIT = "vit_tiny_patch16_224"
# One small network of each kind: convolutional, channels-last, with batch norm, without, with attention.
NETWORKS = {
    "test_convnext": {},
    "test_efficientnet": {},
    "test_resnet": {},
    "test_mambaout": {},
    "test_nfnet": {},
    "test_byobnet": {},
    "test_maxvit": {},
    "test_vit": {},
    "mobilenetv3_small_050": {},
    "regnety_002": {},
    "pvt_v2_b0": {},
    SWIN: TINY_SWIN,
    VIT: {"embed_dim": 24, "depth": 4},
}


def ours(name, **arguments):
    return TimmBackbone(name, options=NETWORKS.get(name), **arguments)


def channels_first(maps, channels):
    """Put the axis that has the declared number of channels, and may be last, in second place."""
    return [x if x.shape[1] == c else x.permute(0, 3, 1, 2) for x, c in zip(maps, channels, strict=True)]


def assert_close(maps, expected):
    assert len(maps) == len(expected)
    for x, y in zip(maps, expected, strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()
