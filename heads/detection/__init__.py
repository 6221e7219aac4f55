"""Faster R-CNN on whole padded batches."""

from .faster_rcnn import FasterRCNN, RawDetections
from .options import AnchorOptions, RoIOptions, RPNOptions
from .roi import Detections
from .rpn import RPN

__all__ = ["AnchorOptions", "Detections", "FasterRCNN", "RPN", "RPNOptions", "RawDetections", "RoIOptions"]
