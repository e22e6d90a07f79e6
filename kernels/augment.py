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

from .cuda_target import cuda
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


@njit(nogil=True, cache=True)
def read_ranges(descriptors, begins, firsts, starts, sizes, out, places):
    """Read byte ranges of a set to `places` of uint8 `out`; return the first that cannot be read whole, or -1.

    Arguments:
        descriptors: int32 [F], the set's files. begins: int64 [F], where each file's image bytes begin.
        firsts: int64 [F + 1], the place of each file's first byte in the set, and the end.
        starts, sizes, places: int64 [b]; a range lies in one file.

    pread and not the memory map: the map needs MADV_POPULATE_READ before each touch, or a file that shrank is SIGBUS,
    and one that shrinks between the two still is. Gathering 3 KB samples at random from the page cache took 630 ns
    each with pread, 660 with populate, 700 with process_vm_readv, 220 unprotected (EPYC, two shared cores).
    """
    for i in range(starts.size):
        address = np.uint64(out[places[i] :].ctypes.data)
        if not _read(descriptors, begins, firsts, starts[i], sizes[i], address):
            return i
    return -1


@njit(nogil=True, cache=True)
def advise_ranges(descriptors, begins, firsts, starts, sizes):
    """Ask the system to begin reading byte ranges of a set, as `read_ranges` takes them, and do not wait for them."""
    for i in range(starts.size):
        part = _part_of(firsts, starts[i])
        _posix_fadvise(
            descriptors[part], begins[part] + starts[i] - firsts[part], sizes[i], np.int32(_POSIX_FADV_WILLNEED)
        )


# Rows and planes are sliced before they are walked, and an index that falls is unsigned: on an index that may be
# negative Numba tests for that, and the loop is not vectorized (measured: 2.2 µs for what takes 0.24).


@loose
def _load_crop(data, first, strides, height, width, channels, flip, values):
    """Read a crop as float32 planes into `values` [channels · height · width], mirrored where `flip` says so."""
    _, down, right, across = strides
    pixels = height * width
    if channels == 3 and across == 1 and right == 3:  # interleaved RGB: constant strides are what LLVM vectorizes
        red, green, blue = values[:pixels], values[pixels : 2 * pixels], values[2 * pixels :]
        for y in range(height):
            source = data[first + y * down : first + y * down + 3 * width]
            a, b, c = red[y * width :], green[y * width :], blue[y * width :]
            if flip:
                for x in range(width):
                    mirrored = np.uint64(width - 1 - x)
                    a[mirrored] = source[3 * x]
                    b[mirrored] = source[3 * x + 1]
                    c[mirrored] = source[3 * x + 2]
            else:
                for x in range(width):
                    a[x] = source[3 * x]
                    b[x] = source[3 * x + 1]
                    c[x] = source[3 * x + 2]
        return
    for c in range(channels):
        for y in range(height):
            source = data[first + c * across + y * down :]
            target = values[c * pixels + y * width :]
            if flip:
                for x in range(width):
                    target[np.uint64(width - 1 - x)] = source[x * right]
            else:
                for x in range(width):
                    target[x] = source[x * right]


@loose
def _sum(values):
    """Sum float32 values exactly enough: runs of 512 in float32, which vectorizes, then float64."""
    total = 0.0
    for start in range(0, values.size, 512):
        run = values[start : start + 512]
        part = np.float32(0)
        for k in range(run.size):
            part += run[k]
        total += np.float64(part)
    return total


@loose
def _adjust(values, contrast, offset, clamp, pivot):
    """Apply v·contrast + offset and the clamp in place; return the sums of v - pivot and of its square, float64."""
    total, squares = 0.0, 0.0
    low, high = (np.float32(0), np.float32(255)) if clamp else (-np.float32(np.inf), np.float32(np.inf))
    for start in range(0, values.size, 512):
        run = values[start : start + 512]
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


@loose
def _store(target, values, pixels, channels, mean, scale, channels_last, kind):
    if channels_last:
        for c in range(channels):
            plane = values[c * pixels : (c + 1) * pixels]
            for p in range(pixels):
                value = (plane[p] - mean) * scale
                if kind == FLOAT32:
                    target[p * channels + c] = value
                elif kind == FLOAT16:
                    target[p * channels + c] = float16_bits(value)
                else:
                    target[p * channels + c] = bfloat16_bits(value)
    elif kind == FLOAT32:
        for k in range(values.size):
            target[k] = (values[k] - mean) * scale
    elif kind == FLOAT16:
        for k in range(values.size):
            target[k] = float16_bits((values[k] - mean) * scale)
    else:
        for k in range(values.size):
            target[k] = bfloat16_bits((values[k] - mean) * scale)


