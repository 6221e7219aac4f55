"""Metrics of label volumes, in mm."""

from .evaluator import VolumeEvaluator
from .result import VolumeResult

__all__ = ["VolumeEvaluator", "VolumeResult"]
