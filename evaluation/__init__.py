"""Predictions in; metrics, report files and pictures out."""

from .base import EvaluationContext, Evaluator, Prediction, Result
from .distributed import gather_objects
from .files import write_csv, write_json
from .pictures import save_picture

__all__ = [
    "EvaluationContext",
    "Evaluator",
    "Prediction",
    "Result",
    "gather_objects",
    "save_picture",
    "write_csv",
    "write_json",
]
