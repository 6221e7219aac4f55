"""Branches: feature maps in; raw outputs, losses or predictions out."""

from .base import Head
from .classification import Classifier
from .detection import FasterRCNN

__all__ = ["Classifier", "FasterRCNN", "Head"]
