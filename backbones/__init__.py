"""Trunks and necks: images or volumes in, feature maps out."""

from .base import Backbone, FeatureLevel
from .cifar import CifarResNet
from .densenet import DenseNet
from .fpn import FPN
from .residual_encoder import ResidualEncoder
from .resnet import ResNet
from .timm_backbone import TimmBackbone
from .weights.export import detectron2_state
from .weights.load import load_weights

__all__ = [
    "FPN",
    "Backbone",
    "CifarResNet",
    "DenseNet",
    "FeatureLevel",
    "ResNet",
    "ResidualEncoder",
    "TimmBackbone",
    "detectron2_state",
    "load_weights",
]
