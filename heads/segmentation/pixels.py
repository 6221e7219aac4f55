"""What losses of segmentation compute of one output and mask, once for all of them, in few passes.

Probabilities of all classes are the largest tensors of a step. Cross-entropy and sums of probabilities come
from one softmax here, which is the only such tensor that the backward pass needs, and the backward pass makes
one more, the gradient. Sums by class read the probability of each pixel's own class rather than masks of all
classes. No operator here is refused where torch must be deterministic.

Letters in shapes: B images, K classes, S spatial axes (H, W or D, H, W), N pixels of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...constants import IGNORE_INDEX

LARGE = 2**28  # logits, 1 GiB in float32: more are taken image by image, which costs a second softmax


class Pixels:
    """Logits beside their labels; what losses ask for is computed when first asked, and kept.

    Args:
        logits: ``[B, K, *S]`` of any floating-point type; computed with in float32 at least. More than
            ``LARGE`` of them are made float32 one image at a time for :attr:`rows` and :meth:`sums`.
        mask: ``[B, *S]`` of any integer type, 0..K-1 or 255.
        squared: which :meth:`sums` will be asked for, so that :attr:`rows` come from the same pass; None for
            none.

    Attributes:
        given: the logits as they were given.
        dtype: the type that is computed in.
        labels: ``[B, *S]`` int64, 0 where there is none.
        valid: ``[B, *S]`` bool, the labelled pixels.
        complete: whether all are known to be labelled; false on devices, which looking would synchronise.

    Raises:
        ValueError: if the shapes of logits and mask do not fit.
    """

    def __init__(self, logits: Tensor, mask: Tensor, squared: bool | None = None) -> None:
        if mask.shape != (logits.shape[0], *logits.shape[2:]):
            raise ValueError(
                f"logits [B, K, *S] and mask [B, *S] do not fit: {list(logits.shape)} and {list(mask.shape)}"
            )
        self.given, self.mask = logits, mask
        self.valid = mask != IGNORE_INDEX
        self.complete = all_labelled(self.valid)
        self.labels = mask.long() if self.complete else torch.where(self.valid, mask, 0).long()
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self._single: Tensor | None = None
        self._squared = squared
        self._logits: Tensor | None = None
        self._rows: Tensor | None = None
        self._sums: dict[bool, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def single(self) -> Tensor:
        """The logits as they were given, in float32 at least."""
        if self._single is None:
            self._single = self.given.to(self.dtype)
        return self._single

    @property
    def logits(self) -> Tensor:
        """``[B, K, *S]``, float32 at least, which get no gradient from ignored pixels."""
        if self._logits is None:
            ignored = None if self.complete else ~self.valid[:, None]
            self._logits = self.single if ignored is None else _WithoutGradient.apply(self.single, ignored)
        return self._logits

    @property
    def rows(self) -> Tensor:
        """Cross-entropy of each pixel, ``[B, *S]``; 0, without a gradient, where it is ignored."""
        if self._rows is None and self._squared is not None:
            self.sums(self._squared)
        if self._rows is None:
            (rows,) = self._compute(None)
            self._rows = rows.view(self.mask.shape)
        return self._rows

    def sums(self, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums of each class and image over labelled pixels, ``[B, K]`` each.

        Args:
            squared: whether the second one is of squares.

        Returns:
            The sum of a class's probabilities over its pixels, over all pixels, and the number of its pixels.
        """
        if squared not in self._sums:
            rows, *sums = self._compute(squared)
            self._sums[squared] = (sums[0], sums[1], sums[2])
            if self._rows is None:
                self._rows = rows.view(self.mask.shape)
        return self._sums[squared]

    def check_labels(self) -> None:
        """Raise an IndexError on the CPU for a label of no class, as operators do that read by labels."""
        classes = self.given.shape[1]
        if self.labels.device.type == "cpu" and not torch.compiler.is_compiling() and self.labels.numel():
            least, most = (int(value) for value in self.labels.aminmax())
            if least < 0 or most >= classes:
                raise IndexError(
                    f"the mask has labels from {least} to {most}, but there are {classes} classes"
                )

    def _compute(self, squared: bool | None) -> tuple[Tensor, ...]:
        large = self.given.numel() > LARGE and len(self.given) > 1
        logits = (self.given if large else self.single).flatten(2)
        function = _SoftmaxSumsOfEach if large else _SoftmaxSums
        return function.apply(logits, self.labels.flatten(1), self.valid.flatten(1), self.complete, squared)


