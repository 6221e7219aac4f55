"""Copies of networks for inference only: the same outputs with less work.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .norms import FrozenBatchNorm


@runtime_checkable
class PreparesForInference(Protocol):
    """A module that changes its layers in a copy that will never train."""

    def prepare_for_inference(self) -> None:
        """Change them; the state dict may be another one afterwards."""


Network = TypeVar("Network", bound=nn.Module)

# Largest difference from the network as it was, as a share of its largest output, in exact float32. It is
# 1e-6 to 1e-5 for 18 to 101 layers; TF32, the default of convolutions on GPUs, alone makes more than 1e-3.
_TOLERANCE = 1e-3
_HALVES = (torch.float16, torch.bfloat16)


@torch.inference_mode(False)  # where versions of tensors are not counted
@torch.no_grad()
def optimised(network: Network, run: Callable[[Network], Any], memo: dict[int, Any] | None = None) -> Network:
    """Return a copy of a network for inference: norms folded, nothing trainable, channels last.

    A batch norm with fixed statistics directly after a convolution is a factor and a shift per channel, and
    becomes part of the convolution's weight and bias (Jacob et al. 2018, section 3.2). Weights of 2-D
    convolutions lie in memory channels last, in which CPUs and tensor cores are faster; give images
    in the same order. Parts with a method ``prepare_for_inference`` have it called. Outputs differ from the
    network's own by rounding; that is checked in exact float32 (no TF32, no autocast), on its own device.
    Weights of half precision are folded and checked in float32, and then rounded to their type again.

    Args:
        network: stays as it is. Its copy is in evaluation mode and cannot be trained.
        run: runs the network it is given, whose weights are float32 where they were of half precision, on an
            example and returns the outputs, in any nest of tuples, lists, dictionaries and objects with
            attributes. It must run each layer as often as inference does.
        memo: objects by their ``id`` that take the place of attributes in the copy, as for ``copy.deepcopy``.

    Raises:
        ValueError: if weights are floating point of 8 bits.
        RuntimeError: if the copy does not compute the same.
    """
    twin = copy.deepcopy(network, memo).eval().requires_grad_(False)
    kinds = _kinds(twin)
    if set(kinds.values()) & {*_HALVES}:
        twin._apply(lambda value: value.float() if value.dtype in _HALVES else value)
    with _exact_float32(), _without_autocast(twin):
        expected = list(_tensors(run(twin)))
        for conv, norm in _pairs(twin, run):
            _fold(twin, conv, norm)
        for module in list(twin.modules()):
            if isinstance(module, PreparesForInference):
                module.prepare_for_inference()
        for parameter in twin.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        _require_same(expected, list(_tensors(run(twin))))
    _restore(twin, kinds)
    return twin.eval()  # again: frozen norms forget what they have computed of other types


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """Let no device round the inputs of float32 convolutions and matrix products, inside the block."""
    backends: Any = torch.backends  # their parts have no types
    places = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _without_autocast(network: nn.Module) -> contextlib.AbstractContextManager[Any]:
    device = next((parameter.device.type for parameter in network.parameters()), "cpu")
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def _kinds(network: nn.Module) -> dict[str, torch.dtype]:
    """Return the type of every floating-point parameter and buffer, by name; those of 8 bits are an error."""
    states = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    kinds = {name: value.dtype for name, value in states.items() if value.is_floating_point()}
    unknown = set(kinds.values()) - {torch.float32, torch.float64, *_HALVES}
    if unknown:
        raise ValueError(f"the weights are {', '.join(map(str, unknown))}; optimise in float32, then convert")
    return kinds


def _restore(network: nn.Module, kinds: dict[str, torch.dtype]) -> None:
    """Round parameters and buffers to their types of before; a new one gets that of its module's weight."""
    usual = Counter(kinds.values()).most_common(1)
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        for table in (module._parameters, module._buffers):
            for part, value in table.items():
                if value is not None and value.is_floating_point():
                    weight = kinds.get(f"{prefix}weight", usual[0][0] if usual else value.dtype)
                    value.data = value.data.to(kinds.get(prefix + part, weight))


def _pairs(network: nn.Module, run: Callable[[Any], Any]) -> list[tuple[str, str]]:
    """Names of convolutions, and of the norms that read nothing but their output."""
    # By the id of their output, which is held so that no id comes twice; and its version: a shortcut may have
    # been added to it in place.
    made: dict[int, tuple[str, Tensor, int]] = {}
    pairs: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()

    def after_conv(name: str, output: Tensor) -> None:
        calls[name] += 1
        made[id(output)] = name, output, output._version

    def before_norm(name: str, value: Tensor) -> None:
        calls[name] += 1
        conv, _, version = made.get(id(value), ("", value, -1))
        if value._version == version:
            pairs.append((conv, name))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd):
            hooks.append(module.register_forward_hook(lambda _, __, out, name=name: after_conv(name, out)))
        elif _is_fixed(module):
            hooks.append(module.register_forward_pre_hook(lambda _, x, name=name: before_norm(name, x[0])))
    try:
        run(network)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def _is_fixed(module: nn.Module) -> bool:
    """Whether a layer is a batch norm that uses statistics it has stored."""
    if isinstance(module, FrozenBatchNorm):
        return True
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _fold(network: nn.Module, conv_name: str, norm_name: str) -> None:
    """Make a norm part of the convolution before it, in place."""
    conv: Any = network.get_submodule(conv_name)
    norm: Any = network.get_submodule(norm_name)
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    transposed = isinstance(conv, _ConvTransposeNd)
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, transpose=transposed)
    conv.requires_grad_(False)
    parent, _, name = norm_name.rpartition(".")
    # timm's norms, and no others, end with a dropout and an activation of their own: its names for them.
    rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
    setattr(network.get_submodule(parent), name, nn.Sequential(*rest) if rest else nn.Identity())


def _require_same(expected: list[Tensor], outputs: list[Tensor]) -> None:
    for before, after in zip(expected, outputs, strict=True):
        largest = before.abs().max() if before.numel() else 0
        difference = (before - after).abs().max() if before.numel() else 0
        if not difference <= _TOLERANCE * largest:  # NaN included
            raise RuntimeError(
                f"the optimised copy differs by up to {difference:.3g} of {largest:.3g}: "
                "use the network itself, and please report this"
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in a nest of containers and plain objects."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
