"""The fused augmentation's CUDA kernels: one launch a batch, a few threads an image."""

import numpy as np
from numba import types

from .augment import FLOAT32, Draws, affine, corner, draw, pivot, standardization
from .augment_cuda_pixels import byte_sum, item_moments, read_item, store_interleaved, store_plane
from .augment_plan import MAX_IMAGES, PIXEL, Field, load_float32, load_int32
from .cuda_memory import load_byte, load_long, store_byte, store_long
from .cuda_target import cuda
from .inlining import exact
from .permute import STREAM_ROWS, half_bits, permute, round_keys
from .philox import MASK32
from .recipe import PHASE
from .thread_sums import fold_threads, folded_sum

# What one thread finds for all of an image's, int64 in shared memory: addresses of the crop and of its output (0 where
# the place has no image), whether it is mirrored, and the image's row.
_CROP, _MIRRORED, _OUT, _ROW = range(4)


@exact
def _find_crop(plan, image, sample, epoch, found, factors):
    """Draw the parameters of a sample whose image lies at address `image`: by one thread, for all of the image's."""
    centre = load_long(plan + 8 * Field.CENTRE)
    draws = Draws(
        flip=load_long(plan + 8 * Field.FLIP).view(np.float64),
        brightness_low=load_float32(plan, Field.BRIGHTNESS_LOW),
        brightness_span=load_float32(plan, Field.BRIGHTNESS_SPAN),
        contrast_low=load_float32(plan, Field.CONTRAST_LOW),
        contrast_span=load_float32(plan, Field.CONTRAST_SPAN),
    )
    seed, stream = np.uint64(load_long(plan + 8 * Field.SEED)), np.uint64(load_long(plan + 8 * Field.STREAM))
    word0, word1, flip, brightness, contrast = draw(sample, epoch, seed, stream, draws)
    top = corner(word0, load_long(plan + 8 * Field.ROOM_DOWN), centre)
    left = corner(word1, load_long(plan + 8 * Field.ROOM_RIGHT), centre)
    found[_CROP] = image + top * load_long(plan + 8 * Field.DOWN) + left * load_long(plan + 8 * Field.RIGHT)
    found[_MIRRORED] = np.int64(flip)
    factors[0] = brightness
    factors[1] = contrast


@exact
def _next_item(walk, item, x, y, a, b, c, d):
    """Return a thread's next item, its column and row, and its words: those given where there is none."""
    address, items, threads, columns_on, rows_on, across_row, down, step, across, channels, read, flip = walk
    item = np.int32(item + threads)
    x, y = np.int32(x + columns_on), np.int32(y + rows_on)
    if x >= across_row:
        x, y = np.int32(x - across_row), np.int32(y + 1)
    if item < items:
        a, b, c, d = read_item(address + np.int64(np.int32(y * down + x * step)), across, channels, read, flip)
    return item, x, y, a, b, c, d


