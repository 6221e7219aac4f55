"""The classes of labels, and the lists and tables that name them."""

from .classes import Colour, LabelClass, voc_colour

__all__ = ["Colour", "LabelClass", "voc_colour"]
