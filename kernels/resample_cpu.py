"""How a CPU thread resizes a part of an image: row by row, out of a ring of rows that are kept.

The output's rows are made in order. Across first: each source row is resized across once, into the ring, and the
ring's rows are resized down. Down first: source rows are kept in the ring, resized down to one row, and that is
resized across. As in Pillow (13) that is done where the height shrinks by more than twice as many pixels as the width.

All scratch memory is one array, passed by its address: see cpu_memory.py. Without AVX2, and where 16 source pixels do
not hold the window of four output pixels, plain loops give the same values.
"""

import numpy as np

from .augment import FLOAT16, FLOAT32
from .cpu_memory import get_byte, get_long, get_short, get_single, get_word, set_byte, set_long, set_short, set_word
from .crop_cpu import copy_row
from .inlining import exact, loose
from .intrinsics import unseen
from .recipe import BY_CHANNEL, NO_COLOR
from .resample_vectors import (
    HAS_VECTORS,
    across_plane,
    across_rgb,
    down_to_bytes,
    down_to_halves,
    down_to_singles,
    down_to_streamed_halves,
    down_to_streamed_singles,
    prefetch_address,
    split_rgb,
    to_halves,
    to_singles,
    to_streamed_halves,
    to_streamed_singles,
)

AHEAD = 16
"""Rows that are asked for ahead."""


@loose
def _load_row(recipe, data, begin, strides, width, packed, plane, pixels):
    """Read a row of `width` pixels from byte `begin` of `data` into planes, or `packed` as it is."""
    _, _, right, across = strides
    channels = recipe.channels
    if packed:
        copy_row(pixels, np.int64(0), data, begin, 3 * width)
    elif right == 1:
        for c in range(unseen(channels)):
            for x in range(width):
                set_byte(pixels, c * plane + x, get_byte(data, begin + c * across + x))
    elif channels == 3 and HAS_VECTORS and width >= 64:
        for x in range(0, width - 63, 64):
            split_rgb(data, begin + 3 * x, pixels, np.int64(x), plane)
        split_rgb(data, begin + 3 * (width - 64), pixels, width - 64, plane)
    else:
        for c in range(unseen(channels)):
            for x in range(width):
                set_byte(pixels, c * plane + x, get_byte(data, begin + x * channels + c))


@loose
def _weighed(tables, place, x, t):
    weight = np.uint32(get_short(tables.across, t * tables.width + x))
    return (np.uint32(get_byte(tables.pixels, place + t)) * weight) >> np.uint32(8)


@loose
def _resize_across_plainly(recipe, tables, rows):
    """Resize the row in `tables.pixels` across; the usual numbers of taps without a loop, which took twice as long."""
    t, taps = tables, tables.taps_across
    for c in range(unseen(recipe.channels)):
        for x in range(t.width):
            place = c * t.plane + np.int64(get_word(t.lefts, x))
            total = np.uint32(t.half_across) + _weighed(t, place, x, 0)
            if taps >= 4:
                total += _weighed(t, place, x, 1) + _weighed(t, place, x, 2) + _weighed(t, place, x, 3)
                for tap in range(4, taps):
                    total += _weighed(t, place, x, tap)
            elif taps == 3:
                total += _weighed(t, place, x, 1) + _weighed(t, place, x, 2)
            elif taps == 2:
                total += _weighed(t, place, x, 1)
            set_short(rows, c * t.width + x, np.uint16(total & np.uint32(0xFF00)))


@loose
def _high(x, y):
    """Return the upper half of the product of two uint16: LLVM knows it as one instruction."""
    return np.uint16((np.uint32(x) * np.uint32(y)) >> np.uint32(16))


@loose
def _add_tap(pixels, shift, weights, width, row):
    for x in range(width):
        level = np.uint16(((np.uint32(get_word(pixels, x)) >> shift) & np.uint32(255)) << np.uint32(8))
        set_short(row, x, np.uint16(get_short(row, x) + _high(level, get_short(weights, x))))


