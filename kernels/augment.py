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
from numba import njit, types
from numba.extending import register_jitable

from .cpu_intrinsics import HAS_HALF, copy16, copy64, prefetch, to_half
from .cuda_target import cuda
from .permute import STREAM_ROWS, half_bits, permute, round_keys
from .philox import MASK32, SHIFT32, bounded, philox4x32, unit_interval

KEEP, STDDEV, VARIANCE = 0, 1, 2
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))


# -- shared by both targets ----------------------------------------------------------------------------------------


@register_jitable
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


@register_jitable
def corner(word, room, centre):
    """Return the first pixel of a crop where `room` is the image's side less the crop's."""
    if centre:
        return np.int64(room // 2)
    return bounded(word, np.uint64(room + 1))


@register_jitable
def affine(total, pixels, brightness, contrast):
    """Return the offset of the map v·contrast + offset of a channel whose crop sums to `total`, in float32."""
    mean = np.float64(total) / np.float64(pixels)
    return np.float32(mean * (1.0 - np.float64(contrast)) + np.float64(brightness))


@register_jitable
def divisor(variance, count, standardize):
    """Return what the centred pixels are divided by, float64; `variance` is the population's over `count` values."""
    if standardize == STDDEV:
        return max(math.sqrt(variance), 1.0 / math.sqrt(np.float64(count)))
    return max(variance, 1.0 / np.float64(count))


@register_jitable
def pivot(total, pixels, brightness, clamp):
    """Return about where a channel's augmented values lie, float64: about it squares are summed without cancellation.

    Of the image, the mean of its channels' is taken: exact for flat ones, whose divisor magnifies every error.
    """
    mean = np.float64(total) / np.float64(pixels) + np.float64(brightness)
    return min(max(mean, 0.0), 255.0) if clamp else mean


@register_jitable
def standardization(total, squares, count, middle, standardize):
    """Return (mean, scale), float32, from the float64 sums of v - middle and of its square over `count` values."""
    excess = total / np.float64(count)
    variance = max(squares / np.float64(count) - excess * excess, 0.0)
    scale = 1.0 / divisor(variance, count, standardize)
    return np.float32(np.float64(middle) + excess), np.float32(scale)


@register_jitable
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


@register_jitable
def bfloat16_bits(value):
    """Round a float32 to the nearest bfloat16, ties to even, and return its bits (uint16; finite values only)."""
    bits = np.float32(value).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


# -- CPU -----------------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def draw_batch(ids, epochs, seed, phase, settings, top, left, flip, brightness, contrast):
    """Fill the parameters of a batch (`fastload.augment.Parameters`), for engines that take them as inputs."""
    for i in range(ids.size):
        word0, word1, mirrored, bright, factor = draw(np.uint64(ids[i]), np.uint64(epochs[i]), seed, phase, settings)
        top[i] = word0
        left[i] = word1
        flip[i] = mirrored
        brightness[i] = bright
        contrast[i] = factor


@njit(nogil=True, cache=True)
def read_ranges(descriptor, begin, starts, sizes, out, places):
    """Read byte ranges of a file to `places` of uint8 `out`; return the first that cannot be read whole, or -1.

    `begin` is added to every start. pread and not the memory map: the map needs MADV_POPULATE_READ before each
    touch, or a file that shrank is SIGBUS, and one that shrinks between the two still is. Reading 3 KB samples at
    random from the page cache took 1.1 to 1.4 µs each, populate and gather 1.5 to 1.7 (two noisy cores).
    """
    for i in range(starts.size):
        size = np.uint64(sizes[i])
        if _pread(descriptor, np.uint64(out[places[i] :].ctypes.data), size, begin + starts[i]) != sizes[i]:
            return i
    return -1


# Indices are unsigned: on one that may be negative Numba tests for that, and the loop is not vectorized (measured:
# 2.2 µs for what takes 0.24). Nor are planes sliced: each slice counts references.

_RUN = 2048
"""Values whose sum is kept in float32, in a vector's lanes, before it goes to float64."""

_PREFETCHED = 8192
"""Bytes of a crop that are asked for ahead; the rest is a sequence, which the processor sees by itself."""


@register_jitable
def _copy_row(target, at, source, begin, size):
    """Copy a row in blocks, the last one overlapping: a loop over bytes took 9 ns a row more for its remainder."""
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


@register_jitable
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


@register_jitable
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


@register_jitable
def _sum(planes, start, pixels):
    """Return the sum of a plane, exactly."""
    total = np.int64(0)
    for run in range(0, pixels, _RUN):
        part = np.uint32(0)
        for k in range(run, min(pixels, run + _RUN)):
            part += np.uint32(planes[start + np.uint64(k)])
        total += np.int64(part)
    return total


@register_jitable
def _value(byte, contrast, offset, low, high):
    value = np.float32(byte) * contrast + offset
    value = value if value > low else low
    return value if value < high else high


@register_jitable
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


@register_jitable
def _store(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, kind):
    # A constant kind a call: LLVM takes a choice out of a loop with one store, but not out of one with three.
    if kind == FLOAT32:
        _store_as(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, FLOAT32)
    elif kind == FLOAT16:
        _store_as(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, FLOAT16)
    else:
        _store_as(planes, pixels, channels, contrast, offsets, low, high, mean, scale, out, i, channels_last, BFLOAT16)


@register_jitable(forceinline=True)
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


@register_jitable(forceinline=True)
def _stored(value, kind):
    """Return what an output of `kind` holds for a float32: itself or its bits."""
    if kind == FLOAT32:
        return value
    if kind == FLOAT16:
        return np.int16(to_half(value)) if HAS_HALF else np.int16(float16_bits(value))
    return np.int16(bfloat16_bits(value))


@register_jitable
def _place(drawn, strides, shape, settings):
    """Return how far into its image a crop begins, in bytes."""
    top = corner(drawn[0], shape[0] - settings[0], settings[2])
    left = corner(drawn[1], shape[1] - settings[1], settings[2])
    return top * strides[1] + left * strides[2]


@register_jitable
def _augment_one(data, first, drawn, strides, channels, settings, work, out, i, channels_last, kind):
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


@register_jitable
def _work(settings, channels):
    count = settings[0] * settings[1] * channels
    return np.empty(count, np.uint8), np.empty(count, np.uint8), np.empty(channels, np.float32)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def augment_batch(data, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind):
    """Augment a batch on one CPU thread, out of images in memory.

    Arguments:
        data: uint8 [bytes]. rows: int64 [b], which image of it. strides: (image, row, column, channel) in bytes,
        interleaved or planar. shape: (H, W, C). ids, epochs: int64 [b]. seed, phase: uint64. settings: see above.
        out: float32 [b, h·w·c], or int16 (the bits) for the other kinds, in NCHW or (`channels_last`) NHWC order.
        kind: FLOAT32, FLOAT16 or BFLOAT16.

    Bound by memory's latency, unless the next crop is asked for while this one is worked on: images of 3 KB lie at
    random places (0.97 µs an image without, 0.65 with; AMD EPYC, 32² → 24²). Then by arithmetic: three passes over
    the crop's bytes, which stay in the first-level cache.
    """
    if rows.size == 0:
        return
    work = _work(settings, shape[2])
    last = rows.size - 1
    span = min(_PREFETCHED, (settings[0] - 1) * strides[1] + settings[1] * strides[2])
    drawn = draw(np.uint64(ids[0]), np.uint64(epochs[0]), seed, phase, settings)
    first = rows[0] * strides[0] + _place(drawn, strides, shape, settings)
    for i in range(rows.size):
        n = min(i + 1, last)
        drawn_next = draw(np.uint64(ids[n]), np.uint64(epochs[n]), seed, phase, settings)
        first_next = rows[n] * strides[0] + _place(drawn_next, strides, shape, settings)
        prefetch(data, first_next, span)
        _augment_one(
            data, first, drawn, strides, shape[2], settings, work, out, np.uint64(i), channels_last, kind,
        )  # fmt: skip
        drawn, first = drawn_next, first_next


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def augment_stream(
    descriptor, begin, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind
):
    """Augment a batch as `augment_batch`, reading each image from a file; return the first unreadable `i`, or -1.

    Image `rows[i]` is read to one buffer that stays in the first-level cache (`begin` is the byte of image 0).
    Bound by the system call and the copy out of the page cache.
    """
    work = _work(settings, shape[2])
    image = np.empty(strides[0], np.uint8)
    address, size = np.uint64(image.ctypes.data), np.uint64(strides[0])
    for i in range(rows.size):
        if _pread(descriptor, address, size, begin + rows[i] * strides[0]) != strides[0]:
            return i
        drawn = draw(np.uint64(ids[i]), np.uint64(epochs[i]), seed, phase, settings)
        _augment_one(
            image, _place(drawn, strides, shape, settings), drawn, strides, shape[2], settings, work, out,
            np.uint64(i), channels_last, kind,
        )  # fmt: skip
    return -1


# -- CUDA ----------------------------------------------------------------------------------------------------------

THREADS = 256
MAX_CHANNELS = 4


@register_jitable
def _block_sum(value, scratch):
    """Return the block's sum of float64 `value`, on every thread. A power of two of threads, no warp operations."""
    thread = cuda.threadIdx.x
    cuda.syncthreads()  # nobody still reads the last sum
    scratch[thread] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if thread < half:
            scratch[thread] += scratch[thread + half]
        cuda.syncthreads()
        half //= 2
    return scratch[0]


@register_jitable
def _augment_image(images, image, sample, epoch, strides, shape, seed, phase, settings, out, channels_last, kind):
    """Augment one image with one block: images[image] → out[block index]."""
    scratch = cuda.shared.array(256, types.float64)
    offsets = cuda.shared.array(4, types.float32)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    height, width, channels = shape
    crop_height, crop_width = settings[0], settings[1]
    pixels = crop_height * crop_width
    count = pixels * channels
    # Each thread draws for itself: twenty multiplications cost less than a barrier and a broadcast.
    word0, word1, flip, brightness, contrast = draw(sample, epoch, seed, phase, settings)
    top = corner(word0, height - crop_height, settings[2])
    left = corner(word1, width - crop_width, settings[2])
    first = image * strides[0] + top * strides[1] + left * strides[2]
    down, right, across = strides[1], strides[2], strides[3]
    if flip:
        first += (crop_width - 1) * right
        right = -right
    for c in range(channels):
        part = np.int64(0)
        for p in range(thread, pixels, threads):
            part += np.int64(images[first + (p // crop_width) * down + (p % crop_width) * right + c * across])
        total = _block_sum(np.float64(part), scratch)
        if thread == 0:
            offsets[c] = affine(total, pixels, brightness, contrast)
    cuda.syncthreads()
    # float64 sums: a flat image's float32 sum drifts, and the divisor's floor would magnify that.
    mean, scale = np.float32(0), np.float32(1)
    if settings[9] != KEEP:
        part_sum = np.float64(0)
        for e in range(thread, count, threads):
            part_sum += np.float64(
                _pixel(images, first, e, pixels, crop_width, down, right, across, contrast, offsets, settings[8])
            )
        mean64 = _block_sum(part_sum, scratch) / count
        part_squares = np.float64(0)
        for e in range(thread, count, threads):
            value = _pixel(images, first, e, pixels, crop_width, down, right, across, contrast, offsets, settings[8])
            part_squares += (np.float64(value) - mean64) * (np.float64(value) - mean64)
        variance = _block_sum(part_squares, scratch) / count
        mean = np.float32(mean64)
        scale = np.float32(1.0 / divisor(variance, count, settings[9]))
    slot = cuda.blockIdx.x
    for e in range(thread, count, threads):
        planar = (e % channels) * pixels + e // channels if channels_last else e
        value = _pixel(images, first, planar, pixels, crop_width, down, right, across, contrast, offsets, settings[8])
        value = (value - mean) * scale
        if kind == FLOAT32:
            out[slot, e] = value
        elif kind == FLOAT16:
            out[slot, e] = np.int16(float16_bits(value))
        else:
            out[slot, e] = np.int16(bfloat16_bits(value))


@register_jitable
def _pixel(images, first, planar, pixels, crop_width, down, right, across, contrast, offsets, clamp):
    """Return the augmented, not yet standardized value at index `planar` of the crop's channel planes, float32."""
    c = planar // pixels
    p = planar % pixels
    byte = images[first + (p // crop_width) * down + (p % crop_width) * right + c * across]
    value = np.float32(np.float32(byte) * contrast + offsets[c])
    if clamp:
        value = min(max(value, np.float32(0)), np.float32(255))
    return value


def augment_resident(
    images, strides, shape, ids, labels, start, n, seed, phase, shuffled, settings,
    out, out_labels, out_ids, channels_last, kind,
):  # fmt: skip
    """CUDA kernel, one block an image: a whole batch from its first position, out of device-resident images.

    Arguments:
        images: uint8 [bytes]. ids: int64 [n]. labels: [n, L]. start: uint64, the batch's first position.
        n, seed, phase: uint64, as in `permute.rows_at`. shuffled: whether rows come permuted.
        out: float32 or int16 (the bits) [b, h·w·c]. out_labels: [b, L]. out_ids: int64 [b].
    Bound by memory: crop read, output written; the passes between are served by the first-level cache.
    """
    slot = cuda.blockIdx.x
    keys = cuda.shared.array(8, types.uint64)
    found = cuda.shared.array(2, types.uint64)
    if cuda.threadIdx.x == 0:
        position = start + np.uint64(slot)
        epoch = position // n
        offset = position - epoch * n
        row = offset
        if shuffled:
            last = phase * np.uint64(16) + np.uint64(STREAM_ROWS)
            round_keys(seed, np.uint64(0), epoch & MASK32, last, keys)
            row = permute(offset, n, half_bits(n), keys)
        found[0] = row
        found[1] = epoch
    cuda.syncthreads()
    row, epoch = np.int64(found[0]), found[1]
    sample = ids[row]
    for k in range(cuda.threadIdx.x, labels.shape[1], cuda.blockDim.x):
        out_labels[slot, k] = labels[row, k]
    if cuda.threadIdx.x == 0:
        out_ids[slot] = sample
    _augment_image(
        images, row, np.uint64(sample), epoch, strides, shape, seed, phase, settings, out, channels_last, kind
    )


def augment_gathered(images, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind):
    """CUDA kernel, one block an image: a batch whose images, ids and epochs (int64 [b]) were gathered in order."""
    slot = cuda.blockIdx.x
    _augment_image(
        images, np.int64(slot), np.uint64(ids[slot]), np.uint64(epochs[slot]), strides, shape, seed, phase,
        settings, out, channels_last, kind,
    )  # fmt: skip


def _cuda_signatures():
    i8, u8 = types.int64, types.uint64
    settings = types.Tuple([i8, i8, i8, types.float64, *[types.float32] * 4, i8, i8])
    strides, shape = types.UniTuple(i8, 4), types.UniTuple(i8, 3)
    images, ids = types.uint8[::1], types.int64[::1]
    for pixel in (types.float32, types.int16):
        out = pixel[:, ::1]
        yield (
            "augment_resident", augment_resident,
            (images, strides, shape, ids, types.int64[:, ::1], u8, u8, u8, u8, types.boolean, settings,
             out, types.int64[:, ::1], ids, types.boolean, i8),
        )  # fmt: skip
        yield (
            "augment_gathered", augment_gathered,
            (images, strides, shape, ids, ids, u8, u8, settings, out, types.boolean, i8),
        )  # fmt: skip


CUDA_KERNELS = list(_cuda_signatures())
"""(name, function, argument types) of each kernel, for compiling them without a GPU."""
