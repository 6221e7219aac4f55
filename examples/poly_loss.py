"""A segmentation loss of your own: Poly-1 (Leng et al. 2022), cross-entropy plus a term for unsure pixels.

Letters in shapes: B images, K classes, S spatial axes (H, W or D, H, W).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trunkline.heads.segmentation import SegmentationLoss, labelled


class Poly1(SegmentationLoss):
    """Cross-entropy plus ``epsilon * (1 - p)``, where p is the probability of the true class.

    The mean over the labelled pixels; 0 without any.

    Args:
        epsilon: weight of the second term; 0 gives cross-entropy.
    """

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return a float32 scalar for logits ``[B, K, *S]`` and a mask ``[B, *S]``, 255 where ignored."""
        logits, labels, valid = labelled(logits, mask)
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")  # [B, *S]
        loss = cross_entropy + self.epsilon * (1 - torch.exp(-cross_entropy))
        return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp(min=1)
