"""Preparation of scans and its inverse."""

from .prepare import Placement, Preparation

__all__ = ["Placement", "Preparation"]
