"""The network of a plan, and the memory that its training takes, counted without running it.

Letters in shapes: B patches, C channels, K classes, S spatial axes of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import ResidualEncoder
from ..heads import UNet
from ..heads.segmentation.base import subsample
from ..heads.segmentation.losses import CrossEntropy, Dice, WeightedSum
from .shape import Axes, Stages

GIB = 2**30
PER_PARAMETER = 4 + 4 + 4 + 2  # bytes: weight, gradient, momentum of SGD, and its copy in bfloat16
PASSING = 3  # maps as large as the largest that backward holds in addition to what forward saved
DEVICE = 0.75 * GIB  # what a device's libraries take themselves
SAFETY = 1.2  # on all that grows with the batch: workspaces of convolutions, fragments


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes.

    Attributes:
        parameters: number of weights of the network.
        saved: bytes that forward saves for backward, per patch.
        largest: bytes of the largest of these maps.
    """

    parameters: int
    saved: int
    largest: int

    def of(self, batch: int) -> float:
        """Return the estimate for batches of this number of patches, in bytes."""
        return self.fixed + batch * self.each

    @property
    def fixed(self) -> float:
        """What does not depend on the batch, in bytes."""
        return DEVICE + PER_PARAMETER * self.parameters

    @property
    def each(self) -> float:
        """What each patch of a batch adds, in bytes."""
        return SAFETY * (self.saved + PASSING * self.largest)

    def largest_batch(self, limit: float) -> int:
        """Return how many patches fit into this number of bytes; 0 if none does."""
        return max(0, math.floor((limit - self.fixed) / self.each))


@dataclass(frozen=True)
class Network:
    """Arguments of a ResidualEncoder and a UNet on top of it.

    Attributes:
        in_channels: C.
        num_classes: K.
        regions: labels of each, or None.
        region_labels: the label that each region is written as; None for the one that no later region has.
    """

    in_channels: int
    num_classes: int
    regions: tuple[tuple[int, ...], ...] | None = None
    region_labels: tuple[int, ...] | None = None

    def backbone(self, stages: Stages) -> dict[str, Any]:
        """Return the arguments of the trunk."""
        return {
            "ndim": len(stages.strides[0]),
            "in_channels": self.in_channels,
            "channels": list(stages.widths),
            "blocks": list(stages.blocks),
            "strides": short(stages.strides),
            "kernels": short(stages.kernels),
            "norm": "instance",
            "activation": "leaky_relu",
        }

    def head(self, stages: Stages) -> dict[str, Any]:
        """Return the arguments of the decoder except its loss."""
        given: dict[str, Any] = {}
        if self.regions is not None:
            given["regions"] = [list(labels) for labels in self.regions]
        if self.region_labels is not None:
            given["region_labels"] = list(self.region_labels)
        return {
            "num_classes": self.num_classes,
            **given,
            "channels": list(stages.widths[-2::-1]),
            "kernels": short(stages.kernels[-2::-1]),
            "convs": 1,
            "upsampling": "transposed",
            "norm": "instance",
            "activation": "leaky_relu",
            "deep_supervision": len(stages.strides) > 3,
        }

    def build(self, stages: Stages) -> tuple[ResidualEncoder, UNet]:
        """Return the trunk and the head with the loss of the plan."""
        trunk = ResidualEncoder(**self.backbone(stages))
        loss = WeightedSum([CrossEntropy(), Dice(include_background=self.regions is not None)])
        return trunk, UNet(trunk.levels, loss=loss, **self.head(stages))


def short(rows: Sequence[Axes]) -> list[int | list[int]]:
    """Write rows that are alike along all axes as one number."""
    return [row[0] if len(set(row)) == 1 else list(row) for row in rows]


def training_memory(network: Network, stages: Stages, patch: Axes) -> Memory:
    """Count what a training step takes.

    The network itself and its losses run on torch's ``meta`` device, which computes only shapes. Every
    tensor that is kept for backward is counted once. Maps are taken to be bfloat16, as under ``bf16-mixed``
    those of convolutions, instance norms and activations are; the losses are in float32, as everywhere.
    Workspaces of convolutions, which depend on the device, are left to the margins in ``Memory``.

    Args:
        network: what to build.
        stages: of the trunk.
        patch: sizes in voxels.
    """
    with torch.device("meta"):
        trunk, head = network.build(stages)
    parameters = [*trunk.parameters(), *head.parameters()]
    trunk.bfloat16()
    head.bfloat16()
    image = torch.empty(1, network.in_channels, *patch, dtype=torch.bfloat16, device="meta")
    mask = torch.empty(1, *patch, dtype=torch.uint8, device="meta")
    sizes = saved_bytes(lambda: _loss(trunk, head, image, mask), parameters)
    return Memory(sum(weight.numel() for weight in parameters), sum(sizes), max(sizes))


def _loss(trunk: nn.Module, head: UNet, image: Tensor, mask: Tensor) -> Tensor:
    """As the head's ``losses``, which asks for the autocast of a real device."""
    raw = head(trunk(image), tuple(image.shape[2:]))
    losses = list(head.loss.terms(raw.logits.float(), mask).values())
    losses += [head.loss(x.float(), subsample(mask, x.shape[2:])) for x in raw.aux]
    return torch.stack(losses).sum()


def saved_bytes(run: Callable[[], Tensor], parameters: Sequence[Tensor] = ()) -> list[int]:
    """Return the bytes of each tensor that autograd keeps for backward; those that share memory count once.

    Args:
        run: what to compute.
        parameters: tensors not to count.
    """
    known = {weight.untyped_storage()._cdata for weight in parameters}
    kept: dict[int, Any] = {}  # the storages too: so no address is used twice

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return x

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        result = run()
        sizes = [storage.nbytes() for storage in kept.values()]
        del result
    return sizes
