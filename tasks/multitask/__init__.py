"""Several heads on one trunk."""

from .task import MultiTask

__all__ = ["MultiTask"]
