"""Run by test_matching_triton.py: kernels in Triton's interpreter beside the operators of torch."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from trunkline.heads.detection.boxes import device_paths
from trunkline.heads.detection.matching import match_boxes, match_by_torch


def random_boxes(generator, *shape):
    """Boxes on whole pixels: many are equal, touch each other or have no area; some have odd corners."""
    corner = torch.rand(*shape, 2, generator=generator) * 60
    size = (torch.rand(*shape, 2, generator=generator) * 50 - 3).clamp(min=0)
    boxes = torch.cat([corner, corner + size], dim=-1).round()
    for value in (torch.nan, torch.inf, 1e20, 1e-30, -5.0):
        boxes[torch.rand(boxes.shape, generator=generator) < 0.01] = value
    return boxes


def main():
    seen = torch.zeros(3, dtype=torch.int64)
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        number, rows = [700, 512, 1, 40][seed % 4], [1, 7, 16][seed % 3]
        boxes = random_boxes(generator, 3 if seed % 3 else 1, number)
        truth = random_boxes(generator, 3, rows)
        truth[0, 0] = boxes[0, 0]
        labels = torch.randint(-1, 3, (3, rows), generator=generator)
        crowd = torch.rand(3, rows, generator=generator) < 0.3
        if seed % 2:
            labels[1] = -1  # an image without objects
        for low_quality in (False, True):
            inputs = (boxes, truth, labels, crowd, 0.6, 0.3, 0.5, low_quality)
            with device_paths(triton=True):
                found = match_boxes(*inputs)
            for ours, expected in zip(found, match_by_torch(*inputs), strict=True):
                assert torch.equal(ours, expected), (seed, low_quality)
                assert ours.dtype == expected.dtype
            index, positive, negative = found
            seen += torch.stack([positive.sum(), negative.sum(), (~positive & ~negative).sum()])
    assert (seen > 0).all()
    print("equal")


if __name__ == "__main__":
    main()
