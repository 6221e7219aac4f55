"""Masks: images with a class per pixel in, batches out."""

from .batches import SegmentationBatch, SegmentationSample, collate_segmentation
from .module import ImageSegmentation

__all__ = ["ImageSegmentation", "SegmentationBatch", "SegmentationSample", "collate_segmentation"]
