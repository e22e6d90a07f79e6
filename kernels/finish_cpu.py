"""What a CPU thread does with the pixels of a crop: colours, normalizing, storing, erasing.

Planes (uint8, a channel after the other), small tables and the output are given by their addresses: see cpu_memory.py.
"""

from typing import Any, NamedTuple

import numpy as np

from .augment import FLOAT16, FLOAT32, STDDEV, VARIANCE, affine, bfloat16_bits, float16_bits, pivot, standardization
from .color_matrix import BLUE, GREEN, RED, color_matrix, color_shift
from .cpu_memory import get_byte, get_single, set_byte, set_short, set_single
from .inlining import exact, loose
from .intrinsics import HAS_HALF, to_half, unseen
from .recipe import BY_CHANNEL, BY_STDDEV, JITTER, NO_COLOR, PAPER, UINT8
from .resample_cpu import store_levels, whole_blocks

_RUN = 2048
"""Values whose sum is kept in float32, in a vector's lanes, before it goes to float64."""


class Look(NamedTuple):
    """What an image's colours are made with, float32: `v' = M·v + shift`, or by channel `v·gain + offset`.

    Attributes:
        matrix: M's nine elements.
        shift: what is added to all channels.
        gain: what each value is multiplied by.
        low: the least value.
        high: the greatest.
        grey: whether the image is grey in the end.
    """

    matrix: Any
    shift: Any
    gain: Any
    low: Any
    high: Any
    grey: Any


@loose
def _sum(planes, start, pixels):
    """Return the sum of a plane, exactly."""
    total = np.int64(0)
    for run in range(0, pixels, _RUN):
        part = np.uint32(0)
        for k in range(run, min(pixels, run + _RUN)):
            part += np.uint32(get_byte(planes, start + k))
        total += np.int64(part)
    return total


@loose
def _between(value, low, high):
    value = value if value > low else low
    return value if value < high else high


@exact
def _is_joint(recipe):
    """Whether a channel's values depend on the other channels'."""
    return recipe.channels == 3 and (recipe.color == JITTER or recipe.grayscale == 1)


@loose
def _three(recipe, red, green, blue, look, offsets, grey):
    """Return the values of three channels' bytes, float32, after all steps of colour."""
    a, b, c = np.float32(red), np.float32(green), np.float32(blue)
    if recipe.color == JITTER:
        m = look.matrix
        r = a * m[0] + b * m[1] + c * m[2] + look.shift
        g = a * m[3] + b * m[4] + c * m[5] + look.shift
        d = a * m[6] + b * m[7] + c * m[8] + look.shift
        a, b, c = r, g, d
    elif recipe.color == PAPER:
        a, b, c = a * look.gain + offsets[0], b * look.gain + offsets[1], c * look.gain + offsets[2]
    if recipe.color != NO_COLOR:
        a, b, c = _between(a, look.low, look.high), _between(b, look.low, look.high), _between(c, look.low, look.high)
    if grey:
        y = a * np.float32(RED) + b * np.float32(GREEN) + c * np.float32(BLUE)
        return y, y, y
    return a, b, c


@loose
def _one(recipe, byte, look, offset):
    """Return the value of a channel's byte, float32, after all steps of colour."""
    if recipe.color == NO_COLOR:
        return np.float32(byte)
    return _between(np.float32(byte) * look.gain + offset, look.low, look.high)


