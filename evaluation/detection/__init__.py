"""Metrics of boxes."""

from .evaluator import CocoEvaluator

__all__ = ["CocoEvaluator"]
