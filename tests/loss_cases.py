"""Logits and masks that the tests of segmentation losses share."""

import torch

K = 4
WEIGHTS = [0.5, 2.0, 1.0, 3.0]
SHAPES = [(6, 7), (3, 4, 5)]
NAN = float("nan")


def batch(shape=(6, 7), ignored=0.3, classes=K, images=2, seed=0):
    """Logits and a mask of which every class but the last occurs, in one image or both."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, *shape, generator=generator)
    mask = torch.randint(0, classes - 1, (images, *shape), generator=generator)
    mask[0] = mask[0].clamp(min=1)  # the first image has no class 0
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), mask


def value_and_gradient(loss, logits, mask):
    value = loss(logits, mask)
    return value, torch.autograd.grad(value, logits)[0]
