"""Constants of modules that are no buffers: anchors, blur kernels, class weights, mean pixels.

A buffer would be cast together with the network (``.half()``), averaged by weight averaging, broadcast by
DistributedDataParallel in every step and, without ``persistent=False``, saved. A plain attribute would stay
behind when the module moves; moving it in ``forward`` synchronises the device and makes, inside inference
mode, a tensor with which training fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class WithConstants(nn.Module):
    """A module with plain tensors that are always on the device to which the module was moved last.

    Set them with :meth:`set_constant` and read them as attributes. They keep their type when the module is
    cast, are not in the state dict, and are never tensors of inference mode. Each move copies them from their
    values on the CPU, so that they survive a module that was built on the meta device.

    >>> class Scale(WithConstants):
    ...     factors: Tensor
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.set_constant("factors", lambda: torch.tensor([1.0, 2.0]))
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._constant_values: dict[str, Tensor] = {}  # on the CPU
        self._constant_device = torch.get_default_device()

    def set_constant(self, name: str, make: Callable[[], Tensor]) -> None:
        """Set the attribute ``name``, anew if there is one already.

        Args:
            name: of the attribute.
            make: makes the tensor, on torch's default device. That is the CPU while this method calls it,
                whatever ``torch.device`` context is active.
        """
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            value = make().detach().clone()  # what an inference mode outside has made becomes a usual tensor
        if value.device.type != "cpu":
            raise ValueError(
                f"the constant {name} must be made on torch's default device, not {value.device}"
            )
        self._constant_values[name] = value
        self._place_constant(name, self._constant_device)

    def drop_constant(self, name: str) -> None:
        """Set the attribute ``name`` to None."""
        self._constant_values.pop(name, None)
        setattr(self, name, None)

    def move_constants(self, device: torch.device) -> None:
        """Move the constants of this module alone; ``.to()`` and its relatives do so by themselves."""
        if device != self._constant_device:
            for name in self._constant_values:
                self._place_constant(name, device)
            self._constant_device = device

    def _place_constant(self, name: str, device: torch.device) -> None:
        with torch.inference_mode(False):
            setattr(self, name, self._constant_values[name].to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        module = super()._apply(fn, recurse)
        # What becomes of an empty tensor tells the device. Integers, which casts leave alone.
        with torch.inference_mode(False):
            probe = torch.empty(0, dtype=torch.int64, device=self._constant_device)
        self.move_constants(fn(probe).device)
        return module


def move_constants(module: nn.Module, device: torch.device) -> None:
    """Move the constants of a module and of all modules inside.

    For whoever moves parameters and buffers one by one instead of calling ``.to()``, as fully sharded
    strategies do.
    """
    for part in module.modules():
        if isinstance(part, WithConstants):
            part.move_constants(device)
