"""Masks: pictures with a class per pixel in, batches out."""

from .module import ImageSegmentation

__all__ = ["ImageSegmentation"]
