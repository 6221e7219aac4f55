"""Triton's kernels of suppression, without a GPU: by its interpreter, and compiled for two kinds of GPUs.

Run as a program, with ``TRITON_INTERPRET=1`` and a number of seeds, the file compares the kernels with
torchvision's kernel, with operators of torch and with a loop in plain Python.
"""

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from trunkline.heads.detection import nms, suppress
from trunkline.heads.detection.boxes import box_areas, gather_rows

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def loop(boxes, scores, groups, valid, threshold):
    """Greedy suppression in plain Python; torch does the arithmetic, in float32."""
    keep = torch.zeros_like(valid)
    valid = valid & torch.isfinite(box_areas(boxes)) & torch.isfinite(scores)
    for image in range(len(boxes)):
        kept = []
        order = torch.where(valid[image], scores[image], -math.inf).argsort(descending=True, stable=True)
        for row in order.tolist():
            one = suppress_pairs(boxes[image, kept], boxes[image, row], threshold)
            same = groups[image, kept] == groups[image, row]
            if valid[image, row] and not (one & same).any():
                kept.append(row)
        keep[image, kept] = True
    return keep


def suppress_pairs(boxes, box, threshold):
    sides = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0)
    overlap = sides[:, 0] * sides[:, 1]
    areas, area = box_areas(boxes).clamp(min=0), box_areas(box).clamp(min=0)
    return overlap > threshold * (areas + area - overlap)


def random_inputs(seed, images=2, number=None):
    """Boxes of all kinds: far apart or crowded, ties, chains, without area, with corners exchanged, too large
    for float32, not finite; all or none valid."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    number = int(rand(1) * 120) if number is None else number
    corner = rand(images, number, 2) * (20, 100, 1000)[seed % 3]
    boxes = torch.cat([corner, corner + rand(images, number, 2) * 40], dim=-1)
    scores = rand(images, number)
    if seed % 2:  # ties, sides that are equal, boxes without area
        boxes, scores = boxes.div(8).round() * 8, (scores * 4).round()
    if seed % 5 == 4:  # a chain
        left = 10.0 * torch.arange(number).expand(images, -1)
        boxes = torch.stack([left, 0 * left, left + 20, 0 * left + 20], dim=-1)
        scores = -left
    for value in (math.nan, math.inf, -math.inf):
        boxes[rand(boxes.shape[:2]) < 0.02, seed % 4] = value
        scores[rand(images, number) < 0.02] = value
    exchanged, vast = rand(images, number) < 0.05, rand(images, number) < 0.02
    boxes = torch.where(exchanged[..., None], boxes[..., [2, 1, 0, 3]], boxes)
    boxes = torch.where(vast[..., None], boxes * 1e20, boxes)
    groups = (rand(images, number) * (1 + seed % 3)).long()
    valid = rand(images, number) < (0.8, 1.0, 1.0, 0.0)[seed // 5 % 4]
    return boxes, scores, groups, valid, (0.5, 0.3, 0.7, 0.0)[seed // 3 % 4]


def compare(seed, number=None, slab=4096):
    """Compare the kernels with all other ways for one seed."""
    from trunkline.heads.detection import nms_triton

    nms_triton.SLAB = slab
    boxes, scores, groups, valid, threshold = random_inputs(seed, number=number)
    kept = nms_triton.suppress(boxes, scores, groups, valid, threshold)
    assert torch.equal(kept, loop(boxes, scores, groups, valid, threshold)), (seed, number)
    assert torch.equal(kept, nms.nms_keep(boxes, scores, groups, valid, threshold)), (seed, number)
    # The best first, and one group.
    order = torch.where(torch.isfinite(scores), scores, -math.inf).argsort(
        dim=1, descending=True, stable=True
    )
    boxes, valid = gather_rows(boxes, order), valid.gather(1, order)
    valid = valid & torch.isfinite(box_areas(boxes))
    kept = nms_triton.suppress(boxes, None, None, valid, threshold)
    assert torch.equal(kept, suppress(boxes, torch.zeros_like(groups), valid, threshold)), (seed, number)


def main(seeds):
    for seed in range(seeds):
        compare(seed)
    for number in (0, 1, 31, 32, 33, 64, 65):
        compare(number, number=number)
    for slab in (32, 40, 64):
        compare(slab, number=150, slab=slab)
    if seeds > 100:
        compare(0, number=1100)
        compare(1, number=700, slab=256)


@needs_triton
@pytest.mark.parametrize("seeds", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_the_kernels_are_greedy_suppression_in_tritons_interpreter(seeds):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, str(seeds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("optional", [True, False])
def test_the_kernels_compile_without_contracted_products(architecture, optional):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trunkline.heads.detection import nms_triton

    pointers = {"boxes": "*fp32", "scores": "*fp32", "groups": "*i64", "order": "*i64", "bits": "*i32"}
    types = {**pointers, "source": "*i1", "keep": "*i1", "threshold": "fp32"}
    for kernel in (nms_triton._overlaps, nms_triton._scan, nms_triton._strike):
        constants = {"words": 63, "width": 64}
        if not optional:
            constants |= {"scores": None, "groups": None, "order": None}
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        kinds = {name: types.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(kernel, kinds | dict.fromkeys(constants, "constexpr"), constants)
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options={"enable_fp_fusion": False})
        assert compiled.asm["cubin"]
        assert "fma." not in compiled.asm["ptx"]


if __name__ == "__main__":
    main(int(sys.argv[1]))
