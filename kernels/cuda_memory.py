"""Device memory by address: what CUDA kernels load and store, as wide as one instruction can, and its simulation.

Kernels that take addresses in place of arrays are launched in a fraction of the time: Numba takes an array apart, and
torch's tensors have to be wrapped for it, anew at each launch. An address is int64. A load is of memory that nobody
writes during the launch (`ld.global.nc`); words are little-endian uint32 and have to be aligned to their size, which
the functions of two and four words count as 8 and 16 bytes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cuda_target import SIMULATED
from .intrinsics import to_half

_GLOBAL = 1  # NVVM's address space of device memory; without it loads and stores ask where an address lies

load_byte: Any
load_short: Any
load_word: Any
load_long: Any
load_two: Any
load_four: Any
store_byte: Any
store_short: Any
store_word: Any
store_long: Any
store_two: Any
store_four: Any
round_to_half: Any
widen_half: Any


def _pointer(builder: Any, address: Any, to: ir.Type) -> Any:
    return builder.inttoptr(address, ir.PointerType(to, _GLOBAL))


def _loader(memory: types.Type, result: types.Type) -> Any:
    @intrinsic
    def load(typing_context, address):
        def code(context, builder, signature, values):
            loaded = builder.load(_pointer(builder, values[0], ir.IntType(memory.bitwidth)))
            loaded.align = memory.bitwidth // 8
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            return loaded if memory is result else builder.zext(loaded, ir.IntType(result.bitwidth))

        return result(types.int64), code

    return load


def _vector_loader(count: int) -> Any:
    result = types.UniTuple(types.uint32, count)

    @intrinsic
    def load(typing_context, address):
        def code(context, builder, signature, values):
            loaded = builder.load(_pointer(builder, values[0], ir.VectorType(ir.IntType(32), count)))
            loaded.align = 4 * count
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            words = [builder.extract_element(loaded, ir.IntType(32)(k)) for k in range(count)]
            return context.make_tuple(builder, result, words)

        return result(types.int64), code

    return load


def _storer(memory: types.Type) -> Any:
    @intrinsic
    def store(typing_context, address, value):
        def code(context, builder, signature, values):
            stored = builder.store(values[1], _pointer(builder, values[0], ir.IntType(memory.bitwidth)))
            stored.align = memory.bitwidth // 8
            return context.get_dummy_value()

        return types.void(types.int64, memory), code

    return store


def _store_vector(builder: Any, address: Any, words: Any) -> None:
    kind = ir.VectorType(ir.IntType(32), len(words))
    vector = ir.Constant(kind, ir.Undefined)
    for k, word in enumerate(words):
        vector = builder.insert_element(vector, word, ir.IntType(32)(k))
    builder.store(vector, _pointer(builder, address, kind)).align = 4 * len(words)


@intrinsic
def _store_two(typing_context, address, a, b):
    def code(context, builder, signature, values):
        _store_vector(builder, values[0], values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.uint32, types.uint32), code


@intrinsic
def _store_four(typing_context, address, a, b, c, d):
    def code(context, builder, signature, values):
        _store_vector(builder, values[0], values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *[types.uint32] * 4), code


@intrinsic
def _widen_half(typing_context, bits):
    """Return the float32 that the lower half of a word stands for as a float16."""

    def code(context, builder, signature, values):
        half = builder.bitcast(builder.trunc(values[0], ir.IntType(16)), ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint32), code


def _simulated_loader(kind: Any, result: Any) -> Any:
    size = ctypes.sizeof(kind)

    def load(address: int) -> Any:
        assert address % size == 0, f"{size} bytes loaded at {address:#x}"
        return result(kind.from_address(int(address)).value)

    return load


def _simulated_vector_loader(count: int) -> Any:
    def load(address: int) -> Any:
        assert address % (4 * count) == 0, f"{4 * count} bytes loaded at {address:#x}"
        return tuple(np.uint32(word) for word in (ctypes.c_uint32 * count).from_address(int(address)))

    return load


def _simulated_storer(kind: Any, count: int = 1) -> Any:
    size = ctypes.sizeof(kind)

    def store(address: int, *values: Any) -> None:
        assert address % (size * count) == 0, f"{size * count} bytes stored at {address:#x}"
        for k, value in enumerate(values):
            kind.from_address(int(address) + size * k).value = int(value)

    return store


if SIMULATED:
    load_byte = _simulated_loader(ctypes.c_uint8, np.uint32)
    load_short, load_word = (_simulated_loader(kind, np.uint32) for kind in (ctypes.c_uint16, ctypes.c_uint32))
    load_long = _simulated_loader(ctypes.c_int64, np.int64)
    load_two, load_four = _simulated_vector_loader(2), _simulated_vector_loader(4)
    store_byte, store_short = _simulated_storer(ctypes.c_uint8), _simulated_storer(ctypes.c_uint16)
    store_word, store_long = _simulated_storer(ctypes.c_uint32), _simulated_storer(ctypes.c_int64)
    store_two, store_four = _simulated_storer(ctypes.c_uint32, 2), _simulated_storer(ctypes.c_uint32, 4)

    def round_to_half(value: Any) -> Any:
        return np.float32(value).astype(np.float16).view(np.uint16)

    def widen_half(bits: Any) -> Any:
        return np.uint16(int(bits) & 0xFFFF).view(np.float16).astype(np.float32)
else:
    load_byte, load_short = _loader(types.uint8, types.uint32), _loader(types.uint16, types.uint32)
    load_word, load_long = _loader(types.uint32, types.uint32), _loader(types.int64, types.int64)
    load_two, load_four = _vector_loader(2), _vector_loader(4)
    store_byte, store_short = _storer(types.uint8), _storer(types.uint16)
    store_word, store_long = _storer(types.uint32), _storer(types.int64)
    store_two, store_four = _store_two, _store_four
    round_to_half, widen_half = to_half, _widen_half
