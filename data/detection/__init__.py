"""Boxes: COCO files in, batches of images with boxes out."""

from .batches import DetectionBatch, DetectionSample, collate_detection
from .module import CocoDetection

__all__ = ["CocoDetection", "DetectionBatch", "DetectionSample", "collate_detection"]
