"""Vectors of pixels on a processor with AVX2: the inner loops of resizing, each as one intrinsic.

Bytes are put into the upper halves of 16-bit words by a byte permute a tap, in place of gathers; `vpmulhuw` weighs
them. LLVM must be given it by name: it lowers the plain pattern badly.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .cpu_memory import pointer
from .intrinsics import HAS_HALF

_BYTE, _SHORT, _WORD, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_B16, _B32 = ir.VectorType(_BYTE, 16), ir.VectorType(_BYTE, 32)
_B64, _W64 = ir.VectorType(_BYTE, 64), ir.VectorType(_WORD, 64)
_S16 = ir.VectorType(_SHORT, 16)

WIDTH = 16
"""Output pixels that are made together: two halves of eight, each out of a window of 16 source pixels."""

HALF = 8


HAS_VECTORS = HAS_HALF and bool(dict(binding.get_host_cpu_features()).get("avx2", False))
"""Whether these are instructions of this CPU. With NUMBA_CPU_NAME or NUMBA_CPU_FEATURES set they are not asked for."""


def _emitted(code: Any) -> Any:
    """Return what emits an intrinsic: nothing where it cannot be. Numba compiles also what is never called."""
    return code if HAS_VECTORS else lambda context, builder, signature, values: context.get_dummy_value()


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _WORD(0))
    zeros = ir.Constant(ir.VectorType(_WORD, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, first, zeros)


def _high_product(builder: Any, x: Any, y: Any) -> Any:
    kind = ir.FunctionType(_S16, [_S16, _S16])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmulhu.w"), [x, y])


def _at(builder: Any, base: Any, index: Any, unit: Any, kind: Any) -> Any:
    """Return the pointer to a `kind` that begins at element `index` of type `unit` from address `base` on."""
    return builder.bitcast(pointer(builder, base, index, unit), kind.as_pointer())


def _load(builder: Any, base: Any, index: Any, unit: Any, kind: Any, align: int = 1) -> Any:
    loaded = builder.load(_at(builder, base, index, unit, kind))
    loaded.align = align
    return loaded


def _store(builder: Any, value: Any, base: Any, index: Any, unit: Any, align: int = 1) -> Any:
    stored = builder.store(value, _at(builder, base, index, unit, value.type))
    stored.align = align
    return stored


@intrinsic
def split_rgb(typing_context, data, begin, planes, at, plane):
    """Split 64 interleaved pixels of three channels from byte `begin` of `data` into planes, `plane` bytes apart."""

    def code(context, builder, signature, values):
        data, begin, planes, at, plane = values
        blocks = [_load(builder, data, builder.add(begin, _LONG(64 * k)), _BYTE, _B64) for k in range(3)]
        for channel in range(3):
            wanted = [3 * pixel + channel for pixel in range(64)]
            low = [place if place < 128 else 0 for place in wanted]
            joined = builder.shuffle_vector(blocks[0], blocks[1], ir.Constant(_W64, low))
            last = [pixel if wanted[pixel] < 128 else 64 + wanted[pixel] - 128 for pixel in range(64)]
            joined = builder.shuffle_vector(joined, blocks[2], ir.Constant(_W64, last))
            _store(builder, joined, planes, builder.add(at, builder.mul(plane, _LONG(channel))), _BYTE)
        return context.get_dummy_value()

    return types.void(*5 * (types.int64,)), _emitted(code)


_UNROLLED = 2, 3, 4


def _by_count(builder: Any, count: Any, emit: Any) -> None:
    """Emit what is done for `count` taps: with a loop over them, but for the usual counts, which are unrolled."""
    usual = ir.IntType(1)(0)
    for taps in _UNROLLED:
        found = builder.icmp_signed("==", count, _LONG(taps))
        usual = builder.or_(usual, found)
        with builder.if_then(found):
            emit(taps)
    with builder.if_then(builder.not_(usual)):
        emit(0)


def _across(channels: int) -> Any:
    @intrinsic
    def across(typing_context, planes, plane, lows, windows, places, weights, width, taps, half, out):
        """Resize a row across, in each channel. All are int64 but `half`.

        Arguments:
            planes: address of the row's channels, uint8, `plane` bytes apart.
            plane: bytes.
            lows: address of int32 [width / 16, windows, 2], where each window begins.
            windows: 1 or 2.
            places: address of uint8 [windows, taps, 2 · width], the byte permutes: one for each window and tap.
            weights: address of uint16 [taps, width].
            width: of the row that is made, a multiple of 16.
            taps: how many.
            half: uint16, what is added before rounding.
            out: address of the row, uint16, its channels `width` apart: levels in the upper halves, 0 in the others.
        """

        def code(context, builder, signature, values):
            planes, plane, lows, windows, places, weights, width, count, half, out = values
            kind = ir.FunctionType(_B32, [_B32, _B32])
            permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pshuf.b")
            pair = ir.Constant(ir.VectorType(_WORD, 32), list(range(32)))
            added, mask = _splat(builder, half, _S16), ir.Constant(_S16, [0xFF00] * 16)
            double = builder.shl(width, _LONG(1))
            beyond = [builder.mul(plane, _LONG(channel)) for channel in range(channels)]

            def sources_of(block, windows):
                found: list[list[Any]] = []
                for window in range(windows):
                    first = builder.add(builder.mul(block, _LONG(2 * windows)), _LONG(2 * window))
                    starts = []
                    for lane in range(2):
                        low = _load(builder, lows, builder.add(first, _LONG(lane)), _WORD, _WORD, 4)
                        starts.append(builder.zext(low, _LONG))
                    found.append([])
                    for away in beyond:
                        halves = [_load(builder, planes, builder.add(start, away), _BYTE, _B16) for start in starts]
                        found[-1].append(builder.shuffle_vector(*halves, pair))
                return found

            def products(block, tap, sources):
                weight_at = builder.add(builder.mul(tap, width), builder.shl(block, _LONG(4)))
                weight = _load(builder, weights, weight_at, _SHORT, _S16, 2)
                joined: list[Any] = []
                for window, of_channels in enumerate(sources):
                    line = builder.add(builder.mul(count, _LONG(window)), tap)
                    place = builder.add(builder.mul(line, double), builder.shl(block, _LONG(5)))
                    order = _load(builder, places, place, _BYTE, _B32)
                    found = [builder.call(permute, [source, order]) for source in of_channels]
                    joined = [builder.or_(a, b) for a, b in zip(joined, found, strict=True)] if window else found
                return [_high_product(builder, builder.bitcast(one, _S16), weight) for one in joined]

            def row(taps, windows):
                with cgutils.for_range(builder, builder.lshr(width, _LONG(4)), intp=_LONG) as loop:
                    sources = sources_of(loop.index, windows)
                    totals = [added] * channels
                    for tap in range(taps):
                        found = products(loop.index, _LONG(tap), sources)
                        totals = [builder.add(a, b) for a, b in zip(totals, found, strict=True)]
                    if not taps:
                        kept = [cgutils.alloca_once(builder, _S16) for _ in range(channels)]
                        for one in kept:
                            builder.store(added, one)
                        with cgutils.for_range(builder, count, intp=_LONG) as inner:
                            for one, more in zip(kept, products(loop.index, inner.index, sources), strict=True):
                                builder.store(builder.add(builder.load(one), more), one)
                        totals = [builder.load(one) for one in kept]
                    for channel in range(channels):
                        place = builder.add(builder.shl(loop.index, _LONG(4)), builder.mul(width, _LONG(channel)))
                        _store(builder, builder.and_(totals[channel], mask), out, place, _SHORT, 2)

            one_window = builder.icmp_signed("==", windows, _LONG(1))
            with builder.if_else(one_window) as (then, otherwise):
                with then:
                    _by_count(builder, count, lambda taps: row(taps, 1))
                with otherwise:
                    row(0, 2)
            return context.get_dummy_value()

        return types.void(*8 * (types.int64,), types.uint16, types.int64), _emitted(code)

    return across


across_rgb, across_plane = _across(3), _across(1)

BYTES, SINGLES, HALVES, STREAMED_SINGLES, STREAMED_HALVES = range(5)
"""What a row that was resized down is stored as: its levels, or (v - mean) · scale.