@loose
def _resize_across_packed(tables, rows):
    """Resize a row of interleaved pixels across: each is fetched as four bytes, once for three channels."""
    t = tables
    size = 2 * t.width
    for x in range(3 * t.width):
        set_short(rows, x, t.half_across)
    for tap in range(t.taps_across):
        for x in range(t.width):
            set_word(t.fetched, x, get_word(t.pixels + 3 * (np.int64(get_word(t.lefts, x)) + tap), 0))
        weights = t.across + size * tap
        _add_tap(t.fetched, np.uint32(0), weights, t.width, rows)
        _add_tap(t.fetched, np.uint32(8), weights, t.width, rows + size)
        _add_tap(t.fetched, np.uint32(16), weights, t.width, rows + 2 * size)
    for x in range(3 * t.width):
        set_short(rows, x, np.uint16(get_short(rows, x) & np.uint16(0xFF00)))


@loose
def _resize_across(recipe, tables, rows):
    """Resize the row in `tables.pixels` across, to the memory at address `rows`."""
    t = tables
    if t.packed:
        _resize_across_packed(t, rows)
    elif t.windows == 0:
        _resize_across_plainly(recipe, t, rows)
    elif recipe.channels == 3:
        across_rgb(
            t.pixels, t.plane, t.lows, t.windows, t.places, t.across, t.width, t.taps_across, t.half_across, rows
        )
    else:
        for c in range(unseen(recipe.channels)):
            pixels, out = t.pixels + c * t.plane, rows + 2 * c * t.width
            across_plane(
                pixels, t.plane, t.lows, t.windows, t.places, t.across, t.width, t.taps_across, t.half_across, out
            )


@loose
def _find_rows(tables, y):
    """Note where the ring's rows begin that output row `y` is made of."""
    top = np.int64(get_word(tables.tops, y))
    for t in range(tables.taps_down):
        set_long(tables.row_places, t, (top + t) % tables.ring_rows * tables.ring_row)


@loose
def _tap_down(tables, weights, tap):
    """Return where the row of a tap begins, and its weight; 0 for a tap beyond the last."""
    if tap < tables.taps_down:
        return tables.ring + 2 * get_long(tables.row_places, tap), get_short(weights, tap)
    return tables.ring, np.uint16(0)


@loose
def _resize_down_plainly(tables, weights, size, out):
    """Three taps at a time, in loops that LLVM vectorizes: what they take is read before. Sums stay below 2^16."""
    t = tables
    for tap in range(0, t.taps_down, 3):
        one, a = _tap_down(t, weights, tap)
        two, b = _tap_down(t, weights, tap + 1)
        three, c = _tap_down(t, weights, tap + 2)
        for x in range(size):
            more = _high(get_short(one, x), a) + _high(get_short(two, x), b) + _high(get_short(three, x), c)
            set_short(t.sums, x, np.uint16((t.half_down if tap == 0 else get_short(t.sums, x)) + more))
    for x in range(size):
        set_byte(out, x, np.uint8(get_short(t.sums, x) >> np.uint16(8)))


@loose
def _resize_down(tables, weights, size, out):
    """Resize the ring's rows down to `size` bytes at address `out`."""
    t, zero = tables, np.float32(0)
    if HAS_VECTORS:
        down_to_bytes(t.ring, t.row_places, 0, size, weights, t.taps_down, t.half_down, zero, zero, out)
    else:
        _resize_down_plainly(t, weights, size, out)


@exact
def whole_blocks(recipe, width):
    """Return how many pixels of a row are stored as they are resized: blocks of 16, or 0 if more is to be done."""
    plain = recipe.color == NO_COLOR and recipe.grayscale == 0 and recipe.normalize == BY_CHANNEL
    floats = recipe.kind == FLOAT32 or recipe.kind == FLOAT16
    if HAS_VECTORS and plain and floats and recipe.channels_last == 0:
        return width // 16 * 16
    return np.int64(0)


