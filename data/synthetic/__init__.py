"""Small synthetic datasets with known answers. Nothing here needs torch."""

from .pictures import write_classification, write_detection, write_segmentation

__all__ = ["write_classification", "write_detection", "write_segmentation"]
