"""Losses that compare whole areas: Dice, Tversky and Lovász, for images and volumes.

Letters in shapes: B images, K classes, R regions, S spatial axes (H, W or D, H, W), N pixels, G groups of
pixels that a loss takes together (each image, or the whole batch).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ...backbones.layers import check_choice
from ..totals import added, divisor
from .loss_base import SegmentationLoss, SharedLoss, check_number
from .pixels import Pixels

Classes = Literal["present", "all"]


class RegionLoss(SharedLoss):
    """A loss per class, or region, over all pixels of an image or batch, and its mean over those.

    Args:
        per_image: compare each image on its own and take the mean over the images that have classes to count;
            else the batch as one.
        classes: ``present`` leaves classes without a pixel in the truth (of the image, or the batch) out of
            the mean; ``all`` counts them, for what is wrongly predicted of them. Images without a labelled
            pixel are always left out.
        include_background: false leaves class 0 out of the mean.

    Raises:
        ValueError: if ``classes`` is neither of the two.
    """

    def __init__(self, per_image: bool, classes: Classes, include_background: bool) -> None:
        super().__init__()
        check_choice("head.loss.classes", classes, get_args(Classes))
        self.per_image = per_image
        self.classes = classes
        self.include_background = include_background

    def use_regions(self, table: Tensor) -> None:
        if not self.include_background:
            raise ValueError(
                f"head.loss.include_background of {type(self).__name__} is false, but regions have no "
                "background to leave out: set it to true"
            )
        self.set_constant("region_table", lambda: table)

    def compute(self, pixels: Pixels) -> Tensor:
        losses, counted = self.per_class(pixels)  # [G, K] each
        losses = torch.where(counted, losses, 0.0)
        groups = losses.sum(1) / counted.sum(1).clamp(min=1)  # [G]
        return groups.sum() / divisor(counted.any(1).sum(), 1)

    def per_class(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Return the loss of each class and whether it counts, ``[G, K]``; class 0 only if it takes part.

        Losses are finite for classes without a pixel too.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement per_class(pixels)")


class OverlapLoss(RegionLoss):
    """A loss of three sums over pixels, taken image by image, and added up where the batch counts as one."""

    squared = False  # whether probabilities are squared in the sum over all pixels

    @property
    def squared_sums(self) -> bool | None:  # type: ignore[override]  # an attribute of other losses
        return self.squared if self.region_table is None else None

    def per_class(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        plain = self.region_table is None
        common, predicted, number = pixels.sums(self.squared) if plain else self._region_sums(pixels)
        labelled_pixels = pixels.valid.flatten(1).any(1, keepdim=True)  # [B, 1]
        if not self.per_image:
            common, predicted, number = (added(x.sum(0, keepdim=True)) for x in (common, predicted, number))
            labelled_pixels = added(labelled_pixels.sum(0, keepdim=True)) > 0
        counted = number > 0 if self.classes == "present" else labelled_pixels.expand_as(number)
        losses = self.overlap(common, predicted, number)
        first = 0 if self.include_background else 1
        return losses[:, first:], counted[:, first:]

    def _region_sums(self, pixels: Pixels) -> tuple[Tensor, Tensor, Tensor]:
        """Return what :meth:`.Pixels.sums` does, of regions: ``[B, R]`` each."""
        shares = pixels.logits.sigmoid().flatten(2)  # [B, R, N]
        inside = self._inside(pixels).flatten(2).to(shares.dtype)  # floats: faster on a CPU
        if not pixels.complete:
            shares = torch.where(pixels.valid.flatten(1)[:, None], shares, 0.0)
        predicted = (shares.square() if self.squared else shares).sum(2)
        return (shares * inside).sum(2), predicted, inside.sum(2)

    def overlap(self, common: Tensor, predicted: Tensor, pixels: Tensor) -> Tensor:
        """Return the loss of each class, ``[G, K]``.

        Args:
            common: ``[G, K]`` sum of a class's probabilities over its pixels.
            predicted: ``[G, K]`` sum over all labelled pixels.
            pixels: ``[G, K]`` number of the class's pixels.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement overlap(common, predicted, pixels)")


