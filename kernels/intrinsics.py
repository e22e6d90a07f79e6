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
    settings: Any = config  # Numba makes its attributes when it is loaded
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None:
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


@intrinsic
def prefetch_element(typing_context, data, index):
    """Begin to read the cache line of an array's element, counted from its first; one outside of it does no harm."""

    def code(context, builder, signature, values):
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
        prefetch_element(data, begin + k)
    if size > 0:
        prefetch_element(data, begin + size - 1)


@intrinsic
def to_half(typing_context, value):
    """Round a float32 to the nearest float16, ties to even, and return its bits (uint16)."""

    def code(context, builder, signature, values):
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), code


@intrinsic
def unseen(typing_context, count):
    """Return `count`, int64, so that LLVM does not see a constant: a loop over channels stays one, and is made once."""

    def code(context, builder, signature, values):
        number = ir.IntType(64)
        return builder.asm(ir.FunctionType(number, [number]), "", "=r,0", [values[0]], False)

    return types.int64(types.int64), code


_X86 = platform.machine() in ("x86_64", "AMD64")


@intrinsic
def store_fence(typing_context):
    """Have other threads see stores that passed by the caches before any later store."""

    def code(context, builder, signature, values):
        if _X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.sfence"), [])
        else:
            builder.fence("release")
        return context.get_dummy_value()

    return types.void(), code


LANES = 16
"""Columns that `survey` and `survey_tail` look at together."""


def _surveyor(whole: bool) -> Any:
    @intrinsic
    def survey(typing_context, m, starts, column, count, limit, lowest):
        """Look at LANES columns of eight rows of float32 `m` from `column` on; no bounds are checked.

        `starts` are the rows' first elements, uint64. The result's bits, one a column: from bit 0 on, whether one of
        the eight reaches `limit`; from bit 16 on, whether one is below `lowest`; from bit 32 on, whether their sum is
        infinite or NaN, as it is where one of them is. Only the first `count` columns exist for `survey_tail`.
        """

        def code(context, builder, signature, values):
            vector, flags = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(1), LANES)
            long = ir.IntType(64)

            def splat(value):
                return ir.Constant(vector, [ir.Constant(ir.FloatType(), value)] * LANES)

            if not whole:
                numbers = ir.VectorType(long, LANES)
                first = builder.insert_element(ir.Constant(numbers, ir.Undefined), values[3], ir.IntType(32)(0))
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
                counts = builder.shuffle_vector(first, first, zeros)
                mask = builder.icmp_unsigned("<", ir.Constant(numbers, list(range(LANES))), counts)
                kind = ir.FunctionType(vector, [vector.as_pointer(), ir.IntType(32), flags, vector])
                masked = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")

            def load(place, index, other):
                pointer = _pointer(context, builder, signature.args[place], values[place], index, vector)
                if not whole:
                    return builder.call(masked, [pointer, ir.IntType(32)(4), mask, splat(other)])
                loaded = builder.load(pointer)
                loaded.align = 4
                return loaded

            def fold(rows, join):
                while len(rows) > 1:
                    rows = [join(rows[i], rows[i + 1]) for i in range(0, len(rows), 2)]
                return rows[0]

            def chosen(relation):
                return lambda a, b: builder.select(builder.fcmp_ordered(relation, a, b), a, b)

            def bits(found, shift):
                return builder.shl(builder.zext(builder.bitcast(found, ir.IntType(LANES)), long), long(shift))

            starts_of = (builder.extract_value(values[1], j) for j in range(8))
            rows = [load(0, builder.add(start, values[2]), 0.0) for start in starts_of]
            above = builder.fcmp_ordered(">=", fold(rows, chosen(">")), load(4, values[2], float("inf")))
            below = builder.fcmp_ordered("<", fold(rows, chosen("<")), load(5, values[2], float("-inf")))
            total = fold(rows, builder.fadd)
            # x - x is 0 for what is finite, and NaN for what is not.
            odd = builder.fcmp_unordered("uno", *(2 * [builder.fsub(total, total)]))
            return builder.or_(bits(above, 0), builder.or_(bits(below, LANES), bits(odd, 2 * LANES)))

        rows = types.UniTuple(types.uint64, 8)
        return types.uint64(m, rows, types.uint64, types.uint64, limit, lowest), code

    return survey


survey, survey_tail = _surveyor(True), _surveyor(False)