@loose
def set_colors(recipe, color, planes, pixels, offsets):
    """Fill `offsets`, float32 [channels], for one image; return its `Look`, and about where its values lie (`pivot`).

    Arguments:
        recipe: `Recipe`.
        color: what `draw_color` returned.
        planes: address of uint8 [channels · pixels]; summed only where the recipe needs it.
        pixels: of a channel; 0 where there are no planes yet, and nothing is summed.
        offsets: address.
    """
    brightness, contrast, saturation, hue, grey = color
    channels = recipe.channels
    clamp = recipe.clamp == 1 or recipe.color == JITTER
    one, nothing = np.float32(1), np.float32(0)
    matrix = (one, nothing, nothing, nothing, one, nothing, nothing, nothing, one)
    gain, shift = contrast, nothing
    if recipe.color == JITTER:
        gain = np.float32(np.float64(brightness) * np.float64(contrast))
        matrix = color_matrix(brightness, contrast, saturation, hue)
    low = nothing if clamp else -np.float32(np.inf)
    high = np.float32(255) if clamp else np.float32(np.inf)
    for c in range(channels):
        set_single(offsets, c, nothing)
    centre = 0.0
    if pixels > 0 and (recipe.color != NO_COLOR or recipe.normalize != BY_CHANNEL):
        grey_mean = 0.0
        for c in range(channels):
            total = _sum(planes, c * pixels, pixels)
            if recipe.color == JITTER:
                mean = np.float64(total) / np.float64(pixels)
                grey_mean += mean * (1.0 if channels == 1 else RED if c == 0 else GREEN if c == 1 else BLUE)
            elif recipe.color == PAPER:
                set_single(offsets, c, affine(total, pixels, brightness, contrast))
                centre += pivot(total, pixels, brightness, clamp)
            else:
                centre += pivot(total, pixels, nothing, False)
        if recipe.color == JITTER:
            shift = color_shift(brightness, contrast, grey_mean)
            for c in range(channels):
                set_single(offsets, c, shift)
            middle = np.float64(gain) * grey_mean + np.float64(shift)
            centre = min(max(middle, 0.0), 255.0) * channels
    return Look(matrix, shift, gain, low, high, grey), centre


@loose
def _moments(recipe, planes, c, pixels, look, offset, middle):
    """Return the sums of v - middle and of its square over the values v of channel `c`, float64."""
    total, squares = 0.0, 0.0
    start = c * pixels
    for run in range(0, pixels, _RUN):
        part, square = np.float32(0), np.float32(0)
        for k in range(run, min(pixels, run + _RUN)):
            away = _one(recipe, get_byte(planes, start + k), look, offset) - middle
            part += away
            square += away * away
        total += np.float64(part)
        squares += np.float64(square)
    return total, squares


@loose
def _joint_moments(recipe, planes, pixels, look, offsets, middle):
    """Return the sums that `_moments` returns, over all of three channels whose values depend on each other."""
    total, squares = 0.0, 0.0
    blue = 2 * pixels
    three = get_single(offsets, 0), get_single(offsets, 1), get_single(offsets, 2)
    for run in range(0, pixels, _RUN):
        part, square = np.float32(0), np.float32(0)
        for k in range(run, min(pixels, run + _RUN)):
            r, g, d = get_byte(planes, k), get_byte(planes, pixels + k), get_byte(planes, blue + k)
            a, b, c = _three(recipe, r, g, d, look, three, look.grey)
            a, b, c = a - middle, b - middle, c - middle
            part += a + b + c
            square += a * a + b * b + c * c
        total += np.float64(part)
        squares += np.float64(square)
    return total, squares


@loose
def set_normalizing(recipe, planes, pixels, look, offsets, centre, means, scales):
    """Fill `means` and `scales`, float32 [channels], for an image that is normalized by its own values.

    Arguments:
        recipe: `Recipe`.
        planes: address of uint8 [channels · pixels].
        pixels: of a channel.
        look: what `set_colors` returned, as is `centre`.
        offsets: address, filled by `set_colors`.
        centre: about where the values lie, times the channels.
        means: address.
        scales: address.
    """
    channels = recipe.channels
    middle = np.float32(centre / channels)
    total, squares = 0.0, 0.0
    if _is_joint(recipe):
        total, squares = _joint_moments(recipe, planes, pixels, look, offsets, middle)
    else:
        for c in range(channels):
            part, square = _moments(recipe, planes, c, pixels, look, get_single(offsets, c), middle)
            total += part
            squares += square
    kind = STDDEV if recipe.normalize == BY_STDDEV else VARIANCE
    mean, scale = standardization(total, squares, pixels * channels, middle, kind)
    for c in range(channels):
        set_single(means, c, mean)
        set_single(scales, c, scale)


