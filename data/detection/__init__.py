"""Boxes: COCO files in, batches of images with boxes out."""

from .module import CocoDetection

__all__ = ["CocoDetection"]
