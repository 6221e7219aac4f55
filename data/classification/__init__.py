"""Classes of whole images: folders, zips or CSV files in, batches out."""

from .batches import ClassificationBatch, ClassificationSample, collate_classification
from .module import ImageClassification

__all__ = ["ClassificationBatch", "ClassificationSample", "ImageClassification", "collate_classification"]
