"""Numbers with a fixed meaning in every part of the package. Nothing is imported here."""

IGNORE_INDEX = 255
"""In masks and label volumes: a pixel of no class. It is not learned from and not evaluated."""

UNLABELLED = -1
"""In class labels: an image without a label, or a padding row of boxes."""
