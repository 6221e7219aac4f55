"""Overlapping classes: which labels make up a region, which label a region stands for; and the largest score.

Letters in shapes: B images, K labels, R regions, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THRESHOLD = 0.5  # a voxel whose probability is above it lies in the region


class Regions:
    """Regions of labels that may overlap, as nnU-Net trains them (Isensee et al. 2021).

    Args:
        regions: for each region the labels, 0..K-1, that it is made of.
        num_classes: K.
        labels: what to write for each region; None for the label of each region that is in no later region.

    Attributes:
        members: the labels of each region.
        labels: the label that each region stands for.
        table: ``[R, 256]`` bool on the CPU, whether a mask value lies in a region; 255, which is ignored,
            lies in none.

    Raises:
        ValueError: if a region is empty or holds a label twice or out of range; if a region does not have
            exactly one such label; or if there is not one label of each region in ``labels``.
    """

    def __init__(
        self, regions: Sequence[Sequence[int]], num_classes: int, labels: Sequence[int] | None = None
    ) -> None:
        if not regions:
            raise ValueError("head.regions is empty; give at least one region, or leave it out")
        self.members = tuple(tuple(region) for region in regions)
        for index, region in enumerate(self.members):
            if not region or len(set(region)) != len(region) or not set(region) <= set(range(num_classes)):
                raise ValueError(
                    f"head.regions[{index}] is {list(region)}; a region is a list of one or more different "
                    f"labels in 0..{num_classes - 1}"
                )
        self.labels = self._own_labels() if labels is None else tuple(labels)
        if len(self.labels) != len(self.members):
            raise ValueError(
                f"head.region_labels has {len(self.labels)} labels for {len(self.members)} regions"
            )
        for index, (label, region) in enumerate(zip(self.labels, self.members, strict=True)):
            if label not in region:
                raise ValueError(
                    f"head.region_labels[{index}] is {label}, which is not in head.regions[{index}], "
                    f"{list(region)}"
                )
        rows = [[value in region for value in range(256)] for region in self.members]
        self.table = torch.tensor(rows, device="cpu")

    def _own_labels(self) -> tuple[int, ...]:
        """Return the label of each region that is in no later region."""
        chosen = []
        for index, region in enumerate(self.members):
            later = {label for other in self.members[index + 1 :] for label in other}
            own = [label for label in region if label not in later]
            if len(own) != 1:
                what = f"labels {own}" if own else "no label"
                raise ValueError(
                    f"head.regions[{index}], {list(region)}, has {what} that no later region has; "
                    "predictions are written region by region, later ones over earlier ones, so each "
                    "needs exactly one: "
                    "order the regions from the largest to the smallest, or say what to write with "
                    "head.region_labels"
                )
            chosen += own
        return tuple(chosen)

    def decide(self, scores: Tensor, threshold: float = THRESHOLD) -> Tensor:
        """Write each region's label where its score exceeds ``threshold``, later regions over earlier ones.

        Args:
            scores: ``[B, R, *S]``.
            threshold: for probabilities; 0 for logits.

        Returns:
            ``[B, *S]`` uint8; 0 outside of all regions.

        Raises:
            ValueError: if there is not one score per region.
        """
        if scores.shape[1] != len(self.labels):
            raise ValueError(f"{len(self.labels)} regions need as many scores, got {list(scores.shape)}")
        mask = torch.zeros(scores.shape[:1] + scores.shape[2:], dtype=torch.uint8, device=scores.device)
        for index, label in enumerate(self.labels):
            mask.masked_fill_(scores[:, index] > threshold, label)
        return mask


def largest(scores: Tensor) -> Tensor:
    """Return the position of the largest of at most 256 scores, ``[B, K, *S]`` to ``[B, *S]`` uint8.

    The first one of equals; any of pixels that have a NaN.
    """
    classes_last = scores.stride(1) == 1 and scores.shape[1] > 1
    if scores.device.type != "cpu" or classes_last or torch.compiler.is_compiling():
        return scores.max(1).indices.to(torch.uint8)  # as argmax, but several times as fast on a CPU
    # Class by class, which a CPU does in long vectors: several times as fast again.
    scores = scores.detach()
    best = scores[:, 0].clone()
    found = torch.zeros(best.shape, dtype=torch.uint8)
    for index in range(1, scores.shape[1]):
        more = (scores[:, index] > best).view(torch.uint8)
        torch.maximum(found, more.mul_(index), out=found)
        torch.maximum(best, scores[:, index], out=best)
    return found