@loose
def _store(recipe, out, index, value):
    """Store a float32 as an element of the output."""
    if recipe.kind == FLOAT32:
        set_single(out, index, value)
    elif recipe.kind == FLOAT16:
        set_short(out, index, np.uint16(to_half(value)) if HAS_HALF else float16_bits(value))
    elif recipe.kind == UINT8:
        level = np.int32(_between(value, np.float32(0), np.float32(255)) + np.float32(0.5))
        set_byte(out, index, np.uint8(level))
    else:
        set_short(out, index, bfloat16_bits(value))


@exact
def element_bytes(recipe):
    """Return the bytes of an element of the output."""
    return 4 if recipe.kind == FLOAT32 else 1 if recipe.kind == UINT8 else 2


@loose
def store_pixels(recipe, planes, plane, first, count, look, offsets, means, scales, out, target, step):
    """Store the pixels first … count - 1 of all channels.

    Arguments:
        recipe: `Recipe`.
        planes: address of the channels' bytes, `plane` bytes apart.
        plane: bytes.
        first: the first pixel that is not stored yet.
        count: of pixels.
        look: what `set_colors` returned.
        offsets: address of float32 [channels].
        means: likewise.
        scales: likewise.
        out: address of the output.
        target: where the first pixel's first value goes in it.
        step: from one channel to the next in it, where channels come first.
    """
    channels = recipe.channels
    if channels == 3 and (recipe.channels_last == 1 or _is_joint(recipe)):
        three = get_single(offsets, 0), get_single(offsets, 1), get_single(offsets, 2)
        m0, m1, m2 = get_single(means, 0), get_single(means, 1), get_single(means, 2)
        s0, s1, s2 = get_single(scales, 0), get_single(scales, 1), get_single(scales, 2)
        for p in range(first, count):
            r, g, d = get_byte(planes, p), get_byte(planes, plane + p), get_byte(planes, 2 * plane + p)
            a, b, c = _three(recipe, r, g, d, look, three, look.grey if recipe.grayscale else False)
            a, b, c = (a - m0) * s0, (b - m1) * s1, (c - m2) * s2
            if recipe.channels_last:
                _store(recipe, out, target + 3 * p, a)
                _store(recipe, out, target + 3 * p + 1, b)
                _store(recipe, out, target + 3 * p + 2, c)
            else:
                _store(recipe, out, target + p, a)
                _store(recipe, out, target + step + p, b)
                _store(recipe, out, target + 2 * step + p, c)
        return
    whole = whole_blocks(recipe, count) if first == 0 else np.int64(0)
    for c in range(unseen(channels)):
        start, offset, mean, scale = c * plane, get_single(offsets, c), get_single(means, c), get_single(scales, c)
        place = target + c * step
        if whole > 0:
            store_levels(recipe, planes + start, whole, mean, scale, out + element_bytes(recipe) * place)
        for p in range(max(first, whole), count):
            value = (_one(recipe, get_byte(planes, start + p), look, offset) - mean) * scale
            _store(recipe, out, target + p * channels + c if recipe.channels_last else place + p, value)


@loose
def erase_box(recipe, box, height, width, value, out, target):
    """Set a rectangle (top, left, height, width) of the output that begins at element `target` to one value."""
    top, left, rows, columns = box
    channels = recipe.channels
    for y in range(top, top + rows):
        if recipe.channels_last:
            for k in range(left * channels, (left + columns) * channels):
                _store(recipe, out, target + y * width * channels + k, value)
        else:
            for c in range(unseen(channels)):
                for x in range(left, left + columns):
                    _store(recipe, out, target + (c * height + y) * width + x, value)
