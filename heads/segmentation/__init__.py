"""Semantic segmentation: a class for every pixel."""

from .base import RawSegmentation, Segmentation, SegmentationHead
from .deeplab import DeepLabV3, DeepLabV3Plus
from .fcn import FCN
from .losses import (
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    OnlineHardExampleMining,
    SegmentationLoss,
    Tversky,
    WeightedSum,
)
from .pixels import labelled
from .semantic_fpn import SemanticFPN
from .unet import UNet

__all__ = [
    "FCN",
    "CrossEntropy",
    "DeepLabV3",
    "DeepLabV3Plus",
    "Dice",
    "Focal",
    "Lovasz",
    "OnlineHardExampleMining",
    "RawSegmentation",
    "Segmentation",
    "SegmentationHead",
    "SegmentationLoss",
    "SemanticFPN",
    "Tversky",
    "UNet",
    "WeightedSum",
    "labelled",
]