class Dice(OverlapLoss):
    """Soft Dice loss over probabilities (Milletari et al. 2016), 1 - (2 I + s) / (P + T + s).

    I is the sum of a class's probabilities over its pixels, P over all labelled pixels, and T the number of
    its pixels. With ``classes: all`` it is MONAI's ``DiceLoss`` (``batch=not per_image``).

    Args:
        per_image: see :class:`RegionLoss`.
        squared_denominator: square the probabilities in P, as in the paper.
        smooth: s, 0 or more; above 0 with ``classes: all``, as a class that is nowhere would be 0 / 0.
        include_background: see :class:`RegionLoss`.
        classes: see :class:`RegionLoss`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        per_image: bool = False,
        squared_denominator: bool = False,
        smooth: float = 1e-5,
        include_background: bool = True,
        classes: Classes = "present",
    ) -> None:
        super().__init__(per_image, classes, include_background)
        check_number("smooth", smooth, zero=classes == "present")
        self.squared = squared_denominator
        self.smooth = smooth

    def overlap(self, common: Tensor, predicted: Tensor, pixels: Tensor) -> Tensor:
        return 1 - _ratio(2 * common + self.smooth, predicted + pixels + self.smooth)


class Tversky(OverlapLoss):
    """Tversky loss (Salehi et al. 2017): 1 - (I + s) / (I + alpha FP + beta FN + s), to the power ``gamma``.

    I, FP and FN are sums of probabilities: of a class over its pixels, of it over other labelled pixels, and
    of other classes over its pixels. Both weights at 0.5 make it Dice, both at 1 the Jaccard loss. The power
    is taken of each class, as in the focal Tversky loss of Abraham and Khan 2019 (whose gamma is 1 over this
    one).

    Args:
        alpha: weight of false positives, 0 or more.
        beta: weight of false negatives, 0 or more; one of the two above 0.
        gamma: above 0; below 1 it stresses classes that are nearly right, above 1 those that are not.
        per_image: see :class:`RegionLoss`.
        smooth: s, 0 or more; above 0 with ``classes: all``, as a class that is nowhere would be 0 / 0.
        include_background: see :class:`RegionLoss`.
        classes: see :class:`RegionLoss`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 1.0,
        per_image: bool = False,
        smooth: float = 1e-5,
        include_background: bool = True,
        classes: Classes = "present",
    ) -> None:
        super().__init__(per_image, classes, include_background)
        check_number("alpha", alpha, zero=True)
        check_number("beta", beta, zero=alpha > 0)
        check_number("gamma", gamma, zero=False)
        check_number("smooth", smooth, zero=classes == "present")
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.smooth = smooth

    def overlap(self, common: Tensor, predicted: Tensor, pixels: Tensor) -> Tensor:
        wrong = self.alpha * (predicted - common) + self.beta * (pixels - common)
        losses = 1 - _ratio(common + self.smooth, common + wrong + self.smooth)
        # At 0 a power below 1 has no derivative, and rounding may go below.
        return losses if self.gamma == 1 else losses.clamp(min=torch.finfo(losses.dtype).eps) ** self.gamma


class Lovasz(RegionLoss):
    """Lovász-Softmax loss (Berman et al. 2018), the convex extension of 1 - IoU to probabilities.

    Args:
        per_image: see :class:`RegionLoss`.
        classes: see :class:`RegionLoss`; a class that is not in the truth costs its largest probability.

    Raises:
        ValueError: if ``classes`` is neither ``present`` nor ``all``.
    """

    def __init__(self, per_image: bool = False, classes: Classes = "present") -> None:
        super().__init__(per_image, classes, include_background=True)

    def use_regions(self, table: Tensor) -> None:
        SegmentationLoss.use_regions(self, table)  # an error: this is the extension for softmax probabilities

    def per_class(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        pixels.check_labels()
        shares, valid = pixels.logits.softmax(1).flatten(2), pixels.valid.flatten(1)[:, None]
        small = pixels.mask.dtype if pixels.mask.dtype == torch.uint8 else torch.int64  # bytes are fastest
        index = torch.arange(shares.shape[1], device=valid.device, dtype=small)
        truth = pixels.mask.flatten(1)[:, None] == index[:, None]  # [B, K, N], nowhere 255
        if not self.per_image:  # [B, K, N] -> [1, K, B * N]
            shares, truth, valid = (x.transpose(0, 1).flatten(1)[None] for x in (shares, truth, valid))
        errors = torch.where(truth, 1 - shares, shares)
        # Ignored pixels come last, where they cannot change the steps of others, and cost nothing.
        errors, order = torch.where(valid, errors, 0.0).sort(dim=2, descending=True)
        steps = _jaccard_steps(truth.gather(2, order), errors.dtype)
        counted = truth.any(2) if self.classes == "present" else valid.any(2).expand(-1, shares.shape[1])
        return (errors * steps).sum(2), counted


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with a finite derivative where both are 0."""
    return numerator / denominator.clamp(min=torch.finfo(denominator.dtype).eps)


def _jaccard_steps(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """By how much 1 - IoU grows with each pixel that becomes wrong, in this order: ``[G, K, N]``.

    In closed form, since differences of neighbouring values of 1 - IoU keep no digits over millions of
    pixels: 1 / U for a pixel of the class, and I / (U (U - 1)) for one that is not, which makes the union U
    from U - 1.
    """
    missed = truth.cumsum(2, dtype=torch.int32)
    pixels = missed[:, :, -1:]
    position = torch.arange(1, truth.shape[2] + 1, device=truth.device, dtype=torch.int32)
    common = (pixels - missed).to(dtype)
    union = (pixels + position - missed).to(dtype)
    # A union of 1 by a pixel that is not of the class: the class has no pixel, so the error jumps to 1.
    added = torch.where(union > 1, common / (union * (union - 1).clamp(min=1)), 1.0)
    return torch.where(truth, 1 / union, added)
