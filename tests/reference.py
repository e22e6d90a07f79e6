"""The contracts of docs/determinism.md written a second time, in plain Python integers and float64, for the tests."""

from __future__ import annotations

import numpy as np

M32 = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 as in Salmon et al., SC 2011."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & M32, (p0 >> 32) ^ c[3] ^ k[1], p0 & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def fmix32(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B & M32
    h ^= h >> 13
    h = h * 0xC2B2AE35 & M32
    return h ^ h >> 16


def row_at(position: int, n: int, seed: int, phase: int) -> tuple[int, int]:
    """(row, epoch) of a position under shuffle=True."""
    epoch, offset = divmod(position, n)
    key = (seed & M32, seed >> 32)
    keys = [w for j in (0, 1) for w in philox((j, 0, epoch, phase * 16 + 15), key)]
    return feistel(offset, n, keys), epoch


def feistel(offset: int, n: int, keys: list[int]) -> int:
    """The image of `offset` under the keyed bijection on 0…n-1."""
    bits = max(2, (n - 1).bit_length())
    half = (bits + bits % 2) // 2
    mask = (1 << half) - 1
    value = offset
    while True:
        left, right = value >> half, value & mask
        for r in range(8):
            left, right = right, left ^ (fmix32(right ^ keys[r]) & mask)
        value = left << half | right
        if value < n:
            return value


def parameters(sample: int, epoch: int, seed: int, phase: int, brightness=63.0, contrast=(0.2, 1.8), flip=0.5):
    """(top word, left word, flip, brightness, contrast) of a sample."""
    key = (seed & M32, seed >> 32)
    words = [w for b in (0, 1) for w in philox((sample & M32, sample >> 32, epoch, phase * 16 + b), key)]
    top, left, mirror, bright, factor = words[:5]

    def unit(word: int) -> float:
        return (word >> 8) * 2.0**-24

    b, low, high = np.float32(brightness), np.float32(contrast[0]), np.float32(contrast[1])
    return (
        top,
        left,
        unit(mirror) < flip,
        float(np.float32(-float(b) + unit(bright) * 2 * float(b))),
        float(np.float32(float(low) + unit(factor) * float(high - low))),
    )


def pixels(
    image: np.ndarray, drawn: tuple, size: tuple[int, int], *, clamp=True, standardize="stddev", centre=False
) -> tuple[np.ndarray, float]:
    """Augment uint8 [H, W, C] in float64, one named step after the other; return [h, w, C] and the divisor."""
    top_word, left_word, flip, brightness, contrast = drawn
    height, width = size
    room = image.shape[0] - height, image.shape[1] - width
    top = room[0] // 2 if centre else top_word * (room[0] + 1) >> 32
    left = room[1] // 2 if centre else left_word * (room[1] + 1) >> 32
    v = image[top : top + height, left : left + width].astype(np.float64)
    if flip:
        v = v[:, ::-1]
    v = v + brightness
    mean = v.mean(axis=(0, 1))
    v = (v - mean) * contrast + mean
    if clamp:
        v = np.clip(v, 0.0, 255.0)
    if standardize is None:
        return v, 1.0
    centred = v - v.mean()
    variance = (centred**2).mean()
    divisor = max(np.sqrt(variance), 1 / np.sqrt(v.size)) if standardize == "stddev" else max(variance, 1 / v.size)
    return centred / divisor, float(divisor)


def standardized(image: np.ndarray, top: int, left: int, crop: int, flip: bool, brightness: float, contrast: float):
    """The steps of the design's table in float64, [C, crop, crop]."""
    pixels = image[top : top + crop, left : left + crop].astype(np.float64).transpose(2, 0, 1)
    pixels = (pixels[..., ::-1] if flip else pixels) + brightness
    mean = pixels.mean((1, 2), keepdims=True)
    pixels = ((pixels - mean) * contrast + mean).clip(0, 255)
    return (pixels - pixels.mean()) / max(pixels.std(), pixels.size**-0.5)


ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def assert_close(got: np.ndarray, expected: np.ndarray, divisor: float, dtype: str = "float32") -> None:
    """Within 1e-4·max(1, 1/divisor, |reference|), plus one rounding of the output type."""
    magnitude = np.abs(expected)
    allowed = 1e-4 * np.maximum(max(1.0, 1.0 / divisor), magnitude) + ROUNDING[dtype] * np.maximum(magnitude, 1e-4)
    worst = np.unravel_index(np.argmax(np.abs(got - expected) - allowed), got.shape)
    assert np.all(np.abs(got - expected) <= allowed), (worst, got[worst], expected[worst], allowed[worst])
