"""What data modules of several kinds use: images, batches, augmentation, checks, loaders."""
