"""Augmentation of images with boxes, masks and keypoints. Only ``transforms`` knows albumentations."""
