"""Inference of classification trunks, batch 1 and more, beside torchvision and timm.

    python benchmarks/speed_trunks.py
    python benchmarks/speed_trunks.py --only ResNet-50

Each network's last map (in front of pooling and classifier) is computed with the peer's weights, norms too,
copied into ours. Ours runs as it was trained, and as the copy for inference of ``optimised``, with norms
folded into convolutions and channels last. The peer's runs as its users get it; for one network also with
channels last, which is all that takes one line there. No side is compiled.

On a CPU: batch 1 and 8 at 224x224 in float32; on a GPU: batch 1 and 64 under bf16 autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import timm
import torch
import torchvision
from torch import Tensor, nn

from pairs import Pair, bench_parser, run_pairs
from trunkline.backbones import DenseNet, ResNet, load_weights
from trunkline.backbones.optimised import optimised

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES = (1, 64) if DEVICE == "cuda" else (1, 8)
SIZE = 224
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "ResNet-18": ("resnet18", lambda: ResNet(18)),
    "ResNet-50": ("resnet50", lambda: ResNet(50)),
    "ResNet-101": ("resnet101", lambda: ResNet(101)),
    "ResNeXt-50": ("resnext50_32x4d", lambda: ResNet(50, groups=32, width_per_group=4)),
    "Wide ResNet-50": ("wide_resnet50_2", lambda: ResNet(50, width_per_group=128)),
    "DenseNet-121": ("densenet121", lambda: DenseNet(121)),
}
WITH_TIMM = ("ResNet-50", "DenseNet-121")
WITH_CHANNELS_LAST = ("ResNet-50",)


class Features(nn.Module):
    """The last map of one of torchvision's classifiers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        dense = hasattr(net, "features")  # DenseNet; its last activation belongs to its forward
        parts = [net.features, nn.ReLU(inplace=True)] if dense else list(net.children())[:-2]
        self.layers = nn.Sequential(*parts)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class TimmFeatures(nn.Module):
    """The last map of one of timm's classifiers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net.forward_features(image)


class Last(nn.Module):
    """The last map of a trunk."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, image: Tensor) -> Tensor:
        return self.trunk(image)[-1]


def with_norms(net: nn.Module) -> nn.Module:
    """Give norms statistics and maps of their own, as training does; new ones would fold to nothing."""
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value, low, high in (
                (part.running_mean, -0.1, 0.1),
                (part.running_var, 0.8, 1.2),
                (part.weight.data, 0.5, 1.0),
                (part.bias.data, -0.1, 0.1),
            ):
                value.uniform_(low, high, generator=generator)
    return net


def repeated(net: nn.Module, image: Tensor, passes: int) -> Callable[[], Tensor]:
    """Return a call that runs a network so many times in a row."""
    precision = torch.autocast("cuda", torch.bfloat16) if DEVICE == "cuda" else contextlib.nullcontext()

    @torch.inference_mode()
    def run() -> Tensor:
        with precision:
            for _ in range(passes):
                found = net(image)
        return found

    return run


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pairs() -> Iterator[Pair]:
    for name, (key, build) in NETWORKS.items():
        torch.manual_seed(0)
        net = with_norms(getattr(torchvision.models, key)(weights=None))
        peer = f"torchvision {torchvision.__version__}"
        yield from rows(name, peer, build(), net.state_dict(), Features(net), name in WITH_CHANNELS_LAST)
        if name in WITH_TIMM:
            net = with_norms(timm.create_model(key, pretrained=False))
            yield from rows(name, f"timm {timm.__version__}", build(), net.state_dict(), TimmFeatures(net))


def rows(name, peer, trunk, state, theirs, channels_last: bool = False) -> Iterator[Pair]:
    """Compare one network in all ways and batch sizes."""
    load_weights(trunk, state)
    ours, theirs = Last(trunk).eval().to(DEVICE), theirs.eval().to(DEVICE)
    example = torch.randn(1, 3, SIZE, SIZE, device=DEVICE)
    copy = optimised(ours, lambda net: net(example))
    for batch in BATCHES:
        image = torch.randn(batch, 3, SIZE, SIZE, device=DEVICE)
        last = image.contiguous(memory_format=torch.channels_last)
        yield pair(f"{name}, batch {batch}, as trained", peer, (ours, image), (theirs, image))
        yield pair(f"{name}, batch {batch}, optimised", peer, (copy, last), (theirs, image))
    if channels_last:
        theirs = theirs.to(memory_format=torch.channels_last)
        peer = f"{peer}, channels last"
        yield pair(f"{name}, batch {batch}, optimised", peer, (copy, last), (theirs, last))


def pair(name, peer, ours: tuple[nn.Module, Tensor], theirs: tuple[nn.Module, Tensor]) -> Pair:
    batch = len(ours[1])
    passes = max(1, BATCHES[-1] // batch) if DEVICE == "cpu" else 1
    return Pair(
        name=name,
        peer=peer,
        ours=repeated(*ours, passes),
        theirs=repeated(*theirs, passes),
        difference=difference,
        tolerance=1e-4 if DEVICE == "cpu" else 5e-2,
        agrees_on="the last map, as a share of its largest value",
        settings={
            "batch": batch,
            "size": [SIZE, SIZE],
            "passes": passes,
            "precision": "float32" if DEVICE == "cpu" else "bf16 autocast",
        },
        note=f"Seconds of {passes} passes." if passes > 1 else "",
    )


def main() -> None:
    options = bench_parser(__doc__, repeats=7).parse_args()
    run_pairs("trunks", "inference of trunks on copied weights", pairs(), options)


if __name__ == "__main__":
    main()
