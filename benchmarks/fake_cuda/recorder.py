"""Records what a run does on the device: operators, waits of the host, tensors of another device.

FakeTensorMode computes devices, types and shapes alone. It knows no values, so operators whose result is a
value, or has a shape that depends on values, are answered here, and counted if they synchronise it.
Values of small tensors that come from batches (sizes, ids) are carried along beside them ("known values").
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

import trunkline

fake_tensor.init_gpu_context = lambda device: None  # would make a tensor on the device in earnest
aten = torch.ops.aten
PACKAGE = Path(trunkline.__file__).resolve().parent
LIGHTNING = "pytorch_lightning/"
ROOMS = tuple(f"{PACKAGE}/{room}/" for room in ("backbones", "data", "evaluation", "heads", "tasks"))
LARGEST_KNOWN = 4096  # numbers of a tensor whose values are carried along

# Start no kernel.
VIEWS = frozenset(
    """_reshape_alias _to_dense_size _unsafe_view alias as_strided chunk detach diagonal empty empty_like
    empty_strided expand is_pinned is_same_size lift_fresh movedim narrow new_empty new_empty_strided permute
    record_stream resize_ select set_ slice split split_with_sizes squeeze sym_size t transpose unbind unfold
    unsqueeze view view_as view_as_complex view_as_real""".split()  # noqa: SIM905
)
SAME_TYPE = (
    aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.scatter, aten.scatter_,
    aten.index_add, aten.index_add_, aten.index_copy, aten.index_put, aten.index_put_, aten._index_put_impl_,
)  # fmt: skip
INDICES = (torch.int64, torch.int32, torch.bool)
SHAPE_FROM_DATA = (
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.unique_dim,
    aten.repeat_interleave, aten.bincount,
)  # fmt: skip
NMS_ROWS = 4096  # of one slab in heads/detection/nms_triton.py
TESTS = (aten.any, aten.all)
FUSED = "_fused_"  # optimisers of one kernel per list of tensors; torch has no fake ones of all
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)


@functools.cache
def is_composite(func: Any) -> bool:
    """Return whether an operator is made of others."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return func.namespace == "aten" and has_kernel(func.name(), "CompositeImplicitAutograd")


def kernels(func: Any, args: Any, name: str) -> int:
    """Return what an operator counts as: those of the package as the kernels they start on a GPU, else 1."""
    if func.namespace != "trunkline":
        return 1
    if name == "match_boxes":  # boxes, truth, labels, crowd, three thresholds, low_quality
        return 3 if args[7] else 1
    if (
        name == "nms_keep"
    ):  # by slabs of rows: overlaps, what stays of them, and what it removes of later rows
        return int(args[1] is not None) + 3 * math.ceil(args[0].shape[1] / NMS_ROWS) - 1
    raise AssertionError(f"say in kernels() how many kernels {func.name()} starts")


def place() -> str:
    """Return file, line and function of the innermost frame in the package, or of a backward pass."""
    frame: Any = sys._getframe(2)
    others = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOMS):
            return f"{name[len(str(PACKAGE)) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
        if not others and LIGHTNING in name:
            others = f"{LIGHTNING}{name.split(LIGHTNING)[1]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    node = torch._C._current_autograd_node()
    if node is None:
        return others or "elsewhere"
    for line in reversed(node.metadata.get("traceback_", ())):  # only with detect_anomaly
        if f'"{PACKAGE}/' in line and line.split('"')[1].startswith(ROOMS):
            file, number = line.split('"')[1], line.split("line ")[1].split(",")[0]
            return f"backward of {file[len(str(PACKAGE)) + 1 :]}:{number}"
    return f"backward {node.name()}"