@loose
def store_levels(recipe, line, size, mean, scale, out):
    """Store `size` bytes at address `line` as normalized pixels at address `out`; a multiple of 16."""
    if recipe.kind == FLOAT32:
        if recipe.streamed:
            to_streamed_singles(line, size, mean, scale, out)
        else:
            to_singles(line, size, mean, scale, out)
    elif recipe.streamed:
        to_streamed_halves(line, size, mean, scale, out)
    else:
        to_halves(line, size, mean, scale, out)


@loose
def _store_down(recipe, tables, weights, c, size, mean, scale, out):
    """Resize the ring's rows of channel `c` down to `size` normalized pixels at address `out`."""
    t, first = tables, c * tables.width
    if recipe.kind == FLOAT32:
        if recipe.streamed:
            down_to_streamed_singles(
                t.ring, t.row_places, first, size, weights, t.taps_down, t.half_down, mean, scale, out
            )
        else:
            down_to_singles(t.ring, t.row_places, first, size, weights, t.taps_down, t.half_down, mean, scale, out)
    elif recipe.streamed:
        down_to_streamed_halves(t.ring, t.row_places, first, size, weights, t.taps_down, t.half_down, mean, scale, out)
    else:
        down_to_halves(t.ring, t.row_places, first, size, weights, t.taps_down, t.half_down, mean, scale, out)


@loose
def make_row(recipe, tables, width, data, first, strides, place, y, done, means, scales, out, step):
    """Make output row `y`; return how many source rows have been looked at, `done` before.

    Its first `whole_blocks` pixels are stored; all others are left in `tables.line`.

    Arguments:
        recipe: `Recipe`.
        tables: what `make_tables` returned.
        width: of the output in pixels.
        data: address of uint8.
        first: where the image begins in it.
        strides: (image, row, column, channel) in bytes.
        place: `Place`.
        y: the output row; they are made in order.
        done: source rows.
        means: address of float32 [channels].
        scales: likewise.
        out: address of the row in the output.
        step: bytes from one channel to the next there.
    """
    top, left, part_height, part_width = place[0], place[1], place[2], place[3]
    t, channels = tables, recipe.channels
    begin = first + top * strides[1] + left * strides[2]
    head = np.int64(get_word(t.tops, y))
    done = max(done, head)
    while done < min(head + t.taps_down, part_height):
        if strides[2] != 1 and done + AHEAD < part_height:
            for k in range(0, part_width * strides[2], 64):
                prefetch_address(data + begin + (done + AHEAD) * strides[1] + k)
        row = t.ring + 2 * (done % t.ring_rows * t.ring_row)
        _load_row(recipe, data, begin + done * strides[1], strides, part_width, t.packed, t.plane, t.pixels)
        if t.down_first:
            for x in range(t.ring_row):
                set_short(row, x, np.uint16(get_byte(t.pixels, x)) << np.uint16(8))
        else:
            _resize_across(recipe, t, row)
        done += 1
    _find_rows(t, y)
    weights = t.down + 2 * y * t.down_stride
    whole = whole_blocks(recipe, width)
    if t.down_first:
        _resize_down(t, weights, t.ring_row, t.pixels)
        _resize_across(recipe, t, t.resized)
        for x in range(channels * t.width):
            set_byte(t.line, x, np.uint8(get_short(t.resized, x) >> np.uint16(8)))
        if whole > 0:
            for c in range(unseen(channels)):
                mean, scale = get_single(means, c), get_single(scales, c)
                store_levels(recipe, t.line + c * t.width, whole, mean, scale, out + c * step)
        return done
    if whole > 0:
        for c in range(unseen(channels)):
            _store_down(recipe, t, weights, c, whole, get_single(means, c), get_single(scales, c), out + c * step)
    if whole < width:
        _resize_down(t, weights, channels * t.width, t.line)
    return done
