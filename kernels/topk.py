"""Exact top-k down the columns of a row-major matrix that arrives in chunks: the CPU kernels and the CUDA kernels.

For each group of rows (one, or one per class) and each of the matrix's columns (embedding dimensions) the k best
entries are kept, best first: higher value, then lower id; -0 equals +0. In the same pass: each column's minimum and
maximum, and the rows that hold NaN or infinity. State is O(groups · dims · k), and states merge exactly.

One idea serves sorted, constant and random input alike: what is kept depends on values and ids only, never on the
order of visiting, so a spread sample of rows (a 1,024th, then a 32nd) is looked at first. On the CPU its k-th best is
a floor for the pass over all rows; on CUDA the sample's rows are visited first and left out later. Afterwards hits are
rare: about 32·k rows a level can hit a column, so no order is quadratic, or even far from linear.

A column's limit is compared with `>=`. It is the k-th best value where a tie could still win by its id, and the next
float above it where all ids to come are higher: a ReLU's zeros, equal in every row, then cost nothing.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from fastload.common.processors import processors
from fastload.errors import UsageError

from .compiling import cuda_jit, njit
from .cuda_memory import load_four, load_short, load_two, load_word, widen_half
from .cuda_target import SIMULATED, cuda, device_array, launch_stream, require
from .intrinsics import LANES, prefetch_element, survey, survey_tail

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
MAX_K_CUDA = 1024
FIRST_IDS = 10
"""How many ids of rows with NaN or infinity are kept: the lowest ones."""

_RATIO = 32
_NO_ID = np.int64(2**63 - 1)
_NO_IDS = np.empty(0, np.int64)
_LOWEST = np.float32(-np.inf)
_FLOAT32_MAX = np.float32(3.4028234663852886e38)
_FLOAT16_SCALE = np.float32(2.0**112)
_BLOCK = 256
_ALL_LANES = np.uint64((1 << LANES) - 1)
_SLAB_BYTES = 1 << 29
"""Of device memory, about as much as a level's lists may take."""

_SORTED = 2048
_MERGE_THREADS = 128


# -- shared by both targets ----------------------------------------------------------------------------------------


@register_jitable
def widen(raw, kind):
    """Return the float32 that `raw` stands for: itself, or the 16 bits of a float16 or bfloat16."""
    if kind == FLOAT32:
        return np.float32(raw)
    bits = np.int64(raw) & 0xFFFF
    if kind == BFLOAT16:
        return np.uint32(bits << 16).view(np.float32)
    magnitude = (bits & 0x7FFF) << 13
    if (bits & 0x7C00) == 0x7C00:
        value = np.uint32(magnitude | 0x7F800000).view(np.float32)
    else:
        value = np.float32(np.uint32(magnitude).view(np.float32) * _FLOAT16_SCALE)
    return -value if bits & 0x8000 else value


@register_jitable
def next_above(value):
    """Return the least float32 above `value`, which is not -0; NaN, which nothing reaches, for infinity."""
    bits = np.float32(value).view(np.uint32)
    if bits == np.uint32(0):
        return np.uint32(1).view(np.float32)
    if value > np.float32(0):
        return np.uint32(np.int64(bits) + 1).view(np.float32)
    return np.uint32(np.int64(bits) - 1).view(np.float32)


@register_jitable
def better(value, sample, other_value, other_sample):
    """Whether (value, id) ranks before another: higher, or as high with the lower id."""
    return value > other_value or (value == other_value and sample < other_sample)


@register_jitable
def limit_of(value, sample, lowest_id):
    """Return what a value must reach to get past (value, id) when no id below `lowest_id` is to come."""
    if sample < lowest_id:
        return next_above(value)
    return value


@register_jitable
def sink(values, ids, first, count, value, sample):
    """Put an entry at the root of the heap that begins at `first`, whose root is its worst entry, and let it sink."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= count:
            break
        if child + 1 < count and better(
            values[first + child], ids[first + child], values[first + child + 1], ids[first + child + 1]
        ):
            child += 1
        if better(values[first + child], ids[first + child], value, sample):
            break
        values[first + place] = values[first + child]
        ids[first + place] = ids[first + child]
        place = child
    values[first + place] = value
    ids[first + place] = sample


@register_jitable
def offer(values, ids, first, room, count, value, sample):
    """Add an entry to the heap at `first … first + room - 1`, in place of its worst when full; return the new count.

    A heap is told by its place, since views of an array are counted references: 28 ns an entry on a CPU, for 45.
    """
    if count == room:
        if better(value, sample, values[first], ids[first]):
            sink(values, ids, first, count, value, sample)
        return count
    place = count
    while place > 0:
        parent = (place - 1) // 2
        if not better(values[first + parent], ids[first + parent], value, sample):
            break
        values[first + place] = values[first + parent]
        ids[first + place] = ids[first + parent]
        place = parent
    values[first + place] = value
    ids[first + place] = sample
    return count + 1


def top_stride(rows: int, k: int) -> int:
    """Return the first stride of a visit: a power of 32 that leaves between 2·k and 64·k rows, or 1."""
    stride = 1
    while rows // stride > 2 * _RATIO * k:
        stride *= _RATIO
    return stride


# -- CPU -----------------------------------------------------------------------------------------------------------


@register_jitable
def _higher(a, b):
    # Numba's own max() and min() order NaN and zeros, which costs instructions; neither matters here.
    return a if a > b else b


@register_jitable
def _lower(a, b):
    return a if a < b else b


def _float_rows(x, kind, places, buffer):
    """Return a float32 matrix and where eight rows of x stand in it; typed below, for compiled code only."""


@overload(_float_rows)
def _float_rows_typed(x, kind, places, buffer):
    if x.dtype == types.float32:
        return lambda x, kind, places, buffer: (x, places)

    def widened(x, kind, places, buffer):
        for j in range(8):
            for i in range(buffer.shape[1]):
                buffer[j, i] = widen(x[places[j], i], kind)
        return buffer, (0, 1, 2, 3, 4, 5, 6, 7)

    return widened


@register_jitable
def _id_of(samples, first_id, row):
    """Return a row's id; ids that follow each other are not written out, which would take 8 bytes a row."""
    return samples[row] if samples.size else first_id + row


