"""The fused augmentation: position → row, id → random parameters, gather, crop, flip, brightness, contrast, clamp,
standardize and store, one launch a batch; the CUDA kernels and their CPU twin.

Everything a sample goes through is decided by `draw`; `affine` and `divisor` are the arithmetic that both share.
Brightness and contrast are one affine map a channel: (v + b - (m_c + b))·k + m_c + b = v·k + (m_c·(1 - k) + b).

`settings` is the tuple that `fastload.augment.kernel_settings` makes: crop height, crop width, centre, flip
probability, brightness low and span, contrast low and span, clamp, standardize. Offsets and spans are float32 and
drawn words have 24 bits, so `low + u·span` in float64 rounds once wherever it is computed, fused or not.
"""

import math

import numpy as np
from numba import types
from numba.extending import register_jitable

from .bus_guard import are_whole
from .compiling import njit
from .cuda_memory import (
    load_byte,
    load_long,
    load_word,
    round_to_half,
    store_byte,
    store_four,
    store_long,
    store_short,
    store_two,
    store_word,
)
from .cuda_target import cuda
from .intrinsics import HAS_HALF, copy16, copy64, prefetch, to_half
from .permute import STREAM_ROWS, half_bits, permute, round_keys
from .philox import MASK32, SHIFT32, bounded, philox4x32, unit_interval

KEEP, STDDEV, VARIANCE = 0, 1, 2
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2

# Helpers are inlined, and say their flags: otherwise a process keeps several copies of each, compiled for different
# callers, and the linker takes another one from a cold cache than from a warm one: 3 of 640 images had other last bits.
LOOSE = {"reassoc", "contract", "nsz"}
exact = register_jitable(fastmath=False, forceinline=True)
loose = register_jitable(fastmath=LOOSE, forceinline=True)

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_posix_fadvise = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
)
_POSIX_FADV_WILLNEED = 3


# -- shared by both targets ----------------------------------------------------------------------------------------