def labelled(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits ``[B, K, *S]``, labels ``[B, *S]`` int64 and which pixels have one.

    Labels are 0 where they do not, and logits, float32 at least, get no gradient there.

    Raises:
        ValueError: if the shapes of logits and mask do not fit.
    """
    pixels = Pixels(logits, mask)
    return pixels.logits, pixels.labels, pixels.valid


def all_labelled(valid: Tensor) -> bool:
    """Whether every pixel of a bool tensor is true; false on devices, which looking would synchronise."""
    return valid.device.type == "cpu" and not torch.compiler.is_compiling() and bool(valid.all())


class _SoftmaxSums(torch.autograd.Function):
    """Cross-entropy of each pixel, and sums of probabilities by class.

    Inputs are logits ``[B, K, N]``, labels and validity ``[B, N]``, whether all are valid, and whether to sum
    squares (None for no sums). With p the softmax, y the label, and r, c and q the gradients of the pixel's
    cross-entropy and of the sums over own and all pixels, the gradient of logit j is, for plain sums,

        p_j (q_j - s + r) + [j = y] (p_y c_y - r),    s = sum_k p_k q_k + p_y c_y

    and with squares 2 p_j q_j stands for q_j.
    """

    @staticmethod
    def forward(
        context: Any, logits: Tensor, labels: Tensor, valid: Tensor, complete: bool, squared: bool | None
    ) -> tuple[Tensor, ...]:
        shares, rows = _shares(logits, labels, valid, complete, squared is not None)
        context.complete, context.squared = complete, squared
        context.save_for_backward(shares, labels, valid, rows)
        if squared is None:
            return (rows,)
        sums = _sums(shares, rows, labels, valid, complete, squared)
        context.mark_non_differentiable(sums[2])
        return rows, *sums

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept = context.saved_tensors
        return _gradient(kept, gradients, context.complete, context.squared), None, None, None, None


class _SoftmaxSumsOfEach(torch.autograd.Function):
    """The same image by image; the backward pass computes probabilities again rather than keep them all.

    Logits may be of half precision, as their gradient is then: float32 copies are of one image.
    """

    @staticmethod
    def forward(
        context: Any, logits: Tensor, labels: Tensor, valid: Tensor, complete: bool, squared: bool | None
    ) -> tuple[Tensor, ...]:
        context.complete, context.squared = complete, squared
        context.save_for_backward(logits, labels, valid)
        found = []
        for part in zip(logits.split(1), labels.split(1), valid.split(1), strict=True):
            shares, rows = _shares(_single(part[0]), *part[1:], complete, squared is not None)
            sums = () if squared is None else _sums(shares, rows, *part[1:], complete, squared)
            found.append((rows, *sums))
            del shares
        joined = tuple(map(torch.cat, zip(*found, strict=True)))
        if squared is not None:
            context.mark_non_differentiable(joined[3])
        return joined

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, valid = context.saved_tensors
        complete, squared = context.complete, context.squared
        found = torch.empty_like(logits)
        for index in range(len(logits)):
            scores, *part = (x[index : index + 1] for x in (logits, labels, valid))
            shares, rows = _shares(_single(scores), part[0], part[1], complete, squared is not None)
            of_part = [x[index : index + 1] for x in gradients]
            found[index : index + 1] = _gradient((shares, *part, rows), of_part, complete, squared)
            del shares
        return found, None, None, None, None


def _single(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _shares(
    logits: Tensor, labels: Tensor, valid: Tensor, complete: bool, sums: bool
) -> tuple[Tensor, Tensor]:
    """Return softmax ``[B, K, N]``, 0 in ignored pixels if ``sums`` will be taken, and rows ``[B, N]``."""
    shares = _log_softmax(logits)
    if not logits.shape[1] * logits.shape[2]:
        rows = logits.new_zeros(labels.shape)
    else:
        rows = shares.gather(1, labels[:, None]).squeeze(1).neg_()
    finite = complete or _all_finite(rows)
    if not complete:
        rows = torch.where(valid, rows, 0.0)
    shares.exp_()
    if not finite:
        shares.masked_fill_(~valid[:, None], 0.0)
    elif not complete and sums:
        shares.mul_(valid[:, None].to(shares.dtype))  # several times as fast on a CPU
    return shares, rows


def _own(rows: Tensor, valid: Tensor, complete: bool) -> Tensor:
    """Return the probability of each pixel's own class, 0 in ignored pixels; faster than to gather it."""
    own = rows.neg().exp_()
    return own if complete else torch.where(valid, own, 0.0)


def _sums(
    shares: Tensor, rows: Tensor, labels: Tensor, valid: Tensor, complete: bool, squared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    own = _own(rows, valid, complete)
    common, pixels = sums_by_label(own, labels, None if complete else valid, shares.shape[1])
    return common, shares.square().sum(2) if squared else shares.sum(2), pixels


def _gradient(
    kept: Sequence[Tensor], gradients: Sequence[Tensor], complete: bool, squared: bool | None
) -> Tensor:
    """Return the gradient of the logits, see :class:`_SoftmaxSums`."""
    shares, labels, valid, own_rows = kept
    rows = gradients[0] if complete else torch.where(valid, gradients[0], 0.0)
    index = labels[:, None]
    if squared is None:
        return (shares * rows[:, None]).scatter_add_(1, index, -rows[:, None])
    common, every = gradients[1], gradients[2]
    gradient = shares * every[:, :, None]
    if squared:
        gradient.mul_(shares).mul_(2)
    rest = rows - _own(own_rows, valid, complete) * common.gather(1, labels)  # [B, N]
    gradient.addcmul_(shares, (rest - gradient.sum(1))[:, None])
    return gradient.scatter_add_(1, index, -rest[:, None])


def _all_finite(rows: Tensor) -> bool:
    """Whether no pixel's cross-entropy is NaN or infinite; false on devices, which looking would synchronise.

    Then all its probabilities are finite, and 0 times them is 0.
    """
    return rows.device.type == "cpu" and not torch.compiler.is_compiling() and bool(rows.isfinite().all())


def _log_softmax(x: Tensor) -> Tensor:
    """Log-softmax over the classes of ``[B, K, N]``, in the memory order that it came in.

    Torch's own copies a tensor that has its classes last into the usual order.
    """
    if x.stride(1) == 1 and x.stride(2) == x.shape[1]:
        return x.transpose(1, 2).log_softmax(2).transpose(1, 2)
    return x.log_softmax(1)


def sums_by_label(
    values: Tensor, labels: Tensor, valid: Tensor | None, classes: int
) -> tuple[Tensor, Tensor]:
    """Add up values by label, image by image.

    Args:
        values: ``[B, N]``, 0 where not valid.
        labels: ``[B, N]`` int64, 0 to K-1.
        valid: ``[B, N]`` bool; other pixels are not counted. None if all are.
        classes: K.

    Returns:
        The sums ``[B, K]`` in the type of ``values``, and how many pixels there are of each, as int64.
    """
    # One pass over the pixels; its length depends on the data for other devices, which would wait for it.
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        first = torch.arange(len(labels))[:, None] * classes
        index, number = (labels + first).flatten(), len(labels) * classes
        sums = index.bincount(values.double().flatten(), number)  # float32 would stop growing at 2**24
        counted = None if valid is None else valid.double().flatten()
        pixels = index.bincount(counted, number).long()
        return sums.view(-1, classes).to(values.dtype), pixels.view(-1, classes)
    truth = labels[:, None] == torch.arange(classes, device=labels.device)[:, None]  # [B, K, N]
    sums = torch.where(truth, values[:, None], 0.0).sum(2)
    return sums, (truth if valid is None else truth & valid[:, None]).sum(2)


class _WithoutGradient(torch.autograd.Function):
    """Passes values on as they are, without a copy, and zeros back as the gradient of ignored pixels.

    Such a pixel may hold NaN, and then its gradient is NaN even with a weight of 0.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, ignored: Tensor) -> Tensor:
        context.save_for_backward(ignored)
        return logits.view_as(logits)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (ignored,) = context.saved_tensors
        # Of finite logits it is 0 already; to look costs less than to copy, but it synchronises a device.
        may_look = gradient.device.type == "cpu" and not torch.compiler.is_compiling()
        if may_look and bool(gradient.detach().sum().isfinite()):
            return gradient, None
        return gradient.masked_fill(ignored, 0.0), None