@njit(nogil=True)
def _note_bad_row(m, row, sample, bad_ids, bad_count):
    """Count a row with NaN or infinity in it, and keep its id where it is among the lowest."""
    finite = True
    for i in range(m.shape[1]):
        finite = finite and abs(m[row, i]) <= _FLOAT32_MAX
    if finite:
        return
    bad_count[0] += 1
    place = bad_ids.size
    while place > 0 and bad_ids[place - 1] > sample:
        if place < bad_ids.size:
            bad_ids[place] = bad_ids[place - 1]
        place -= 1
    if place < bad_ids.size:
        bad_ids[place] = sample


@njit(nogil=True)
def _scan_rows(
    x, kind, samples, first_id, order, first, last, stride, floor, values, ids, counts, lowest, bad_ids, bad_count,
    limit, buffer,
):  # fmt: skip
    """Offer every `stride`-th eight rows of order[first … last - 1] (of x where `order` is empty) to heaps.

    Eight rows at once, since one row at a time is bound by the loads of limits, not by memory; while they are looked
    at, the next eight are on their way to the first-level cache. Bound by memory while hits are rare: of 500,000 rows
    of 216 one thread takes 0.26 µs for eight, hits included (AMD EPYC; 0.33 with loops that LLVM makes vectors of).
    Ascending rows are bound by the heaps, which are renewed on each level of samples. Values below `floor` are passed
    over: k others are known to be as high.
    """
    dims, k = values.shape
    heap_values, heap_ids = values.reshape(-1), ids.reshape(-1)
    lowest_id = _NO_ID
    for start in range(first, last, 8 * stride):
        for at in range(start, min(last, start + 8)):
            lowest_id = min(lowest_id, _id_of(samples, first_id, order[at] if order.size else at))
    for i in range(dims):
        limit[i] = floor[i]
        if counts[i] == k:
            limit[i] = _higher(floor[i], limit_of(values[i, 0], ids[i, 0], lowest_id))
    for start in range(first, last, 8 * stride):
        n = min(8, last - start)
        p0 = start
        # A short last step repeats its last row, which changes neither maximum nor minimum.
        p1, p2, p3 = p0 + min(1, n - 1), p0 + min(2, n - 1), p0 + min(3, n - 1)
        p4, p5, p6, p7 = p0 + min(4, n - 1), p0 + min(5, n - 1), p0 + min(6, n - 1), p0 + min(7, n - 1)
        if order.size:
            p0, p1, p2, p3 = order[p0], order[p1], order[p2], order[p3]
            p4, p5, p6, p7 = order[p4], order[p5], order[p6], order[p7]
        places = (p0, p1, p2, p3, p4, p5, p6, p7)
        m, rows = _float_rows(x, kind, places, buffer)
        begin = (
            np.uint64(rows[0] * dims), np.uint64(rows[1] * dims), np.uint64(rows[2] * dims), np.uint64(rows[3] * dims),
            np.uint64(rows[4] * dims), np.uint64(rows[5] * dims), np.uint64(rows[6] * dims), np.uint64(rows[7] * dims),
        )  # fmt: skip
        following = start + 8 * stride
        seen = np.uint64(0)
        for column in range(0, dims, LANES):
            first_column, left = np.uint64(column), np.uint64(dims - column)
            if order.size:
                for j in range(following, min(following + 8, last)):
                    prefetch_element(x, np.uint64(order[j] * dims + column))
            else:  # line by line: the processor's own prefetcher sees a sequence
                for j in range(8):
                    prefetch_element(x, np.uint64(following * dims + 8 * column + LANES * j))
            if left >= np.uint64(LANES):
                found = survey(m, begin, first_column, left, limit, lowest)
            else:
                found = survey_tail(m, begin, first_column, left, limit, lowest)
            if found:
                seen |= found
                for lane in range(min(LANES, dims - column) if found & _ALL_LANES else 0):
                    i = column + lane
                    if found >> np.uint64(lane) & np.uint64(1):
                        for j in range(n):
                            value = m[rows[j], i]
                            if value >= limit[i]:
                                # + 0 turns -0 into +0.
                                value += np.float32(0)
                                sample = _id_of(samples, first_id, places[j])
                                counts[i] = offer(heap_values, heap_ids, i * k, k, counts[i], value, sample)
                                if counts[i] == k:
                                    limit[i] = _higher(floor[i], limit_of(values[i, 0], ids[i, 0], lowest_id))
        if seen >> np.uint64(LANES) & _ALL_LANES:
            for row in rows:
                for i in range(dims):
                    lowest[i] = _lower(m[row, i], lowest[i])
        if seen >> np.uint64(2 * LANES):
            for j in range(n):
                _note_bad_row(m, rows[j], _id_of(samples, first_id, places[j]), bad_ids, bad_count)


@njit(nogil=True)
def _scan_group(
    x, kind, samples, first_id, order, first, last, stride, values, ids, counts, lowest, bad_ids, bad_count
):  # fmt: skip
    """Offer rows order[first … last - 1] (first … last - 1 where `order` is empty) to one group's heaps.

    Samples of every `stride`-th eight rows, then of 32 times as many, and so on, come first, into heaps of their own:
    the k-th best of a sample is a floor for the next, so that the last pass, over all rows in sequence, seldom hits.
    Eight rows together, since a row alone is fetched at the latency of memory, not at its bandwidth.
    """
    dims, k = values.shape
    limit = np.empty(dims, np.float32)
    floor = np.full(dims, _LOWEST)
    buffer = np.empty((8, dims if kind != FLOAT32 else 0), np.float32)
    if stride > 1:
        sample_values, sample_ids = np.empty((dims, k), np.float32), np.empty((dims, k), np.int64)
        sample_lowest = np.full(dims, _LOWEST)
        sample_bad, sample_bad_count = np.empty(0, np.int64), np.zeros(1, np.int64)
    while stride > 1:
        sample_counts = np.zeros(dims, np.int32)
        for start in range(first, last, _BLOCK * stride):
            _scan_rows(
                x, kind, samples, first_id, order, start, min(last, start + _BLOCK * stride), stride, floor,
                sample_values, sample_ids, sample_counts, sample_lowest, sample_bad, sample_bad_count,
                limit, buffer,
            )  # fmt: skip
        for i in range(dims):
            if sample_counts[i] == k:
                floor[i] = sample_values[i, 0]
        stride //= _RATIO
    for start in range(first, last, _BLOCK):
        _scan_rows(
            x, kind, samples, first_id, order, start, min(last, start + _BLOCK), 1, floor,
            values, ids, counts, lowest, bad_ids, bad_count, limit, buffer,
        )  # fmt: skip


