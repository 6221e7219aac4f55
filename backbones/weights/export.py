"""Writes our weights under the names of other libraries."""

from __future__ import annotations

from torch import Tensor, nn

from .adapt import flip_channels
from .detectron2 import detectron2_name
from .keymaps import entries
from .parts import HEAD, NECK, TRUNK


def detectron2_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a trunk, an FPN or a whole detector under detectron2's names.

    The first convolution is turned to B, G, R, as detectron2 reads images. Its network gives the same only if
    its settings are those that :func:`.detectron2.unmet_settings` requires of ours:
    ``MODEL.RESNETS.STRIDE_IN_1X1``, ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD`` (on its scale 0..255, in the order
    B, G, R), unrounded anchors and aligned RoIAlign. To write a file for its ``DetectionCheckpointer``,
    pickle ``{"model": {name: tensor.numpy()}, "__author__": "..."}``.

    Args:
        module: a ``ResNet``, an ``FPN`` on one, or a ``Detection`` task with ``FasterRCNN``.

    Returns:
        Copies on the CPU; counters of batches, which its frozen norms do not have, are left out.

    Raises:
        ValueError: if detectron2 has no name for a tensor.
    """
    table = entries(module.state_dict())
    task = any(part == HEAD for part, _ in table)
    neck = any(part == NECK for part, _ in table)
    outer = "backbone." if task else ""
    prefixes = {TRUNK: outer + ("bottom_up." if neck else ""), NECK: outer, HEAD: ""}
    state = {}
    for (part, name), entry in table.items():
        if name.endswith("num_batches_tracked"):
            continue
        theirs = detectron2_name(part, name)
        if theirs is None:
            raise ValueError(
                f"detectron2 has no tensor like {entry.key}; it knows ResNets with FPN and Faster R-CNN"
            )
        tensor = entry.tensor
        if (part, name) == (TRUNK, "conv1.weight") and tensor.shape[1] == 3:
            tensor, _ = flip_channels(tensor)
        state[prefixes[part] + theirs] = tensor.detach().clone().cpu()
    return state
