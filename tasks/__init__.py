"""Lightning modules that join trunk, neck and head; the tasks are in the packages by kind of label."""

from .base.branch import Branch
from .base.task import Task
from .base.writer import FileWriter

__all__ = ["Branch", "FileWriter", "Task"]
