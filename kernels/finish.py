"""The augmentation's steps after the crop, on one CPU thread: flip, brightness, contrast, clamp, standardize, store.

For images that another library decoded, resized and cropped; their parameters are given, not drawn. `affine` and
`divisor` are the arithmetic, as in `augment`; half-precision values are rounded by its functions.
"""

import numpy as np
from numba import njit
from numba.extending import register_jitable

from .augment import FLOAT16, FLOAT32, KEEP, affine, bfloat16_bits, divisor, float16_bits

RUN = 512
"""Values that are summed in float32, which vectorizes, before float64 takes over."""

# Rows, planes and runs are sliced before they are walked, and an index that falls is unsigned: on an index that may be
# negative Numba tests for that, and the loop is not vectorized.


@register_jitable
def _load(crop, height, width, channels, flip, values):
    """Read a crop, uint8 [h · w · c], as float32 planes into `values`, mirrored where `flip` says so."""
    for c in range(channels):
        for y in range(height):
            start = (c * height + y) * width
            target = values[start : start + width]
            source = crop[y * width * channels + c : (y + 1) * width * channels]
            if flip and channels == 3:  # a constant stride is what LLVM vectorizes
                for x in range(width):
                    target[np.uint64(width - 1 - x)] = source[3 * x]
            elif channels == 3:
                for x in range(width):
                    target[x] = source[3 * x]
            else:
                for x in range(width):
                    target[np.uint64(width - 1 - x if flip else x)] = source[x * channels]


@register_jitable
def _sum(values):
    total = 0.0
    for start in range(0, values.size, RUN):
        run = values[start : start + RUN]
        part = np.float32(0)
        for k in range(run.size):
            part += run[k]
        total += np.float64(part)
    return total


@register_jitable
def _recolour(values, contrast, offset, clamp, pivot):
    """Apply v·contrast + offset and the clamp in place; return the sums of v - pivot and of its square, float64."""
    total, squares = 0.0, 0.0
    low, high = (np.float32(0), np.float32(255)) if clamp else (-np.float32(np.inf), np.float32(np.inf))
    for start in range(0, values.size, RUN):
        run = values[start : start + RUN]
        part, square = np.float32(0), np.float32(0)
        for k in range(run.size):
            value = run[k] * contrast + offset
            value = value if value > low else low
            value = value if value < high else high
            run[k] = value
            part += value - pivot
            square += (value - pivot) * (value - pivot)
        total += np.float64(part)
        squares += np.float64(square)
    return total, squares


@register_jitable
def _store(values, pixels, channels, mean, scale, target, channels_last, kind):
    for c in range(channels):
        plane = values[c * pixels : (c + 1) * pixels]
        step = channels if channels_last else 1
        there = target[c:] if channels_last else target[c * pixels : (c + 1) * pixels]
        if kind == FLOAT32:
            for p in range(pixels):
                there[p * step] = (plane[p] - mean) * scale
        elif kind == FLOAT16:
            for p in range(pixels):
                there[p * step] = float16_bits((plane[p] - mean) * scale)
        else:
            for p in range(pixels):
                there[p * step] = bfloat16_bits((plane[p] - mean) * scale)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def finish_batch(crops, shape, flip, brightness, contrast, clamp, standardize, out, channels_last, kind):
    """Finish a batch of crops.

    Arguments:
        crops: uint8 [b, h · w · c], in NHWC order. shape: (h, w, c). flip: bool [b]. brightness, contrast: float32 [b].
        clamp, standardize: whether, and KEEP, STDDEV or VARIANCE. out: float32 [b, h·w·c], or int16 (the bits) for the
        other kinds, in NCHW or (`channels_last`) NHWC order. kind: FLOAT32, FLOAT16 or BFLOAT16.
    """
    height, width, channels = shape
    pixels = height * width
    count = pixels * channels
    values = np.empty(count, np.float32)
    pivots, excesses, squares = np.empty(channels), np.empty(channels), np.empty(channels)
    for i in range(flip.size):
        _load(crops[i], height, width, channels, flip[i], values)
        for c in range(channels):
            plane = values[c * pixels : (c + 1) * pixels]
            total = _sum(plane)
            # About a pivot near each channel's mean, one pass gives the variance without cancellation on flat images.
            pivot = np.float32(total / pixels + np.float64(brightness[i]))
            if clamp:
                pivot = min(max(pivot, np.float32(0)), np.float32(255))
            offset = affine(total, pixels, brightness[i], contrast[i])
            excess, square = _recolour(plane, contrast[i], offset, clamp, pivot)
            pivots[c], excesses[c], squares[c] = np.float64(pivot), excess / pixels, square / pixels
        mean, scale = np.float32(0), np.float32(1)
        if standardize != KEEP:
            grand, variance = 0.0, 0.0
            for c in range(channels):
                grand += (pivots[c] + excesses[c]) / channels
            for c in range(channels):
                away = pivots[c] - grand
                variance += (squares[c] + 2.0 * away * excesses[c] + away * away) / channels
            mean = np.float32(grand)
            scale = np.float32(1.0 / divisor(max(variance, 0.0), count, standardize))
        _store(values, pixels, channels, mean, scale, out[i], channels_last, kind)
