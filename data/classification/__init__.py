"""Classes of whole images: folders, zips or CSV files in, batches out."""

from .module import ImageClassification

__all__ = ["ImageClassification"]
