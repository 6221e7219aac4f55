"""Checkpointing of the residual trunks: less memory, the same results."""

import copy

import pytest
import torch
from torch import nn

from trunkline.backbones import CifarResNet, ResNet


def tiny(depth=50, **options):
    return ResNet(depth, **{"width": 8, "width_per_group": 64, **options})


NETS = {
    "v1": lambda **more: tiny(18, **more),
    "bottleneck, stochastic": lambda **more: tiny(26, stochastic_depth=0.3, **more),
    "v2": lambda **more: tiny(26, pre_activation=True, stochastic_depth=0.3, **more),
    "cifar": lambda **more: CifarResNet(20, **more),
    "3-D": lambda **more: tiny(10, ndim=3, **more),
}


@pytest.mark.parametrize("name", NETS)
def test_checkpointing_changes_memory_and_nothing_else(name):
    """Same outputs, gradients and running statistics; fewer bytes kept for the backward pass."""
    torch.manual_seed(1)
    kept = NETS[name]()
    again = NETS[name](checkpointing=True)
    again.load_state_dict(copy.deepcopy(kept.state_dict()))
    image = torch.randn(4, 3, *(32,) * kept.ndim)
    sizes = []
    for net in (kept, again):
        saved = {}
        pack = lambda x, saved=saved: saved.setdefault((x.data_ptr(), x.shape), x)  # noqa: E731
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = sum(x.square().mean() for x in net(image))
        parameters = {p.data_ptr() for p in net.parameters()}
        sizes.append(sum(x.nbytes for (address, _), x in saved.items() if address not in parameters))
        loss.backward()
    assert sizes[1] < sizes[0] * (0.95 if name == "3-D" else 0.7)  # the stem is never checkpointed
    for (key, x), y in zip(kept.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(x, y), key
    for (key, p), q in zip(kept.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=key)


def test_batch_norms_count_batches_again_after_a_checkpointed_step():
    net = tiny(10, checkpointing=True)
    for _ in range(3):
        sum(x.mean() for x in net(torch.randn(2, 3, 32, 32))).backward()
    assert {int(m.num_batches_tracked) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {3}


def test_a_kept_graph_of_checkpointed_blocks_goes_backward_twice():
    net = tiny(10, checkpointing=True)
    loss = net(torch.randn(2, 3, 32, 32))[-1].square().mean()
    first, second = (torch.autograd.grad(loss, net.conv1.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.any()
    assert {int(m.num_batches_tracked) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("pre_activation", [False, True])
def test_a_compiled_checkpointed_step_is_the_ordinary_one(pre_activation):
    """Without a graph break, and each batch counts once."""
    plain = tiny(10, checkpointing=True, pre_activation=pre_activation)
    compiled = copy.deepcopy(plain)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    image = torch.randn(2, 3, 32, 32)
    for net in (plain, run):
        sum(x.square().mean() for x in net(image)).backward()
    for (key, x), y in zip(plain.state_dict().items(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=key)
    for (key, p), q in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(q[1].grad, p.grad, msg=key)
