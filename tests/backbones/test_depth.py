"""Very deep networks: what shortcuts do for the gradient, and 1202 layers in little memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones import CifarResNet


def first_gradient(depth, seed=0, **options):
    """Norm of the loss's gradient at the first convolution, at initialisation."""
    torch.manual_seed(seed)
    image, label = torch.randn(16, 3, 16, 16), torch.randint(0, 10, (16,))
    net, classifier = CifarResNet(depth, **options), nn.Linear(64, 10)
    F.cross_entropy(classifier(net(image)[-1].mean((2, 3))), label).backward()
    return net.conv1.weight.grad.norm().item()


def test_without_norms_the_plain_nets_gradient_vanishes_with_depth():
    """frozen_batch at its initial values is the identity: what is left are convolutions and ReLUs."""
    shallow = first_gradient(20, norm="frozen_batch", shortcut="none")
    deep = first_gradient(110, norm="frozen_batch", shortcut="none")
    assert 0 < deep < shallow / 50


def test_with_batch_norm_the_plain_nets_gradient_explodes_and_the_residual_nets_does_not():
    """Yang et al. 2019: batch norm multiplies the gradient in every layer of a net without shortcuts."""
    plain = first_gradient(110, shortcut="none") / first_gradient(20, shortcut="none")
    residual = first_gradient(110) / first_gradient(20)
    assert plain > 1e5
    assert residual < 20  # less than its number of blocks has grown, squared


def test_the_residual_nets_gradient_is_flat_with_depth_if_blocks_begin_as_identities():
    gradients = [first_gradient(depth, zero_init_residual=True) for depth in (20, 56, 110)]
    assert max(gradients) < 1.5 * min(gradients)


@pytest.mark.slow
def test_1202_layers_train_a_step_keeping_only_the_blocks_inputs():
    torch.manual_seed(0)
    net, classifier = CifarResNet(1202, checkpointing=True), nn.Linear(64, 10)
    image, label = torch.randn(2, 3, 32, 32), torch.tensor([3, 7])
    saved = {}
    pack = lambda x: saved.setdefault((x.data_ptr(), x.shape), x)  # noqa: E731
    optimizer = torch.optim.SGD([*net.parameters(), *classifier.parameters()], lr=1e-3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = F.cross_entropy(classifier(net(image)[-1].mean((2, 3))), label)
    own = {p.data_ptr() for p in net.parameters()}
    floats = sum(x.numel() for (address, _), x in saved.items() if address not in own)
    inputs = 2 * 200 * (16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8)  # one map per block and image
    assert floats < 1.1 * inputs
    before = net.conv1.weight.detach().clone()
    loss.backward()
    optimizer.step()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    assert net.layer3[199].conv2.weight.grad.any() and not torch.equal(net.conv1.weight, before)