@loose
def _augment_one(data, start, drawn, strides, shape, settings, work, target, channels_last, kind):
    """Augment the image at byte `start` into `target` [h·w·c]. `drawn`: what `draw` gave.

    `work`: float32 planes [h·w·c], then 3·c statistics.
    """
    height, width, channels = shape
    crop_height, crop_width = settings[0], settings[1]
    pixels = crop_height * crop_width
    count = pixels * channels
    values, statistics = work
    word0, word1, flip, brightness, contrast = drawn
    top = corner(word0, height - crop_height, settings[2])
    left = corner(word1, width - crop_width, settings[2])
    first = start + top * strides[1] + left * strides[2]
    _load_crop(data, first, strides, crop_height, crop_width, channels, flip, values)
    grand = 0.0
    for c in range(channels):
        plane = values[c * pixels : (c + 1) * pixels]
        total = _sum(plane)
        # About a pivot near each channel's mean, one pass gives the variance without cancellation on flat images.
        pivot = np.float32(total / pixels + np.float64(brightness))
        if settings[8]:
            pivot = min(max(pivot, np.float32(0)), np.float32(255))
        offset = affine(total, pixels, brightness, contrast)
        excess, squares = _adjust(plane, contrast, offset, settings[8], pivot)
        statistics[3 * c] = np.float64(pivot)
        statistics[3 * c + 1] = excess / pixels
        statistics[3 * c + 2] = squares / pixels
        grand += np.float64(pivot) + excess / pixels
    mean, scale = np.float32(0), np.float32(1)
    if settings[9] != KEEP:
        grand /= channels
        variance = 0.0
        for c in range(channels):
            away = statistics[3 * c] - grand
            variance += statistics[3 * c + 2] + 2.0 * away * statistics[3 * c + 1] + away * away
        mean = np.float32(grand)
        scale = np.float32(1.0 / divisor(max(variance / channels, 0.0), count, settings[9]))
    _store(target, values, pixels, channels, mean, scale, channels_last, kind)


@loose
def _work(settings, channels):
    return np.empty(settings[0] * settings[1] * channels, np.float32), np.empty(3 * channels, np.float64)


@njit(nogil=True, cache=True, fastmath=LOOSE)
def augment_batch(data, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind):
    """Augment a batch on one CPU thread, out of images in memory.

    Arguments:
        data: uint8 [bytes]. rows: int64 [b], which image of it. strides: (image, row, column, channel) in bytes.
        shape: (H, W, C). ids, epochs: int64 [b]. seed, phase: uint64. settings: see above.
        out: float32 [b, h·w·c], or int16 (the bits) for the other kinds, in NCHW or (`channels_last`) NHWC order.
        kind: FLOAT32, FLOAT16 or BFLOAT16.

    Bound by arithmetic: the crop stays in the first-level cache through four short passes over it.
    """
    work = _work(settings, shape[2])
    for i in range(rows.size):
        drawn = draw(np.uint64(ids[i]), np.uint64(epochs[i]), seed, phase, settings)
        _augment_one(
            data, rows[i] * strides[0], drawn, strides, shape, settings, work, out[i], channels_last, kind
        )  # fmt: skip


@njit(nogil=True, cache=True, fastmath=LOOSE)
def augment_stream(
    descriptors, begins, firsts, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind
):
    """Augment a batch as `augment_batch`, reading each image from a set's files (see `read_ranges`).

    Of image `rows[i]` the lines that the crop needs are read to one buffer that stays in the first-level cache.
    Returns the first unreadable `i`, or -1. Bound by the system call and the copy out of the page cache.
    """
    work = _work(settings, shape[2])
    image = np.empty(strides[0], np.uint8)
    address = np.uint64(image.ctypes.data)
    interleaved = strides[1] > strides[3]
    for i in range(rows.size):
        drawn = draw(np.uint64(ids[i]), np.uint64(epochs[i]), seed, phase, settings)
        skip, size = 0, strides[0]
        if interleaved:
            skip = corner(drawn[0], shape[0] - settings[0], settings[2]) * strides[1]
            size = settings[0] * strides[1]
        start = rows[i] * strides[0] + skip
        if not _read(descriptors, begins, firsts, start, size, address + np.uint64(skip)):
            return i
        _augment_one(image, 0, drawn, strides, shape, settings, work, out[i], channels_last, kind)
    return -1


# -- CUDA ----------------------------------------------------------------------------------------------------------

THREADS = 256
MAX_CHANNELS = 4


@exact
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


@exact
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


@exact
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
