"""Memory by its address on a CPU: what a kernel's inner loops read and write.

Numba counts references to each array that a function is given; in a loop over rows that was a third of the time.
Whoever takes an array's address keeps the array, and uses it once more when all is done.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .inlining import inlined


@inlined
def address_of(array):
    """Return where an array's memory begins, int64: unsigned and signed numbers together would be float64."""
    return np.int64(array.ctypes.data)


def pointer(builder: Any, base: Any, index: Any, kind: ir.Type) -> Any:
    """Return LLVM's pointer to element `index` of type `kind` from address `base` on."""
    return builder.gep(builder.inttoptr(base, kind.as_pointer()), [index])


def _reader(kind: ir.Type, number: Any, align: int) -> Any:
    @intrinsic
    def read(typing_context, base, index):
        """Return an element of the memory at address `base`; no bounds are checked."""

        def code(context, builder, signature, values):
            loaded = builder.load(pointer(builder, values[0], values[1], kind))
            loaded.align = align
            return loaded

        return number(types.int64, types.int64), code

    return read


def _writer(kind: ir.Type, number: Any, align: int) -> Any:
    @intrinsic
    def write(typing_context, base, index, value):
        """Set an element of the memory at address `base`; no bounds are checked."""

        def code(context, builder, signature, values):
            stored = builder.store(values[2], pointer(builder, values[0], values[1], kind))
            stored.align = align
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, number), code

    return write


_KINDS = {
    "byte": (ir.IntType(8), types.uint8, 1),
    "short": (ir.IntType(16), types.uint16, 2),
    "word": (ir.IntType(32), types.int32, 4),
    "long": (ir.IntType(64), types.int64, 8),
    "single": (ir.FloatType(), types.float32, 4),
    "double": (ir.DoubleType(), types.float64, 8),
}

get_byte, get_short, get_word, get_long, get_single, get_double = (_reader(*kind) for kind in _KINDS.values())
set_byte, set_short, set_word, set_long, set_single, set_double = (_writer(*kind) for kind in _KINDS.values())


def _copier(size: int) -> Any:
    @intrinsic
    def copy(typing_context, target, source):
        """Copy a block from one address to another."""

        def code(context, builder, signature, values):
            block = ir.VectorType(ir.IntType(8), size).as_pointer()
            loaded = builder.load(builder.inttoptr(values[1], block))
            loaded.align = 1
            stored = builder.store(loaded, builder.inttoptr(values[0], block))
            stored.align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return copy


copy16, copy64 = _copier(16), _copier(64)
