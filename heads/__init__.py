"""Branches: feature maps in; raw outputs, losses or predictions out."""

from .base import (
    ClassificationHead,
    ClassProbabilities,
    ClassTargets,
    Head,
    NumClasses,
    RawClassification,
    class_number,
)
from .classification import Classifier
from .detection import DetectionHead, FasterRCNN
from .multi import MultiHead
from .segmentation import FCN, DeepLabV3, DeepLabV3Plus, SegmentationHead, SemanticFPN, UNet

__all__ = [
    "FCN",
    "ClassProbabilities",
    "ClassTargets",
    "ClassificationHead",
    "Classifier",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DetectionHead",
    "FasterRCNN",
    "Head",
    "MultiHead",
    "NumClasses",
    "RawClassification",
    "SegmentationHead",
    "SemanticFPN",
    "UNet",
    "class_number",
]
