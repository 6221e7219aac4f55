"""What all segmentation heads share: raw outputs, losses, predictions, and checks of common arguments.

Letters in shapes: B images, C channels, K classes, R regions, S spatial axes (H, W or D, H, W),
s fewer cells of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.base import FeatureLevel
from ...constants import IGNORE_INDEX
from ..base import Head, MaskTargets, NumClasses, class_number, exportable
from .losses import CrossEntropy, SegmentationLoss
from .pixels import Pixels
from .regions import THRESHOLD, Regions, largest


@exportable
@dataclass
class RawSegmentation:
    """What a segmentation head computes.

    Attributes:
        logits: ``[B, K, *S]`` (``[B, R, *S]`` with regions) at the size of the padded input.
        aux: logits of auxiliary classifiers, each ``[B, K, *s]``, at that size or coarser; may be empty.
    """

    logits: Tensor
    aux: tuple[Tensor, ...] = ()


@exportable
@dataclass
class Segmentation:
    """What a segmentation head predicts.

    Attributes:
        mask: ``[B, *S]`` uint8, labels 0..K-1; 255 outside of each image.
    """

    mask: Tensor


class SegmentationHead(Head):
    """Gives every pixel of an image, or voxel of a volume, one of K classes.

    To write one, call this constructor, build the layers for ``ndim`` axes with ``num_outputs`` scores at
    their end, and write ``forward``, which returns a :class:`RawSegmentation`. Losses, predictions and class
    weights are done here. ``auxiliary_weight`` may be overridden; ``losses``, ``probabilities``, ``decide``
    and ``predict`` too, by a head whose scores mean something else.

    With ``regions``, classes may overlap, as in nnU-Net (Isensee et al. 2021): region r gets a score of its
    own, whose sigmoid is the probability that a pixel has one of the region's labels. Masks, the training's
    and the predicted ones, still hold labels 0..K-1. To predict, the regions are written in their order,
    later ones over earlier ones, each where its probability is above one half: as the one label that no
    later region has, or as ``region_labels`` say. A label that no region has counts as outside of all.

    Args:
        levels: what the trunk or neck declares, finest first.
        num_classes: K, 2 to 255: labels are stored as uint8, and 255 marks pixels to ignore. On the command
            line also ``auto``, for the classes of the data.
        loss: what to minimise; None for :class:`.losses.CrossEntropy`.
        aux_weight: what the loss of an auxiliary map counts, at least 0.
        regions: the labels that each region is made of; None for classes that do not overlap.
        region_labels: the label to write for each region; None for the one that no later region has.

    Attributes:
        ndim: number of spatial axes, 2 or 3.
        num_outputs: scores per pixel: K, or R with regions.
        regions: the labels of each region, or None.
        region_labels: the label that each region is written as, or None.

    Raises:
        ValueError: if an argument is out of its range, levels disagree about the number of axes, or the loss
            cannot be used with regions.
    """

    branch = "segmentation"

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        loss: SegmentationLoss | None = None,
        aux_weight: float = 0.5,
        regions: list[list[int]] | None = None,
        region_labels: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.ndim = count_axes(levels)
        num_classes = class_number(num_classes)
        if not 2 <= num_classes <= IGNORE_INDEX:
            raise ValueError(
                f"head.num_classes must lie in 2..{IGNORE_INDEX}, got {num_classes}: foreground and "
                "background are two classes, and labels are stored in one byte, in which "
                f"{IGNORE_INDEX} marks pixels to ignore"
            )
        if not 0 <= aux_weight < float("inf"):
            raise ValueError(f"head.aux_weight must be a number of at least 0, got {aux_weight}")
        self.num_classes = num_classes
        self.loss = CrossEntropy() if loss is None else loss
        for part in self.loss.modules():
            weights = part.class_weights if isinstance(part, SegmentationLoss) else None
            if weights is not None and len(weights) != num_classes:
                raise ValueError(
                    f"head.loss.class_weights has {len(weights)} numbers; give one for each of the "
                    f"{num_classes} classes"
                )
        self.aux_weight = aux_weight
        self._regions = _make_regions(regions, num_classes, region_labels)
        if self._regions is not None:
            self.loss.use_regions(self._regions.table)

    @property
    def balanced(self) -> bool:  # type: ignore[override]  # an attribute of other heads
        """Whether the loss has class weights that must come from the training data."""
        return self.loss.balanced

    @property
    def class_weights(self) -> Sequence[float] | None:  # type: ignore[override]  # the same
        """The class weights of the loss, K of them; None without, and before ``balanced`` ones are known."""
        return self.loss.class_weights

    def balance(self, counts: Sequence[int]) -> None:
        """Weigh each class inversely to its number of training pixels, see :meth:`SegmentationLoss.balance`.

        Args:
            counts: labelled pixels per class, K of them.

        Raises:
            ValueError: if there is no pixel at all, or the loss has no class weights.
        """
        self.loss.balance(counts)

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Weigh the classes by K finite positive numbers.

        Raises:
            ValueError: if they are not, or the loss has no class weights.
        """
        self.loss.set_class_weights(weights)

    @property
    def num_outputs(self) -> int:
        return self.num_classes if self._regions is None else len(self._regions.members)

    @property
    def regions(self) -> tuple[tuple[int, ...], ...] | None:
        return None if self._regions is None else self._regions.members

    @property
    def region_labels(self) -> tuple[int, ...] | None:
        return None if self._regions is None else self._regions.labels

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawSegmentation:
        """Compute the raw outputs.

        Args:
            features: one ``[B, C_i, *S_i]`` map per level, finest first.
            image_size: S, the spatial size of the padded input batch, and of the logits to return.
        """
        return super().forward(features, image_size)

    def auxiliary_weight(self, index: int) -> float:
        """Return what the loss of the auxiliary map of that position counts."""
        return self.aux_weight

    def losses(self, raw: RawSegmentation, targets: MaskTargets) -> dict[str, Tensor]:
        """Return the terms of ``loss``, and ``auxiliary`` if there are auxiliary maps; float32 scalars.

        An auxiliary map that is coarser than the mask is compared with the labels at its cells' centres.

        Raises:
            ValueError: if the mask has another size than the logits.
        """
        logits, mask = raw.logits, targets.mask
        if mask.shape != (logits.shape[0], *logits.shape[2:]):
            raise ValueError(
                f"the mask must be {[logits.shape[0], *logits.shape[2:]]} (images and size of the padded "
                f"input), got {list(mask.shape)}"
            )
        with torch.autocast(logits.device.type, enabled=False):
            losses = self._terms(logits, mask)
            if raw.aux:
                terms = [
                    self.auxiliary_weight(index) * value
                    for index, x in enumerate(raw.aux)
                    for value in self._terms(x, subsample(mask, x.shape[2:])).values()
                ]
                losses["auxiliary"] = torch.stack(terms).sum()
        return losses

    def _terms(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        # Not of logits.float(): a loss that can do without makes float32 copies of single images only.
        return dict(self.loss.shared_terms(Pixels(logits, mask, self.loss.squared_sums)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax of logits ``[B, K, *S]``; with regions the sigmoid of ``[B, R, *S]``.

        Means of them over flips, windows and models are what :meth:`decide` gets from a task.
        """
        return logits.softmax(1) if self._regions is None else logits.sigmoid()

    def decide(self, scores: Tensor) -> Tensor:
        """Map probabilities, or their means over several predictions, to labels.

        Args:
            scores: ``[B, K, *S]``, of which the largest is chosen (so logits can be given too); with
                regions probabilities ``[B, R, *S]``, see the class.

        Returns:
            ``[B, *S]`` uint8, labels 0..K-1.
        """
        return self._decide(scores, THRESHOLD)

    def _decide(self, scores: Tensor, threshold: float) -> Tensor:
        if self._regions is None:
            return largest(scores)
        return self._regions.decide(scores, threshold)

    def predict(self, raw: RawSegmentation, image_sizes: Tensor) -> Segmentation:
        """Return what :meth:`decide` does of the probabilities; 255 outside of ``image_sizes``."""
        # [B, *S]; neither the order of logits nor their sign needs the probabilities.
        mask = self._decide(raw.logits, 0.0)
        for axis, size in enumerate(mask.shape[1:]):
            beyond = torch.arange(size, device=mask.device) >= image_sizes[:, axis, None]  # [B, size]
            # [B, size] -> [B, 1.., size, 1..]
            beyond = beyond.reshape(len(mask), *(size if i == axis else 1 for i in range(mask.ndim - 1)))
            mask = mask.masked_fill(beyond, IGNORE_INDEX)
        return Segmentation(mask)


def _make_regions(
    regions: list[list[int]] | None, num_classes: int, labels: list[int] | None
) -> Regions | None:
    if regions is None and labels is not None:
        raise ValueError("head.region_labels says how to write head.regions, which are not given")
    return None if regions is None else Regions(regions, num_classes, labels)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate ``[B, C, *s]`` linearly along every axis to ``[B, C, *size]``; corners are not aligned."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False)


def subsample(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Take from ``[B, *S]`` labels those at the centres of ``size`` cells: ``[B, *size]``."""
    for axis, (before, after) in enumerate(zip(mask.shape[1:], size, strict=True)):
        if before != after:
            cells = torch.arange(after, device=mask.device)
            mask = mask.index_select(axis + 1, (2 * cells + 1) * before // (2 * after))
    return mask


def count_axes(levels: Sequence[FeatureLevel]) -> int:
    """Return the number of spatial axes of the levels, 2 or 3.

    Raises:
        ValueError: if there are no levels, or they are of different or other numbers.
    """
    axes = sorted({len(level.stride) for level in levels})
    if len(axes) != 1 or axes[0] not in (2, 3):
        raise ValueError(
            "a segmentation head needs levels that all have two, or all three, spatial axes; got "
            f"{len(levels)} levels, of {axes or 'no'} axes"
        )
    return axes[0]


def check_level(argument: str, position: int, levels: Sequence[FeatureLevel], taken: Sequence[int]) -> int:
    """Return the position of a level, counted from the finest.

    Args:
        argument: what to name in the error.
        position: of a level; negative numbers count from the coarsest.
        levels: to count.
        taken: positions of the levels that it must not be.

    Raises:
        ValueError: if there is no such level, or it is taken.
    """
    count = len(levels)
    if not -count <= position < count:
        raise ValueError(
            f"head.{argument} is {position}, but the trunk has {count} levels: {-count} to {count - 1}, "
            "finest first"
        )
    if position % count in taken:
        raise ValueError(
            f"head.{argument} is {position}, the level that the classifier itself reads; take one of "
            f"{[index for index in range(count) if index not in taken]}"
        )
    return position % count


def check_dropout(dropout: float) -> None:
    """Raise a ValueError unless ``dropout`` is a share below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"head.dropout must lie in 0 to below 1, got {dropout}")


def check_width(argument: str, channels: int) -> None:
    """Raise a ValueError unless ``channels`` is a positive number of channels."""
    if channels < 1:
        raise ValueError(f"head.{argument} is {channels}; a layer needs at least one channel")


def conv_norm_relu(conv: nn.Module, norm: nn.Module) -> nn.Sequential:
    """Chain a convolution, its norm and a ReLU, under the names 0, 1 and 2."""
    return nn.Sequential(conv, norm, nn.ReLU(inplace=True))


def halvings(fine: Sequence[int], coarse: Sequence[int]) -> int:
    """Count the steps of factor 2 that lead from a coarse stride to a fine one, on the axis with most.

    A factor that is no power of two takes the next larger one's steps.
    """
    ratio = max(b / a for a, b in zip(fine, coarse, strict=True))
    return max(0, math.ceil(math.log2(ratio)))


def stepped_size(size: Sequence[int], goal: Sequence[int], remaining: int) -> tuple[int, ...]:
    """Return the size to upsample to, when ``remaining`` more steps of factor 2 follow up to ``goal``.

    An axis is ``goal`` halved ``remaining`` times, rounded up as convolutions of stride 2 do; one that is as
    large already stays. The last step leads to ``goal`` itself.
    """
    if remaining == 0:
        return tuple(goal)
    return tuple(max(now, -(-end // 2**remaining)) for now, end in zip(size, goal, strict=True))
