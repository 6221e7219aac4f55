"""COCO files: records and outlines, read and checked."""