@njit(nogil=True)
def _sort_heaps(values, ids, counts):
    """Turn heaps [lists, k] into lists, best entry first."""
    flat_values, flat_ids, k = values.reshape(-1), ids.reshape(-1), values.shape[1]
    for row in range(values.shape[0]):
        first = row * k
        for end in range(counts[row] - 1, 0, -1):
            value, sample = values[row, end], ids[row, end]
            worst_value, worst_id = values[row, 0], ids[row, 0]
            sink(flat_values, flat_ids, first, end, value, sample)
            values[row, end], ids[row, end] = worst_value, worst_id


@njit(nogil=True)
def _merge_lists(a_values, a_ids, a_counts, b_values, b_ids, b_counts, values, ids, counts):
    """Merge sorted lists [lists, k] pair by pair."""
    lists, k = values.shape
    for row in range(lists):
        i, j, n = 0, 0, 0
        while n < k and (i < a_counts[row] or j < b_counts[row]):
            if j == b_counts[row] or (
                i < a_counts[row] and better(a_values[row, i], a_ids[row, i], b_values[row, j], b_ids[row, j])
            ):
                values[row, n], ids[row, n] = a_values[row, i], a_ids[row, i]
                i += 1
            else:
                values[row, n], ids[row, n] = b_values[row, j], b_ids[row, j]
                j += 1
            n += 1
        counts[row] = n


# -- CUDA ----------------------------------------------------------------------------------------------------------


_COLUMNS = 4
"""Columns that a thread has: one load of 16 bytes a row, or of 8 where a value has 16 bits."""

SLAB_THREADS = 4 if SIMULATED else 128
"""The most threads a block of `top_slabs` has. A simulated thread is a Python thread: the fewest that show races."""

MAX_REGISTERS = 96
"""Registers a thread may have; left to itself, the linker takes 108 for some architectures, and spills none at 96."""

SLAB_WARPS = 20
"""Warps of `top_slabs` that a multiprocessor holds: five for each quarter of its registers."""

inlined = register_jitable(forceinline=True)


