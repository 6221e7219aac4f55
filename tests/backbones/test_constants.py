"""Constants that are no buffers: they follow the module to any device, and nothing else changes them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trunkline.backbones.constants import WithConstants, move_constants
from trunkline.backbones.layers import BlurPool

VALUES = (0.1, 0.7)  # not exact in half precision


class Scale(WithConstants):
    factors: torch.Tensor

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.set_constant("factors", lambda: torch.tensor(VALUES))

    def forward(self, x):
        return x * self.weight * self.factors


def expected(device="cpu"):
    return torch.tensor(VALUES, device=device)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_casts_leave_them_alone(cast):
    module = nn.Sequential(Scale())
    getattr(module, cast)()
    assert module[0].factors.dtype == torch.float32
    assert torch.equal(module[0].factors, expected())


def test_they_are_not_in_the_state():
    module = Scale()
    assert set(module.state_dict()) == {"weight"}
    assert not list(module.buffers())


def test_they_move_to_another_device_and_type_at_once():
    module = nn.Sequential(Scale()).to("meta", torch.float16)
    assert module[0].factors.device.type == "meta"
    assert module[0].factors.dtype == torch.float32


@pytest.mark.parametrize(
    "move", [lambda m: m.to("cuda:0"), lambda m: m.cuda(), lambda m: m.to_empty(device="cuda")]
)
def test_they_move_to_a_gpu(move, monkeypatch):
    # A fake device; parameters, which torch cannot move to it, are left out.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = nn.Sequential(BlurPool(3, (2, 2)))
        move(module)
        assert module[0].kernel.device == torch.device("cuda:0")
        assert module[0](torch.zeros(1, 3, 8, 8, device="cuda:0")).device.type == "cuda"
        module.half()
        assert module[0].kernel.device.type == "cuda" and module[0].kernel.dtype == torch.float32
        module.cpu()
        assert module[0].kernel.device.type == "cpu"


def test_values_survive_the_meta_device():
    with torch.device("meta"):
        module = Scale()
    assert module.factors.device.type == "meta" and module.weight.device.type == "meta"
    module.to_empty(device="cpu")
    assert torch.equal(module.factors, expected())


def test_one_that_is_set_later_is_on_the_device_of_the_module():
    module = Scale().to("meta")
    module.set_constant("more", lambda: torch.ones(3))
    assert module.more.device.type == "meta"
    module.drop_constant("more")
    assert module.more is None
    module.to_empty(device="cpu")
    assert module.more is None


def test_copies_and_pickles_keep_them():
    for other in (copy.deepcopy(Scale()), pickle.loads(pickle.dumps(Scale()))):
        assert torch.equal(other.factors, expected())
        assert torch.equal(other.to("meta").to_empty(device="cpu").factors, expected())
    assert torch.equal(copy.deepcopy(Scale().to("meta")).to_empty(device="cpu").factors, expected())


def test_training_works_after_a_move_inside_inference_mode():
    with torch.device("meta"):
        module = Scale()
    module.weight = nn.Parameter(torch.ones(2))
    with torch.inference_mode():
        module.move_constants(torch.device("cpu"))
        module(torch.ones(2))
    assert not module.factors.is_inference()
    module(torch.ones(2, requires_grad=True)).sum().backward()
    assert torch.equal(module.weight.grad, expected())


def test_training_works_with_one_that_was_made_inside_inference_mode():
    with torch.inference_mode():
        ready = torch.tensor(VALUES)
    module = Scale()
    with torch.inference_mode():
        module.set_constant("factors", lambda: ready)
    module(torch.ones(2)).sum().backward()
    assert torch.equal(module.weight.grad, expected())


def test_those_of_all_modules_inside_move():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Scale()))
    move_constants(module, torch.device("meta"))
    assert module[1][0].factors.device.type == "meta"
    assert module[1][0].weight.device.type == "cpu"


def test_one_that_is_made_elsewhere_is_refused():
    with pytest.raises(ValueError, match="factors must be made on torch's default device, not meta"):
        Scale().set_constant("factors", lambda: torch.ones(2, device="meta"))


def test_blur_pools_train_after_a_validation_elsewhere():
    with torch.device("meta"):
        blur = BlurPool(4, (2, 2))
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.inference_mode():
        blur.to_empty(device="cpu")
        blur(x)
    blur(x).sum().backward()
    assert torch.allclose(x.grad.sum(), torch.tensor(64.0))  # every output is a mean of the input
