"""What tests of loading compare: the tensors of a module, before and after."""

import torch


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
