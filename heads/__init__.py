"""Branches: feature maps in; raw outputs, losses or predictions out."""

from .base import Head
from .detection import FasterRCNN

__all__ = ["FasterRCNN", "Head"]
