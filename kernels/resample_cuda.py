"""How a CUDA thread makes a pixel of an image that is resized, one sum inside the other, and where weights come from.

Across first, an output pixel is a sum down its window's rows of rounded sums across; down first, the other way round:
the same whole numbers as `resample_cpu` makes row by row. Sums across are made anew for each output row that needs
them, which costs less than to keep them: enlarged, a row has few taps, and reduced, rows share few source rows.
"""

from typing import Any, NamedTuple

import numpy as np

from .cuda_memory import load_byte
from .inlining import exact
from .resampling import MOST, ONE, is_down_first, rounding, tap_height, window


class Walk(NamedTuple):
    """How an image's part is resized, int32 unless it says other; the same for all of the image's pixels.

    Attributes:
        source: address of the part's first pixel, int64.
        down: bytes from one of its rows to the next.
        right: from one column to the next.
        across: from one channel to the next.
        rows: of the part.
        columns: of the part.
        to_rows: that it is resized to.
        to_columns: likewise.
        first_row: of these, the output's first.
        first_column: likewise.
        height: of the output.
        width: of the output.
        flip: whether the output is mirrored, 0 or 1.
        down_first: bool, whether it is resized down before it is resized across.
        half_down: uint32, what is added before rounding.
        half_across: likewise.
        taps_down: weights that a row has room for.
        starts: where the tables begin in int32 of shared memory.
        across_at: where the columns' weights begin in uint16 of it.
        down_at: where the rows' begin.
    """

    source: Any
    down: Any
    right: Any
    across: Any
    rows: Any
    columns: Any
    to_rows: Any
    to_columns: Any
    first_row: Any
    first_column: Any
    height: Any
    width: Any
    flip: Any
    down_first: Any
    half_down: Any
    half_across: Any
    taps_down: Any
    starts: Any
    across_at: Any
    down_at: Any


