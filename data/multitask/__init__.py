"""Boxes and masks of the same images."""

from .module import CocoDetectionAndMasks

__all__ = ["CocoDetectionAndMasks"]
