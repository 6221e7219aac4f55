"""What all tasks share: composition, steps, branches, optimisation."""

from .task import Task

__all__ = ["Task"]
