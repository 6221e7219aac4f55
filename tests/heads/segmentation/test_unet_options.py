"""UNet as the decoder of residual encoders: transposed convolutions, kernels, strides per axis, 2-D twins."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones import DenseNet, ResidualEncoder, ResNet, load_weights
from trunkline.heads import UNet

K = 3


def block(x, part, kernels):
    """Convolution, instance norm, leaky ReLU, as many times as there are kernels."""
    assert len(part) == 3 * len(kernels)
    for conv, norm, kernel in zip(part[::3], part[1::3], kernels, strict=True):
        assert conv.weight.shape[2:] == kernel
        x = F.conv3d(x, conv.weight, None, padding=[size // 2 for size in kernel])
        x = F.leaky_relu(F.instance_norm(x, weight=norm.weight, bias=norm.bias), 0.01)
    return x


def spread(x, layer, factors):
    """Give each cell its own box of cells: a matrix product per cell, no transposed convolution."""
    weight = layer.weight  # [C, F, *factors]
    assert weight.shape[2:] == factors
    boxes = torch.einsum("bcxyz,cfdhw->bfxdyhzw", x, weight)
    size = [n * step for n, step in zip(x.shape[2:], factors, strict=True)]
    return boxes.reshape(len(x), weight.shape[1], *size) + layer.bias[:, None, None, None]


def test_transposed_convolutions_and_kernels_equal_a_plain_computation(
    make_levels, make_maps, randomise, close
):
    levels = make_levels(4, 6, 8, strides=[(1, 2, 2), (1, 4, 4), (2, 4, 8)], ndim=3)
    kernels = [3, [3, 1, 5], [1, 3, 3]]
    head = UNet(
        levels, K, [7, 6, 5], norm="instance", activation="leaky_relu", upsampling="transposed", convs=3,
        kernels=kernels, deep_supervision=True,
    )  # fmt: skip
    randomise(head)
    size = (5, 18, 22)  # rounded up: 5 9 11, 5 5 6, 3 5 3
    maps = make_maps(levels, size)
    x = spread(maps[2], head.ups[0], (2, 1, 2))[:, :, :5]
    x = block(torch.cat([x, maps[1]], 1), head.blocks[0], [(3, 3, 3)] * 3)
    inner = spread(x, head.ups[1], (1, 2, 2))[..., :9, :11]
    inner = block(torch.cat([inner, maps[0]], 1), head.blocks[1], [(3, 1, 5)] * 3)
    full = block(spread(inner, head.ups[2], (1, 2, 2)), head.blocks[2], [(1, 3, 3)] * 3)
    raw = head(maps, size)
    close(raw.logits, head.score(full))
    assert len(raw.aux) == 1
    close(raw.aux[0], head.aux_scores[0](inner))


def test_maps_that_were_rounded_down_are_interpolated(make_levels):
    levels = make_levels(4, 6, strides=[1, 2])
    head = UNet(levels, K, [5], upsampling="transposed", norm="instance").eval()
    sizes = []
    head.blocks[0].register_forward_hook(lambda part, inputs, output: sizes.append(inputs[0]))
    maps = [torch.randn(2, 4, 9, 10), torch.randn(2, 6, 4, 6)]  # 9 -> 4; 10 -> 6, too much
    assert head(maps, (9, 10)).logits.shape == (2, K, 9, 10)
    expected = F.interpolate(head.ups[0](maps[1])[..., :10], (9, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(sizes[0][:, :5], expected)
    trunk = DenseNet(121).eval()
    head = UNet(trunk.levels, K, [8] * len(head_blocks(trunk)), upsampling="transposed").eval()
    assert head(trunk(torch.randn(1, 3, 75, 101)), (75, 101)).logits.shape == (1, K, 75, 101)


def head_blocks(trunk):
    return UNet(trunk.levels, K).blocks


def test_factors_are_the_ratios_of_strides_and_double_towards_the_image(make_levels):
    def factors(*strides):
        head = UNet(make_levels(*[8] * len(strides), strides=list(strides)), K, upsampling="transposed")
        return [layer.stride for layer in head.ups if layer.stride == layer.kernel_size]

    assert factors(4, 8, 16) == [(2, 2)] * 4
    assert factors((1, 4), (2, 4)) == [(2, 1), (1, 2), (1, 2)]
    assert factors((2, 4), (2, 16)) == [(1, 4), (1, 2), (2, 2)]
    assert factors(1, 1) == [(1, 1)]
    assert not UNet(make_levels(8, 8), K).ups and not any(
        "ups" in key for key in UNet(make_levels(8, 8), K).state_dict()
    )


def test_transposed_convolutions_keep_the_scale_of_what_they_read(make_levels):
    torch.manual_seed(0)
    head = UNet(make_levels(64, 256, strides=[1, 2], ndim=3), K, [128], upsampling="transposed")
    x = torch.randn(1, 256, 8, 8, 8)
    assert head.ups[0](x).std().item() == pytest.approx(1.0, rel=0.05) and not head.ups[0].bias.any()


class Network(nn.Module):
    """Trunk and head under the names that a task has for them."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, image):
        return self.head(self.backbone(image), tuple(image.shape[2:]))


def encoder(ndim, **options):
    return ResidualEncoder((4, 6, 8, 8), (1, 2, 1, 1), ndim=ndim, **options)


