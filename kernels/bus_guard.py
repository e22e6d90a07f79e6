"""What makes reading through a memory map safe: a SIGBUS handler that needs neither Python nor the GIL.

A page of a mapped file that was truncated, or whose disk failed, cannot be had: touching it is SIGBUS. Where the
address lies in a guarded range, zeros are laid over that whole range, the range is marked, and the thread goes on; who
reads must look for the mark afterwards. Over the range and not the page: the pages of a large batch would become more
mappings than a process may have. Any other SIGBUS goes to whom it would have gone without us.

`table` is where the handler finds the ranges: int64, first the action that stood before ours, then `SLOTS` times
(begin, end, mark); a free slot has begin 0. It is a variable of the compiled code, so that this can be cached: an
address as a constant would be another one in each process.
"""

import platform
import sys

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .compiling import cfunc, njit

SLOTS = 256
ACTION = 19
"""Words of a struct sigaction, of glibc and of musl: handler, mask (16 words), flags, restorer."""
_FIELDS = 3

_LONG = ir.IntType(64)
_TABLE = ir.ArrayType(_LONG, ACTION + _FIELDS * SLOTS)

SIGBUS = 7
_SA_SIGINFO, _SA_ONSTACK = 0x4, 0x08000000
PROT_NONE, PROT_READ = 0, 1
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x1, 0x2, 0x10, 0x20, 0x4000

_mmap = types.ExternalFunction(
    "mmap", types.int64(types.int64, types.int64, types.int32, types.int32, types.int32, types.int64)
)
_sigaction = types.ExternalFunction("sigaction", types.int32(types.int32, types.int64, types.int64))
_pthread_sigmask = types.ExternalFunction("pthread_sigmask", types.int32(types.int32, types.int64, types.int64))
_raise = types.ExternalFunction("raise", types.int32(types.int32))
_lseek = types.ExternalFunction("lseek", types.int64(types.int32, types.int64, types.int32))
_SEEK_END = 2


def supported() -> bool:
    """Whether this system's signals are laid out as the handler takes them: 64-bit Linux on x86 or ARM."""
    return (
        sys.platform == "linux"
        and platform.machine() in ("x86_64", "aarch64")
        and sys.maxsize > 1 << 32
        and sys.byteorder == "little"
        and all(binding.address_of_symbol(name) for name in ("mmap", "sigaction", "pthread_sigmask", "raise", "lseek"))
    )


@intrinsic
def _load(typing_context, address):
    def code(context, builder, signature, values):
        return builder.load(builder.inttoptr(values[0], _LONG.as_pointer()))

    return types.int64(types.int64), code


@intrinsic
def _store(typing_context, address, value):
    def code(context, builder, signature, values):
        builder.store(values[1], builder.inttoptr(values[0], _LONG.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def _table(typing_context):
    def code(context, builder, signature, values):
        variable = cgutils.add_global_variable(builder.module, _TABLE, "fastload_bus_guard")
        variable.linkage = "internal"
        variable.initializer = ir.Constant(_TABLE, None)
        return builder.ptrtoint(variable, _LONG)

    return types.int64(), code


@register_jitable
def _cover(table, address):
    """Lay zeros over the guarded range that holds `address`, marked before; return whether there is one."""
    for slot in range(SLOTS):
        place = table + 8 * (ACTION + _FIELDS * slot)
        begin, end = _load(place), _load(place + 8)
        if begin != 0 and begin <= address and address < end:
            _store(place + 16, 1)
            flags = np.int32(MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE)
            return _mmap(begin, end - begin, np.int32(PROT_READ), flags, np.int32(-1), 0) == begin
    return False


def on_bus_error(signal, info, context):
    """Handle SIGBUS; `info`: the address of its siginfo_t. Called with signal 0, write the table's address there."""
    table = _table()
    if signal == 0:
        _store(info, table)
        return
    code = np.int32(_load(info + 8))
    # A code of 0 or below is of a signal that somebody sent: it has no address.
    if code > 0 and _cover(table, _load(info + 16)):
        return
    # Given back, the action is asked when the instruction is repeated. What was sent is not repeated by itself.
    _sigaction(np.int32(SIGBUS), table, 0)
    if code <= 0:
        _raise(np.int32(SIGBUS))


def compile_handler():
    """Return `on_bus_error` compiled, with its `address`."""
    return cfunc(types.void(types.int32, types.int64, types.int64), on_bus_error)


@njit()
def install(handler, table):
    """Make `handler` (an address) the action on SIGBUS, and keep the one before in the table; return whether it is."""
    action = np.zeros(ACTION, np.int64)
    action[0] = handler
    action[17] = _SA_SIGINFO | _SA_ONSTACK
    return _sigaction(np.int32(SIGBUS), np.int64(action.ctypes.data), table) == 0


@njit()  # with the GIL: to get it back takes longer than this
def is_guarded(handler):
    """Whether `handler` would be called for a SIGBUS of this thread: nobody replaced it, and it is not blocked."""
    action, mask = np.zeros(ACTION, np.int64), np.zeros(16, np.int64)
    if _sigaction(np.int32(SIGBUS), 0, np.int64(action.ctypes.data)) != 0 or action[0] != handler:
        return False
    _pthread_sigmask(np.int32(0), 0, np.int64(mask.ctypes.data))
    return mask[0] >> (SIGBUS - 1) & 1 == 0


@register_jitable
def are_whole(descriptors, ends):
    """Whether each file (int32 [F]) still has its bytes up to `ends`, int64 [F]."""
    short = 0
    for k in range(descriptors.size):
        short += _lseek(descriptors[k], 0, np.int32(_SEEK_END)) < ends[k]
    return short == 0
