"""The contract between a branch (head) and the task that trains it.

Letters in shapes: B images, M box rows of the image with most boxes, K classes, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

Outputs = TypeVar("Outputs")

# Of a head's constructor. The command line replaces auto by the number of classes of the data.
NumClasses = int | Literal["auto"]


def class_number(num_classes: NumClasses, least: int = 1) -> int:
    """Return K, the number of classes that a head is built for.

    Args:
        num_classes: what the constructor got.
        least: the smallest number that makes sense.

    Raises:
        ValueError: for ``auto``, which only the command line can fill in, and for numbers that are too small.
    """
    if num_classes == "auto":
        raise ValueError(
            "num_classes: auto is filled in from the data by the command line (trunkline fit, ...); a head "
            "that is built in Python needs the number, such as len(data.label_classes('detection')) after "
            "data.setup()"
        )
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < least:
        raise ValueError(f"head.num_classes must be at least {least} and a whole number, got {num_classes!r}")
    return num_classes


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, and float64 as it is: the type that losses and boxes are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exportable(kind: type[Outputs]) -> type[Outputs]:
    """Let ``torch.export`` return a dataclass of tensors; decorates raw outputs and predictions.

    Subclasses need it too.
    """
    register_dataclass(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
    return kind


class Head(nn.Module):
    """Turns feature maps into raw outputs, and those into losses or predictions.

    A head's constructor takes the trunk's (or neck's) ``levels`` first, so no channel number is written
    twice. None of the three methods looks at ``self.training`` to choose what it returns: validation calls
    ``losses`` and ``predict`` on one ``raw``, and the network runs once.

    Attributes:
        branch: which branch serves the head in a task, that is how its outputs are evaluated and written:
            ``detection``, ``segmentation``, ``classification``, or the class path of a
            ``tasks.base.branch.Branch`` of your own.
        num_classes: K, the classes that it distinguishes, without a background that no label names.
        balanced: whether class weights have to come from the training data, by :meth:`balance`.
        class_weights: the weights in use, one per class; None without, and before they are known.
    """

    branch: str = ""
    num_classes: int
    balanced: bool = False
    class_weights: Sequence[float] | None = None

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> Any:
        """Compute the raw outputs: a dataclass of tensors.

        Args:
            features: one ``[B, C_i, *S_i]`` map per level, finest first.
            image_size: spatial size of the padded input batch, in pixels.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(features, image_size)")

    def losses(self, raw: Any, targets: Any) -> dict[str, Tensor]:
        """Return named scalar losses in float32; the task sums and logs them."""
        raise NotImplementedError(f"{type(self).__name__} must implement losses(raw, targets)")

    def predict(self, raw: Any, image_sizes: Tensor) -> Any:
        """Return final predictions, in input pixels.

        Args:
            raw: what ``forward`` returned.
            image_sizes: ``[B, n]`` int64, the size of each image inside the padded batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement predict(raw, image_sizes)")

    def named_heads(self) -> dict[str, Head]:
        """Return the heads that branches serve, by name; a head that is not made of heads has no name."""
        return {"": self}

    def balance(self, counts: Sequence[int]) -> None:
        """Weigh classes inversely to how often the training data show them; called if ``balanced``.

        Args:
            counts: per class of the data, at most K of them.

        Raises:
            ValueError: if no class has a count.
        """
        raise NotImplementedError(f"{type(self).__name__} is balanced and must implement balance(counts)")

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Take over class weights, such as a checkpoint's: K finite positive numbers."""
        raise NotImplementedError(f"{type(self).__name__} must implement set_class_weights(weights)")

    def expectations(self, layout: str, **facts: Any) -> dict[str, Any]:
        """Return the settings that weights of a layout take for granted and that this head lacks.

        Args:
            layout: where the weights come from, such as ``detectron2``.
            **facts: what is known of the file.

        Returns:
            The value to set for each option, by its name in the constructor.
        """
        return {}

    def prepare_for_inference(self) -> None:  # noqa: B027, many need nothing
        """Change layers of a copy that will never train, see :func:`.optimised.optimised`."""


@exportable
@dataclass
class RawClassification:
    """What a classification head computes.

    Attributes:
        logits: ``[B, K]``.
    """

    logits: Tensor


@exportable
@dataclass
class ClassProbabilities:
    """What a classification head predicts.

    Attributes:
        probabilities: ``[B, K]`` float32 in 0..1. Rows add up to one where classes exclude each other; with
            ``multi_label`` every class has a probability of its own.
    """

    probabilities: Tensor


class ClassificationHead(Head):
    """Gives an image one class, or any number of them.

    A subclass sets ``num_classes`` and writes ``forward``, ``losses`` (whose targets are
    :class:`ClassTargets`) and ``predict``; if it has class weights, ``balance`` and ``set_class_weights``.

    Attributes:
        multi_label: whether an image may have any number of classes.
    """

    branch = "classification"
    multi_label: bool = False

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawClassification:
        """Compute the raw outputs, see :meth:`Head.forward`; a subclass of that dataclass is allowed."""
        return super().forward(features, image_size)

    def losses(self, raw: RawClassification, targets: ClassTargets) -> dict[str, Tensor]:
        """Return named scalar losses in float32, means over the labelled images."""
        return super().losses(raw, targets)

    def predict(self, raw: RawClassification, image_sizes: Tensor) -> ClassProbabilities:
        """Return the probability of each class, see :meth:`Head.predict`."""
        return super().predict(raw, image_sizes)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Weigh each class inversely to how often it occurs.

    The weight is N / (P * count), with N the sum of the counts and P the number of classes that occur, so
    that the mean weight of a label is one. Classes that do not occur get the weight one.

    Args:
        counts: per class, of which one is positive.
    """
    share = sum(counts) / sum(count > 0 for count in counts)
    return [share / count if count > 0 else 1.0 for count in counts]


class BoxTargets(Protocol):
    """What a detection head reads from a batch; any object with these tensors is allowed.

    Attributes:
        image_sizes: ``[B, 2]`` int64, height and width of each image inside the padded canvas.
        boxes: ``[B, M, 4]`` float32, x1 y1 x2 y2 in canvas pixels.
        labels: ``[B, M]`` int64 in 0..K-1; -1 marks a padding row.
        crowd: ``[B, M]`` bool, regions in which objects were not separated.
    """

    image_sizes: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor


class ClassTargets(Protocol):
    """What a classification head reads from a batch; any object with this tensor is allowed.

    Attributes:
        label: ``[B]`` int64 in 0..K-1, -1 for an image without label; or ``[B, K]`` float32 in 0..1 (several
            labels per image, or labels mixed by mixup and cutmix), a row of -1 for an image without labels.
    """

    label: Tensor


class SharedTargets(Protocol):
    """What :class:`.multi.MultiHead` reads from a batch, which holds the labels of several heads."""

    def for_head(self, name: str) -> Any:
        """Return the targets of the head of that name."""


class MaskTargets(Protocol):
    """What a segmentation head reads from a batch; any object with this tensor is allowed.

    Attributes:
        mask: ``[B, *S]`` integers at the size of the padded input, labels 0..K-1; 255 for pixels to ignore.
    """

    mask: Tensor
