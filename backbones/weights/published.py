"""Names of published weights, checked against the network before anything is downloaded."""

from __future__ import annotations

import re
from pathlib import Path


def torchvision_name(weights: str, family: str | None, network: str) -> str:
    """Complete the short names of torchvision's weights; leave any other source as it is.

    Args:
        weights: what the user gave.
        family: what torchvision calls this network, as ``ResNet50``; None if it has no weights for it.
        network: says in errors which network it is.

    Raises:
        ValueError: if the name is of another network, or there is none (before anything is downloaded).
    """
    if weights == "timm" and not Path(weights).exists():
        other = "or null" if family is None else "torchvision, or null"
        raise ValueError(f"weights timm are for a TimmBackbone, not for {network}; give a file, {other}")
    named = re.fullmatch(r"(\w+)_Weights\.\w+", weights)
    if weights != "torchvision" and not re.fullmatch(r"IMAGENET1K_\w+", weights) and not named:
        return weights
    if family is None:
        raise ValueError(f"torchvision has no weights for {network}; give a file, or weights: null")
    if named and named[1] != family:
        raise ValueError(f"weights {weights} do not fit {network}; use {family}_Weights.DEFAULT")
    if named:
        return weights
    return f"{family}_Weights.{'DEFAULT' if weights == 'torchvision' else weights}"
