"""Files on disk in, batches out."""

from .batches import DetectionBatch, DetectionSample, collate_detection
from .coco import CocoDetection, CocoDetectionDataset

__all__ = ["CocoDetection", "CocoDetectionDataset", "DetectionBatch", "DetectionSample", "collate_detection"]
