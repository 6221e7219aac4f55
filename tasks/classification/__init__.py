"""Classes of whole images or scans."""

from .task import Classification

__all__ = ["Classification"]