TRUNKS = {
    "encoder, strides 1x2x2, kernels 1x3x3": (
        lambda ndim: encoder(
            ndim,
            strides=[1, (1, 2, 2), (1, 2, 2), (1, 2, 2)] if ndim == 3 else None,
            kernels=[(1, 3, 3)] * 4 if ndim == 3 else None,
        ),
        lambda ndim: [(1, 3, 3)] * 3 if ndim == 3 else None,
    ),
    "encoder, both kinds": (
        lambda ndim: encoder(
            ndim,
            strides=[1, (1, 2, 2), 2, 2] if ndim == 3 else None,
            kernels=[(1, 3, 3), (1, 3, 3), 3, 3] if ndim == 3 else None,
        ),
        lambda ndim: [3, (1, 3, 3), (1, 3, 3)] if ndim == 3 else None,
    ),
    "encoder, isotropic": (lambda ndim: encoder(ndim, norm="group"), lambda ndim: None),
    "ResNet": (
        lambda ndim: ResNet(
            10,
            ndim=ndim,
            width=4,
            in_channels=1,
            strides=[(1, 2, 2), 1, 2, 2, 2] if ndim == 3 else [2, 1, 2, 2, 2],
        ),
        lambda ndim: None,
    ),
}


@pytest.mark.parametrize("upsampling", ["linear", "transposed"])
@pytest.mark.parametrize("name", TRUNKS)
def test_weights_of_a_2d_network_give_every_slice_of_a_constant_volume_its_scores(
    name, upsampling, randomise, close
):
    trunk, kernels = TRUNKS[name]

    def network(ndim):
        backbone = trunk(ndim)
        return Network(
            backbone,
            UNet(
                backbone.levels, K, [8, 7, 6, 5][: len(head_blocks(backbone))], norm="instance", convs=1,
                activation="leaky_relu", deep_supervision=True, upsampling=upsampling, kernels=kernels(ndim),
            ),
        ).eval()  # fmt: skip

    flat, deep = randomise(network(2)).eval(), network(3)
    report = load_weights(deep, {key: x.clone() for key, x in flat.state_dict().items()}, minimum=1.0)
    assert report.fraction == 1 and not report.missing and not report.skipped
    image = torch.randn(2, 1, 45, 34)
    expected, found = flat(image), deep(image[:, :, None].repeat(1, 1, 7, 1, 1))
    assert found.logits.shape[2] == 7
    for x, y in zip((found.logits, *found.aux), (expected.logits, *expected.aux), strict=True):
        close(x, y[:, :, None].expand_as(x), 1e-4)


def test_inner_scores_of_anisotropic_strides_are_compared_with_labels_at_their_cells_centres(targets):
    trunk = ResidualEncoder((4, 5, 6, 6, 6), (1,) * 5, [1, (1, 2, 2), (2, 2, 1), 2, 1], norm="group")
    head = UNet(trunk.levels, K, [6, 6, 6, 6], deep_supervision=True, aux_weight=0.5)
    volume, mask = torch.randn(2, 1, 8, 16, 12), torch.randint(0, K, (2, 8, 16, 12), dtype=torch.uint8)
    mask[:, :2] = 255
    raw = head(trunk(volume), (8, 16, 12))
    assert [tuple(x.shape[2:]) for x in raw.aux] == [(8, 8, 6), (4, 4, 6)]
    # centres of cells 1 x 2 x 2 and 2 x 4 x 2
    coarse = mask[:, :, 1::2, 1::2].long(), mask[:, 1::2, 2::4, 1::2].long()
    expected = sum(
        weight * F.cross_entropy(x, y, ignore_index=255)
        for weight, x, y in zip((0.5, 0.25), raw.aux, coarse, strict=True)
    )
    torch.testing.assert_close(head.losses(raw, targets(mask))["auxiliary"], expected)


@pytest.mark.parametrize("convs", [1, 3])
def test_the_number_of_convolutions(convs, make_levels):
    head = UNet(make_levels(8, 16), K, [6, 5, 4], convs=convs)
    counts = [sum(isinstance(x, nn.Conv2d) for x in part) for part in head.blocks]
    assert counts == [convs] * 3
    assert [part[0].in_channels for part in head.blocks] == [16 + 8, 6, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsampling": "nearest"}, "head.upsampling is 'nearest'; allowed are 'linear', 'transposed'"),
        ({"convs": 0}, "head.convs is 0"),
        ({"kernels": [3]}, "head.kernels has 1 entries; give 3: block 0, block 1, block 2"),
        ({"kernels": [3, 2, 3]}, r"head.kernels of block 1 is \(2, 2\); each must be 1, 3 or 5"),
        ({"kernels": [3, [3, 3, 3], 3]}, r"head.kernels of block 1 is \[3, 3, 3\]; give one number, or 2"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message, make_levels):
    with pytest.raises(ValueError, match=message):
        UNet(make_levels(8, 16), K, **options)


@pytest.mark.parametrize("strides", [[2, 3], [(4, 4), (4, 2)], [14, 14]])
def test_strides_that_transposed_convolutions_cannot_undo_are_an_error(strides, make_levels):
    levels = make_levels(8, 16, strides=strides)
    UNet(levels, K)
    with pytest.raises(ValueError, match=r"the stride \(.*\) is no multiple of the next finer one"):
        UNet(levels, K, upsampling="transposed")
