"""Metrics of masks."""

from .evaluator import SegmentationEvaluator, SegmentationResult

__all__ = ["SegmentationEvaluator", "SegmentationResult"]
