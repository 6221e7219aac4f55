"""Where a tensor belongs: the vocabulary of the key maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

TRUNK, NECK, HEAD, OTHER = "trunk", "neck", "head", "other"
# Pieces of a segmentation head that files may have or lack, and that several kinds of head share.
AUXILIARY, ASPP = "auxiliary classifier", "ASPP"
Slot = tuple[str, str]  # part, and our name relative to it


@dataclass(frozen=True)
class Entry:
    """One tensor of a state dict under our name for it.

    Attributes:
        key: its name in the state dict.
        part: ``trunk``, ``neck``, ``head``, ``auxiliary classifier``, ``ASPP`` or ``other`` (what belongs to
            none of these).
        name: our name for it, relative to the part.
        tensor: the tensor itself.
        background_first: whether rows stand for classes as in torchvision: background 0, then category ids.
    """

    key: str
    part: str
    name: str
    tensor: Tensor
    background_first: bool = False
