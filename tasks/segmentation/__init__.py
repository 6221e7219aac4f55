"""A class for every pixel."""

from .task import SemanticSegmentation

__all__ = ["SemanticSegmentation"]
