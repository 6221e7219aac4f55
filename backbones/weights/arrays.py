"""NumPy arrays out of pickles, without the code of NumPy that believes what a pickle says.

``numpy.ndarray.__setstate__`` and its likes trust their arguments: a damaged or hostile pickle ends the
process, or writes where it should not. Here a pickle gets stand-ins that only keep what it says; arrays are
made of those at the end, from bytes whose number fits. Formats: ``array_reduce`` in NumPy's
``multiarray/methods.c``, and ``arraydescr_reduce`` in ``descriptor.c``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from typing import Any

_NUMBERS = re.compile(r"[fiu][1248]|b1|f16|\?")  # what a state dict can hold
_PICKLES = 5  # of an old file: magic number, version, system, the object, keys of its tensors
_ORDERS = ("<", ">", "|", "=")


class Dtype:
    """Stands for ``numpy.dtype``: the type of numbers by its code, such as ``f4``, and its order of bytes."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in _ORDERS:
            self.order = state[1]

    def real(self) -> Any:
        """Return the type; None if it is no number (a text, an object, a record)."""
        import numpy

        if not isinstance(self.code, str) or not _NUMBERS.fullmatch(self.code) or self.code == "f1":
            return None
        real = numpy.dtype(self.code)
        return (
            real.newbyteorder(">")
            if self.order == ">"
            else real.newbyteorder("<" if self.order == "<" else "=")
        )


class Array:
    """Stands for ``numpy.ndarray``, whose state comes after it was made."""

    def __init__(self) -> None:
        self.parts: tuple[Any, ...] = ((0,), None, b"", False)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("the state of an array has five parts")
        self.parts = state[1:3] + (state[4], state[3])

    def real(self) -> Any:
        """Return the array; None if it holds no numbers."""
        return _array(*self.parts)


class Whole:
    """Stands for an array that is made with its bytes; one without axes is a number."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def real(self) -> Any:
        """Return the array or number; None if it holds no numbers."""
        made = _array(*self.parts)
        return made[()] if self.parts[0] == () and made is not None else made


def _array(shape: Any, dtype: Any, content: Any, by_column: Any) -> Any:
    import numpy

    real = dtype.real() if isinstance(dtype, Dtype) else None
    if real is None:
        return None
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise pickle.UnpicklingError("the shape of an array is a tuple of whole numbers")
    if isinstance(content, str):  # Python 2 wrote them, read as latin1
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("the content of an array is no bytes")
    if len(shape) > 32 or math.prod(shape) * real.itemsize != len(content):
        raise pickle.UnpicklingError(
            f"an array of shape {list(shape)[:32]} and type {real} does not have {len(content)} bytes"
        )
    return numpy.frombuffer(content, real).reshape(shape, order="F" if by_column else "C").copy()


def _reconstruct(*_: Any) -> Array:
    """Stands for ``numpy._core.multiarray._reconstruct``, which makes an empty array."""
    return Array()


def _scalar(dtype: Any = None, content: Any = b"") -> Whole:
    """Stands for ``numpy._core.multiarray.scalar``."""
    return Whole((), dtype, content, False)


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> Whole:
    """Stands for ``numpy._core.numeric._frombuffer``, of protocol 5."""
    return Whole(shape, dtype, content, order == "F")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Turn text into the bytes of an array, as old pickles have it."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}; arrays are stored as latin1")
    return text.encode("latin1")


STAND_INS: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    **{
        f"{core}.{name}": stand_in
        for core in ("numpy.core", "numpy._core")
        for name, stand_in in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
}


def require_whole(content: bytes, old_torch: bool = False) -> None:
    """Refuse a pickle that claims more than it has: Python takes the memory before it finds out.

    Args:
        content: of the file.
        old_torch: whether it is one of ``torch.save`` before that wrote zip files: several pickles in a row.

    Raises:
        ValueError: for what is no pickle, or is cut off.
        pickle.UnpicklingError: for a place that no value can have, or a tensor larger than the file.
    """
    stream, pickles = io.BytesIO(content), _PICKLES if old_torch else 1
    for _ in range(pickles):
        count = 0
        for opcode, argument, place in pickletools.genops(stream):
            if "PUT" in opcode.name and int(argument or 0) > (place or 0):
                raise pickle.UnpicklingError(f"it remembers a value at place {argument:,}")
            if type(argument) is int and "PUT" not in opcode.name and "GET" not in opcode.name:
                count = argument
            if old_torch and opcode.name == "BINPERSID" and count > len(content):
                raise pickle.UnpicklingError(f"a tensor of {count:,} numbers is larger than the file")


def with_arrays(content: Any) -> Any:
    """Put arrays in the place of their stand-ins, inside mappings, lists and tuples; others become None.

    Raises:
        pickle.UnpicklingError: for an array whose bytes do not fit its shape.
        RecursionError: if a container holds itself.
    """
    if isinstance(content, Array | Whole):
        return content.real()
    if isinstance(content, Dtype):
        return content.real()
    if isinstance(content, dict):
        for key in content:
            content[key] = with_arrays(content[key])
    elif isinstance(content, list):
        content[:] = [with_arrays(value) for value in content]
    elif type(content) is tuple:
        return tuple(with_arrays(value) for value in content)
    return content
