"""Predictions drawn onto images."""

from .boxes import class_colour, contact_sheet, draw_boxes, save_picture

__all__ = ["class_colour", "contact_sheet", "draw_boxes", "save_picture"]