@exact
def draw(sample, epoch, seed, phase, settings):
    """Return (top word, left word, flip, brightness, contrast) of a sample; all integers uint64."""
    low, high = seed & MASK32, seed >> SHIFT32
    last = phase * np.uint64(16)
    id_low, id_high, epoch = sample & MASK32, sample >> SHIFT32, epoch & MASK32
    top, left, flip, bright = philox4x32(id_low, id_high, epoch, last, low, high)
    contrast, _, _, _ = philox4x32(id_low, id_high, epoch, last + np.uint64(1), low, high)
    return (
        top,
        left,
        unit_interval(flip) < settings[3],
        np.float32(np.float64(settings[4]) + unit_interval(bright) * np.float64(settings[5])),
        np.float32(np.float64(settings[6]) + unit_interval(contrast) * np.float64(settings[7])),
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


# -- CPU -----------------------------------------------------------------------------------------------------------


@njit(nogil=True)
def draw_batch(ids, epochs, seed, phase, settings, top, left, flip, brightness, contrast):
    """Fill the parameters of a batch (`fastload.augment.Parameters`), for engines that take them as inputs."""
    for i in range(ids.size):
        word0, word1, mirrored, bright, factor = draw(np.uint64(ids[i]), np.uint64(epochs[i]), seed, phase, settings)
        top[i] = word0
        left[i] = word1
        flip[i] = mirrored
        brightness[i] = bright
        contrast[i] = factor


@exact
def _part_of(firsts, position):
    """Return which part of a set holds the byte `position`; parts begin at `firsts`, whose last entry is the end."""
    low, high = 0, firsts.size - 2
    while low < high:
        middle = (low + high + 1) // 2
        if firsts[middle] <= position:
            low = middle
        else:
            high = middle - 1
    return low


@exact
def _read(descriptors, begins, firsts, position, size, address):
    """Read bytes of a set that lie in one of its files to `address`; return whether they came whole."""
    part = _part_of(firsts, position)
    return _pread(descriptors[part], address, np.uint64(size), begins[part] + position - firsts[part]) == size


@njit(nogil=True)
def read_ranges(descriptors, begins, firsts, starts, sizes, out, places):
    """Read byte ranges of a set to `places` of uint8 `out`; return the first that cannot be read whole, or -1.

    Arguments:
        descriptors: int32 [F], the set's files. begins: int64 [F], where each file's image bytes begin.
        firsts: int64 [F + 1], the place of each file's first byte in the set, and the end.
        starts, sizes, places: int64 [b]; a range lies in one file.

    pread and not a memory map: that needs MADV_POPULATE_READ before each touch, or a file that shrank is SIGBUS, and
    one that shrinks between the two still is; or a guard (see bus_guard.py), which not every system has. Gathering 3 KB
    samples at random from the page cache took 630 ns each with pread, 660 with populate, 700 with process_vm_readv, 220
    unprotected (EPYC, two shared cores).
    """
    for i in range(starts.size):
        address = np.uint64(out[places[i] :].ctypes.data)
        if not _read(descriptors, begins, firsts, starts[i], sizes[i], address):
            return i
    return -1


@njit(nogil=True)
def advise_ranges(descriptors, begins, firsts, starts, sizes):
    """Ask the system to begin reading byte ranges of a set, which may go on in its next files, and do not wait."""
    for i in range(starts.size):
        position, end = starts[i], starts[i] + sizes[i]
        while position < end:
            part = _part_of(firsts, position)
            last = min(end, firsts[part + 1])
            offset = begins[part] + position - firsts[part]
            _posix_fadvise(descriptors[part], offset, last - position, np.int32(_POSIX_FADV_WILLNEED))
            position = last


# Indices are unsigned: on one that may be negative Numba tests for that, and the loop is not vectorized (measured:
# 2.2 µs for what takes 0.24). Nor are planes sliced: each slice counts references.

_RUN = 2048
"""Values whose sum is kept in float32, in a vector's lanes, before it goes to float64."""

_PREFETCHED = 8192
"""Bytes of a crop that are asked for ahead; the rest is a sequence, which the processor sees by itself."""


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
    top = corner(drawn[0], shape[0] - settings[0], settings[2])
    left = corner(drawn[1], shape[1] - settings[1], settings[2])
    return top * strides[1] + left * strides[2]


@loose
def augment_one(data, first, drawn, strides, channels, settings, work, out, i, channels_last, kind):
    """Augment the crop at byte `first` into `out[i]`. `work`: uint8 [h·w·c] twice, float32 [c]."""
    height, width = settings[0], settings[1]
    pixels = height * width
    count = pixels * channels
    packed, planes, offsets = work
    _, _, flip, brightness, contrast = drawn
    low, high = (np.float32(0), np.float32(255)) if settings[8] else (-np.float32(np.inf), np.float32(np.inf))
    _load_crop(data, first, strides, height, width, channels, flip, packed, planes)
    centre = 0.0
    for c in range(channels):
        total = _sum(planes, np.uint64(c * pixels), pixels)
        offsets[c] = affine(total, pixels, brightness, contrast)
        centre += pivot(total, pixels, brightness, settings[8])
    mean, scale = np.float32(0), np.float32(1)
    if settings[9] != KEEP:
        middle = np.float32(centre / channels)
        total, squares = 0.0, 0.0
        for c in range(channels):
            part, square = _moments(planes, np.uint64(c * pixels), pixels, contrast, offsets[c], low, high, middle)
            total += part
            squares += square
        mean, scale = standardization(total, squares, count, middle, settings[9])
    _store(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, kind)


@loose
def work_space(settings, channels):
    count = settings[0] * settings[1] * channels
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
    span = min(_PREFETCHED, (settings[0] - 1) * strides[1] + settings[1] * strides[2])
    in_memory = descriptors.size == 0
    down = strides[1]
    interleaved = down > strides[3]
    drawn, first = draw(np.uint64(0), np.uint64(0), seed, phase, settings), np.int64(0)
    for k in range(-1, rows.size):  # one image behind: the crop that comes next is known, and on its way
        n = min(k + 1, rows.size - 1)
        if n < 0:
            break
        drawn_next = draw(np.uint64(ids[n]), np.uint64(epochs[n]), seed, phase, settings)
        first_next = _place(drawn_next, strides, shape, settings)
        if in_memory:
            position = rows[n] * strides[0]
            part = _part_of(firsts, position)
            first_next += begins[part] + position - firsts[part]
            for c in range(shape[2] if strides[2] == 1 else 1):
                prefetch(data, first_next + c * strides[3], span)
        if k >= 0:
            if not in_memory:
                # Of interleaved images only the lines that the crop needs.
                skip = first // down * down if interleaved else 0
                size = settings[0] * down if interleaved else strides[0]
                if not _read(descriptors, begins, firsts, rows[k] * strides[0] + skip, size, address + np.uint64(skip)):
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


# -- CUDA ----------------------------------------------------------------------------------------------------------

THREADS = 384
"""The most threads a block has: two blocks of up to 80 registers a thread share a multiprocessor's 65,536."""

SMALL = 96
"""Threads that an image has at most, unless each of them would have more than ITEMS: three warps of the 28 that 72
registers a thread leave a multiprocessor, so that the eight images that 132 of them get of 1,024 are all worked on."""

ITEMS = 4
MAX_IMAGES = 8
"""The most images a block has: with more, a batch of 1,024 would leave multiprocessors of an H200 without any."""

MAX_CHANNELS = 4

# A plan: what every image of a feed shares, int64 in device memory. A launch then takes a few numbers.
(
    _HEIGHT, _WIDTH, _CENTRE, _FLIP, _BRIGHTNESS, _BRIGHTNESS_SPAN, _CONTRAST, _CONTRAST_SPAN, _CLAMP, _STANDARDIZE,
    _IMAGE, _DOWN, _RIGHT, _ACROSS, _ROOM_DOWN, _ROOM_RIGHT, _CHANNELS, _SEED, _PHASE, _CHANNELS_LAST, _KIND, _READ,
    _IMAGES, _IDS, _LABELS, _LABEL_BYTES, _ROWS, _SHUFFLED, _FIELDS,
) = range(29)  # fmt: skip

# How a thread reads: one pixel, four neighbours of each plane, or four neighbours of red, green and blue interleaved.
_PIXEL, _PLANES, _RGB = 0, 1, 2

# What one thread finds for all of an image's, int64 in shared memory: addresses of the crop and of its output (0 where
# the place has no image), whether it is mirrored, and the image's row.
_CROP, _MIRRORED, _OUT, _ROW = range(4)
_GROUPS = 16


def plan(
    settings, strides, shape, seed, phase, channels_last, kind, *,
    images=0, ids=0, labels=0, label_bytes=0, n=0, shuffled=False,
):  # fmt: skip
    """Return the plan that the CUDA kernels take, int64; the resident one needs the keywords.

    Arguments:
        settings: see above. strides: (image, row, column, channel) in bytes, interleaved or planar. shape: (H, W, C).
        images, ids (int64 [n]), labels (n rows of `label_bytes`): addresses. shuffled: whether rows come permuted.
    """
    height, width, channels = shape
    last = bool(channels_last) and channels > 1
    read = _PIXEL
    if settings[1] % 4 == 0 and (not last or channels == 3):
        read = _PLANES if strides[2] == 1 else _RGB if channels == 3 else _PIXEL
    found = np.zeros(_FIELDS, np.int64)
    found[[_HEIGHT, _WIDTH, _CENTRE, _CLAMP, _STANDARDIZE]] = [settings[k] for k in (0, 1, 2, 8, 9)]
    found[_FLIP] = np.float64(settings[3]).view(np.int64)
    found[_BRIGHTNESS : _CONTRAST_SPAN + 1] = np.array(settings[4:8], np.float32).view(np.uint32)
    found[_IMAGE : _ACROSS + 1] = strides
    found[_ROOM_DOWN], found[_ROOM_RIGHT] = height - settings[0], width - settings[1]
    found[_SEED] = np.uint64(seed).view(np.int64)
    found[[_CHANNELS, _PHASE, _CHANNELS_LAST, _KIND, _READ]] = channels, phase, last, kind, read
    found[_IMAGES : _SHUFFLED + 1] = images, ids, labels, label_bytes, n, shuffled
    return found


def launch_shape(plan, count):
    """Return (blocks, (threads an image, images a block), bytes of shared memory) for a batch of `count` images.

    Threads follow from the plan alone: they set the order of sums, and a sample's bits are the same in any batch.
    """
    items = int(plan[_HEIGHT] * plan[_WIDTH]) // (1 if plan[_READ] == _PIXEL else 4)
    each = min(ITEMS, -(-items // SMALL))
    threads = min(THREADS, -(-items // each))
    images = 1
    while 2 * images <= min(MAX_IMAGES, THREADS // threads):
        images *= 2
    return -(-count // images), (threads, images), threads * images * MAX_CHANNELS * 8


@exact
def _int32(plan, field):
    """Return a field that is small: half of the registers, which set how many blocks a multiprocessor takes."""
    return np.int32(load_word(plan + 8 * field))


@exact
def _float32(plan, field):
    return np.uint32(load_word(plan + 8 * field)).view(np.float32)


@exact
def _find_crop(plan, image, sample, epoch, found, factors):
    """Draw the parameters of a sample whose image lies at address `image`: by one thread, for all of the image's."""
    settings = (
        load_long(plan + 8 * _HEIGHT), load_long(plan + 8 * _WIDTH), load_long(plan + 8 * _CENTRE),
        load_long(plan + 8 * _FLIP).view(np.float64),
        _float32(plan, _BRIGHTNESS), _float32(plan, _BRIGHTNESS_SPAN), _float32(plan, _CONTRAST),
        _float32(plan, _CONTRAST_SPAN),
    )  # fmt: skip
    seed, phase = np.uint64(load_long(plan + 8 * _SEED)), np.uint64(load_long(plan + 8 * _PHASE))
    word0, word1, flip, brightness, contrast = draw(sample, epoch, seed, phase, settings)
    top = corner(word0, load_long(plan + 8 * _ROOM_DOWN), settings[2])
    left = corner(word1, load_long(plan + 8 * _ROOM_RIGHT), settings[2])
    found[_CROP] = image + top * load_long(plan + 8 * _DOWN) + left * load_long(plan + 8 * _RIGHT)
    found[_MIRRORED] = np.int64(flip)
    factors[0] = brightness
    factors[1] = contrast


@exact
def _unaligned(address):
    """Return the word at any address. An aligned word that holds a byte of ours can be read whole."""
    place = address & ~np.int64(3)
    shift = np.uint64((address & 3) * 8)
    low, high = np.uint64(load_word(place)), np.uint64(0)
    if shift > np.uint64(0):
        high = np.uint64(load_word(place + 4))
    return np.uint32((((high << np.uint64(32)) | low) >> shift) & np.uint64(0xFFFFFFFF))


@exact
def _three_words(address):
    """Return the three words at any address, from at most four loads."""
    place = address & ~np.int64(3)
    shift, up = np.uint64((address & 3) * 8), np.uint64(32)
    w0, w1, w2 = np.uint64(load_word(place)), np.uint64(load_word(place + 4)), np.uint64(load_word(place + 8))
    w3 = np.uint64(0)
    if shift > np.uint64(0):
        w3 = np.uint64(load_word(place + 12))
    mask = np.uint64(0xFFFFFFFF)
    return (
        np.uint32((((w1 << up) | w0) >> shift) & mask),
        np.uint32((((w2 << up) | w1) >> shift) & mask),
        np.uint32((((w3 << up) | w2) >> shift) & mask),
    )


@exact
def _four_bytes(a, b, c, d, shift_a, shift_b, shift_c, shift_d):
    """Return the word of one byte each of four words, each word shifted right first."""
    mask = np.uint32(0xFF)
    low = np.uint32(((a >> np.uint32(shift_a)) & mask) | (((b >> np.uint32(shift_b)) & mask) << np.uint32(8)))
    high = np.uint32(((c >> np.uint32(shift_c)) & mask) | (((d >> np.uint32(shift_d)) & mask) << np.uint32(8)))
    return np.uint32(low | np.uint32(high << np.uint32(16)))


@exact
def _read_item(address, across, channels, read, flip):
    """Return a word a channel of uint8 pixels, the output's first in the lowest byte: four of them or (_PIXEL) one."""
    a, b, c, d = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    if read == _RGB:
        x, y, z = _three_words(address)
        a = _four_bytes(x, x, y, z, 0, 24, 16, 8)
        b = _four_bytes(x, y, y, z, 8, 0, 24, 16)
        c = _four_bytes(x, y, z, z, 16, 8, 0, 24)
    elif read == _PLANES:
        a = _unaligned(address)
        if channels > 1:
            b = _unaligned(address + across)
        if channels > 2:
            c = _unaligned(address + 2 * across)
        if channels > 3:
            d = _unaligned(address + 3 * across)
    else:
        a = load_byte(address)
        if channels > 1:
            b = load_byte(address + across)
        if channels > 2:
            c = load_byte(address + 2 * across)
        if channels > 3:
            d = load_byte(address + 3 * across)
    if flip and read != _PIXEL:
        a = _four_bytes(a, a, a, a, 24, 16, 8, 0)
        b = _four_bytes(b, b, b, b, 24, 16, 8, 0)
        c = _four_bytes(c, c, c, c, 24, 16, 8, 0)
        d = _four_bytes(d, d, d, d, 24, 16, 8, 0)
    return a, b, c, d


@exact
def _byte_sum(word):
    pairs = np.uint32((word & np.uint32(0x00FF00FF)) + ((word >> np.uint32(8)) & np.uint32(0x00FF00FF)))
    return np.uint32((pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16)))


@exact
def _augmented(word, lane, contrast, offset, low, high):
    """Return the augmented value of byte `lane` of a word. 2^23 + byte is a float32 by its bits: no conversion."""
    byte = np.uint32((word >> np.uint32(8 * lane)) & np.uint32(0xFF))
    value = np.uint32(byte | np.uint32(0x4B000000)).view(np.float32) - np.float32(8388608)
    return min(max(np.float32(value * contrast + offset), low), high)


@exact
def _item_moments(word, read, contrast, offset, low, high, middle):
    """Return the sums of v - middle and of its square over the pixels of a channel's word, float32."""
    first = _augmented(word, 0, contrast, offset, low, high) - middle
    total, squares = first, first * first
    if read != _PIXEL:
        for lane in (1, 2, 3):
            away = _augmented(word, lane, contrast, offset, low, high) - middle
            total += away
            squares += away * away
    return total, squares


@exact
def _bits(value, kind):
    if kind == FLOAT32:
        return np.uint32(np.float32(value).view(np.uint32))
    if kind == FLOAT16:
        return np.uint32(round_to_half(np.float32(value)))
    return np.uint32(bfloat16_bits(value))


@exact
def _store_values(address, a, b, c, d, kind):
    """Store four neighbours with one instruction: 16 bytes of float32, or 8."""
    p, q, r, s = _bits(a, kind), _bits(b, kind), _bits(c, kind), _bits(d, kind)
    if kind == FLOAT32:
        store_four(address, p, q, r, s)
    else:
        store_two(address, np.uint32(p | np.uint32(q << np.uint32(16))), np.uint32(r | np.uint32(s << np.uint32(16))))


@exact
def _standardized(word, lane, contrast, offset, low, high, mean, scale):
    return np.float32(_augmented(word, lane, contrast, offset, low, high) - mean) * scale


@exact
def _store_plane(address, word, read, contrast, offset, low, high, mean, scale, kind):
    """Store the pixels of a channel's word as neighbours."""
    a = _standardized(word, 0, contrast, offset, low, high, mean, scale)
    if read == _PIXEL:
        if kind == FLOAT32:
            store_word(address, _bits(a, kind))
        else:
            store_short(address, np.uint16(_bits(a, kind)))
        return
    b = _standardized(word, 1, contrast, offset, low, high, mean, scale)
    c = _standardized(word, 2, contrast, offset, low, high, mean, scale)
    d = _standardized(word, 3, contrast, offset, low, high, mean, scale)
    _store_values(address, a, b, c, d, kind)


@exact
def _store_interleaved(address, a, b, c, contrast, o0, o1, o2, low, high, mean, scale, step, kind):
    """Store four pixels of three channels as neighbours: three stores, `step` bytes apart."""
    r0 = _standardized(a, 0, contrast, o0, low, high, mean, scale)
    g0 = _standardized(b, 0, contrast, o1, low, high, mean, scale)
    b0 = _standardized(c, 0, contrast, o2, low, high, mean, scale)
    r1 = _standardized(a, 1, contrast, o0, low, high, mean, scale)
    _store_values(address, r0, g0, b0, r1, kind)
    g1 = _standardized(b, 1, contrast, o1, low, high, mean, scale)
    b1 = _standardized(c, 1, contrast, o2, low, high, mean, scale)
    r2 = _standardized(a, 2, contrast, o0, low, high, mean, scale)
    g2 = _standardized(b, 2, contrast, o1, low, high, mean, scale)
    _store_values(address + step, g1, b1, r2, g2, kind)
    b2 = _standardized(c, 2, contrast, o2, low, high, mean, scale)
    r3 = _standardized(a, 3, contrast, o0, low, high, mean, scale)
    g3 = _standardized(b, 3, contrast, o1, low, high, mean, scale)
    b3 = _standardized(c, 3, contrast, o2, low, high, mean, scale)
    _store_values(address + 2 * step, b2, r3, g3, b3, kind)


@exact
def _next_item(walk, item, x, y, a, b, c, d):
    """Return a thread's next item, its column and row, and its words: those given where there is none."""
    address, items, threads, columns_on, rows_on, across_row, down, step, across, channels, read, flip = walk
    item = np.int32(item + threads)
    x, y = np.int32(x + columns_on), np.int32(y + rows_on)
    if x >= across_row:
        x, y = np.int32(x - across_row), np.int32(y + 1)
    if item < items:
        a, b, c, d = _read_item(address + np.int64(np.int32(y * down + x * step)), across, channels, read, flip)
    return item, x, y, a, b, c, d


@exact
def _sum_threads(count, scratch, thread, threads, first, stride):
    """Sum `count` quantities of an image's threads, scratch[quantity · stride + first + thread], in a fixed order.

    Leaves _GROUPS partial sums of each where its first threads' values were; a group's values are read by none but
    the thread that replaces the first of them. Two barriers in all, where halving takes one a level.
    """
    cuda.syncthreads()
    for g in range(thread, count * _GROUPS, threads):
        group = g % _GROUPS
        base = first + (g // _GROUPS) * stride
        if group < threads:
            total = np.float64(0)
            for k in range(group, threads, _GROUPS):
                total += scratch[base + k]
            scratch[base + group] = total
    cuda.syncthreads()


@exact
def _group_sum(scratch, base, threads):
    total = np.float64(0)
    for g in range(_GROUPS):
        if g < threads:
            total += scratch[base + g]
    return total


@exact
def _augment_crop(plan, found, factors):
    """Augment the crop that `_find_crop` found with the threads of an image.

    A thread's item is four neighbouring pixels, or one where a row does not divide by four. It reads the next item
    before it works on this one; the first stays in registers, so that an image of as many threads is read once.

    All of a block's threads meet at every barrier: those of a place without an image work on the last one too, and
    store nothing. No warp operations: an image's threads need be no multiple of 32, so that none is idle,
    and sums take two barriers each.
    """
    scratch = cuda.shared.array(0, types.float64)
    offsets = cuda.shared.array((MAX_IMAGES, 8), types.float32)
    place, thread, threads = np.int32(cuda.threadIdx.y), np.int32(cuda.threadIdx.x), np.int32(cuda.blockDim.x)
    first, stride = np.int32(place * threads), np.int32(threads * np.int32(cuda.blockDim.y))
    width, down, across = _int32(plan, _WIDTH), _int32(plan, _DOWN), _int32(plan, _ACROSS)
    channels, read, kind = _int32(plan, _CHANNELS), _int32(plan, _READ), _int32(plan, _KIND)
    channels_last = _int32(plan, _CHANNELS_LAST)
    address, flip = found[place, _CROP], np.int32(found[place, _MIRRORED])
    brightness, contrast = factors[place, 0], factors[place, 1]
    shift = np.int32(0 if read == _PIXEL else 2)  # an item has 1 << shift pixels
    pixels = np.int32(_int32(plan, _HEIGHT) * width)
    items, across_row = np.int32(pixels >> shift), np.int32(width >> shift)
    # From one item of a thread to its next: so many rows and columns on, without a division.
    rows_on = np.int32(np.uint32(threads) // np.uint32(across_row))
    columns_on = np.int32(threads - rows_on * across_row)
    step = np.int32(_int32(plan, _RIGHT) << shift)
    if flip:
        address += np.int64(across_row - 1) * np.int64(step)
        step = np.int32(-step)
    walk = address, items, threads, columns_on, rows_on, across_row, down, step, across, channels, read, flip
    first_y = np.int32(np.uint32(thread) // np.uint32(across_row))
    first_x = np.int32(thread - first_y * across_row)
    a0, b0, c0, d0 = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    if thread < items:
        a0, b0, c0, d0 = _read_item(
            address + np.int64(np.int32(first_y * down + first_x * step)), across, channels, read, flip
        )

    # The channels' means, exactly.
    s0, s1, s2, s3 = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    item, x, y, a, b, c, d = thread, first_x, first_y, a0, b0, c0, d0
    while item < items:
        a1, b1, c1, d1 = a, b, c, d
        item, x, y, a, b, c, d = _next_item(walk, item, x, y, a, b, c, d)
        s0, s1 = np.uint32(s0 + _byte_sum(a1)), np.uint32(s1 + _byte_sum(b1))
        s2, s3 = np.uint32(s2 + _byte_sum(c1)), np.uint32(s3 + _byte_sum(d1))
    mine = np.int32(first + thread)
    scratch[mine], scratch[stride + mine] = np.float64(s0), np.float64(s1)
    scratch[2 * stride + mine], scratch[3 * stride + mine] = np.float64(s2), np.float64(s3)
    _sum_threads(channels, scratch, thread, threads, first, stride)
    for k in range(thread, channels, threads):
        total = _group_sum(scratch, k * stride + first, threads)
        offsets[place, k] = affine(total, pixels, brightness, contrast)
        offsets[place, 4 + k] = np.float32(pivot(total, pixels, brightness, load_long(plan + 8 * _CLAMP)))
    cuda.syncthreads()
    o0, o1, o2, o3 = offsets[place, 0], np.float32(0), np.float32(0), np.float32(0)
    middle = offsets[place, 4]
    if channels > 1:
        o1, middle = offsets[place, 1], middle + offsets[place, 5]
    if channels > 2:
        o2, middle = offsets[place, 2], middle + offsets[place, 6]
    if channels > 3:
        o3, middle = offsets[place, 3], middle + offsets[place, 7]
    middle = np.float32(middle / np.float32(channels))
    low, high = -np.float32(np.inf), np.float32(np.inf)
    if load_long(plan + 8 * _CLAMP):
        low, high = np.float32(0), np.float32(255)

    mean, scale = np.float32(0), np.float32(1)
    standardize = load_long(plan + 8 * _STANDARDIZE)
    if standardize != KEEP:
        total, squares = np.float64(0), np.float64(0)
        part, square = np.float32(0), np.float32(0)
        run = 0
        item, x, y, a, b, c, d = thread, first_x, first_y, a0, b0, c0, d0
        while item < items:
            a1, b1, c1, d1 = a, b, c, d
            item, x, y, a, b, c, d = _next_item(walk, item, x, y, a, b, c, d)
            more, more_squares = _item_moments(a1, read, contrast, o0, low, high, middle)
            part, square = part + more, square + more_squares
            if channels > 1:
                more, more_squares = _item_moments(b1, read, contrast, o1, low, high, middle)
                part, square = part + more, square + more_squares
            if channels > 2:
                more, more_squares = _item_moments(c1, read, contrast, o2, low, high, middle)
                part, square = part + more, square + more_squares
            if channels > 3:
                more, more_squares = _item_moments(d1, read, contrast, o3, low, high, middle)
                part, square = part + more, square + more_squares
            run += 1
            if run == 32:  # float32 sums stay short, and float64 out of the way where it is slow
                total, squares = total + np.float64(part), squares + np.float64(square)
                part, square, run = np.float32(0), np.float32(0), 0
        scratch[mine] = total + np.float64(part)
        scratch[stride + mine] = squares + np.float64(square)
        _sum_threads(2, scratch, thread, threads, first, stride)
        if thread == 0:
            mean, scale = standardization(
                _group_sum(scratch, first, threads), _group_sum(scratch, stride + first, threads),
                np.int64(pixels) * channels, middle, standardize,
            )  # fmt: skip
            offsets[place, 0], offsets[place, 1] = mean, scale
        cuda.syncthreads()
        mean, scale = offsets[place, 0], offsets[place, 1]

    out = found[place, _OUT]
    if out == 0:
        return
    size = np.int64(4 if kind == FLOAT32 else 2)
    item, x, y, a, b, c, d = thread, first_x, first_y, a0, b0, c0, d0
    while item < items:
        position = np.int64(item) << np.int64(shift)
        a1, b1, c1, d1 = a, b, c, d
        item, x, y, a, b, c, d = _next_item(walk, item, x, y, a, b, c, d)
        if channels_last and read != _PIXEL:  # three channels
            _store_interleaved(
                out + position * 3 * size, a1, b1, c1, contrast, o0, o1, o2, low, high, mean, scale, 4 * size, kind
            )
        else:
            target, plane = out + position * size, np.int64(pixels) * size
            if channels_last:
                target, plane = out + position * channels * size, size
            _store_plane(target, a1, read, contrast, o0, low, high, mean, scale, kind)
            if channels > 1:
                _store_plane(target + plane, b1, read, contrast, o1, low, high, mean, scale, kind)
            if channels > 2:
                _store_plane(target + 2 * plane, c1, read, contrast, o2, low, high, mean, scale, kind)
            if channels > 3:
                _store_plane(target + 3 * plane, d1, read, contrast, o3, low, high, mean, scale, kind)


@exact
def _output_place(plan, out, slot):
    """Return the address of image `slot` of the output."""
    count = load_long(plan + 8 * _HEIGHT) * load_long(plan + 8 * _WIDTH) * load_long(plan + 8 * _CHANNELS)
    return out + slot * count * (4 if load_long(plan + 8 * _KIND) == FLOAT32 else 2)


def augment_resident(plan, count, start, out, out_labels, out_ids):
    """CUDA kernel, a few threads an image: a whole batch from its first position, out of device-resident images.

    Arguments, int64, addresses but for the second and third:
        plan: see `plan`; blocks, threads and shared memory: `launch_shape`. count: the images b of the batch. The
            memory of the plan's images is aligned to four bytes at both ends: of its last word all is read.
        start: the batch's first position. out: float32 or 16 bits each [b, h·w·c], aligned to 16 bytes.
        out_labels: b rows of the plan's `label_bytes`. out_ids: int64 [b].

    Reasoned from counted bytes, instructions and the linker's report, not measured. 32² → 24², float32, batch of 1,024
    on an H200: 3 MB read and 7 written, 2 µs of its memory. Blocks of four images of 72 threads, of which each has two
    items; 72 registers leave a multiprocessor 28 warps, 12 images, so that all 1,024 are worked on at once and what
    counts is the latency of one: the permutation and Philox of one thread an image (some 3,000 instructions that
    depend on each other, 3 µs; by neighbouring lanes, since one thread a warp would give them half of all issue slots),
    three reads that wait for each other, two sums. 5 to 10 µs, and the host takes as long to launch.
    256² → 224², float16: 0.45 MB an image, of which two thirds are written: bound by memory; one image a block, and
    the second and third reading of the crop are served by the second-level cache.
    """
    found = cuda.shared.array((MAX_IMAGES, 4), types.int64)
    factors = cuda.shared.array((MAX_IMAGES, 2), types.float32)
    keys = cuda.shared.array((MAX_IMAGES, 8), types.uint64)
    images = np.int32(cuda.blockDim.y)
    one = np.int32(np.int32(cuda.threadIdx.y) * np.int32(cuda.blockDim.x) + np.int32(cuda.threadIdx.x))
    if one < images:  # neighbouring lanes: a block's images are found by the instructions that one would take
        slot = np.int64(cuda.blockIdx.x) * images + one
        n = np.uint64(load_long(plan + 8 * _ROWS))
        position = np.uint64(start) + np.uint64(min(slot, count - 1))
        epoch = position // n
        offset = position - epoch * n
        row = offset
        seed, phase = np.uint64(load_long(plan + 8 * _SEED)), np.uint64(load_long(plan + 8 * _PHASE))
        if load_long(plan + 8 * _SHUFFLED):
            round_keys(seed, np.uint64(0), epoch & MASK32, phase * np.uint64(16) + np.uint64(STREAM_ROWS), keys[one])
            row = permute(offset, n, half_bits(n), keys[one])
        sample = load_long(load_long(plan + 8 * _IDS) + 8 * np.int64(row))
        image = load_long(plan + 8 * _IMAGES) + np.int64(row) * load_long(plan + 8 * _IMAGE)
        found[one, _ROW], found[one, _OUT] = np.int64(row), 0
        if slot < count:
            store_long(out_ids + 8 * slot, sample)
            found[one, _OUT] = _output_place(plan, out, slot)
        _find_crop(plan, image, np.uint64(sample), epoch, found[one], factors[one])
    cuda.syncthreads()
    place = np.int32(cuda.threadIdx.y)
    if found[place, _OUT] != 0:
        size = load_long(plan + 8 * _LABEL_BYTES)
        label = load_long(plan + 8 * _LABELS) + found[place, _ROW] * size
        target = out_labels + (np.int64(cuda.blockIdx.x) * images + place) * size
        for k in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            store_byte(target + k, np.uint8(load_byte(label + k)))
    _augment_crop(plan, found, factors)


def augment_gathered(plan, count, images, ids, epochs, out):
    """CUDA kernel, a few threads an image: a batch whose images, ids and epochs (int64 [b]) were gathered in order.

    Arguments: as for `augment_resident`, addresses, int64; `images` too is of whole words. The same bits as from it,
    and bound by the same.
    """
    found = cuda.shared.array((MAX_IMAGES, 4), types.int64)
    factors = cuda.shared.array((MAX_IMAGES, 2), types.float32)
    one = np.int32(np.int32(cuda.threadIdx.y) * np.int32(cuda.blockDim.x) + np.int32(cuda.threadIdx.x))
    if one < cuda.blockDim.y:
        slot = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.y) + one
        found[one, _OUT] = _output_place(plan, out, slot) if slot < count else 0
        slot = min(slot, count - 1)
        sample, epoch = load_long(ids + 8 * slot), load_long(epochs + 8 * slot)
        image = images + slot * load_long(plan + 8 * _IMAGE)
        _find_crop(plan, image, np.uint64(sample), np.uint64(epoch), found[one], factors[one])
    cuda.syncthreads()
    _augment_crop(plan, found, factors)


CUDA_KERNELS = [
    ("augment_resident", augment_resident, (types.int64,) * 6),
    ("augment_gathered", augment_gathered, (types.int64,) * 6),
]
"""(name, function, argument types) of each kernel, for compiling them without a GPU."""
