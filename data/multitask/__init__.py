"""Boxes and masks of the same images."""

from .batches import MultiTaskBatch, MultiTaskSample, collate_multi
from .module import CocoDetectionAndMasks

__all__ = ["CocoDetectionAndMasks", "MultiTaskBatch", "MultiTaskSample", "collate_multi"]
