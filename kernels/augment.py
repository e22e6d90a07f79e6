"""The paper's recipe, as its CUDA kernels have it: position → row, id → random parameters, gather, crop, flip,
brightness, contrast, clamp, standardize and store, one launch a batch; and the arithmetic that all recipes share.

Everything a sample goes through is decided by `draw`; `affine` and `divisor` are the arithmetic that both share.
Brightness and contrast are one affine map a channel: (v + b - (m_c + b))·k + m_c + b = v·k + (m_c·(1 - k) + b).

Offsets and spans of `Draws` are float32 and drawn words have 24 bits, so `low + u·span` in float64 rounds once
wherever it is computed, fused or not.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .inlining import exact
from .philox import MASK32, SHIFT32, bounded, philox4x32, unit_interval

STDDEV, VARIANCE = 1, 2

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2

MAX_CHANNELS = 4


class Draws(NamedTuple):
    """Where the random parameters lie: a probability (float64), and uniform draws from `low` to `low + span` (float32).

    Attributes:
        flip: the probability of mirroring.
        brightness_low: the least that is added, in pixel values.
        brightness_span: how much more is added at most.
        contrast_low: the least factor.
        contrast_span: how much greater the factor is at most.
    """

    flip: Any
    brightness_low: Any
    brightness_span: Any
    contrast_low: Any
    contrast_span: Any


class Settings(NamedTuple):
    """What is done to every image; whole numbers are int64.

    Attributes:
        height: of the crop, in pixels.
        width: of the crop, in pixels.
        centre: 1 for the centre crop, 0 for a random corner.
        draws: `Draws` of the random parameters.
        clamp: 1 to bring values back to 0…255 before standardizing.
        standardize: STDDEV or VARIANCE.
    """

    height: Any
    width: Any
    centre: Any
    draws: Draws
    clamp: Any
    standardize: Any


@exact
def draw(sample, epoch, seed, stream, draws):
    """Return (top word, left word, flip, brightness, contrast) of a sample; all integers uint64."""
    low, high = seed & MASK32, seed >> SHIFT32
    last = stream * np.uint64(16)
    id_low, id_high, epoch = sample & MASK32, sample >> SHIFT32, epoch & MASK32
    top, left, flip, bright = philox4x32(id_low, id_high, epoch, last, low, high)
    contrast, _, _, _ = philox4x32(id_low, id_high, epoch, last + np.uint64(1), low, high)
    return (
        top,
        left,
        unit_interval(flip) < draws.flip,
        np.float32(np.float64(draws.brightness_low) + unit_interval(bright) * np.float64(draws.brightness_span)),
        np.float32(np.float64(draws.contrast_low) + unit_interval(contrast) * np.float64(draws.contrast_span)),
    )


@exact
def corner(word, room, centre):
    """Return the first pixel of a crop where `room` is the image's side less the crop's."""
    if centre:
        return np.int64(room // 2)
    return bounded(word, np.uint64(room + 1))


@exact
def affine(total, pixels, brightness, contrast):
    """Return the offset of the map v·contrast + offset of a channel whose crop sums to `total`, in float32."""
    mean = np.float64(total) / np.float64(pixels)
    return np.float32(mean * (1.0 - np.float64(contrast)) + np.float64(brightness))


@exact
def divisor(variance, count, standardize):
    """Return what the centred pixels are divided by, float64; `variance` is the population's over `count` values."""
    if standardize == STDDEV:
        return max(math.sqrt(variance), 1.0 / math.sqrt(np.float64(count)))
    return max(variance, 1.0 / np.float64(count))


@exact
def pivot(total, pixels, brightness, clamp):
    """Return about where a channel's augmented values lie, float64: about it squares are summed without cancellation.

    Of the image, the mean of its channels' is taken: exact for flat ones, whose divisor magnifies every error.
    """
    mean = np.float64(total) / np.float64(pixels) + np.float64(brightness)
    return min(max(mean, 0.0), 255.0) if clamp else mean


@exact
def standardization(total, squares, count, middle, standardize):
    """Return (mean, scale), float32, from the float64 sums of v - middle and of its square over `count` values."""
    excess = total / np.float64(count)
    variance = max(squares / np.float64(count) - excess * excess, 0.0)
    scale = 1.0 / divisor(variance, count, standardize)
    return np.float32(np.float64(middle) + excess), np.float32(scale)


@exact
def float16_bits(value):
    """Round a float32 to the nearest float16, ties to even, and return its bits (uint16; overflow to infinity)."""
    bits = np.float32(value).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    bits = bits & np.uint32(0x7FFFFFFF)
    if bits >= np.uint32(0x47800000):  # 65,536 and above, infinity and NaN
        return np.uint16(sign | (np.uint32(0x7E00) if bits > np.uint32(0x7F800000) else np.uint32(0x7C00)))
    if bits < np.uint32(0x38800000):  # below 2^-14: the addition's own rounding aligns a subnormal's bits
        shifted = np.float32(abs(np.float32(value)) + np.float32(0.5)).view(np.uint32)
        return np.uint16(sign | (shifted - np.uint32(0x3F000000)))
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    # 0x38000000 - 0x0FFF: rebias the exponent and add half a unit less one; `odd` breaks the tie.
    return np.uint16(sign | ((bits - np.uint32(0x37FFF001) + odd) >> np.uint32(13)))


@exact
def bfloat16_bits(value):
    """Round a float32 to the nearest bfloat16, ties to even, and return its bits (uint16; finite values only)."""
    bits = np.float32(value).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
