"""What a CPU thread looks up to resize a part of an image: windows, weights, byte permutes, room for its rows."""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from .cpu_memory import get_double, get_word, set_byte, set_double, set_short, set_word
from .inlining import exact, loose
from .recipe import RESIZED
from .resample_vectors import HAS_VECTORS
from .resampling import MOST, ONE, is_down_first, most_taps, resized_side, rounding, tap_height, window_within

_WINDOW = 16
_UNUSED = 0x80
_LINE = 64


class Tables(NamedTuple):
    """What resizing one part of an image needs, int64: addresses in the scratch memory, and sizes.

    Attributes:
        down_first: 1 where rows are resized down before they are resized across.
        width: of the output, rounded up to a multiple of 16.
        plane: bytes from one channel of a source row to the next.
        lefts: of int32 [width], the first source column of each output pixel.
        across: of uint16 [taps · width], their weights, tap by tap.
        taps_across: how many taps a pixel has.
        half_across: what is added before rounding, uint16.
        windows: how many windows of 16 source pixels serve eight output pixels, 1 or 2; 0 for plain loops.
        lows: of int32, where the windows begin.
        places: of uint8, the byte permutes.
        tops: of int32 [height], the first source row of each output row.
        down: of uint16, their weights, row by row.
        down_stride: elements from one row's weights to the next.
        taps_down: how many taps a row has.
        half_down: uint16.
        pixels: of uint8, one row of the source, a plane a channel.
        ring: of uint16, the rows that are kept.
        ring_rows: how many there are.
        ring_row: elements from one to the next.
        row_places: of int64 [taps], scratch.
        resized: of uint16, one row of the output, a plane a channel, levels in the upper halves.
        packed: 1 where the row of the source stays interleaved: three channels, plain loops.
        fetched: of int32 [width], scratch of plain loops.
        sums: likewise, of uint16 [ring_row].
        line: of uint8, one row of the output, a plane a channel.
    """

    down_first: Any
    width: Any
    plane: Any
    lefts: Any
    across: Any
    taps_across: Any
    half_across: Any
    windows: Any
    lows: Any
    places: Any
    tops: Any
    down: Any
    down_stride: Any
    taps_down: Any
    half_down: Any
    pixels: Any
    ring: Any
    ring_rows: Any
    ring_row: Any
    row_places: Any
    resized: Any
    packed: Any
    fetched: Any
    sums: Any
    line: Any


@exact
def _rounded(size, unit):
    return (size + unit - 1) // unit * unit


@exact
def _plane(width):
    """Return the bytes of one channel of a source row: windows and blocks of 64 read beyond its end."""
    return _rounded(width + 64, 64)


@exact
def _caps(part, size):
    """Return how many taps there are at most."""
    return min(most_taps(part, size), part)


@loose
def scratch_bytes(recipe, numbers, sides):
    """Return how much memory resizing any part of an image of `sides` (H, W) takes."""
    height, width, down, right = sides[0], sides[1], numbers.height, numbers.width
    if recipe.region != RESIZED:
        short = min(height, width)
        down = resized_side(height, short, numbers.resize)
        right = resized_side(width, short, numbers.resize)
    padded, plane, channels = _rounded(numbers.width, 16), _plane(width), recipe.channels
    across, rows = _caps(width, right) + 1, _caps(height, down) + 1
    each = 20 * _LINE + 16 * max(across, rows)  # what is rounded up, and the small ones
    tables = padded * (4 + 2 * across + 8 + 8 * across + 4) + numbers.height * (4 + 2 * rows)
    return each + tables + 3 * channels * plane + (rows + 4) * channels * 2 * max(padded, plane)


@loose
def _fill_taps(side, size, begin, length, first, count, mirrored, by_tap, stride, starts, weights, heights):
    """Fill the windows of the pixels first … first + count - 1 of `size`, and return how many taps the widest has.

    Arguments:
        side: pixels of what is resized.
        size: pixels that it is resized to.
        begin: where among these pixels it begins.
        length: of it in pixels.
        first: the first pixel that is made.
        count: how many are made.
        mirrored: fill them from the last to the first.
        by_tap: weights lie tap by tap, rather than pixel by pixel.
        stride: from one tap to the next, or from one pixel to the next.
        starts: address of int32 [count], the first source pixels.
        weights: address of uint16, cleared where there is no tap.
        heights: address of float64 [taps], scratch.
    """
    cap, widest = _caps(side, size), np.int64(1)
    for i in range(count):
        start, end, centre, inverse = window_within(first + i, side, size, begin, length)
        at = count - 1 - i if mirrored else i
        set_word(starts, at, np.int32(start))
        taps = end - start
        total = 0.0
        for t in range(taps):
            height = tap_height(start + t, centre, inverse)
            set_double(heights, t, height)
            total += height
        unit = 65536.0 / total
        left, largest, most = np.int64(ONE), np.int64(0), np.int64(-1)
        for t in range(taps):
            weight = np.int64(get_double(heights, t) * unit + 0.5)
            set_short(weights, t * stride + at if by_tap else at * stride + t, np.uint16(weight))
            left -= weight
            if weight > most:
                largest, most = t, weight
        place = largest * stride + at if by_tap else at * stride + largest
        set_short(weights, place, np.uint16(min(most + left, MOST)))
        for t in range(taps, cap):
            set_short(weights, t * stride + at if by_tap else at * stride + t, np.uint16(0))
        widest = max(widest, taps)
    return widest


