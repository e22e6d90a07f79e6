"""Reading a pickle that holds data only: arrays, bytes, strings, numbers, lists and dicts.

NumPy's own classes are never called: stand-ins collect what a pickled array is made of, and plain
`np.frombuffer` builds it afterwards, so that a crafted pickle reaches no code but this file's. Nor can it take more
memory than its own bytes account for: its steps are counted before one is done, and what it makes of text is
limited to its own length.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import Any

import numpy as np

from fastload.errors import DataError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_STEPS = 2_000_000  # CIFAR-100's training file has 0.3 million; each may make an object of some 60 bytes
_STORING = ("PUT", "BINPUT", "LONG_BINPUT")


class _Dtype:
    """Stands for numpy.dtype: plain numbers only."""

    def __init__(self, code: Any, *flags: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not re.fullmatch("[<>|=]?[iufb][1248]", code):
            raise pickle.UnpicklingError(f"an array of {code!r:.40}")
        self.code = code.lstrip("<>|=")
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {order!r:.40}")
        self.order = ">" if order == ">" else "<"

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for numpy.ndarray."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _build(data, dtype, shape, "F" if fortran else "C")


def _build(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array that is not made of plain bytes")
    return np.frombuffer(data, dtype.numpy).reshape(shape, order=order)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an array of another class")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _build(data, dtype, shape, order)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _build(data, dtype, (), "C").item()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _from_buffer for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._text_left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is code, not data")
        return _ADMITTED[module, name]

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("an encoding other than latin1")
        self._text_left -= len(text)
        if self._text_left < 0:
            raise pickle.UnpicklingError("makes more bytes than it has")
        return text.encode("latin1")


def load(data: bytes, where: str) -> Any:
    """Return what a pickle holds, arrays as NumPy arrays, byte strings of keys as text.

    Arguments:
        data: the pickle, any protocol, also one written by Python 2.
        where: the file's name, for messages.

    Raises DataError for anything but data, without running any of it.
    """
    try:
        _count_steps(data)
        return _plain(_Unpickler(data).load(), {})
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{where}: is not a pickle of plain data ({reason}); nothing in it was run") from error


def _count_steps(data: bytes) -> None:
    """Refuse a pickle of too many steps, and one that asks for a table longer than its steps could fill."""
    highest = steps = 0
    for opcode, argument, _ in pickletools.genops(data):
        steps += 1
        if opcode.name in _STORING and isinstance(argument, int):
            highest = max(highest, argument)
        if steps > _STEPS:
            raise pickle.UnpicklingError(f"more than {_STEPS:,} steps")
    if highest > steps:
        raise pickle.UnpicklingError(f"keeps a value under number {highest:,} in {steps:,} steps")


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Return plain data; what a pickle refers to many times is made once, or 700 bytes could ask for 10^30 lists."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict | list):
        if id(value) not in done:
            made: Any = type(value)()
            done[id(value)] = made
            if isinstance(value, dict):
                made.update((_text(key), _plain(item, done)) for key, item in value.items())
            else:
                made.extend(_plain(item, done) for item in value)
        return done[id(value)]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise pickle.UnpicklingError(f"holds a {type(value).__name__}")


def _text(key: Any) -> Any:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else key
