"""Helpers of the trunk tests: nets whose every tensor matters."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def randomise():
    """Give norms random affine maps and statistics, so that a wrong or missing one shows in the output."""

    def apply(module):
        for part in module.modules():
            if getattr(part, "running_var", None) is not None:
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
            if hasattr(part, "running_var") or isinstance(part, torch.nn.GroupNorm):
                torch.nn.init.uniform_(part.weight, 0.5, 1.2)
                torch.nn.init.normal_(part.bias, 0, 0.2)
        return module

    return apply
