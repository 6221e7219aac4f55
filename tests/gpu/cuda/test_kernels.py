"""Triton's kernels on the real device beside the same in torch."""

import pytest
import torch

from trunkline.heads.detection.matching import match_boxes, match_by_torch
from trunkline.heads.detection.nms import nms_keep

pytestmark = pytest.mark.gpu


def boxes_of(images, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, number, 2, generator=generator) * 300
    return torch.cat([corner, corner + 5 + 100 * torch.rand(images, number, 2, generator=generator)], -1)


@pytest.mark.parametrize("number", [1, 31, 33, 500, 4500])
def test_suppression_keeps_what_the_cpu_keeps(number, device):
    generator = torch.Generator().manual_seed(1)
    boxes, scores = boxes_of(3, number), torch.rand(3, number, generator=generator)
    groups = torch.randint(4, (3, number), generator=generator)
    valid = torch.rand(3, number, generator=generator) > 0.1
    inputs = boxes, scores, groups, valid
    kept = nms_keep(*(x.to(device) for x in inputs), 0.5)
    assert torch.equal(kept.cpu(), nms_keep(*inputs, 0.5))


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_matching_finds_what_torch_finds_on_the_cpu(rows, low_quality, device):
    generator = torch.Generator().manual_seed(2)
    boxes, truth = boxes_of(2, 3000), boxes_of(2, rows, seed=3)
    labels = torch.randint(-1, 5, (2, rows), generator=generator)
    crowd = torch.rand(2, rows, generator=generator) > 0.8
    inputs, options = (boxes, truth, labels, crowd), (0.5, 0.4, 0.7, low_quality)
    found = match_boxes(*(x.to(device) for x in inputs), *options)
    index, positive, negative = match_by_torch(*inputs, *options)
    # An IoU that falls on a threshold may round to either side of it.
    assert (found[1].cpu() != positive).float().mean() < 1e-3
    assert (found[2].cpu() != negative).float().mean() < 1e-3
    both = positive & found[1].cpu()
    assert (found[0].cpu()[both] != index[both]).float().mean() < 1e-2
