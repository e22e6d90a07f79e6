"""How a thread of the CUDA top-k reads rows: four of them at once, four columns of each, as float32."""

import numpy as np

from .cuda_memory import load_short, load_word, widen_half
from .inlining import inlined
from .topk import BFLOAT16, FLOAT32, RATIO, limit_of


@inlined
def position_of(visit, phase, skip):
    """Return how many of a level's positions lie between a slab's first visit, `phase` mod 31, and its `visit`-th."""
    skipped = np.int32(np.uint32(np.int32(phase + visit)) // np.uint32(RATIO - 1))
    return np.int64(np.int32(visit + np.int32(skip * skipped)))


@inlined
def four_rows(visit, end, phase, skip, x, pitch, start, leap, order, ordered, origin, stride):
    """Return the addresses of the rows of four visits from `visit` on; past the end, of the last one's."""
    a = position_of(min(visit, end), phase, skip)
    b = position_of(min(np.int32(visit + 1), end), phase, skip)
    c = position_of(min(np.int32(visit + 2), end), phase, skip)
    d = position_of(min(np.int32(visit + 3), end), phase, skip)
    if ordered:
        a, b, c, d = a * stride, b * stride, c * stride, d * stride
        a, b, c, d = order[origin + a], order[origin + b], order[origin + c], order[origin + d]
        return x + a * pitch, x + b * pitch, x + c * pitch, x + d * pitch
    return start + a * leap, start + b * leap, start + c * leap, start + d * leap


@inlined
def float32s(words):
    return (
        words[0].view(np.float32),
        words[1].view(np.float32),
        words[2].view(np.float32),
        words[3].view(np.float32),
    )


@inlined
def _from_bfloat16s(words):
    """Return the four float32 that two words stand for."""
    a, b = words
    shift, upper = np.uint32(16), np.uint32(0xFFFF0000)
    return (
        np.uint32(a << shift).view(np.float32),
        np.uint32(a & upper).view(np.float32),
        np.uint32(b << shift).view(np.float32),
        np.uint32(b & upper).view(np.float32),
    )


@inlined
def _from_float16s(words):
    a, b = words
    shift = np.uint32(16)
    return widen_half(a), widen_half(np.uint32(a >> shift)), widen_half(b), widen_half(np.uint32(b >> shift))


@inlined
def four_widened(a, b, c, d, kind):
    if kind == BFLOAT16:
        return _from_bfloat16s(a), _from_bfloat16s(b), _from_bfloat16s(c), _from_bfloat16s(d)
    return _from_float16s(a), _from_float16s(b), _from_float16s(c), _from_float16s(d)


@inlined
def _from_bits(bits, kind):
    if kind == FLOAT32:
        return np.uint32(bits).view(np.float32)
    if kind == BFLOAT16:
        return np.uint32(bits << np.uint32(16)).view(np.float32)
    return widen_half(bits)


@inlined
def value_at(address, kind):
    return _from_bits(load_word(address) if kind == FLOAT32 else load_short(address), kind)


@inlined
def words_at(row, places):
    """Return four words that lie `places` bytes behind a row's address."""
    a, b, c, d = places
    return load_word(row + a), load_word(row + b), load_word(row + c), load_word(row + d)


@inlined
def shorts_at(row, places):
    a, b, c, d = places
    return load_short(row + a), load_short(row + b), load_short(row + c), load_short(row + d)


@inlined
def each_widened(bits, kind):
    return _from_bits(bits[0], kind), _from_bits(bits[1], kind), _from_bits(bits[2], kind), _from_bits(bits[3], kind)


@inlined
def _reaches(row, limits):
    return row[0] >= limits[0] or row[1] >= limits[1] or row[2] >= limits[2] or row[3] >= limits[3]


@inlined
def _hit_bits(row, limits):
    bits = np.uint32(row[0] >= limits[0]) | np.uint32(np.uint32(row[1] >= limits[1]) << np.uint32(1))
    bits |= np.uint32(np.uint32(row[2] >= limits[2]) << np.uint32(2))
    return np.uint32(bits | np.uint32(np.uint32(row[3] >= limits[3]) << np.uint32(3)))


@inlined
def hits_of(p, q, r, s, limits):
    """Return bit 4·row + column for each value of four rows that reaches its column's limit."""
    if _reaches(p, limits) or _reaches(q, limits) or _reaches(r, limits) or _reaches(s, limits):
        low = np.uint32(_hit_bits(p, limits) | np.uint32(_hit_bits(q, limits) << np.uint32(4)))
        high = np.uint32(_hit_bits(r, limits) | np.uint32(_hit_bits(s, limits) << np.uint32(4)))
        return np.uint32(low | np.uint32(high << np.uint32(8)))
    return np.uint32(0)


@inlined
def least_of(a, p, q, r, s):
    return (
        min(a[0], min(min(p[0], q[0]), min(r[0], s[0]))),
        min(a[1], min(min(p[1], q[1]), min(r[1], s[1]))),
        min(a[2], min(min(p[2], q[2]), min(r[2], s[2]))),
        min(a[3], min(min(p[3], q[3]), min(r[3], s[3]))),
    )


@inlined
def sum_of(p, q, r, s):
    one = ((p[0] + p[1]) + (p[2] + p[3])) + ((q[0] + q[1]) + (q[2] + q[3]))
    return one + (((r[0] + r[1]) + (r[2] + r[3])) + ((s[0] + s[1]) + (s[2] + s[3])))


@inlined
def limits_of(floor_values, floor_ids, thread, column, apart, dims, lowest_id):
    """Return what a value of each of a thread's columns must reach; a column that is not there, NaN."""
    none = np.float32(np.nan)
    a, b, c, d = none, none, none, none
    if column < dims:
        a = limit_of(floor_values[0, thread], floor_ids[0, thread], lowest_id)
    if column + apart < dims:
        b = limit_of(floor_values[1, thread], floor_ids[1, thread], lowest_id)
    if column + 2 * apart < dims:
        c = limit_of(floor_values[2, thread], floor_ids[2, thread], lowest_id)
    if column + 3 * apart < dims:
        d = limit_of(floor_values[3, thread], floor_ids[3, thread], lowest_id)
    return a, b, c, d
