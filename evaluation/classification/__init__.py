"""Metrics of classes of whole images."""

from .evaluator import ClassificationEvaluator, ClassificationResult

__all__ = ["ClassificationEvaluator", "ClassificationResult"]
