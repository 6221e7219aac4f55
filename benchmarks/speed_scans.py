"""Scans: whole volumes through a sliding window, and training steps on patches, beside MONAI.

    python benchmarks/speed_scans.py
    python benchmarks/speed_scans.py --only volume

Whole volumes: the same network with the same weights, windows, overlap and Gaussian weights on both sides.
Ours is what ``VolumeSegmentation`` runs to predict: probabilities come in plane by plane and become labels at
once. MONAI's is ``sliding_window_inference``, which returns the probabilities of the whole volume, and
their argmax. Training: our network and loss beside MONAI's DynUNet and DiceCELoss, and the two losses alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import monai
import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pairs import Pair, bench_parser, run_pairs
from trunkline.backbones import ResidualEncoder
from trunkline.data.scans.batches import ScanBatch
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.scans.prepare.prepare import Placement
from trunkline.heads import UNet
from trunkline.heads.segmentation.losses import CrossEntropy, Dice, WeightedSum
from trunkline.tasks.volumes.inference import VolumeInference
from trunkline.tasks.volumes.task import VolumeSegmentation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PEER = f"MONAI {monai.__version__}"
SMALL = ((16, 32, 64, 128), (1, 1, 1, 1))  # channels and blocks of each stage
SHIPPED = ((32, 64, 128, 256), (1, 3, 4, 6))  # scans/unet_3d_hippocampus
LARGE = (
    (32, 64, 128, 256, 320, 320),
    (1, 3, 4, 6, 6, 6),
)  # scans/unet_3d_ct_organs, without its thick slices
WINDOW = [64] * 3 if DEVICE.type == "cpu" else [128] * 3
VOLUME = (128, 128, 96) if DEVICE.type == "cpu" else (384, 384, 256)
PATCH = [48] * 3 if DEVICE.type == "cpu" else [128] * 3


def task(layers, classes: int, convs: int = 1) -> VolumeSegmentation:
    """A U-Net on a residual encoder as the configs for scans build it, with weights that depend on a seed."""
    torch.manual_seed(0)
    channels, blocks = layers
    return VolumeSegmentation(
        backbone=ResidualEncoder(channels, blocks),
        head=lambda levels: UNet(
            levels,
            classes,
            channels=list(channels[-2::-1]),
            convs=convs,
            upsampling="transposed",
            norm="instance",
            activation="leaky_relu",
            loss=WeightedSum([CrossEntropy(), Dice(include_background=False, classes="all")]),
        ),
        inference=VolumeInference(window=WINDOW, overlap=0.5),
    ).to(DEVICE)


# -- whole volumes


def scan() -> tuple[np.ndarray, Placement]:
    """A smooth random volume ``[1, *S]`` in the place that an untouched file has."""
    torch.manual_seed(1)
    coarse = torch.randn(1, 1, *(length // 8 for length in VOLUME))
    image = nn.functional.interpolate(coarse, VOLUME, mode="trilinear")[0] + 0.1 * torch.randn(1, *VOLUME)
    box = tuple((0, length) for length in VOLUME)
    turned = tuple((axis, 1) for axis in range(3))
    return image.numpy(), Placement(Grid(VOLUME, np.eye(4)), turned, box, VOLUME, (1.0, 1.0, 1.0))


def volumes() -> Iterator[Pair]:
    rows = ((SMALL, 2, 5), (SMALL, 20, 5), (SHIPPED, 3, 3))
    for layers, classes, repeats in rows if DEVICE.type == "cpu" else ((LARGE, 2, 5), (LARGE, 20, 5)):
        yield volume_pair(layers, classes, repeats)


def volume_pair(layers, classes: int, repeats: int) -> Pair:
    network = task(layers, classes).eval().requires_grad_(False)
    image, placement = scan()

    @torch.inference_mode()
    def ours() -> np.ndarray:
        return network.segment(image, placement)

    @torch.inference_mode()
    def theirs() -> np.ndarray:
        probabilities = sliding_window_inference(
            torch.from_numpy(image)[None].to(DEVICE),
            WINDOW,
            sw_batch_size=1,
            predictor=network.probabilities,
            overlap=0.5,
            mode="gaussian",
            sigma_scale=0.125,
        )
        return probabilities.argmax(1)[0].to(torch.uint8).cpu().numpy()

    return Pair(
        name=f"volume to labels, {classes} classes, {parameters(network)}",
        peer=f"{PEER} sliding_window_inference and argmax",
        ours=ours,
        theirs=theirs,
        difference=lambda a, b: (a != b).mean(),
        tolerance=1e-4 if DEVICE.type == "cpu" else 5e-3,  # TF32, and many voxels close between two classes
        agrees_on="share of voxels with another label",
        settings={
            "volume": VOLUME,
            "window": WINDOW,
            "overlap": 0.5,
            "classes": classes,
            "channels": layers[0],
            "blocks": layers[1],
        },
        target=1.3,
        peak_target=1.0,
        note="The same network, weights, windows and Gaussian weights; one window at a time on both sides. "
        "The weights are random, so that many voxels lie close between two classes.",
        repeats=repeats,
    )


def parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"


# -- training


def patches(classes: int) -> ScanBatch:
    """Two patches with every class in them."""
    torch.manual_seed(2)
    mask = torch.randint(0, classes, (2, *PATCH), dtype=torch.uint8)
    sizes = torch.tensor([PATCH] * 2)
    image = torch.randn(2, 1, *PATCH)
    batch = ScanBatch(image=image, mask=mask, image_sizes=sizes, image_ids=torch.arange(2))
    return move_data_to_device(batch, DEVICE)


def dynunet(channels, classes: int) -> nn.Module:
    torch.manual_seed(0)
    strides = [1] + [2] * (len(channels) - 1)
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes,
        kernel_size=[3] * len(channels),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=channels,
        norm_name=("INSTANCE", {"affine": True}),
        res_block=True,
    ).to(DEVICE)


def their_loss() -> DiceCELoss:
    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def backward(network: nn.Module | None, loss: Tensor) -> Tensor:
    """Run backward, and return the loss."""
    if network is not None:
        network.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach()


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def training() -> Iterator[Pair]:
    for classes in (3, 20):
        yield loss_pair(classes)
    yield step_pair(3)
    yield network_pair(3)


def loss_pair(classes: int) -> Pair:
    """The losses alone, forward and backward to the logits."""
    batch, loss, theirs = patches(classes), task(SMALL, classes).head.loss, their_loss()
    logits = torch.randn(2, classes, *PATCH, device=DEVICE)

    def run(compute) -> list[Tensor]:
        x = logits.detach().requires_grad_()
        value = backward(None, compute(x))
        return [value, x.grad * x.numel()]

    return Pair(
        name=f"Dice and cross-entropy of patches, {classes} classes",
        peer=f"{PEER} DiceCELoss",
        ours=lambda: run(lambda x: loss(x, batch.mask)),
        theirs=lambda: run(lambda x: theirs(x, batch.mask[:, None])),
        difference=lambda a, b: max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)),
        tolerance=1e-3,
        agrees_on="loss, and gradients times their number",
        settings={"patch": PATCH, "batch": 2, "classes": classes},
    )


def step_pair(classes: int) -> Pair:
    """One network object with either loss."""
    network, batch, theirs = task(SMALL, classes).train(), patches(classes), their_loss()
    raw = lambda: network.raw(batch.image, batch.image_sizes)  # noqa: E731

    def ours() -> Tensor:
        return backward(network, sum(network.head.losses(raw(), batch).values()))

    return Pair(
        name="training step, one network and either loss",
        peer=f"{PEER} DiceCELoss",
        ours=ours,
        theirs=lambda: backward(network, theirs(raw().logits, batch.mask[:, None])),
        difference=lambda a, b: float((a - b).abs()),
        tolerance=1e-5 if DEVICE.type == "cpu" else 1e-3,
        agrees_on="loss",
        settings={"patch": PATCH, "batch": 2, "classes": classes, "channels": SMALL[0]},
        note="Forward, loss and backward, without the optimiser.",
    )


def network_pair(classes: int) -> Pair:
    """Two networks of the same kind and arithmetic, each with its own loss."""
    network, peer = task(SMALL, classes, convs=2).train(), dynunet(SMALL[0], classes).train()
    batch, loss = patches(classes), their_loss()
    raw = lambda: network.raw(batch.image, batch.image_sizes)  # noqa: E731
    counts = flops(raw), flops(lambda: peer(batch.image))

    def ours() -> Tensor:
        return backward(network, sum(network.head.losses(raw(), batch).values()))

    return Pair(
        name="training step, residual U-Net",
        peer=f"{PEER} DynUNet and DiceCELoss",
        ours=ours,
        theirs=lambda: backward(peer, loss(peer(batch.image), batch.mask[:, None])),
        difference=lambda a, b: abs(counts[0] / counts[1] - 1),
        tolerance=0.15,
        agrees_on="floating-point operations of a forward pass, as a share",
        settings={
            "patch": PATCH,
            "batch": 2,
            "classes": classes,
            "channels": SMALL[0],
            "flops": {"ours": counts[0], "peer": counts[1]},
        },
        note="Not the same layers: ours has one more 3x3x3 convolution at full resolution, and shortcuts "
        "that pool where DynUNet's have strides. Forward, loss and backward, without the optimiser.",
    )


def main() -> None:
    options = bench_parser(__doc__, repeats=7).parse_args()

    def pairs() -> Iterator[Pair]:
        yield from volumes()
        yield from training()

    run_pairs("scans", "whole scans and training steps on patches of scans", pairs(), options)


if __name__ == "__main__":
    main()
