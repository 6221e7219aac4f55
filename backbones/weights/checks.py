"""What must hold before weights are copied: sound values, and no untrained layer under a trained one."""

from __future__ import annotations

import logging

import torch

from .adapt import shape_difference
from .parts import HEAD, TRUNK
from .plan import Plan, first_names

logger = logging.getLogger("trunkline")

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_values(plan: Plan) -> None:
    """Check that what will be copied into layers are finite floating-point numbers.

    Raises:
        ValueError: naming the tensors that are not.
    """
    names = {id(entry.tensor): entry.key for entry in plan.target.values()}
    floating = [(target, value) for target, value in plan.copies if target.is_floating_point()]
    odd = {
        names[id(target)]: str(value.dtype).removeprefix("torch.")
        for target, value in floating
        if value.dtype not in NUMBERS or value.layout != torch.strided or value.is_meta
    }
    if odd:
        kinds = ", ".join(dict.fromkeys(odd.values()))
        raise ValueError(
            f"{plan.report.source} holds values of another kind ({kinds}) for {first_names([*odd])}; nothing "
            "was loaded. Save the weights as float32, float16 or bfloat16; quantised ones do not fit"
        )
    wrong = [names[id(target)] for target, value in floating if not value.isfinite().all()]
    if wrong:
        raise ValueError(
            f"{plan.report.source} holds values that are not finite, for {first_names(wrong)}; nothing was "
            "loaded. Give weights from before they became so"
        )


def require_trained_below(plan: Plan) -> None:
    """Check that no layer of the trunk is left untrained under layers that get weights.

    The layers above have learned what the missing one gave them: with random numbers in its place they are
    worth little, however large a share of the tensors matches.

    Raises:
        ValueError: naming the layers, and what to do.
    """
    filled = {id(target) for target, _ in plan.copies}
    counted = (entry for entry in plan.target.values() if not entry.key.endswith("num_batches_tracked"))
    order = [entry for entry in counted if entry.part == TRUNK]
    last = max((place for place, entry in enumerate(order) if id(entry.tensor) in filled), default=-1)
    below = [entry for entry in order[:last] if entry.key in plan.untrained]
    if not below:
        return
    lines = [
        f"{plan.report.source} leaves layers untrained under trained ones; nothing was loaded. "
        f"There is nothing that fits {first_names([entry.key for entry in below])}"
    ]
    first = below[0]
    source = plan.source.get((first.part, first.name))
    if source is not None:
        lines.append(f"{source.key}: {shape_difference(source.tensor, first.tensor)}")
        theirs, ours = source.tensor.shape, first.tensor.shape
        kernels = min(len(theirs), len(ours)) > 3 and theirs[-2:] == ours[-2:] and theirs[0] == ours[0]
        if kernels and theirs[1] != ours[1]:
            lines.append(
                f"it reads {theirs[1]} channels, the model {ours[1]}, and which of them mean the same is not "
                f"known (other numbers are made of 3 channels or 1 only): set in_channels: {theirs[1]} and "
                f"give such images, or write a file whose first kernel has {ours[1]}"
            )
            raise ValueError("\n  ".join(lines))
    lines.append("give weights of this very network, or build the model (kernels, norm, stem) to suit them")
    raise ValueError("\n  ".join(lines))


def warn_of_untrained(plan: Plan) -> None:
    """Say which layers start untrained though they belong to a network that is loaded as a whole."""
    lost = [entry for entry in plan.target.values() if entry.key in plan.untrained]
    trunk = [entry.key for entry in lost if entry.part == TRUNK]
    if trunk:
        logger.warning("%s has nothing for %s, which start untrained", plan.report.source, first_names(trunk))
    head = [entry.key for entry in lost if entry.part != TRUNK]
    if not head and HEAD not in plan.parts:
        head = [entry.key for entry in plan.target.values() if entry.part == HEAD]
    if head:
        logger.warning(
            "%s has nothing that fits %s: they start untrained, and predict nothing of use before training",
            plan.report.source,
            first_names(head),
        )