@loose
def _count_windows(lefts, width, taps):
    """Return how many windows of 16 source pixels hold what eight output pixels need: 1, 2, or 0 for more."""
    one, two = True, True
    for begin in range(0, width, 8):
        lowest, highest = get_word(lefts, begin), get_word(lefts, begin)
        for half in range(begin, begin + 8, 4):
            low, high = get_word(lefts, half), get_word(lefts, half)
            for x in range(half, half + 4):
                left = get_word(lefts, x)
                low, high = min(low, left), max(high, left)
            two = two and high - low + taps <= _WINDOW
            lowest, highest = min(low, lowest), max(high, highest)
        one = one and highest - lowest + taps <= _WINDOW
    return 1 if one else 2 if two else 0


@loose
def _fill_windows(lefts, width, taps, windows, lows, places):
    """Fill the windows' first pixels and the byte permutes; see `resample_vectors`."""
    each = 8 // windows
    for k in range(windows * taps * width * 2):
        set_byte(places, k, np.uint8(_UNUSED))
    for group in range(width // each):
        begin = group * each
        low = get_word(lefts, begin)
        for x in range(begin, begin + each):
            low = min(low, get_word(lefts, x))
        block, lane, which = begin // 16, begin % 16 // 8, begin % 8 // each
        set_word(lows, (block * windows + which) * 2 + lane, low)
        for x in range(begin, begin + each):
            away = get_word(lefts, x) - low
            for t in range(taps):
                set_byte(places, ((which * taps + t) * width + x) * 2 + 1, np.uint8((away + t) & 15))


def fractions(place):
    """Return where what is resized begins among the rows and how many it is, and of columns likewise: float64.

    All of a `Place`, unless these four follow its eight numbers.
    """
    return (0.0, place[2], 0.0, place[3]) if len(place) == 8 else place[8:12]


@overload(fractions, inline="always")
def _fractions(place):
    if len(place) == 8:
        return lambda place: (0.0, np.float64(place[2]), 0.0, np.float64(place[3]))
    return lambda place: (place[8], place[9], place[10], place[11])


@loose
def make_tables(recipe, place, height, width, flip, interleaved, scratch):
    """Return the `Tables` of an output of height × width pixels at `place`, mirrored where `flip` says so.

    `interleaved` says how the source lies, `scratch` is the address of `scratch_bytes`.
    """
    part_height, part_width, down, right, first_row, first_column = (
        place[2],
        place[3],
        place[4],
        place[5],
        place[6],
        place[7],
    )
    top, height_there, left, width_there = fractions(place)
    padded, plane, channels = _rounded(width, 16), _plane(part_width), recipe.channels
    cap, cap_down = _caps(part_width, right), _caps(part_height, down)
    down_first = is_down_first(part_height, down, part_width, right)
    at = _rounded(scratch, _LINE)
    heights, at = at, at + _rounded(8 * max(cap, cap_down), _LINE)
    lefts, at = at, at + _rounded(4 * padded, _LINE)
    across, at = at, at + _rounded(2 * cap * padded, _LINE)
    taps = _fill_taps(
        part_width, right, left, width_there, first_column, width, flip, True, padded, lefts, across, heights
    )
    for x in range(width, padded):
        set_word(lefts, x, get_word(lefts, width - 1))
        for t in range(cap):
            set_short(across, t * padded + x, np.uint16(0))
    tops, at = at, at + _rounded(4 * height, _LINE)
    weights, at = at, at + _rounded(2 * cap_down * height, _LINE)
    taps_down = _fill_taps(
        part_height, down, top, height_there, first_row, height, False, False, cap_down, tops, weights, heights
    )
    windows = np.int64(_count_windows(lefts, padded, taps)) if HAS_VECTORS else np.int64(0)
    lows, at = at, at + _rounded(padded * 4, _LINE)
    places, at = at, at + _rounded(2 * 2 * cap * padded, _LINE)
    if windows > 0:
        _fill_windows(lefts, padded, taps, windows, lows, places)
    pixels, at = at, at + channels * plane + _LINE
    ring_row = channels * (plane if down_first else padded)
    ring, at = at, at + _rounded(2 * (taps_down + 1) * ring_row, _LINE)
    row_places, at = at, at + _rounded(8 * cap_down, _LINE)
    resized, at = at, at + _rounded(2 * channels * padded, _LINE)
    packed = np.int64(recipe.channels == 3 and interleaved and windows == 0 and not down_first)
    fetched, at = at, at + 4 * padded
    sums, at = at, at + _rounded(2 * ring_row, _LINE)
    for x in range((taps_down + 1) * ring_row):  # rows beyond a window's end have the weight 0
        set_short(ring, x, np.uint16(0))
    return Tables(
        down_first=np.int64(down_first),
        width=padded,
        plane=plane,
        lefts=lefts,
        across=across,
        taps_across=taps,
        half_across=np.uint16(rounding(part_width, right)),
        windows=windows,
        lows=lows,
        places=places,
        tops=tops,
        down=weights,
        down_stride=cap_down,
        taps_down=taps_down,
        half_down=np.uint16(rounding(part_height, down)),
        pixels=pixels,
        ring=ring,
        ring_rows=taps_down + 1,
        ring_row=ring_row,
        row_places=row_places,
        resized=resized,
        packed=packed,
        fetched=fetched,
        sums=sums,
        line=at,
    )