@inlined
def _position(visit, phase, skip):
    """Return how many of a level's positions lie between a slab's first visit, `phase` mod 31, and its `visit`-th."""
    skipped = np.int32(np.uint32(np.int32(phase + visit)) // np.uint32(_RATIO - 1))
    return np.int64(np.int32(visit + np.int32(skip * skipped)))


@inlined
def _four_rows(visit, end, phase, skip, x, pitch, start, leap, order, ordered, origin, stride):
    """Return the addresses of the rows of four visits from `visit` on; past the end, of the last one's."""
    a = _position(min(visit, end), phase, skip)
    b = _position(min(np.int32(visit + 1), end), phase, skip)
    c = _position(min(np.int32(visit + 2), end), phase, skip)
    d = _position(min(np.int32(visit + 3), end), phase, skip)
    if ordered:
        a, b, c, d = a * stride, b * stride, c * stride, d * stride
        a, b, c, d = order[origin + a], order[origin + b], order[origin + c], order[origin + d]
        return x + a * pitch, x + b * pitch, x + c * pitch, x + d * pitch
    return start + a * leap, start + b * leap, start + c * leap, start + d * leap


@inlined
def _float32s(words):
    return (
        words[0].view(np.float32), words[1].view(np.float32), words[2].view(np.float32), words[3].view(np.float32)
    )  # fmt: skip


@inlined
def _from_bfloat16s(words):
    """Return the four float32 that two words stand for."""
    a, b = words
    shift, upper = np.uint32(16), np.uint32(0xFFFF0000)
    return (
        np.uint32(a << shift).view(np.float32), np.uint32(a & upper).view(np.float32),
        np.uint32(b << shift).view(np.float32), np.uint32(b & upper).view(np.float32),
    )  # fmt: skip


@inlined
def _from_float16s(words):
    a, b = words
    shift = np.uint32(16)
    return widen_half(a), widen_half(np.uint32(a >> shift)), widen_half(b), widen_half(np.uint32(b >> shift))


@inlined
def _four_widened(a, b, c, d, kind):
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
def _value_at(address, kind):
    return _from_bits(load_word(address) if kind == FLOAT32 else load_short(address), kind)


@inlined
def _words_at(row, places):
    """Return four words that lie `places` bytes behind a row's address."""
    a, b, c, d = places
    return load_word(row + a), load_word(row + b), load_word(row + c), load_word(row + d)


@inlined
def _shorts_at(row, places):
    a, b, c, d = places
    return load_short(row + a), load_short(row + b), load_short(row + c), load_short(row + d)


@inlined
def _each_widened(bits, kind):
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
def _hits(p, q, r, s, limits):
    """Return bit 4·row + column for each value of four rows that reaches its column's limit."""
    if _reaches(p, limits) or _reaches(q, limits) or _reaches(r, limits) or _reaches(s, limits):
        low = np.uint32(_hit_bits(p, limits) | np.uint32(_hit_bits(q, limits) << np.uint32(4)))
        high = np.uint32(_hit_bits(r, limits) | np.uint32(_hit_bits(s, limits) << np.uint32(4)))
        return np.uint32(low | np.uint32(high << np.uint32(8)))
    return np.uint32(0)


@inlined
def _least(a, p, q, r, s):
    return (
        min(a[0], min(min(p[0], q[0]), min(r[0], s[0]))), min(a[1], min(min(p[1], q[1]), min(r[1], s[1]))),
        min(a[2], min(min(p[2], q[2]), min(r[2], s[2]))), min(a[3], min(min(p[3], q[3]), min(r[3], s[3]))),
    )  # fmt: skip


@inlined
def _sum_of(p, q, r, s):
    one = ((p[0] + p[1]) + (p[2] + p[3])) + ((q[0] + q[1]) + (q[2] + q[3]))
    return one + (((r[0] + r[1]) + (r[2] + r[3])) + ((s[0] + s[1]) + (s[2] + s[3])))


@inlined
def _limits(floor_values, floor_ids, thread, column, apart, dims, lowest_id):
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


def top_slabs(
    x, kind, wide, dims, samples, order, ordered, slab_first, slab_last, slab_group, slab_lowest_id, stride, skip,
    values, ids, counts, slab_values, slab_ids, slab_counts, slab_minimum, bad,
):  # fmt: skip
    """CUDA kernel: one thread four columns of a slab of rows, lists of what gets past the state's k-th best.

    Lanes of a warp take neighbouring columns, so rows load whole; threads' y takes further slabs where columns are
    few. Limits stay in registers; what only hits need (floors, counts) lies in shared memory, each thread's its own.

    Bound by memory: each row of this level is read once, and after the first levels hits are rare. Memory of 4.8 TB/s
    that answers after some 700 ns is kept busy by 3.4 MB under way, 25 KB for each of an H200's 132 multiprocessors. A
    thread has four rows of 16 bytes under way (eight of 8 bytes where values have 16 bits), and a multiprocessor five
    blocks of up to 128 threads: 40 KB, or 34 KB where 216 columns make blocks of 2 × 54. A step is about 160
    instructions (float32) or 340 for a warp's 2 KB, of the 430 that can be issued while memory delivers them. Reasoned
    from the machine code, not measured; where loads are not wide, four times as many ask for as much. A hit waits for
    memory itself, some 1 µs: of a million rows and k = 20, about one a thread.

    Arguments:
        x: address of float32 or 16-bit values [R, D]. kind: FLOAT32, FLOAT16 or BFLOAT16. wide: whether four columns
        are one load: D a multiple of four and x aligned to it; else a thread's columns lie a block's width apart.
        samples: int64 [R], the ids. order: int64 [R], rows sorted by group, used where `ordered` is 1.
        slab_first, slab_last: int64 [S], which of the level's visits. slab_group: int64 [S].
        slab_lowest_id: int64 [S], the slab's lowest id, or -1 where it is not known.
        stride, skip: the level visits positions j·stride, all j (skip 0), or those not multiples of 32 (skip 1).
        values, ids: [G, D, k], counts: int32 [G, D]: the state, read only.
        slab_values, slab_ids: [S, c, D], slab_counts: int32 [S, D], slab_minimum: float32 [S, D]: written.
        bad: uint8 [R + 1]: set to 1 for rows with NaN or infinity, and at R when there is any.
    """
    floor_values = cuda.shared.array((_COLUMNS, SLAB_THREADS), types.float32)
    floor_ids = cuda.shared.array((_COLUMNS, SLAB_THREADS), types.int64)
    held = cuda.shared.array((_COLUMNS, SLAB_THREADS), types.int32)
    width, dims = np.int32(cuda.blockDim.x), np.int32(dims)
    tiles = np.int32((dims + _COLUMNS * width - 1) // (_COLUMNS * width))
    block = np.int32(cuda.blockIdx.x)
    apart = np.int32(1 if wide else width)
    column = np.int32((block % tiles) * _COLUMNS * width + np.int32(cuda.threadIdx.x) * (_COLUMNS if wide else 1))
    slab = np.int64(block // tiles) * cuda.blockDim.y + cuda.threadIdx.y
    if column >= dims or slab >= slab_first.shape[0]:
        return
    thread = np.int32(np.int32(cuda.threadIdx.y) * width + np.int32(cuda.threadIdx.x))
    group, lowest_id = slab_group[slab], slab_lowest_id[slab]
    k = values.shape[2]
    for c in range(_COLUMNS):
        held[c, thread] = 0
        floor_values[c, thread], floor_ids[c, thread] = _LOWEST, _NO_ID
        one = column + c * apart
        if one < dims and counts[group, one] == k:
            floor_values[c, thread], floor_ids[c, thread] = values[group, one, k - 1], ids[group, one, k - 1]
    limits = _limits(floor_values, floor_ids, thread, column, apart, dims, lowest_id)
    infinity = np.float32(np.inf)
    minimum, total = (infinity, infinity, infinity, infinity), np.float32(0)
    size = np.int32(4 if kind == FLOAT32 else 2)
    # A column that is not there is read as the last one is.
    places = (
        np.int32(column * size), np.int32(min(column + apart, dims - 1) * size),
        np.int32(min(column + 2 * apart, dims - 1) * size), np.int32(min(column + 3 * apart, dims - 1) * size),
    )  # fmt: skip
    begin = slab_first[slab]
    origin, pitch = (begin + skip * (1 + begin // (_RATIO - 1))) * stride, np.int64(dims) * size
    start, leap = x + origin * pitch, stride * pitch
    phase, skip = np.int32(begin % (_RATIO - 1)), np.int32(skip)
    visit, end = np.int32(0), np.int32(slab_last[slab] - begin - 1)
    rows = np.int32(8 if wide and kind != FLOAT32 else 4)  # of a step: where loads are wide, 64 bytes a thread
    while visit <= end:  # a short last step repeats its last row
        r0, r1, r2, r3 = _four_rows(visit, end, phase, skip, x, pitch, start, leap, order, ordered, origin, stride)
        hits, at = np.uint32(0), places[0]
        # All of a step's loads before the first use of one, and no branch between them.
        if wide and kind == FLOAT32:
            f0, f1, f2, f3 = load_four(r0 + at), load_four(r1 + at), load_four(r2 + at), load_four(r3 + at)
            p, q, r, s = _float32s(f0), _float32s(f1), _float32s(f2), _float32s(f3)
        elif wide:
            more = np.int32(visit + 4)
            r4, r5, r6, r7 = _four_rows(more, end, phase, skip, x, pitch, start, leap, order, ordered, origin, stride)
            w0, w1, w2, w3 = load_two(r0 + at), load_two(r1 + at), load_two(r2 + at), load_two(r3 + at)
            w4, w5, w6, w7 = load_two(r4 + at), load_two(r5 + at), load_two(r6 + at), load_two(r7 + at)
            p, q, r, s = _four_widened(w4, w5, w6, w7, kind)
            hits = np.uint32(_hits(p, q, r, s, limits) << np.uint32(16))
            minimum = _least(minimum, p, q, r, s)
            total += _sum_of(p, q, r, s)
            p, q, r, s = _four_widened(w0, w1, w2, w3, kind)
        elif kind == FLOAT32:
            f0, f1, f2, f3 = _words_at(r0, places), _words_at(r1, places), _words_at(r2, places), _words_at(r3, places)
            p, q, r, s = _float32s(f0), _float32s(f1), _float32s(f2), _float32s(f3)
        else:
            h0, h1, h2, h3 = (
                _shorts_at(r0, places), _shorts_at(r1, places), _shorts_at(r2, places), _shorts_at(r3, places),
            )  # fmt: skip
            p, q = _each_widened(h0, kind), _each_widened(h1, kind)
            r, s = _each_widened(h2, kind), _each_widened(h3, kind)
        hits = np.uint32(hits | _hits(p, q, r, s, limits))
        minimum = _least(minimum, p, q, r, s)
        total += _sum_of(p, q, r, s)
        if hits != 0:
            while hits != 0:  # a lane takes its own next one, so that a warp's lanes wait for memory together
                bit = np.int32(cuda.popc(np.uint32(~hits & np.uint32(hits - np.uint32(1)))))
                hits = np.uint32(hits & np.uint32(hits - np.uint32(1)))
                hit = np.int32(visit + (bit >> 2))
                if hit <= end:
                    c = bit & 3
                    one = column + c * apart
                    row = origin + _position(hit, phase, skip) * stride
                    if ordered:
                        row = order[row]
                    sample = samples[row]
                    value = np.float32(_value_at(x + row * pitch + one * size, kind) + np.float32(0))
                    if better(value, sample, floor_values[c, thread], floor_ids[c, thread]):
                        list_values, list_ids = slab_values[slab, :, one], slab_ids[slab, :, one]
                        count = offer(list_values, list_ids, 0, list_values.shape[0], held[c, thread], value, sample)
                        held[c, thread] = count
                        # The slab's own k-th best raises the floor; a shorter list holds its whole slab.
                        if count == k and better(
                            list_values[0], list_ids[0], floor_values[c, thread], floor_ids[c, thread]
                        ):
                            floor_values[c, thread], floor_ids[c, thread] = list_values[0], list_ids[0]
            limits = _limits(floor_values, floor_ids, thread, column, apart, dims, lowest_id)
        visit = np.int32(visit + rows)
    slab_counts[slab, column], slab_minimum[slab, column] = held[0, thread], minimum[0]
    if column + apart < dims:
        slab_counts[slab, column + apart], slab_minimum[slab, column + apart] = held[1, thread], minimum[1]
    if column + 2 * apart < dims:
        slab_counts[slab, column + 2 * apart], slab_minimum[slab, column + 2 * apart] = held[2, thread], minimum[2]
    if column + 3 * apart < dims:
        slab_counts[slab, column + 3 * apart], slab_minimum[slab, column + 3 * apart] = held[3, thread], minimum[3]
    if not abs(total) <= _FLOAT32_MAX:
        for visit in range(end + 1):
            row = origin + _position(np.int32(visit), phase, skip) * stride
            if ordered:
                row = order[row]
            for c in range(_COLUMNS):
                one = column + c * apart
                if one < dims and not abs(_value_at(x + row * pitch + one * size, kind)) <= _FLOAT32_MAX:
                    bad[row] = 1
                    bad[bad.shape[0] - 1] = 1


def merge_slabs(
    groups, first_slab, last_slab, slab_values, slab_ids, slab_counts, slab_minimum,
    values, ids, counts, minimum, room,
):  # fmt: skip
    """CUDA kernel: one block a (group, column): the slabs' lists and the state's list become the state's list.

    Entries go to shared memory as long as there is room, are sorted there (a bitonic network on the total order of
    values and ids, so that the arrival order does not show), the best k stay, and the next ones follow. Bound by the
    barriers of the network, not by memory: it reads lists, of which a level has far fewer bytes than rows.

    Arguments:
        groups, first_slab, last_slab: int64 [Q], the groups of this launch and their slabs; the grid is Q · D:
            a second axis would end at 65,535.
        slab_…: as `top_slabs` wrote them. values, ids, counts: the state. minimum: float32 [G, D].
        room: entries sorted at once, a power of two, above k and at most 2,048.
    """
    best = cuda.shared.array(_SORTED, types.float32)
    best_ids = cuda.shared.array(_SORTED, types.int64)
    least = cuda.shared.array(_MERGE_THREADS, types.float32)
    shared = cuda.shared.array(2, types.int32)  # entries in use; whether a thread has more
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    dims, k = values.shape[1], values.shape[2]
    which, column = cuda.blockIdx.x // dims, cuda.blockIdx.x % dims
    group, first, last = groups[which], first_slab[which], last_slab[which]
    kept = np.int64(counts[group, column])
    for i in range(thread, kept, threads):
        best[i] = values[group, column, i]
        best_ids[i] = ids[group, column, i]
    low = np.float32(np.inf)
    for slab in range(first + thread, last, threads):
        low = min(low, slab_minimum[slab, column])
    least[thread] = low
    slab, entry = first + thread, 0
    more = True
    while more:
        if thread == 0:
            shared[0] = kept
            shared[1] = 0
        cuda.syncthreads()
        floor_value, floor_id = _LOWEST, _NO_ID
        if kept == k:
            floor_value, floor_id = best[k - 1], best_ids[k - 1]
        full = False
        while slab < last and not full:
            if entry >= slab_counts[slab, column]:
                slab, entry = slab + threads, 0
            else:
                value, sample = slab_values[slab, entry, column], slab_ids[slab, entry, column]
                if better(value, sample, floor_value, floor_id):
                    place = cuda.atomic.add(shared, 0, 1)
                    if place < room:
                        best[place] = value
                        best_ids[place] = sample
                        entry += 1
                    else:
                        full = True
                        shared[1] = 1
                else:
                    entry += 1
        cuda.syncthreads()
        used = min(np.int64(shared[0]), np.int64(room))
        more = shared[1] == 1
        size = 2
        while size < used:
            size *= 2
        for i in range(used + thread, size, threads):
            best[i] = _LOWEST
            best_ids[i] = _NO_ID
        cuda.syncthreads()
        span = 2
        while span <= size:
            step = span // 2
            while step > 0:
                for i in range(thread, size // 2, threads):
                    a = 2 * step * (i // step) + i % step
                    b = a + step
                    upside_down = better(best[b], best_ids[b], best[a], best_ids[a])
                    if upside_down == ((a & span) == 0):
                        value, sample = best[a], best_ids[a]
                        best[a], best_ids[a] = best[b], best_ids[b]
                        best[b], best_ids[b] = value, sample
                cuda.syncthreads()
                step //= 2
            span *= 2
        kept = min(used, np.int64(k))
    for i in range(thread, kept, threads):
        values[group, column, i] = best[i]
        ids[group, column, i] = best_ids[i]
    if thread == 0:
        counts[group, column] = kept
        for i in range(threads):
            low = min(low, least[i])
        minimum[group, column] = min(minimum[group, column], low)


def _cuda_signatures():
    integer, ids = types.int64, types.int64[::1]
    lists, list_ids = types.float32[:, :, ::1], types.int64[:, :, ::1]
    counts, floats = types.int32[:, ::1], types.float32[:, ::1]
    yield (
        "top_slabs", top_slabs,
        (integer, integer, integer, integer, ids, ids, integer, ids, ids, ids, ids, integer, integer,
         lists, list_ids, counts, lists, list_ids, counts, floats, types.uint8[::1]),
    )  # fmt: skip
    yield (
        "merge_slabs", merge_slabs,
        (ids, ids, ids, lists, list_ids, counts, floats, lists, list_ids, counts, floats, integer),
    )  # fmt: skip


CUDA_KERNELS = list(_cuda_signatures())
"""(name, function, argument types) of each kernel, for compiling them without a GPU."""


@cache
def _compiled(kernel):
    return cuda_jit(kernel, max_registers=MAX_REGISTERS)


def compile_for(device: Any) -> None:
    """Compile the CUDA kernels for a device, so that the first chunk need not wait for that."""
    require()
    if not SIMULATED:
        with _current(device):  # numba compiles for the current device
            for _, kernel, signature in CUDA_KERNELS:
                _compiled(kernel).compile(signature)


# -- the host's side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TopKState:
    """The lists of a pass, or of several merged ones, on the host.

    values: float32 [groups, dims, k], best first, -inf past `counts`; ids: int64 likewise, -1 past `counts`;
    counts: int32 [groups, dims]; minimum, maximum: float32 [dims], of all groups; rows: how many were seen;
    nonfinite: how many of them hold NaN or infinity, of which nonfinite_ids (int64, ascending) are the lowest ids.
    Lists of a pass with non-finite rows are of no use.
    """

    values: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    rows: int
    nonfinite: int
    nonfinite_ids: np.ndarray


def merge_states(a: TopKState, b: TopKState) -> TopKState:
    """Return the state of both passes together: exact, whatever the order in which states are merged.

    Raises UsageError for states of other shapes. No sample may be in both.
    """
    if a.values.shape != b.values.shape:
        raise UsageError(f"cannot merge top-k states of shapes {a.values.shape} and {b.values.shape}")
    groups, dims, k = a.values.shape
    values, ids, counts = _empty_lists(groups, dims, k)
    flat = groups * dims
    _merge_lists(
        a.values.reshape(flat, k), a.ids.reshape(flat, k), a.counts.reshape(flat),
        b.values.reshape(flat, k), b.ids.reshape(flat, k), b.counts.reshape(flat),
        values.reshape(flat, k), ids.reshape(flat, k), counts.reshape(flat),
    )  # fmt: skip
    return TopKState(
        values, ids, counts, np.minimum(a.minimum, b.minimum), np.maximum(a.maximum, b.maximum),
        a.rows + b.rows, a.nonfinite + b.nonfinite,
        np.sort(np.concatenate([a.nonfinite_ids, b.nonfinite_ids]))[:FIRST_IDS],
    )  # fmt: skip


class TopK:
    """Keep each column's k best rows of a matrix that arrives in chunks, on the CPU or on a GPU.

    Arguments:
        dims: the matrix's width. k: entries kept a column and group, at most 1,024 on CUDA.
        groups: 1, or the number of classes. device: "cpu" or "cuda". threads: for the CPU.

    Raises UsageError for sizes out of range and for CUDA where there is none.
    """

    def __init__(self, dims: int, k: int, groups: int = 1, device: str = "cpu", threads: int | None = None) -> None:
        for name, value in (("dims", dims), ("k", k), ("groups", groups)):
            if value < 1:
                raise UsageError(f"top-k needs at least one of {name}, not {value}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}; at least one is needed")
        self.dims, self.k, self.groups = dims, k, groups
        kind = str(device).partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise UsageError(f'device={device!r}; it is "cpu" or "cuda"')
        self._lists: _CpuLists | _CudaLists
        if kind == "cuda":
            self._lists = _CudaLists(dims, k, groups, str(device))
        else:
            self._lists = _CpuLists(dims, k, groups, threads or processors())
        self._merged: TopKState | None = None
        self._rows = 0

    def update(self, embeddings: Any, ids: Any, group_of_row: Any = None) -> None:
        """Take in a chunk.

        Arguments:
            embeddings: [R, dims]; float32, float16, or bfloat16 (as a torch tensor, or as its uint16 bits in NumPy);
                NumPy or torch; on the GPU only for device="cuda", where the launch is on torch's current stream.
            ids: int64 [R], in any order, each id once in all chunks; a `range` where they are consecutive.
            group_of_row: integers [R] in 0…groups - 1, where there is more than one group.
        """
        x, kind = _matrix(embeddings)
        rows = int(x.shape[0]) if x.ndim == 2 else -1
        if x.ndim != 2 or x.shape[1] != self.dims:
            raise UsageError(f"embeddings of shape {tuple(x.shape)}, but {self.dims} columns were expected")
        if len(ids) != rows:
            raise UsageError(f"{len(ids):,} ids for {rows:,} rows of embeddings")
        if rows == 0:
            return
        if not (isinstance(ids, range) and ids.step == 1):
            ids = np.ascontiguousarray(_host(ids), np.int64)
        order, bounds = _by_group(group_of_row, rows, self.groups)
        self._lists.update(x, kind, ids, order, bounds)
        self._rows += rows

    def merge(self, other: "TopK | TopKState") -> None:
        """Add what another pass (a thread's, another rank's) has seen."""
        state = other.result() if isinstance(other, TopK) else other
        self._merged = state if self._merged is None else merge_states(self._merged, state)

    def result(self) -> TopKState:
        """Return the state so far; further updates go on from it."""
        state = self._lists.state(self._rows)
        return state if self._merged is None else merge_states(state, self._merged)


def _host(array: Any) -> np.ndarray:
    return array.cpu().numpy() if hasattr(array, "cpu") else np.asarray(array)


def _matrix(embeddings: Any) -> tuple[Any, int]:
    """Return embeddings as float32, or as 16-bit integers that hold the bits of `kind`; no copy."""
    name = str(embeddings.dtype).rpartition(".")[2]
    is_tensor = hasattr(embeddings, "data_ptr")
    if name == "float32":
        return embeddings, FLOAT32
    if name == "float16":
        kind = FLOAT16
    elif name == "bfloat16" or (name == "uint16" and not is_tensor):
        kind = BFLOAT16
    else:
        raise UsageError(f"embeddings of type {name}; float32, float16 or bfloat16 were expected")
    if is_tensor:
        import torch

        return embeddings.contiguous().view(torch.int16), kind
    return np.ascontiguousarray(embeddings).view(np.int16), kind


def _by_group(group_of_row: Any, rows: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows sorted by group (empty where there is one group) and where each group begins and ends."""
    if group_of_row is None:
        if groups > 1:
            raise UsageError(f"there are {groups} groups, but rows came without their group")
        return np.empty(0, np.int64), np.array([0, rows], np.int64)
    group_of_row = _host(group_of_row)
    if group_of_row.shape != (rows,):
        raise UsageError(f"groups of shape {group_of_row.shape} for {rows:,} rows of embeddings")
    if group_of_row.min() < 0 or group_of_row.max() >= groups:
        raise UsageError(f"groups of rows go from {group_of_row.min()} to {group_of_row.max()}, not 0…{groups - 1}")
    sizes = np.bincount(group_of_row, minlength=groups)
    order = np.argsort(group_of_row, kind="stable") if groups > 1 else np.empty(0, np.int64)
    return order.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _empty_lists(groups: int, dims: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (groups, dims, k)
    return np.full(shape, _LOWEST), np.full(shape, -1, np.int64), np.zeros((groups, dims), np.int32)


def _state(values, ids, counts, minimum, rows, nonfinite, nonfinite_ids) -> TopKState:
    # The best entry of all lists is the maximum, so that no pass has to look for it.
    maximum = values[:, :, 0].max(axis=0)
    return TopKState(values, ids, counts, minimum + np.float32(0), maximum, rows, nonfinite, nonfinite_ids)


class _CpuLists:
    """Heaps of each thread's own, over slabs of the chunk; merged when asked for."""

    def __init__(self, dims: int, k: int, groups: int, threads: int) -> None:
        self.dims, self.k, self.groups, self.threads = dims, k, groups, threads
        self.heaps: list[_Heaps] = []

    def update(self, x: Any, kind: int, ids: np.ndarray | range, order: np.ndarray, bounds: np.ndarray) -> None:
        samples, first_id = (_NO_IDS, ids.start) if isinstance(ids, range) else (ids, 0)
        if hasattr(x, "data_ptr"):
            if x.device.type != "cpu":
                raise UsageError('embeddings are on the GPU, but device="cpu"; say device="cuda"')
            x = x.detach().numpy()
        x = np.ascontiguousarray(x)
        # A slab below a few thousand values costs more to start than to scan.
        slabs = max(1, min(self.threads, x.size // 16_384))
        cuts = [len(x) * i // slabs for i in range(slabs + 1)]
        while len(self.heaps) < slabs:
            self.heaps.append(_Heaps(self.dims, self.k, self.groups))
        jobs = [(self.heaps[i], x, kind, samples, first_id, order, bounds, cuts[i], cuts[i + 1]) for i in range(slabs)]
        if slabs == 1:
            _Heaps.scan(*jobs[0])
            return
        with ThreadPoolExecutor(slabs) as pool:
            for job in [pool.submit(_Heaps.scan, *job) for job in jobs]:
                job.result()

    def state(self, rows: int) -> TopKState:
        states = [heaps.state() for heaps in self.heaps] or [_Heaps(self.dims, self.k, self.groups).state()]
        merged = states[0]
        for state in states[1:]:
            merged = merge_states(merged, state)
        return replace(merged, rows=rows)


class _Heaps:
    def __init__(self, dims: int, k: int, groups: int) -> None:
        self.values, self.ids, self.counts = _empty_lists(groups, dims, k)
        self.minimum = np.full(dims, np.inf, np.float32)
        self.bad_ids = np.full(FIRST_IDS, _NO_ID)
        self.bad_count = np.zeros(1, np.int64)

    def scan(self, x, kind, samples, first_id: int, order, bounds, first: int, last: int) -> None:
        for group in range(len(bounds) - 1):
            begin, end = max(first, int(bounds[group])), min(last, int(bounds[group + 1]))
            if begin < end:
                _scan_group(
                    x, kind, samples, first_id, order, begin, end, top_stride(end - begin, self.values.shape[2]),
                    self.values[group], self.ids[group], self.counts[group], self.minimum,
                    self.bad_ids, self.bad_count,
                )  # fmt: skip

    def state(self) -> TopKState:
        values, ids, counts = self.values.copy(), self.ids.copy(), self.counts.copy()
        k = values.shape[2]
        _sort_heaps(values.reshape(-1, k), ids.reshape(-1, k), counts.reshape(-1))
        bad_ids = self.bad_ids[self.bad_ids != _NO_ID]
        return _state(values, ids, counts, self.minimum, 0, int(self.bad_count[0]), bad_ids)


class _CudaLists:
    """Sorted lists on the device, raised level by level of each chunk: slabs' lists, then a merge."""

    def __init__(self, dims: int, k: int, groups: int, device: str) -> None:
        require()
        import torch

        from fastload.common.device import resolve_device

        place = torch.device("cpu") if SIMULATED else resolve_device(device)
        if k > MAX_K_CUDA:
            raise UsageError(f'lists of {k:,} are longer than CUDA takes, {MAX_K_CUDA:,}; use device="cpu"')
        self.dims, self.k, self.groups = dims, k, groups
        self.device = place
        shape = (groups, dims, k)
        self.values = torch.full(shape, -math.inf, dtype=torch.float32, device=self.device)
        self.ids = torch.full(shape, -1, dtype=torch.int64, device=self.device)
        self.counts = torch.zeros((groups, dims), dtype=torch.int32, device=self.device)
        self.minimum = torch.full((groups, dims), math.inf, dtype=torch.float32, device=self.device)
        self.shape = slab_shape(dims)
        self.slabs = 4
        self.room, self.merge_threads = 1 << (2 * k - 1).bit_length(), 4
        if not SIMULATED:
            self.slabs = slabs_at_once(dims, torch.cuda.get_device_properties(self.device).multi_processor_count)
            self.room, self.merge_threads = max(256, self.room), _MERGE_THREADS
            compile_for(self.device)
        self.nonfinite = 0
        self.bad_ids = np.empty(0, np.int64)

    def update(self, x: Any, kind: int, ids: np.ndarray | range, order: np.ndarray, bounds: np.ndarray) -> None:
        import torch

        if not hasattr(x, "data_ptr"):
            x = torch.from_numpy(np.ascontiguousarray(x))
        x = x.detach().to(self.device).contiguous()
        rows = len(ids)
        bad = torch.zeros(rows + 1, dtype=torch.uint8, device=self.device)
        if isinstance(ids, range):
            samples, ascending = torch.arange(ids.start, ids.stop, device=self.device), True
        else:
            samples, ascending = self._upload(ids), bool((ids[1:] > ids[:-1]).all())
        on_device = [samples, self._upload(order if order.size else np.zeros(1, np.int64))]
        present = np.flatnonzero(np.diff(bounds))
        stride, skip = top_stride(rows, self.k * len(present)), 0
        while stride > 0:
            plan = self._plan(bounds, present, stride, skip)
            if len(plan.first):
                with _current(self.device):  # numba launches in the current device's context
                    self._level(x, kind, on_device, order, ids if ascending else None, plan, present, bad)
            stride, skip = stride // _RATIO, 1
        if int(bad[-1]):
            found = _ids_of(ids, np.flatnonzero(_host(bad[:-1])))
            self.nonfinite += len(found)
            self.bad_ids = np.sort(np.concatenate([self.bad_ids, found]))[:FIRST_IDS]

    def _upload(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _plan(self, bounds: np.ndarray, present: np.ndarray, stride: int, skip: int) -> "_Plan":
        """Cut a level's visits into slabs, each of one group, of a length that fills the device."""
        reached = -(-bounds // stride)
        visits = reached - -(-reached // _RATIO) if skip else reached
        begins, ends = visits[present], visits[present + 1]
        length = _slab_length(int(visits[-1]), min(self.slabs, _affordable_slabs(self.dims, self.k)))
        pieces = -(-(ends - begins) // length)
        last_slab = np.cumsum(pieces)
        first_slab = last_slab - pieces
        within = np.arange(pieces.sum()) - np.repeat(first_slab, pieces)
        first = np.repeat(begins, pieces) + within * length
        last = np.minimum(first + length, np.repeat(ends, pieces))
        return _Plan(stride, skip, length, first, last, np.repeat(present, pieces), first_slab, last_slab)

    def _level(self, x, kind, on_device, order, ascending_ids, plan, present, bad) -> None:
        import torch

        slabs, capacity = len(plan.first), min(self.k, plan.length)
        slab_values = torch.empty((slabs, capacity, self.dims), dtype=torch.float32, device=self.device)
        slab_ids = torch.empty((slabs, capacity, self.dims), dtype=torch.int64, device=self.device)
        slab_counts = torch.empty((slabs, self.dims), dtype=torch.int32, device=self.device)
        slab_minimum = torch.empty((slabs, self.dims), dtype=torch.float32, device=self.device)
        lowest_id = np.full(slabs, -1, np.int64)
        if ascending_ids is not None:
            row = (plan.first + plan.skip * (1 + plan.first // (_RATIO - 1))) * plan.stride
            lowest_id = _ids_of(ascending_ids, order[row] if order.size else row)
        table = self._upload(np.stack([plan.first, plan.last, plan.group, lowest_id]))
        ranges = self._upload(np.stack([present, plan.first_slab, plan.last_slab]))
        stream = 0 if SIMULATED else launch_stream(torch.cuda.current_stream(self.device))
        state = [device_array(t) for t in (self.values, self.ids, self.counts)]
        lists = [device_array(t) for t in (slab_values, slab_ids, slab_counts, slab_minimum)]
        tiles, width, height = self.shape
        wide = self.dims % _COLUMNS == 0 and x.data_ptr() % (_COLUMNS * x.element_size()) == 0
        _compiled(top_slabs)[tiles * -(-slabs // height), (width, height), stream](
            x.data_ptr(), kind, int(wide), self.dims, *[device_array(t) for t in on_device], int(order.size > 0),
            *[device_array(row) for row in table], plan.stride, plan.skip, *state, *lists, device_array(bad),
        )  # fmt: skip
        _compiled(merge_slabs)[len(present) * self.dims, self.merge_threads, stream](
            *[device_array(row) for row in ranges], *lists, *state, device_array(self.minimum), self.room
        )

    def state(self, rows: int) -> TopKState:
        values, ids, counts = (_host(t).copy() for t in (self.values, self.ids, self.counts))
        minimum = _host(self.minimum).min(axis=0)
        return _state(values, ids, counts, minimum, rows, self.nonfinite, self.bad_ids)


def _current(device: Any) -> Any:
    if SIMULATED:
        return nullcontext()
    import torch

    return torch.cuda.device(device)


@dataclass(frozen=True)
class _Plan:
    """One level's slabs: which visits each takes, of which group; and each present group's slabs."""

    stride: int
    skip: int
    length: int
    first: np.ndarray
    last: np.ndarray
    group: np.ndarray
    first_slab: np.ndarray
    last_slab: np.ndarray


def _ids_of(ids: np.ndarray | range, rows: np.ndarray) -> np.ndarray:
    return ids.start + rows if isinstance(ids, range) else ids[rows]


def _slab_length(visits: int, most: int) -> int:
    """Return how many visits a slab takes of a level that has so many, in `most` slabs and one a group more."""
    return max(16, -(-visits // most))


def _affordable_slabs(dims: int, k: int) -> int:
    return max(1, _SLAB_BYTES // (dims * k * 12))


def cuda_bytes(dims: int, lists: Iterable[tuple[int, int]], rows: int, multiprocessors: int) -> int:
    """Return the bytes of device memory that several `TopK` take which see the same chunks of `rows` rows of float32.

    Arguments:
        dims: of all. lists: (k, groups) of each; those that are too long for CUDA do not count.
        multiprocessors: of the device.
    """
    kept, passing = 0, 0
    for k, groups in lists:
        if 0 < k <= MAX_K_CUDA:
            kept += groups * dims * (12 * k + 8)
            most = min(slabs_at_once(dims, multiprocessors), _affordable_slabs(dims, k))
            length = _slab_length(rows, most)
            slabs = -(-rows // length) + groups
            passing = max(passing, slabs * dims * (12 * min(k, length) + 8) + rows * (4 * dims + 17))
    return kept + passing


def slab_shape(dims: int) -> tuple[int, int, int]:
    """Return (tiles, width, height) of `top_slabs`: blocks side by side for a row, a block's threads and slabs."""
    threads = -(-dims // _COLUMNS)
    tiles = -(-threads // SLAB_THREADS)
    width = -(-threads // tiles)
    return tiles, width, SLAB_THREADS // width


def slabs_at_once(dims: int, multiprocessors: int) -> int:
    """Return how many slabs a device works on at once: with a few more, most of it would wait for the last ones."""
    tiles, width, height = slab_shape(dims)
    blocks = multiprocessors * (SLAB_WARPS // -(-width * height // 32))
    return max(1, blocks // tiles) * height
