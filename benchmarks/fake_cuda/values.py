"""Answers of fake tensors where the host reads them: lists, arrays and copies."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from .recorder import Recorder, values_of


class HostValues(contextlib.AbstractContextManager):
    """Answers ``tolist`` and ``numpy`` of fake tensors by known values, else zeros.

    A list of a tensor of the device is a wait of the host.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __enter__(self) -> None:
        recorder = self.recorder

        def values(tensor: Any) -> np.ndarray:
            with _disable_current_modes():
                return values_of(tensor).numpy().copy()

        def tolist(tensor: Any) -> Any:
            if tensor.device.type == "cuda":
                recorder.wait("tolist")
            return values(tensor).tolist()

        def numpy(tensor: Any, *, force: bool = False) -> np.ndarray:
            if tensor.device.type == "cuda":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            return values(tensor)

        def array(tensor: Any, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return numpy(tensor).astype(dtype) if dtype else numpy(tensor)

        def deepcopy(tensor: Any, memo: dict[int, Any]) -> Any:  # torch's makes a storage in earnest
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]

        mine = {"tolist": tolist, "numpy": numpy, "__array__": array, "__deepcopy__": deepcopy}

        def real_copies(plain: Any) -> Any:  # of what has not moved to the device yet
            def deepcopy_of_real(tensor: Any, memo: dict[int, Any]) -> Any:
                if isinstance(tensor, FakeTensor):
                    return plain(tensor, memo)
                with _disable_current_modes():
                    return plain(tensor, memo)

            return deepcopy_of_real

        self.copies = {kind: kind.__deepcopy__ for kind in (torch.Tensor, torch.nn.Parameter)}
        for kind, plain in self.copies.items():
            kind.__deepcopy__ = real_copies(plain)
        self.before = {name: FakeTensor.__dict__.get(name) for name in mine}
        for name, function in mine.items():
            setattr(FakeTensor, name, function)

    def __exit__(self, *error: Any) -> None:
        for kind, plain in self.copies.items():
            kind.__deepcopy__ = plain
        for name, value in self.before.items():
            delattr(FakeTensor, name) if value is None else setattr(FakeTensor, name, value)
