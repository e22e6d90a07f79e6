"""The fused augmentation on one CPU thread: a batch out of memory, out of mapped files, or read image by image."""

import numpy as np

from .augment import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    KEEP,
    affine,
    bfloat16_bits,
    corner,
    draw,
    float16_bits,
    pivot,
    standardization,
)
from .bus_guard import are_whole
from .compiling import njit
from .file_ranges import part_of, read_range
from .inlining import LOOSE, loose
from .intrinsics import HAS_HALF, copy16, copy64, prefetch, to_half

# Indices are unsigned: on one that may be negative Numba tests for that, and the loop is not vectorized (measured:
# 2.2 µs for what takes 0.24). Nor are planes sliced: each slice counts references.

_RUN = 2048
"""Values whose sum is kept in float32, in a vector's lanes, before it goes to float64."""

_PREFETCHED = 8192
"""Bytes of a crop that are asked for ahead; the rest is a sequence, which the processor sees by itself."""


@njit(nogil=True)
def draw_batch(ids, epochs, seed, phase, draws, top, left, flip, brightness, contrast):
    """Fill the parameters of a batch (`fastload.augment.Parameters`), for engines that take them as inputs."""
    for i in range(ids.size):
        word0, word1, mirrored, bright, factor = draw(np.uint64(ids[i]), np.uint64(epochs[i]), seed, phase, draws)
        top[i] = word0
        left[i] = word1
        flip[i] = mirrored
        brightness[i] = bright
        contrast[i] = factor


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
def _place(drawn, strides, shape, settings):
    """Return how far into its image a crop begins, in bytes."""
    top = corner(drawn[0], shape[0] - settings.height, settings.centre)
    left = corner(drawn[1], shape[1] - settings.width, settings.centre)
    return top * strides[1] + left * strides[2]


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


@njit(nogil=True, fastmath=LOOSE)
def _augment_images(
    descriptors,
    begins,
    firsts,
    mapped,
    ends,
    data,
    rows,
    strides,
    shape,
    ids,
    epochs,
    seed,
    phase,
    settings,
    out,
    channels_last,
    kind,
):
    """Augment a batch out of `data`, or, where there are `descriptors`, image by image through it; see those below.

    One function for all: compiled apart, their sums could be taken in another order, and a sample's bits would differ.
    """
    work = work_space(settings, shape[2])
    address = np.uint64(data.ctypes.data)
    span = min(_PREFETCHED, (settings.height - 1) * strides[1] + settings.width * strides[2])
    in_memory = descriptors.size == 0
    down = strides[1]
    interleaved = down > strides[3]
    drawn, first = draw(np.uint64(0), np.uint64(0), seed, phase, settings.draws), np.int64(0)
    for k in range(-1, rows.size):  # one image behind: the crop that comes next is known, and on its way
        n = min(k + 1, rows.size - 1)
        if n < 0:
            break
        drawn_next = draw(np.uint64(ids[n]), np.uint64(epochs[n]), seed, phase, settings.draws)
        first_next = _place(drawn_next, strides, shape, settings)
        if in_memory:
            position = rows[n] * strides[0]
            part = part_of(firsts, position)
            first_next += begins[part] + position - firsts[part]
            for c in range(shape[2] if strides[2] == 1 else 1):
                prefetch(data, first_next + c * strides[3], span)
        if k >= 0:
            if not in_memory:
                # Of interleaved images only the lines that the crop needs.
                skip = first // down * down if interleaved else 0
                size = settings.height * down if interleaved else strides[0]
                if not read_range(
                    descriptors, begins, firsts, rows[k] * strides[0] + skip, size, address + np.uint64(skip)
                ):
                    return k
            augment_one(
                data, first, drawn, strides, shape[2], settings, work, out, np.uint64(k), channels_last, kind,
            )  # fmt: skip
        drawn, first = drawn_next, first_next
    # Here, in the same call: to give the GIL away and get it back once more a batch took a fifth of the speed.
    return -1 if are_whole(mapped, ends) else rows.size


_NO_FILES = (np.empty(0, np.int32), np.empty(0, np.int64))

_ONE_PART = (np.zeros(1, np.int64), np.array([0, np.iinfo(np.int64).max]))


def augment_batch(data, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind):
    """Augment a batch on one CPU thread, out of images in memory.

    Arguments:
        data: uint8 [bytes]. rows: int64 [b], which image of it. strides: (image, row, column, channel) in bytes,
        interleaved or planar. shape: (H, W, C). ids, epochs: int64 [b]. seed, phase: uint64. settings: see above.
        out: float32 [b, h·w·c], or int16 (the bits) for the other kinds, in NCHW or (`channels_last`) NHWC order.
        kind: FLOAT32, FLOAT16 or BFLOAT16.

    Bound by memory's latency, unless the next crop is asked for while this one is worked on: images of 3 KB lie at
    random places (0.65 µs an image without, 0.53 with; AMD EPYC, 32² → 24²). Then by arithmetic: three passes over
    the crop's bytes, which stay in the first-level cache.
    """
    _augment_images(
        _NO_FILES[0], *_ONE_PART, *_NO_FILES, data, rows, strides, shape, ids, epochs, seed, phase, settings, out,
        channels_last, kind,
    )  # fmt: skip


def augment_parts(
    mapped, ends, begins, firsts, data, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last,
    kind,
):  # fmt: skip
    """Augment a batch as `augment_batch`, out of a set whose files are mapped into `data`, each for itself.

    Arguments: mapped: int32 [F], the files. ends: int64 [F], how long each must be. begins: int64 [F], where each one's
    image bytes begin in `data`. firsts: int64 [F + 1], the place of each one's first byte in the set, and the end.
    Returns whether all files still were that long afterwards. `data` is uint8 and writeable, as for `augment_batch`.
    """
    failed = _augment_images(
        _NO_FILES[0], begins, firsts, mapped, ends, data, rows, strides, shape, ids, epochs, seed, phase, settings, out,
        channels_last, kind,
    )  # fmt: skip
    return failed < 0


def augment_stream(
    descriptors, begins, firsts, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind
):
    """Augment a batch as `augment_batch`, reading each image from a set's files (see `read_ranges`).

    Of image `rows[i]` the lines that the crop needs are read to one buffer that stays in the first-level cache.
    Returns the first unreadable `i`, or -1. Bound by the system call and the copy out of the page cache.
    """
    image = np.empty(strides[0], np.uint8)
    return _augment_images(
        descriptors, begins, firsts, *_NO_FILES, image, rows, strides, shape, ids, epochs, seed, phase, settings, out,
        channels_last, kind,
    )  # fmt: skip
