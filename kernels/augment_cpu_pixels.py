"""How a CPU thread augments one image: its crop to planes, their sums, and the values that are stored."""

import numpy as np

from .augment import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    KEEP,
    affine,
    bfloat16_bits,
    float16_bits,
    pivot,
    standardization,
)
from .inlining import loose
from .intrinsics import HAS_HALF, copy16, copy64, to_half

# Indices are unsigned: on one that may be negative Numba tests for that, and the loop is not vectorized (measured:
# 2.2 µs for what takes 0.24). Nor are planes sliced: each slice counts references.

_RUN = 2048
"""Values whose sum is kept in float32, in a vector's lanes, before it goes to float64."""


@loose
def _copy_row(target, at, source, begin, size):
    """Copy a row in blocks, the last one overlapping: a loop over bytes took 5 ns a row more for its remainder."""
    if size >= 64:
        for k in range(0, size - 63, 64):
            copy64(target, at + np.uint64(k), source, begin + np.uint64(k))
        copy64(target, at + np.uint64(size - 64), source, begin + np.uint64(size - 64))
    elif size >= 16:
        for k in range(0, size - 15, 16):
            copy16(target, at + np.uint64(k), source, begin + np.uint64(k))
        copy16(target, at + np.uint64(size - 16), source, begin + np.uint64(size - 16))
    else:
        for k in range(size):
            target[at + np.uint64(k)] = source[begin + np.uint64(k)]


@loose
def _load_crop(data, first, strides, height, width, channels, flip, packed, planes):
    """Read a crop into `planes`, uint8 [channels · height · width], mirrored where `flip` says so; scratch: `packed`.

    Mirrored, the rows are packed from the last to the first, and all of that is then reversed: a single long loop.
    """
    _, down, right, across = strides
    pixels = height * width
    planar = right == 1
    runs, size = (channels, width) if planar else (1, channels * width)
    for c in range(runs):
        for y in range(height):
            row = c * height + (height - 1 - y if flip else y)
            begin = np.uint64(first + c * across + y * down)
            _copy_row(planes if planar and not flip else packed, np.uint64(row * size), data, begin, size)
    if planar:
        if flip:
            for c in range(channels):
                start, last = np.uint64(c * pixels), np.uint64(c * pixels + pixels - 1)
                for p in range(pixels):
                    planes[start + np.uint64(p)] = packed[last - np.uint64(p)]
    elif channels == 3:  # constant strides are what LLVM vectorizes
        _split_three(packed, pixels, flip, planes)
    else:
        for c in range(channels):
            for p in range(pixels):
                place = pixels - 1 - p if flip else p
                planes[np.uint64(c * pixels + place)] = packed[np.uint64(p * channels + c)]


@loose
def _split_three(packed, pixels, flip, planes):
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    green, blue = np.uint64(pixels), np.uint64(2 * pixels)
    if flip:
        last = np.uint64(pixels - 1)
        for q in range(pixels):
            p = np.uint64(q)
            planes[last - p] = packed[three * p]
            planes[green + last - p] = packed[three * p + one]
            planes[blue + last - p] = packed[three * p + two]
    else:
        for q in range(pixels):
            p = np.uint64(q)
            planes[p] = packed[three * p]
            planes[green + p] = packed[three * p + one]
            planes[blue + p] = packed[three * p + two]


@loose
def _sum(planes, start, pixels):
    """Return the sum of a plane, exactly."""
    total = np.int64(0)
    for run in range(0, pixels, _RUN):
        part = np.uint32(0)
        for k in range(run, min(pixels, run + _RUN)):
            part += np.uint32(planes[start + np.uint64(k)])
        total += np.int64(part)
    return total


@loose
def _value(byte, contrast, offset, low, high):
    value = np.float32(byte) * contrast + offset
    value = value if value > low else low
    return value if value < high else high


@loose
def _moments(planes, start, pixels, contrast, offset, low, high, pivot):
    """Return the sums of v - pivot and of its square over a plane's augmented values v, float64."""
    total, squares = 0.0, 0.0
    for run in range(0, pixels, _RUN):
        part, square = np.float32(0), np.float32(0)
        for k in range(run, min(pixels, run + _RUN)):
            away = _value(planes[start + np.uint64(k)], contrast, offset, low, high) - pivot
            part += away
            square += away * away
        total += np.float64(part)
        squares += np.float64(square)
    return total, squares


@loose
def _store(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, kind):
    # A constant kind a call: LLVM takes a choice out of a loop with one store, but not out of one with three.
    if kind == FLOAT32:
        _store_as(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, FLOAT32)
    elif kind == FLOAT16:
        _store_as(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, FLOAT16)
    else:
        _store_as(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, BFLOAT16)


@loose
def _store_as(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, kind):
    if channels_last and channels == 3:
        red, green, blue = offsets[0], offsets[1], offsets[2]
        one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
        for q in range(pixels):
            p = np.uint64(q)
            a = (_value(planes[p], contrast, red, low, high) - mean) * scale
            b = (_value(planes[np.uint64(pixels) + p], contrast, green, low, high) - mean) * scale
            c = (_value(planes[np.uint64(2 * pixels) + p], contrast, blue, low, high) - mean) * scale
            out[i, three * p] = _stored(a, kind)
            out[i, three * p + one] = _stored(b, kind)
            out[i, three * p + two] = _stored(c, kind)
        return
    for c in range(channels):
        start, offset = np.uint64(c * pixels), offsets[c]
        if channels_last:
            for p in range(pixels):
                value = (_value(planes[start + np.uint64(p)], contrast, offset, low, high) - mean) * scale
                out[i, np.uint64(p * channels + c)] = _stored(value, kind)
        else:
            for p in range(pixels):
                value = (_value(planes[start + np.uint64(p)], contrast, offset, low, high) - mean) * scale
                out[i, start + np.uint64(p)] = _stored(value, kind)


@loose
def _stored(value, kind):
    """Return what an output of `kind` holds for a float32: itself or its bits."""
    if kind == FLOAT32:
        return value
    if kind == FLOAT16:
        return np.int16(to_half(value)) if HAS_HALF else np.int16(float16_bits(value))
    return np.int16(bfloat16_bits(value))


@loose
def augment_one(data, first, drawn, strides, channels, settings, work, out, i, channels_last, kind):
    """Augment the crop at byte `first` into `out[i]`. `work`: uint8 [h·w·c] twice, float32 [c]."""
    height, width = settings.height, settings.width
    pixels = height * width
    count = pixels * channels
    packed, planes, offsets = work
    _, _, flip, brightness, contrast = drawn
    low, high = (np.float32(0), np.float32(255)) if settings.clamp else (-np.float32(np.inf), np.float32(np.inf))
    _load_crop(data, first, strides, height, width, channels, flip, packed, planes)
    centre = 0.0
    for c in range(channels):
        total = _sum(planes, np.uint64(c * pixels), pixels)
        offsets[c] = affine(total, pixels, brightness, contrast)
        centre += pivot(total, pixels, brightness, settings.clamp)
    mean, scale = np.float32(0), np.float32(1)
    if settings.standardize != KEEP:
        middle = np.float32(centre / channels)
        total, squares = 0.0, 0.0
        for c in range(channels):
            part, square = _moments(planes, np.uint64(c * pixels), pixels, contrast, offsets[c], low, high, middle)
            total += part
            squares += square
        mean, scale = standardization(total, squares, count, middle, settings.standardize)
    _store(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, kind)


@loose
def work_space(settings, channels):
    count = settings.height * settings.width * channels
    return np.empty(count, np.uint8), np.empty(count, np.uint8), np.empty(channels, np.float32)
