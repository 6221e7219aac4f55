"""Boxes and classes from images."""

from .task import Detection

__all__ = ["Detection"]
