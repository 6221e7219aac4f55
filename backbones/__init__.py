"""Trunks and necks: images or volumes in, feature maps out."""

from .base import Backbone, FeatureLevel
from .fpn import FPN
from .resnet import ResNet
from .weights import load_weights

__all__ = ["FPN", "Backbone", "FeatureLevel", "ResNet", "load_weights"]
