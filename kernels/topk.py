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

import numpy as np
from numba.extending import register_jitable

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2

RATIO = 32
"""Rows of one level of samples for each of the level before it."""

NO_ID = np.int64(2**63 - 1)
LOWEST = np.float32(-np.inf)
FLOAT32_MAX = np.float32(3.4028234663852886e38)
_FLOAT16_SCALE = np.float32(2.0**112)


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
    while rows // stride > 2 * RATIO * k:
        stride *= RATIO
    return stride
