"""Instructions that Numba has no name for: copies in registers and reads begun ahead on a CPU, float32 to float16."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

_LINE = 64


def _has_half() -> bool:
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return False  # compiled for another processor than this one
    if platform.machine() in ("aarch64", "arm64"):
        return True
    try:
        return bool(dict(get_host_cpu_features()).get("f16c", False))
    except RuntimeError:  # LLVM does not know this system's way to ask
        return False


HAS_HALF = _has_half()
"""Whether `to_half` is an instruction on this CPU; where not, LLVM would call a function that Numba does not link."""


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, to: ir.Type) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), to.as_pointer())


def _block_copier(size: int) -> Any:
    @intrinsic
    def copy(typing_context, target, at, source, begin):  # type: ignore[no-untyped-def]
        """Copy a block of uint8 `source` from `begin` to uint8 `target` at `at`; no bounds are checked."""

        def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
            block = ir.VectorType(ir.IntType(8), size)
            loaded = builder.load(_pointer(context, builder, signature.args[2], values[2], values[3], block))
            loaded.align = 1
            stored = builder.store(loaded, _pointer(context, builder, signature.args[0], values[0], values[1], block))
            stored.align = 1
            return context.get_dummy_value()

        return types.void(target, types.uint64, source, types.uint64), code

    return copy


copy16, copy64 = _block_copier(16), _block_copier(64)


@intrinsic
def _prefetch_line(typing_context, data, index):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        byte, word = ir.IntType(8), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, near, of_data = word(0), word(3), word(1)
        place = _pointer(context, builder, signature.args[0], values[0], values[1], byte)
        builder.call(function, [place, read, near, of_data])
        return context.get_dummy_value()

    return types.void(data, types.uint64), code


@register_jitable
def prefetch(data, begin, size):
    """Begin to read `size` bytes of uint8 `data` from `begin`, without waiting; places outside of it do no harm."""
    for k in range(0, size, _LINE):
        _prefetch_line(data, begin + k)
    if size > 0:
        _prefetch_line(data, begin + size - 1)


@intrinsic
def to_half(typing_context, value):  # type: ignore[no-untyped-def]
    """Round a float32 to the nearest float16, ties to even, and return its bits (uint16)."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), code
