"""Preparation of scans and its inverse."""

from .prepare import Placement, Preparation, prepare

__all__ = ["Placement", "Preparation", "prepare"]
