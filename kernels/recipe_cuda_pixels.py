"""How a thread of a recipe's CUDA kernel takes a pixel that is not resized, colours it and stores it.

Pixels have up to four channels here, those from `first` on, as scalars: an array would lie in memory.
"""

from typing import Any, NamedTuple

import numpy as np

from .augment import BFLOAT16, FLOAT16, FLOAT32, bfloat16_bits
from .color_matrix import BLUE, GREEN, RED
from .cuda_memory import load_byte, round_to_half, store_byte, store_short, store_word
from .inlining import exact
from .recipe import CONSTANT, JITTER, NO_COLOR, REFLECT, UINT8, mirrored


class Cut(NamedTuple):
    """Where the pixels of a crop that is not resized lie, int64.

    Attributes:
        image: address of the image.
        down: bytes from one row to the next.
        right: from one column to the next.
        across: from one channel to the next.
        rows: of the image.
        columns: of the image.
        top: of the crop; negative before the image.
        left: likewise.
        width: of the crop.
        flip: whether it is mirrored, 0 or 1.
    """

    image: Any
    down: Any
    right: Any
    across: Any
    rows: Any
    columns: Any
    top: Any
    left: Any
    width: Any
    flip: Any


class Look(NamedTuple):
    """What four channels are coloured with, float32: `M·v + offset`, or by channel `v·gain + offset`.

    Attributes:
        matrix: M's nine elements.
        gain: what each value is multiplied by.
        offsets: of the four channels.
        low: the least value.
        high: the greatest.
        grey: bool, whether the image becomes grey.
    """

    matrix: Any
    gain: Any
    offsets: Any
    low: Any
    high: Any
    grey: Any


@exact
def cut_levels(recipe, cut, first, x, y):
    """Return the levels of an output pixel's channels first … first + 3, uint32, 0 where there is none."""
    row = cut.top + y
    column = cut.left + (cut.width - 1 - x if cut.flip else np.int64(x))
    a, b, c, d = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    inside = True
    if recipe.pad == REFLECT:
        row, column = mirrored(row, cut.rows), mirrored(column, cut.columns)
    elif recipe.pad == CONSTANT:
        inside = row >= 0 and row < cut.rows and column >= 0 and column < cut.columns
    if inside:
        place = cut.image + row * cut.down + column * cut.right + first * cut.across
        a = load_byte(place)
        if first + 1 < recipe.channels:
            b = load_byte(place + cut.across)
        if first + 2 < recipe.channels:
            c = load_byte(place + 2 * cut.across)
        if first + 3 < recipe.channels:
            d = load_byte(place + 3 * cut.across)
    return a, b, c, d


@exact
def _between(value, low, high):
    return min(max(np.float32(value), low), high)


@exact
def colored(recipe, levels, look):
    """Return a pixel's four values, float32, after all steps of colour."""
    a, b, c, d = np.float32(levels[0]), np.float32(levels[1]), np.float32(levels[2]), np.float32(levels[3])
    offset, low, high = look.offsets, look.low, look.high
    if recipe.color == JITTER and recipe.channels == 3:
        m = look.matrix
        p = np.float32(a * m[0] + b * m[1] + c * m[2] + offset[0])
        q = np.float32(a * m[3] + b * m[4] + c * m[5] + offset[1])
        r = np.float32(a * m[6] + b * m[7] + c * m[8] + offset[2])
        a, b, c = _between(p, low, high), _between(q, low, high), _between(r, low, high)
    elif recipe.color != NO_COLOR:
        a, b = _between(a * look.gain + offset[0], low, high), _between(b * look.gain + offset[1], low, high)
        c, d = _between(c * look.gain + offset[2], low, high), _between(d * look.gain + offset[3], low, high)
    if recipe.grayscale and look.grey:
        grey = np.float32(a * np.float32(RED) + b * np.float32(GREEN) + c * np.float32(BLUE))
        return grey, grey, grey, d
    return a, b, c, d


@exact
def pixel_moments(recipe, first, values, middle):
    """Return the sums of v - middle and of its square over the channels first … first + 3 of a pixel, float32."""
    away = np.float32(values[0] - middle)
    total, squares = away, away * away
    if first + 1 < recipe.channels:
        away = np.float32(values[1] - middle)
        total, squares = total + away, squares + away * away
    if first + 2 < recipe.channels:
        away = np.float32(values[2] - middle)
        total, squares = total + away, squares + away * away
    if first + 3 < recipe.channels:
        away = np.float32(values[3] - middle)
        total, squares = total + away, squares + away * away
    return total, squares


@exact
def element_bytes(recipe):
    """Return the bytes of an element of the output."""
    return np.int64(4 if recipe.kind == FLOAT32 else 1 if recipe.kind == UINT8 else 2)


@exact
def _store(recipe, address, value):
    if recipe.kind == FLOAT32:
        store_word(address, np.uint32(np.float32(value).view(np.uint32)))
    elif recipe.kind == FLOAT16:
        store_short(address, np.uint16(round_to_half(np.float32(value))))
    elif recipe.kind == BFLOAT16:
        store_short(address, np.uint16(bfloat16_bits(value)))
    else:
        level = np.int32(_between(value, np.float32(0), np.float32(255)) + np.float32(0.5))
        store_byte(address, np.uint8(level))


@exact
def store_pixel(recipe, address, step, first, values):
    """Store the channels first … first + 3 of a pixel, `step` bytes apart."""
    _store(recipe, address, values[0])
    if first + 1 < recipe.channels:
        _store(recipe, address + step, values[1])
    if first + 2 < recipe.channels:
        _store(recipe, address + 2 * step, values[2])
    if first + 3 < recipe.channels:
        _store(recipe, address + 3 * step, values[3])