class Recorder(TorchDispatchMode):
    """Counts operators on the device, and answers those that give values.

    Attributes:
        waits: how often the device is synchronised, by what and where (``item @ heads/x.py:3 losses``).
        operators: how often each operator that starts kernels was called.
        places: the same by the line of the package.
        wide: operators that make float64 on the device, by place.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode
        self.waits: collections.Counter[str] = collections.Counter()
        self.operators: collections.Counter[str] = collections.Counter()
        self.places: collections.Counter[str] = collections.Counter()
        self.wide: collections.Counter[str] = collections.Counter()
        self.peak = 0
        self.held: collections.Counter[str] = collections.Counter()

    def clear(self) -> None:
        """Forget all counts."""
        for counter in (self.waits, self.operators, self.places, self.wide):
            counter.clear()

    def wait(self, what: str) -> None:
        """Count a wait of the host."""
        self.waits[f"{what} @ {place()}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if func is not aten.lift_fresh.default:
            args, kwargs = tree_map_only(torch.Tensor, self._faked, (args, kwargs))
        if is_composite(func):  # in inference mode operators come before they are taken apart
            with self:
                return func.decompose(*args, **kwargs)
        flat = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        on_device = any(value.device.type == "cuda" for value in flat)
        answered, answer = self._answer(packet, flat, args, kwargs, on_device)
        if answered:
            return answer
        self._copies(packet, flat, args, kwargs)
        if on_device and packet in SAME_TYPE:
            kinds = {value.dtype for value in flat if value.dtype not in INDICES}
            if len(kinds) > 1:  # which fake operators let pass
                raise AssertionError(f"{func.name()} of different dtypes {kinds} at {place()}")
        if on_device or torch.device(kwargs.get("device") or "cpu").type == "cuda":
            for value in flat:  # a constant would be copied to the device in earnest
                if isinstance(value, FakeTensor):
                    self._remember(value, value.constant)
                    value.constant = None
        fused = func.namespace == "aten" and func.name().split("::")[1].startswith(FUSED)
        result = None if fused and func._schema.is_mutable else func(*args, **kwargs)
        self._carry(func, flat, args, kwargs, result)
        self.count(func, flat, args, kwargs, result)
        return result

    def count(self, func: Any, flat: list[Any], args: Any, kwargs: Any, result: Any) -> None:
        """Count an operator, if it runs on the device."""
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        name = func.name().split("::")[1].split(".")[0]
        if (
            func.namespace == "prim"
            or name in VIEWS
            or not any(value.device.type == "cuda" for value in (*flat, *made))
        ):
            return
        where = place()
        started = kernels(func, args, name)
        self.operators[name] += started
        self.places[where] += started
        if any(value.dtype == torch.float64 and value.device.type == "cuda" for value in made):
            self.wide[f"{name} @ {where}"] += 1

    def _faked(self, value: torch.Tensor) -> torch.Tensor:
        if isinstance(value, FakeTensor):
            return value
        if value.device.type == "cuda":
            raise AssertionError(f"a real tensor of the device, {tuple(value.shape)}, at {place()}")
        fake = self.mode.from_tensor(value)  # a real constant, made before the run
        self._remember(fake, value)
        return fake

    # -- operators that give values

    def _answer(self, packet: Any, flat: list[Any], args: Any, kwargs: Any, on_device: bool) -> Any:
        """Return whether an operator is answered here, and its answer."""
        if packet is aten._local_scalar_dense:
            if on_device:
                self.wait("item")
            known = known_values(flat[0])
            if known is not None:
                with _disable_current_modes():
                    return True, known.item()
            kind = flat[0].dtype
            if kind == torch.bool:
                return True, not on_device
            return True, 0.0 if kind.is_floating_point else 0
        if packet is aten.equal:
            if on_device:
                self.wait("equal")
            return True, True
        masks = _masks(packet, args)
        if packet in SHAPE_FROM_DATA and not _size_given(packet, args, kwargs) or masks:
            if on_device:
                self.wait(f"shape from data ({packet._qualified_op_name.split('::')[1]})")
            return self._rows(packet, flat, args, masks)
        if packet is torch.ops.torchvision.nms and on_device:
            self.wait("nms")
            self.operators["nms"] += 1
            return True, torch.arange(min(1000, len(flat[0])), device=flat[0].device)
        return False, None

    def _rows(self, packet: Any, flat: list[Any], args: Any, masks: list[Any]) -> Any:
        """Answer an operator whose number of rows depends on values, by :meth:`rows`."""
        first, device = flat[0], flat[0].device
        if packet is aten.nonzero:
            return True, torch.zeros(self.rows(first), first.ndim, dtype=torch.int64, device=device)
        if packet is aten.masked_select:
            return True, first.new_zeros(self.rows(first))
        if packet is aten.bincount:
            return True, torch.zeros(
                max(1, args[2] if len(args) > 2 else 0), dtype=torch.int64, device=device
            )
        if packet is aten.repeat_interleave:
            return True, torch.zeros(self.rows(first), dtype=torch.int64, device=device)
        if packet in (aten._unique2, aten.unique_consecutive, aten.unique_dim):
            some = first.new_zeros(self.rows(first))
            return True, (some, torch.zeros_like(first, dtype=torch.int64), some.long())
        if packet in (aten.index, aten._unsafe_index):
            before = list(args[1]).index(masks[0])
            shape = args[0].shape
            kept = (*shape[:before], self.rows(masks[0]), *shape[before + masks[0].ndim :])
            return True, args[0].new_zeros(kept)
        return True, args[0] if packet is not aten.index_put else args[0].clone()  # index_put

    def rows(self, mask: torch.Tensor) -> int:
        """Return how many rows of a mask are taken for true; on the host masks show what is wrong."""
        return min(1, mask.numel()) if mask.device.type == "cuda" else 0

    def _copies(self, packet: Any, flat: list[Any], args: Any, kwargs: Any) -> None:
        """Count copies between host and device that synchronise it."""
        if packet is aten._to_copy and kwargs.get("device") is not None:
            to, source = torch.device(kwargs["device"]).type, flat[0].device.type
            free = kwargs.get("non_blocking", False)
            if source == "cuda" and to == "cpu":
                self.wait("copy to host")
            elif source == "cpu" and to == "cuda" and not free:
                self.wait("copy to device")
        elif packet is aten.copy_ and flat[0].device.type != flat[1].device.type:
            free = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if not free:
                self.wait("copy to device" if flat[0].device.type == "cuda" else "copy to host")

    # -- known values

    def _remember(self, value: Any, real: torch.Tensor | None) -> None:
        if real is not None and known_values(value) is None and real.numel() <= LARGEST_KNOWN:
            with _disable_current_modes():
                value.known_values = real.detach().cpu().clone()

    def _carry(self, func: Any, flat: list[Any], args: Any, kwargs: Any, result: Any) -> None:
        """Compute the values of a result from those that are known; tensors with none count as zeros."""
        if func.overloadpacket in TESTS:  # what is tested is taken to be in order
            with _disable_current_modes():
                result.known_values = torch.full(tuple(result.shape), func.overloadpacket is aten.all)
            return
        if not any(known_values(value) is not None for value in flat):
            return
        outputs = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        if any(value.numel() > LARGEST_KNOWN for value in (*flat, *outputs)) or not outputs:
            return
        if func._schema.is_mutable and func is not aten.copy_.default:
            for value in outputs:
                value.known_values = None
            return
        kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
        with _disable_current_modes(), contextlib.suppress(Exception), torch.no_grad():
            real = [values_of(value) for value in flat]
            table = {id(value): number for value, number in zip(flat, real, strict=True)}
            args, kwargs = tree_map_only(torch.Tensor, lambda v: table[id(v)], (args, kwargs))
            found = [v for v in tree_leaves(func(*args, **kwargs)) if isinstance(v, torch.Tensor)]
            for value, number in zip(outputs, found, strict=True):
                value.known_values = number.clone()


def known_values(value: Any) -> torch.Tensor | None:
    """Return the values of a fake tensor if they are known."""
    if not isinstance(value, FakeTensor):
        return None
    known = value.__dict__.get("known_values")
    return value.constant if known is None else known


def values_of(value: torch.Tensor) -> torch.Tensor:
    known = known_values(value)
    return torch.zeros(tuple(value.shape), dtype=value.dtype) if known is None else known


def _masks(packet: Any, args: Any) -> list[Any]:
    """Return the boolean masks that an operator indexes with."""
    if packet not in INDEXING:
        return []
    return [part for part in args[1] if part is not None and part.dtype in (torch.bool, torch.uint8)]


def _size_given(packet: Any, args: Any, kwargs: Any) -> bool:
    return packet is aten.repeat_interleave and kwargs.get("output_size") is not None