@exact
def _sum_threads(count, scratch, thread, threads, first, stride):
    """Sum quantities of an image's threads as `fold_threads` says; of all threads of the block."""
    cuda.syncthreads()
    fold_threads(count, scratch, thread, threads, first, stride)
    cuda.syncthreads()


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
    width, down, across = load_int32(plan, Field.WIDTH), load_int32(plan, Field.DOWN), load_int32(plan, Field.ACROSS)
    channels, read, kind = load_int32(plan, Field.CHANNELS), load_int32(plan, Field.READ), load_int32(plan, Field.KIND)
    channels_last = load_int32(plan, Field.CHANNELS_LAST)
    address, flip = found[place, _CROP], np.int32(found[place, _MIRRORED])
    brightness, contrast = factors[place, 0], factors[place, 1]
    shift = np.int32(0 if read == PIXEL else 2)  # an item has 1 << shift pixels
    pixels = np.int32(load_int32(plan, Field.HEIGHT) * width)
    items, across_row = np.int32(pixels >> shift), np.int32(width >> shift)
    # From one item of a thread to its next: so many rows and columns on, without a division.
    rows_on = np.int32(np.uint32(threads) // np.uint32(across_row))
    columns_on = np.int32(threads - rows_on * across_row)
    step = np.int32(load_int32(plan, Field.RIGHT) << shift)
    if flip:
        address += np.int64(across_row - 1) * np.int64(step)
        step = np.int32(-step)
    walk = address, items, threads, columns_on, rows_on, across_row, down, step, across, channels, read, flip
    first_y = np.int32(np.uint32(thread) // np.uint32(across_row))
    first_x = np.int32(thread - first_y * across_row)
    a0, b0, c0, d0 = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    if thread < items:
        a0, b0, c0, d0 = read_item(
            address + np.int64(np.int32(first_y * down + first_x * step)), across, channels, read, flip
        )

    # The channels' means, exactly.
    s0, s1, s2, s3 = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    item, x, y, a, b, c, d = thread, first_x, first_y, a0, b0, c0, d0
    while item < items:
        a1, b1, c1, d1 = a, b, c, d
        item, x, y, a, b, c, d = _next_item(walk, item, x, y, a, b, c, d)
        s0, s1 = np.uint32(s0 + byte_sum(a1)), np.uint32(s1 + byte_sum(b1))
        s2, s3 = np.uint32(s2 + byte_sum(c1)), np.uint32(s3 + byte_sum(d1))
    mine = np.int32(first + thread)
    scratch[mine], scratch[stride + mine] = np.float64(s0), np.float64(s1)
    scratch[2 * stride + mine], scratch[3 * stride + mine] = np.float64(s2), np.float64(s3)
    _sum_threads(channels, scratch, thread, threads, first, stride)
    for k in range(thread, channels, threads):
        total = folded_sum(scratch, k * stride + first, threads)
        offsets[place, k] = affine(total, pixels, brightness, contrast)
        offsets[place, 4 + k] = np.float32(pivot(total, pixels, brightness, load_long(plan + 8 * Field.CLAMP)))
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
    if load_long(plan + 8 * Field.CLAMP):
        low, high = np.float32(0), np.float32(255)

    standardize = load_long(plan + 8 * Field.STANDARDIZE)
    total, squares = np.float64(0), np.float64(0)
    part, square = np.float32(0), np.float32(0)
    run = 0
    item, x, y, a, b, c, d = thread, first_x, first_y, a0, b0, c0, d0
    while item < items:
        a1, b1, c1, d1 = a, b, c, d
        item, x, y, a, b, c, d = _next_item(walk, item, x, y, a, b, c, d)
        more, more_squares = item_moments(a1, read, contrast, o0, low, high, middle)
        part, square = part + more, square + more_squares
        if channels > 1:
            more, more_squares = item_moments(b1, read, contrast, o1, low, high, middle)
            part, square = part + more, square + more_squares
        if channels > 2:
            more, more_squares = item_moments(c1, read, contrast, o2, low, high, middle)
            part, square = part + more, square + more_squares
        if channels > 3:
            more, more_squares = item_moments(d1, read, contrast, o3, low, high, middle)
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
            folded_sum(scratch, first, threads),
            folded_sum(scratch, stride + first, threads),
            np.int64(pixels) * channels,
            middle,
            standardize,
        )
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
        if channels_last and read != PIXEL:  # three channels
            store_interleaved(
                out + position * 3 * size, a1, b1, c1, contrast, o0, o1, o2, low, high, mean, scale, 4 * size, kind
            )
        else:
            target, plane = out + position * size, np.int64(pixels) * size
            if channels_last:
                target, plane = out + position * channels * size, size
            store_plane(target, a1, read, contrast, o0, low, high, mean, scale, kind)
            if channels > 1:
                store_plane(target + plane, b1, read, contrast, o1, low, high, mean, scale, kind)
            if channels > 2:
                store_plane(target + 2 * plane, c1, read, contrast, o2, low, high, mean, scale, kind)
            if channels > 3:
                store_plane(target + 3 * plane, d1, read, contrast, o3, low, high, mean, scale, kind)


@exact
def _output_place(plan, out, slot):
    """Return the address of image `slot` of the output."""
    pixels = load_long(plan + 8 * Field.HEIGHT) * load_long(plan + 8 * Field.WIDTH)
    count = pixels * load_long(plan + 8 * Field.CHANNELS)
    return out + slot * count * (4 if load_long(plan + 8 * Field.KIND) == FLOAT32 else 2)


def augment_resident(plan, count, start, out, out_labels, out_ids):
    """CUDA kernel, a few threads an image: a whole batch from its first position, out of device-resident images.

    Blocks, threads and shared memory are those of `launch_shape`. The memory of the plan's images is aligned to four
    bytes at both ends: of its last word all is read.

    Arguments, int64:
        plan: address of what `augment_plan.plan` returned.
        count: the images b of the batch.
        start: the batch's first position.
        out: address of float32 or 16 bits each [b, h·w·c], aligned to 16 bytes.
        out_labels: address of b rows of the plan's `label_bytes`.
        out_ids: address of int64 [b].

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
        n = np.uint64(load_long(plan + 8 * Field.ROWS))
        position = np.uint64(start) + np.uint64(min(slot, count - 1))
        epoch = position // n
        offset = position - epoch * n
        row = offset
        seed, stream = np.uint64(load_long(plan + 8 * Field.SEED)), np.uint64(load_long(plan + 8 * Field.STREAM))
        if load_long(plan + 8 * Field.SHUFFLED):
            last = (stream & PHASE) * np.uint64(16) + np.uint64(STREAM_ROWS)
            round_keys(seed, np.uint64(0), epoch & MASK32, last, keys[one])
            row = permute(offset, n, half_bits(n), keys[one])
        sample = load_long(load_long(plan + 8 * Field.IDS) + 8 * np.int64(row))
        image = load_long(plan + 8 * Field.IMAGES) + np.int64(row) * load_long(plan + 8 * Field.IMAGE)
        found[one, _ROW], found[one, _OUT] = np.int64(row), 0
        if slot < count:
            store_long(out_ids + 8 * slot, sample)
            found[one, _OUT] = _output_place(plan, out, slot)
        _find_crop(plan, image, np.uint64(sample), epoch, found[one], factors[one])
    cuda.syncthreads()
    place = np.int32(cuda.threadIdx.y)
    if found[place, _OUT] != 0:
        size = load_long(plan + 8 * Field.LABEL_BYTES)
        label = load_long(plan + 8 * Field.LABELS) + found[place, _ROW] * size
        target = out_labels + (np.int64(cuda.blockIdx.x) * images + place) * size
        for k in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            store_byte(target + k, np.uint8(load_byte(label + k)))
    _augment_crop(plan, found, factors)


def augment_gathered(plan, count, images, ids, epochs, out):
    """CUDA kernel, a few threads an image: a batch whose images, ids and epochs were gathered in order.

    Gives the same bits as `augment_resident`, and is bound by the same.

    Arguments, int64:
        plan: as for `augment_resident`.
        count: the images b of the batch.
        images: address of b images, of whole words of four bytes.
        ids: address of int64 [b].
        epochs: address of int64 [b].
        out: as for `augment_resident`.
    """
    found = cuda.shared.array((MAX_IMAGES, 4), types.int64)
    factors = cuda.shared.array((MAX_IMAGES, 2), types.float32)
    one = np.int32(np.int32(cuda.threadIdx.y) * np.int32(cuda.blockDim.x) + np.int32(cuda.threadIdx.x))
    if one < cuda.blockDim.y:
        slot = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.y) + one
        found[one, _OUT] = _output_place(plan, out, slot) if slot < count else 0
        slot = min(slot, count - 1)
        sample, epoch = load_long(ids + 8 * slot), load_long(epochs + 8 * slot)
        image = images + slot * load_long(plan + 8 * Field.IMAGE)
        _find_crop(plan, image, np.uint64(sample), np.uint64(epoch), found[one], factors[one])
    cuda.syncthreads()
    _augment_crop(plan, found, factors)


CUDA_KERNELS = [
    ("augment_resident", augment_resident, (types.int64,) * 6),
    ("augment_gathered", augment_gathered, (types.int64,) * 6),
]
"""(name, function, argument types) of each kernel, for compiling them without a GPU."""
