"""The memory of a plan: counted by hand, and against a real step."""

import math

import pytest
import torch
from torch import nn

from trunkline.planning.memory import DEVICE, GIB, Memory, Network, saved_bytes, training_memory
from trunkline.planning.shape import (
    Stages,
    stages_of,
)


def test_saved_bytes_by_hand():
    """A convolution keeps its input, 16 numbers, a sigmoid its output, 32, and a square that once more."""
    conv = nn.Conv2d(1, 2, 1, device="meta")
    image = torch.empty(1, 1, 4, 4, device="meta")
    sizes = saved_bytes(lambda: conv(image).sigmoid().square().sum(), list(conv.parameters()))
    assert sorted(sizes) == [64, 128]
    weights = saved_bytes(lambda: conv(image).sum())
    assert sorted(weights) == [8, 64]  # not told that the two weights are parameters


STAGES = Stages(((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))


def test_maps_of_a_small_network_by_hand():
    """V voxels, v = V / 8 after the step; each convolution's input and output, and each activation, once."""
    with torch.device("meta"):
        trunk, head = Network(in_channels=2, num_classes=3).build(STAGES)
    image = torch.empty(1, 2, 32, 32, 32, device="meta")
    parameters = [*trunk.parameters(), *head.parameters()]
    found = sum(saved_bytes(lambda: head(trunk(image), (32, 32, 32)).logits.sum(), parameters))
    fine = 2 + 2 * 32  # the image; the first convolution and its activation
    fine += 4 * 32  # a block: two convolutions, the activation between, that of the sum
    coarse = 4 * 64 + 32 + 64  # a block with a shortcut: the pooled map, and its convolution
    coarse += 2 * 4 * 64  # two more blocks
    fine += 64 + 2 * 32  # decoder: what was upsampled beside the skip; a convolution, its activation
    assert found == pytest.approx(4 * 32**3 * (fine + coarse / 8), rel=1e-3)  # more: statistics of norms


def test_the_count_is_that_of_a_real_step_in_mixed_precision():
    """What autograd keeps in a step on the CPU: the maps, and the copies of the weights in bfloat16."""
    network, patch = Network(1, 4), (32, 32, 16)
    memory = training_memory(network, STAGES, patch)
    trunk, head = network.build(STAGES)
    parameters = [*trunk.parameters(), *head.parameters()]
    image, mask = torch.randn(1, 1, *patch), torch.randint(0, 4, (1, *patch), dtype=torch.uint8)
    mask[0, 0, 0, 0] = 255  # on a CPU losses keep less where every voxel has a label; devices do not look
    targets = type("Targets", (), {"mask": mask})()

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            raw = head(trunk(image), patch)
        return torch.stack(list(head.losses(raw, targets).values())).sum()

    assert memory.parameters == sum(weight.numel() for weight in parameters)
    pooled = 4 * 32 * math.prod(patch)  # which on this device happens in float32, on a copy of its own
    found = sum(saved_bytes(step, parameters))
    assert found == pytest.approx(memory.saved + 2 * memory.parameters + pooled, rel=2e-3)


def test_memory_grows_with_everything():
    network = Network(1, 2)
    base = training_memory(network, STAGES, (16, 16, 16))
    double = training_memory(network, STAGES, (16, 16, 32))
    assert double.saved == pytest.approx(2 * base.saved, rel=2e-3) and double.parameters == base.parameters
    assert training_memory(Network(1, 9), STAGES, (16, 16, 16)).saved > base.saved
    assert training_memory(Network(3, 2), STAGES, (16, 16, 16)).saved > base.saved
    deeper = training_memory(network, stages_of((1, 1, 1), (32, 32, 32)), (16, 16, 16))
    assert deeper.parameters > base.parameters and deeper.saved > base.saved


def test_batches_that_fit_by_hand():
    memory = Memory(parameters=GIB // 14, saved=GIB, largest=GIB // 3)
    # 0.75 for libraries, 1 for 14 bytes a parameter, and 1.2 * (1 + 3 / 3) for each patch.
    assert DEVICE / GIB == 0.75 and memory.of(2) / GIB == pytest.approx(1.75 + 4.8)
    assert memory.largest_batch(6.56 * GIB) == 2 and memory.largest_batch(6.54 * GIB) == 1
    assert memory.largest_batch(GIB) == 0
    wanted = [memory.of(batch) for batch in range(5)]
    assert wanted == sorted(wanted)
