"""What makes reading through a memory map safe: a SIGBUS handler that needs neither Python nor the GIL.

A page of a mapped file that was truncated, or whose disk failed, cannot be had: touching it is SIGBUS. Where the
address lies in a guarded range, zeros are laid over that whole range, the range is marked, and the thread goes on; who
reads must look for the mark afterwards. Over the range and not the page: the pages of a large batch would become more
mappings than a process may have. Any other SIGBUS goes to whom it would have gone without us.

The handler finds the ranges in its table: int64, first the action that stood before ours, then 256 times
(begin, end, mark); a free slot has begin 0. It is a variable of the compiled code, so that this can be cached: an
address as a constant would be another one in each process.
"""

import platform
import sys

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiling import cfunc

ACTION = 19  # words of a struct sigaction, of glibc and of musl: handler, mask (16 words), flags, restorer
WORDS = ACTION + 3 * 256
SIGBUS = 7
FLAGS = 0x4 | 0x08000000  # SA_SIGINFO, SA_ONSTACK
PROT_NONE, PROT_READ = 0, 1
MAP_SHARED, MAP_FIXED = 0x1, 0x10
MAP_RESERVED = 0x2 | 0x20 | 0x4000  # MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE

_mmap = types.ExternalFunction(
    "mmap", types.int64(types.int64, types.int64, types.int32, types.int32, types.int32, types.int64)
)
_sigaction = types.ExternalFunction("sigaction", types.int32(types.int32, types.int64, types.int64))
_raise = types.ExternalFunction("raise", types.int32(types.int32))


def supported() -> bool:
    """Whether this system's signals are laid out as the handler takes them: 64-bit Linux on x86 or ARM."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") and sys.maxsize > 1 << 32


@intrinsic
def _table(typing_context):
    def code(context, builder, signature, values):
        kind = ir.ArrayType(ir.IntType(64), WORDS)
        variable = cgutils.add_global_variable(builder.module, kind, "fastload_bus_guard")
        variable.linkage = "internal"
        variable.initializer = ir.Constant(kind, None)
        return builder.bitcast(variable, ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(), code


def on_bus_error(signal, info, context):
    """Handle SIGBUS, or with `signal` 0 return the table's address; `info`: the words of a siginfo_t."""
    table = carray(_table(), WORDS)
    if signal == 0:
        return table.ctypes.data
    code, address = np.int32(info[1]), info[2]
    if code > 0:  # otherwise somebody sent it, and it has no address
        for slot in range(ACTION, WORDS, 3):
            begin, end = table[slot], table[slot + 1]
            if begin != 0 and begin <= address and address < end:
                table[slot + 2] = 1
                flags = np.int32(MAP_RESERVED | MAP_FIXED)
                if _mmap(begin, end - begin, np.int32(PROT_READ), flags, np.int32(-1), 0) == begin:
                    return 0
    # Given back, the action is asked when the instruction is repeated. What was sent is not repeated by itself.
    _sigaction(np.int32(SIGBUS), table.ctypes.data, 0)
    if code <= 0:
        _raise(np.int32(SIGBUS))
    return 0


def compile_handler():
    """Return `on_bus_error` compiled, with its `address`; the system looks at nothing that a handler returns."""
    words = types.CPointer(types.int64)
    return cfunc(types.int64(types.int32, words, words), on_bus_error)