Streamed stores pass the caches by: 45 → 34 µs an image of 224² in float16, 75 → 42 in float32, where the batch is
larger than they are. Each 16 pixels' place must then be a multiple of 32 bytes (of 16 for halves).
"""


def _down(stored: int) -> Any:
    @intrinsic
    def down(typing_context, rows, places, first, size, weights, count, half, mean, scale, out):
        """Resize down: make `size` pixels of a row out of rows of levels in the upper halves of words.

        Arguments:
            rows: address of uint16, int64, as are all but `half`, `mean` and `scale`.
            places: address of int64 [count], where each row begins.
            first: the first element of a row that is taken.
            size: how many, a multiple of 16.
            weights: address of uint16 [count], those of this output row.
            count: how many taps there are.
            half: uint16, what is added before rounding.
            mean: float32.
            scale: float32.
            out: address of the first pixel that is made.
        """

        def code(context, builder, signature, values):
            rows, places, first, size, weights, count, half, mean, scale, out = values
            eight = ir.VectorType(_FLOAT, 8)
            means, scales = _splat(builder, mean, eight), _splat(builder, scale, eight)

            def place_and_weight(tap):
                place = _load(builder, places, tap, _LONG, _LONG, 8)
                return place, _splat(builder, _load(builder, weights, tap, _SHORT, _SHORT, 2), _S16)

            def product(place, weight, element):
                return _high_product(
                    builder, _load(builder, rows, builder.add(place, element), _SHORT, _S16, 2), weight
                )

            start = _splat(builder, half, _S16)

            def row(taps):
                fixed = [place_and_weight(_LONG(tap)) for tap in range(taps)]  # held in registers for all of the row
                with cgutils.for_range(builder, builder.lshr(size, _LONG(4)), intp=_LONG) as loop:
                    made = builder.shl(loop.index, _LONG(4))
                    element = builder.add(first, made)
                    total = start
                    for place, weight in fixed:
                        total = builder.add(total, product(place, weight, element))
                    if not taps:
                        kept = cgutils.alloca_once(builder, _S16)
                        builder.store(start, kept)
                        with cgutils.for_range(builder, count, intp=_LONG) as inner:
                            more = product(*place_and_weight(inner.index), element)
                            builder.store(builder.add(builder.load(kept), more), kept)
                        total = builder.load(kept)
                    levels = builder.lshr(total, ir.Constant(_S16, [8] * 16))
                    if stored == BYTES:
                        _store(builder, builder.trunc(levels, _B16), out, made, _BYTE)
                    else:
                        _store_normalized(builder, levels, means, scales, out, made, stored)

            _by_count(builder, count, row)
            return context.get_dummy_value()

        real = types.float32
        return types.void(*6 * (types.int64,), types.uint16, real, real, types.int64), _emitted(code)

    return down


def _store_normalized(builder: Any, levels: Any, means: Any, scales: Any, out: Any, at: Any, stored: int) -> None:
    eight = ir.VectorType(_FLOAT, 8)
    halves, streamed = stored in (HALVES, STREAMED_HALVES), stored in (STREAMED_SINGLES, STREAMED_HALVES)
    for part in range(2):
        lanes = ir.Constant(ir.VectorType(_WORD, 8), [8 * part + k for k in range(8)])
        whole = builder.zext(builder.shuffle_vector(levels, levels, lanes), ir.VectorType(_WORD, 8))
        value = builder.fmul(builder.fsub(builder.sitofp(whole, eight), means), scales)
        if halves:  # by name: LLVM drops the hint from its own conversion
            kind = ir.FunctionType(ir.VectorType(_SHORT, 8), [eight, _WORD])
            to_half = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.vcvtps2ph.256")
            value = builder.call(to_half, [value, _WORD(0)])
        place = builder.add(at, _LONG(8 * part))
        align = (16 if halves else 32) if streamed else 2
        instruction = _store(builder, value, out, place, _SHORT if halves else _FLOAT, align)
        if streamed:
            instruction.set_metadata("nontemporal", builder.module.add_metadata([_WORD(1)]))


down_to_bytes, down_to_singles, down_to_halves = _down(BYTES), _down(SINGLES), _down(HALVES)
down_to_streamed_singles, down_to_streamed_halves = _down(STREAMED_SINGLES), _down(STREAMED_HALVES)


def _storer(stored: int) -> Any:
    @intrinsic
    def store(typing_context, line, size, mean, scale, out):
        """Store `size` bytes at address `line`, a multiple of 16, as (v - mean) · scale at address `out`."""

        def code(context, builder, signature, values):
            line, size, mean, scale, out = values
            eight = ir.VectorType(_FLOAT, 8)
            means, scales = _splat(builder, mean, eight), _splat(builder, scale, eight)
            with cgutils.for_range(builder, builder.lshr(size, _LONG(4)), intp=_LONG) as loop:
                at = builder.shl(loop.index, _LONG(4))
                levels = builder.zext(_load(builder, line, at, _BYTE, _B16), _S16)
                _store_normalized(builder, levels, means, scales, out, at, stored)
            return context.get_dummy_value()

        real = types.float32
        return types.void(types.int64, types.int64, real, real, types.int64), _emitted(code)

    return store


to_singles, to_halves = _storer(SINGLES), _storer(HALVES)
to_streamed_singles, to_streamed_halves = _storer(STREAMED_SINGLES), _storer(STREAMED_HALVES)


@intrinsic
def prefetch_address(typing_context, address):
    """Begin to read the cache line at an address; one that is nobody's does no harm."""

    def code(context, builder, signature, values):
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _WORD, _WORD, _WORD])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, near, of_data = _WORD(0), _WORD(3), _WORD(1)
        builder.call(function, [builder.inttoptr(values[0], _BYTE.as_pointer()), read, near, of_data])
        return context.get_dummy_value()

    return types.void(types.int64), code
