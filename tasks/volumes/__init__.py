"""A label for every voxel of a scan."""

from .task import VolumeSegmentation

__all__ = ["VolumeSegmentation"]
