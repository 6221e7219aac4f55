"""Branches: feature maps in; raw outputs, losses or predictions out."""

from .base import Head
from .classification import Classifier
from .detection import DetectionHead, FasterRCNN
from .segmentation import FCN, DeepLabV3, DeepLabV3Plus, SemanticFPN, UNet

__all__ = [
    "FCN",
    "Classifier",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DetectionHead",
    "FasterRCNN",
    "Head",
    "SemanticFPN",
    "UNet",
]