@exact
def make_walk(place, image, strides, sides, flip, taps, at):
    """Return the `Walk` of an image.

    Arguments:
        place: `Place`.
        image: address of the image.
        strides: (down, right, across) in bytes.
        sides: (height, width) of the output.
        flip: whether it is mirrored, 0 or 1.
        taps: (down, across), weights that a row and a column have room for.
        at: where the tables begin in shared memory, in bytes.
    """
    top, left = place[0], place[1]
    rows, columns, to_rows, to_columns = np.int32(place[2]), np.int32(place[3]), np.int32(place[4]), np.int32(place[5])
    down, right, across = np.int32(strides[0]), np.int32(strides[1]), np.int32(strides[2])
    height, width = np.int32(sides[0]), np.int32(sides[1])
    across_at = np.int32(at // 2 + 2 * (height + width))
    return Walk(
        image + top * down + left * right,
        down,
        right,
        across,
        rows,
        columns,
        to_rows,
        to_columns,
        np.int32(place[6]),
        np.int32(place[7]),
        height,
        width,
        np.int32(flip),
        is_down_first(rows, to_rows, columns, to_columns),
        np.uint32(rounding(rows, to_rows)),
        np.uint32(rounding(columns, to_columns)),
        np.int32(taps[0]),
        np.int32(at // 4),
        across_at,
        np.int32(across_at + (taps[1] + 1) * width),
    )


class Taps(NamedTuple):
    """The window of an output pixel along one axis: the first source pixel, how many there are, and their weights.

    Weight t is that of height `tap_height(first + t) · unit`, but for the largest, which brings their sum to 2^16.
    """

    first: Any
    count: Any
    centre: Any
    inverse: Any
    unit: Any
    largest: Any
    most: Any


@exact
def find_taps(index, side, size):
    """Return the `Taps` of pixel `index` of `size` that `side` pixels are resized to."""
    first, end, centre, inverse = window(index, side, size)
    total = 0.0
    for place in range(first, end):
        total += tap_height(place, centre, inverse)
    unit = 65536.0 / total
    left, largest, most = np.int64(ONE), np.int64(0), np.int64(-1)
    for place in range(first, end):
        weight = np.int64(tap_height(place, centre, inverse) * unit + 0.5)
        left -= weight
        if weight > most:
            largest, most = place - first, weight
    return Taps(first, end - first, centre, inverse, unit, largest, min(most + left, np.int64(MOST)))


@exact
def tap_weight(taps, t):
    """Return the weight of the window's pixel `t`, uint32."""
    if t == taps.largest:
        return np.uint32(taps.most)
    return np.uint32(np.int64(tap_height(taps.first + t, taps.centre, taps.inverse) * taps.unit + 0.5))


@exact
def _taps_across(walk, x):
    column = np.int32(walk.width - 1 - x) if walk.flip else np.int32(x)
    return find_taps(np.int32(walk.first_column + column), walk.columns, walk.to_columns)


@exact
def _taps_down(walk, y):
    return find_taps(np.int32(walk.first_row + y), walk.rows, walk.to_rows)


@exact
def fill_tables(walk, thread, threads, words, shorts):
    """Fill the tables of an image's columns and rows with all of its threads; a barrier follows.

    Arguments:
        walk: `Walk`.
        thread: int32, which one of the image's.
        threads: int32, how many it has.
        words: shared memory as int32: the first source pixels of the columns, then of the rows.
        shorts: the same as uint16: of the columns the counts, then weight by weight; of each row count and weights.
    """
    for k in range(thread, walk.width + walk.height, threads):
        if k < walk.width:
            taps, step = _taps_across(walk, k), np.int64(walk.width)
            place = np.int64(walk.across_at + k)
        else:
            taps, step = _taps_down(walk, k - walk.width), np.int64(1)
            place = np.int64(walk.down_at + (k - walk.width) * (walk.taps_down + 1))
        words[walk.starts + k] = np.int32(taps.first)
        shorts[place] = np.uint16(taps.count)
        for t in range(taps.count):
            shorts[place + (t + 1) * step] = np.uint16(tap_weight(taps, t))


class _Side(NamedTuple):
    """Of a pixel, one axis of its window: bytes between pixels, how many, where their weights are, what is added."""

    step: Any
    count: Any
    weights: Any
    between: Any
    half: Any


@exact
def _one_tap(level, weight):
    """Return a level's product with a weight, cut to 1/256."""
    return np.uint32(np.uint32(level * weight) >> np.uint32(8))


@exact
def tabled_levels(walk, channels, first, x, y, words, shorts):
    """Return the levels of an output pixel's channels first … first + 3, uint32, 0 where there is none; by tables."""
    left, top = words[walk.starts + x], words[np.int32(walk.starts + walk.width) + y]
    down_at = np.int32(walk.down_at + np.int32(y * np.int32(walk.taps_down + 1)))
    across_at = np.int32(walk.across_at + x)
    one = np.int32(1)
    across = _Side(walk.right, np.int32(shorts[across_at]), across_at, walk.width, walk.half_across)
    down = _Side(walk.down, np.int32(shorts[down_at]), down_at, one, walk.half_down)
    inner, outer = (down, across) if walk.down_first else (across, down)
    a, b, c, d = outer.half, outer.half, outer.half, outer.half
    row = walk.source + first * walk.across + np.int64(top) * walk.down + np.int64(left) * walk.right
    for i in range(outer.count):
        p, q, r, s = inner.half, inner.half, inner.half, inner.half
        place, at = row, inner.weights
        for _ in range(inner.count):
            at = np.int32(at + inner.between)
            weight = np.uint32(shorts[at])
            p = np.uint32(p + _one_tap(load_byte(place), weight))
            if first + 1 < channels:
                q = np.uint32(q + _one_tap(load_byte(place + walk.across), weight))
            if first + 2 < channels:
                r = np.uint32(r + _one_tap(load_byte(place + 2 * walk.across), weight))
            if first + 3 < channels:
                s = np.uint32(s + _one_tap(load_byte(place + 3 * walk.across), weight))
            place += inner.step
        weight = np.uint32(shorts[np.int32(outer.weights + np.int32(i + 1) * outer.between)])
        a = np.uint32(a + _one_tap(np.uint32(p >> np.uint32(8)), weight))
        b = np.uint32(b + _one_tap(np.uint32(q >> np.uint32(8)), weight))
        c = np.uint32(c + _one_tap(np.uint32(r >> np.uint32(8)), weight))
        d = np.uint32(d + _one_tap(np.uint32(s >> np.uint32(8)), weight))
        row += outer.step
    eight = np.uint32(8)
    return np.uint32(a >> eight), np.uint32(b >> eight), np.uint32(c >> eight), np.uint32(d >> eight)


@exact
def weighed_levels(walk, channels, first, x, y):
    """Return the same with weights that are worked out for each pixel: where tables do not fit into shared memory."""
    across, down = _taps_across(walk, x), _taps_down(walk, y)
    inner, outer = (down, across) if walk.down_first else (across, down)
    step, next_row = (walk.down, walk.right) if walk.down_first else (walk.right, walk.down)
    half, half_outer = walk.half_across, walk.half_down
    if walk.down_first:
        half, half_outer = walk.half_down, walk.half_across
    a, b, c, d = half_outer, half_outer, half_outer, half_outer
    row = walk.source + first * walk.across + down.first * walk.down + across.first * walk.right
    for i in range(outer.count):
        p, q, r, s = half, half, half, half
        place = row
        for t in range(inner.count):
            weight = tap_weight(inner, t)
            p = np.uint32(p + _one_tap(load_byte(place), weight))
            if first + 1 < channels:
                q = np.uint32(q + _one_tap(load_byte(place + walk.across), weight))
            if first + 2 < channels:
                r = np.uint32(r + _one_tap(load_byte(place + 2 * walk.across), weight))
            if first + 3 < channels:
                s = np.uint32(s + _one_tap(load_byte(place + 3 * walk.across), weight))
            place += step
        weight = tap_weight(outer, i)
        a = np.uint32(a + _one_tap(np.uint32(p >> np.uint32(8)), weight))
        b = np.uint32(b + _one_tap(np.uint32(q >> np.uint32(8)), weight))
        c = np.uint32(c + _one_tap(np.uint32(r >> np.uint32(8)), weight))
        d = np.uint32(d + _one_tap(np.uint32(s >> np.uint32(8)), weight))
        row += next_row
    eight = np.uint32(8)
    return np.uint32(a >> eight), np.uint32(b >> eight), np.uint32(c >> eight), np.uint32(d >> eight)
