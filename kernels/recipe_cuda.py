"""The CUDA kernels of every recipe, compiled for each: a block an image, a thread a pixel, and then another one.

The paper's own recipe has kernels that read four pixels at once: `augment_cuda`. Here a crop is read once for what is
stored, once more where colours need the channels' means, and a third time where an image is normalized by itself: what
was read before is in the caches, and to resize it again takes less than to keep it.
"""

import numpy as np
from numba import types

from .augment import FLOAT16, STDDEV, VARIANCE, affine, pivot, standardization
from .color_matrix import BLUE, GREEN, RED, color_matrix, color_shift
from .cuda_memory import load_byte, load_long, store_byte, store_long
from .cuda_target import cuda
from .inlining import exact
from .permute import STREAM_ROWS, half_bits, permute, round_keys
from .philox import MASK32
from .recipe import (
    ALTERNATING_FLIP,
    BY_CHANNEL,
    BY_STDDEV,
    CORNER,
    JITTER,
    NO_COLOR,
    NO_PAD,
    PAPER,
    PHASE,
    RANDOM_FLIP,
    REFLECT,
    RESIZED,
    UINT8,
    Recipe,
    draw_color,
    draw_erased,
    draw_flip,
    draw_place,
)
from .recipe_cuda_pixels import Cut, Look, colored, cut_levels, element_bytes, pixel_moments, store_pixel
from .recipe_plan import (
    MAX_CHANNELS,
    MEANS,
    SCALES,
    SUMS,
    Field,
    gathered_image,
    load_four_floats,
    load_numbers,
    stored_image,
    sums_pixels,
)
from .resample_cuda import fill_tables, make_walk, tabled_levels, weighed_levels
from .thread_sums import fold_threads, folded_sum

# What one thread finds for all of an image's, int64 in shared memory: the `Place`, the erased rectangle, whether the
# image is mirrored and grey, addresses of the image and of its output, its row, and its sides.
_PLACE, _ERASED, _FLIP, _GREY, _IMAGE, _OUT, _ROW, _HEIGHT, _WIDTH, _FOUND = 0, 8, 12, 13, 14, 15, 16, 17, 18, 19

# And float32: the matrix of colours or what values are multiplied by, what was drawn, what is added by channel, about
# where values lie, and what an image is normalized by.
_MATRIX, _GAIN, _BRIGHTNESS, _CONTRAST, _OFFSETS = 0, 9, 10, 11, 12
_MIDDLE = _OFFSETS + MAX_CHANNELS
_MEAN, _SCALE, _FACTORS = _MIDDLE + 1, _MIDDLE + 2, _MIDDLE + 3


@exact
def _draw_sample(recipe, plan, image, sample, epoch, found, factors):
    """Draw the parameters of a sample by one thread, for all of the image's; `image`: its address, height and width."""
    numbers = load_numbers(plan)
    seed, stream = np.uint64(load_long(plan + 8 * Field.SEED)), np.uint64(load_long(plan + 8 * Field.STREAM))
    address, height, width = image
    found[_IMAGE], found[_HEIGHT], found[_WIDTH] = address, height, width
    found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7] = draw_place(
        recipe, numbers, sample, epoch, seed, stream, height, width
    )
    found[_FLIP] = np.int64(draw_flip(recipe, numbers, sample, epoch, seed, stream))
    if recipe.erase:
        found[_ERASED], found[_ERASED + 1], found[_ERASED + 2], found[_ERASED + 3] = draw_erased(
            numbers, sample, epoch, seed, stream
        )
    brightness, contrast, saturation, hue, grey = draw_color(recipe, numbers, sample, epoch, seed, stream)
    found[_GREY] = np.int64(grey)
    factors[_BRIGHTNESS], factors[_CONTRAST], factors[_GAIN] = brightness, contrast, contrast
    if recipe.color == JITTER:
        factors[_GAIN] = np.float32(np.float64(brightness) * np.float64(contrast))
        if recipe.channels == 3:
            m = color_matrix(brightness, contrast, saturation, hue)
            factors[0], factors[1], factors[2] = m[0], m[1], m[2]
            factors[3], factors[4], factors[5] = m[3], m[4], m[5]
            factors[6], factors[7], factors[8] = m[6], m[7], m[8]


@exact
def _sum_threads(count, scratch, thread, threads):
    cuda.syncthreads()
    fold_threads(count, scratch, thread, threads, np.int32(0), threads)
    cuda.syncthreads()


@exact
def _levels(recipe, tabled, cut, walk, first, x, y, words, shorts):
    """Return the levels of an output pixel's channels first … first + 3, uint32, 0 where there is none."""
    if recipe.resample:
        if tabled:
            return tabled_levels(walk, recipe.channels, first, x, y, words, shorts)
        return weighed_levels(walk, recipe.channels, first, x, y)
    return cut_levels(recipe, cut, first, x, y)


@exact
def _next(steps, pixel, x, y):
    """Return a thread's next pixel, its column and row, without a division."""
    threads, columns_on, rows_on, width = steps
    x, y = np.int32(x + columns_on), np.int32(y + rows_on)
    if x >= width:
        x, y = np.int32(x - width), np.int32(y + 1)
    return np.int32(pixel + threads), x, y


@exact
def _finish_sums(recipe, totals, pixels, factors):
    """Fill what is added by channel, and about where values lie, from the channels' sums: by one thread."""
    brightness, contrast = factors[_BRIGHTNESS], factors[_CONTRAST]
    if recipe.color == JITTER:
        grey = totals[0] / np.float64(pixels)
        if recipe.channels == 3:
            grey = RED * grey + GREEN * totals[1] / np.float64(pixels) + BLUE * totals[2] / np.float64(pixels)
        shift = color_shift(brightness, contrast, grey)
        for c in range(recipe.channels):
            factors[_OFFSETS + c] = shift
        middle = np.float64(factors[_GAIN]) * grey + np.float64(shift)
        factors[_MIDDLE] = np.float32(min(max(middle, 0.0), 255.0))
        return
    centre = 0.0
    for c in range(recipe.channels):
        if recipe.color == PAPER:
            factors[_OFFSETS + c] = affine(totals[c], pixels, brightness, contrast)
            centre += pivot(totals[c], pixels, brightness, recipe.clamp == 1)
        else:
            centre += pivot(totals[c], pixels, np.float32(0), False)
    factors[_MIDDLE] = np.float32(centre / recipe.channels)


@exact
def _look(recipe, found, factors, first):
    """Return what the channels first … first + 3 are coloured with."""
    low, high = -np.float32(np.inf), np.float32(np.inf)
    if recipe.clamp or recipe.color == JITTER:
        low, high = np.float32(0), np.float32(255)
    m = factors
    at = _OFFSETS + first
    return Look(
        matrix=(m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8]),
        gain=factors[_GAIN],
        offsets=(factors[at], factors[at + 1], factors[at + 2], factors[at + 3]),
        low=low,
        high=high,
        grey=found[_GREY] != 0,
    )


@exact
def _is_erased(found, x, y):
    down, right = y - found[_ERASED], x - found[_ERASED + 1]
    return down >= 0 and down < found[_ERASED + 2] and right >= 0 and right < found[_ERASED + 3]


@exact
def _augment(recipe, tabled, ragged, plan, found, factors):
    """Augment the image that `_draw_sample` found with the threads of a block, which meet at every barrier."""
    scratch = cuda.shared.array(0, types.float64)
    words, shorts = cuda.shared.array(0, types.int32), cuda.shared.array(0, types.uint16)
    totals = cuda.shared.array(MAX_CHANNELS, types.float64)
    thread, threads = np.int32(cuda.threadIdx.x), np.int32(cuda.blockDim.x)
    numbers = load_numbers(plan)
    height, width, channels = np.int32(numbers.height), np.int32(numbers.width), recipe.channels
    pixels = np.int32(height * width)
    strides = load_long(plan + 8 * Field.DOWN), load_long(plan + 8 * Field.RIGHT), load_long(plan + 8 * Field.ACROSS)
    if ragged:
        strides = found[_WIDTH] * channels, np.int64(channels), np.int64(1)
    place = found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7]
    cut = Cut(
        found[_IMAGE],
        strides[0],
        strides[1],
        strides[2],
        found[_HEIGHT],
        found[_WIDTH],
        found[0],
        found[1],
        numbers.width,
        found[_FLIP],
    )
    taps = load_long(plan + 8 * Field.TAPS_DOWN), load_long(plan + 8 * Field.TAPS_ACROSS)
    sides = numbers.height, numbers.width
    at = np.int64(8 * SUMS * threads if sums_pixels(recipe) else 0)
    walk = make_walk(place, found[_IMAGE], strides, sides, found[_FLIP], taps, at)
    if recipe.resample and tabled:
        fill_tables(walk, thread, threads, words, shorts)
        cuda.syncthreads()

    rows_on = np.int32(np.uint32(threads) // np.uint32(width))
    steps = threads, np.int32(threads - rows_on * width), rows_on, width
    y0 = np.int32(np.uint32(thread) // np.uint32(width))
    x0 = np.int32(thread - y0 * width)

    if sums_pixels(recipe):  # the channels' sums, exactly
        for first in range(0, channels, 4):
            s0, s1, s2, s3 = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
            pixel, x, y = thread, x0, y0
            while pixel < pixels:
                a, b, c, d = _levels(recipe, tabled, cut, walk, first, x, y, words, shorts)
                s0, s1, s2, s3 = np.uint32(s0 + a), np.uint32(s1 + b), np.uint32(s2 + c), np.uint32(s3 + d)
                pixel, x, y = _next(steps, pixel, x, y)
            scratch[thread], scratch[threads + thread] = np.float64(s0), np.float64(s1)
            scratch[2 * threads + thread], scratch[3 * threads + thread] = np.float64(s2), np.float64(s3)
            here = min(channels - first, 4)
            _sum_threads(here, scratch, thread, threads)
            for k in range(thread, here, threads):
                totals[first + k] = folded_sum(scratch, k * threads, threads)
            cuda.syncthreads()
        if thread == 0:
            _finish_sums(recipe, totals, pixels, factors)
        cuda.syncthreads()

    if recipe.normalize != BY_CHANNEL:
        middle = factors[_MIDDLE]
        total, squares = np.float64(0), np.float64(0)
        for first in range(0, channels, 4):
            look = _look(recipe, found, factors, first)
            part, square, run = np.float32(0), np.float32(0), 0
            pixel, x, y = thread, x0, y0
            while pixel < pixels:
                levels = _levels(recipe, tabled, cut, walk, first, x, y, words, shorts)
                more, more_squares = pixel_moments(recipe, first, colored(recipe, levels, look), middle)
                part, square = np.float32(part + more), np.float32(square + more_squares)
                pixel, x, y = _next(steps, pixel, x, y)
                run += 1
                if run == 32:  # float32 sums stay short, and float64 out of the way where it is slow
                    total, squares = total + np.float64(part), squares + np.float64(square)
                    part, square, run = np.float32(0), np.float32(0), 0
            total, squares = total + np.float64(part), squares + np.float64(square)
        scratch[thread], scratch[threads + thread] = total, squares
        _sum_threads(2, scratch, thread, threads)
        if thread == 0:
            factors[_MEAN], factors[_SCALE] = standardization(
                folded_sum(scratch, np.int32(0), threads),
                folded_sum(scratch, threads, threads),
                np.int64(pixels) * channels,
                middle,
                STDDEV if recipe.normalize == BY_STDDEV else VARIANCE,
            )
        cuda.syncthreads()

    size = element_bytes(recipe)
    next_pixel, next_channel = size, np.int64(pixels) * size
    if recipe.channels_last:
        next_pixel, next_channel = channels * size, size
    for first in range(0, channels, 4):
        look = _look(recipe, found, factors, first)
        means, scales = load_four_floats(plan, MEANS + first), load_four_floats(plan, SCALES + first)
        if recipe.normalize != BY_CHANNEL:
            mean, scale = factors[_MEAN], factors[_SCALE]
            means, scales = (mean, mean, mean, mean), (scale, scale, scale, scale)
        pixel, x, y = thread, x0, y0
        while pixel < pixels:
            a, b, c, d = colored(recipe, _levels(recipe, tabled, cut, walk, first, x, y, words, shorts), look)
            a, b = np.float32(a - means[0]) * scales[0], np.float32(b - means[1]) * scales[1]
            c, d = np.float32(c - means[2]) * scales[2], np.float32(d - means[3]) * scales[3]
            if recipe.erase and _is_erased(found, x, y):
                a = numbers.erase_value
                b, c, d = a, a, a
            target = found[_OUT] + np.int64(pixel) * next_pixel + first * next_channel
            store_pixel(recipe, target, next_channel, first, (a, b, c, d))
            pixel, x, y = _next(steps, pixel, x, y)


@exact
def _image_bytes(recipe, plan):
    """Return the bytes of an image of the output."""
    numbers = load_numbers(plan)
    return numbers.height * numbers.width * recipe.channels * element_bytes(recipe)


def resident_kernel(recipe: Recipe, tabled: bool, ragged: bool = False):
    """Return the kernel of a recipe that finds and augments a batch out of device-resident images, to be compiled.

    Arguments:
        recipe: what it is compiled for.
        tabled: `recipe_plan.has_tables`.
        ragged: whether each image has a height and width of its own, HWC.
    """

    def recipe_resident(plan, count, start, out, out_labels, out_ids):
        """CUDA kernel, a block an image: a whole batch from its first position; as `augment_resident`.

        Blocks, threads and shared memory are those of `recipe_plan.launch_shape`.

        Arguments, int64:
            plan: address of what `recipe_plan.plan` returned.
            count: the images b of the batch.
            start: the batch's first position.
            out: address of the batch's output, aligned to an element.
            out_labels: address of b rows of the plan's `label_bytes`.
            out_ids: address of int64 [b].
        """
        found = cuda.shared.array(_FOUND, types.int64)
        factors = cuda.shared.array(_FACTORS, types.float32)
        keys = cuda.shared.array(8, types.uint64)
        slot = np.int64(cuda.blockIdx.x)
        if cuda.threadIdx.x == 0:
            n = np.uint64(load_long(plan + 8 * Field.ROWS))
            position = np.uint64(start) + np.uint64(slot)
            epoch = position // n
            offset = position - epoch * n
            row = offset
            seed, stream = np.uint64(load_long(plan + 8 * Field.SEED)), np.uint64(load_long(plan + 8 * Field.STREAM))
            if load_long(plan + 8 * Field.SHUFFLED):
                last = (stream & PHASE) * np.uint64(16) + np.uint64(STREAM_ROWS)
                round_keys(seed, np.uint64(0), epoch & MASK32, last, keys)
                row = permute(offset, n, half_bits(n), keys)
            sample = load_long(load_long(plan + 8 * Field.IDS) + 8 * np.int64(row))
            image = stored_image(ragged, plan, np.int64(row))
            store_long(out_ids + 8 * slot, sample)
            found[_ROW], found[_OUT] = np.int64(row), out + slot * _image_bytes(recipe, plan)
            _draw_sample(recipe, plan, image, np.uint64(sample), epoch, found, factors)
        cuda.syncthreads()
        size = load_long(plan + 8 * Field.LABEL_BYTES)
        label, target = load_long(plan + 8 * Field.LABELS) + found[_ROW] * size, out_labels + slot * size
        for k in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            store_byte(target + k, np.uint8(load_byte(label + k)))
        _augment(recipe, tabled, ragged, plan, found, factors)

    return recipe_resident


def gathered_kernel(recipe: Recipe, tabled: bool, ragged: bool = False):
    """Return the kernel of a recipe that augments a batch whose images were gathered, to be compiled.

    Arguments: as for `resident_kernel`.
    """

    def recipe_gathered(plan, count, images, ids, epochs, out):
        """CUDA kernel, a block an image: the same bits as `recipe_resident`.

        Arguments, int64:
            plan: as for `recipe_resident`.
            count: the images b of the batch.
            images: address of b images, one after the other; or, ragged, of what `gathered_image` reads.
            ids: address of int64 [b].
            epochs: address of int64 [b].
            out: as for `recipe_resident`.
        """
        found = cuda.shared.array(_FOUND, types.int64)
        factors = cuda.shared.array(_FACTORS, types.float32)
        slot = np.int64(cuda.blockIdx.x)
        if cuda.threadIdx.x == 0:
            sample, epoch = load_long(ids + 8 * slot), load_long(epochs + 8 * slot)
            found[_OUT] = out + slot * _image_bytes(recipe, plan)
            image = gathered_image(ragged, plan, images, slot)
            _draw_sample(recipe, plan, image, np.uint64(sample), np.uint64(epoch), found, factors)
        cuda.syncthreads()
        _augment(recipe, tabled, ragged, plan, found, factors)

    return recipe_gathered


SIGNATURE = (types.int64,) * 6
"""Argument types of both kernels."""

_PARTS = Recipe(
    region=RESIZED,
    resample=1,
    pad=NO_PAD,
    flip=RANDOM_FLIP,
    color=NO_COLOR,
    clamp=0,
    grayscale=0,
    normalize=BY_CHANNEL,
    erase=0,
    channels=3,
    channels_last=0,
    kind=FLOAT16,
)
_ALL_STEPS = _PARTS._replace(color=JITTER, grayscale=1, normalize=BY_STDDEV, erase=1, channels_last=1)
_PADDED = _PARTS._replace(region=CORNER, resample=0, pad=REFLECT, flip=ALTERNATING_FLIP, channels=8, kind=UINT8)

CUDA_KERNELS = [
    ("recipe_resident: parts resized", resident_kernel(_PARTS, True), SIGNATURE),
    ("recipe_resident: parts resized, ragged", resident_kernel(_PARTS, True, True), SIGNATURE),
    ("recipe_gathered: parts resized, without tables", gathered_kernel(_PARTS, False), SIGNATURE),
    ("recipe_gathered: all steps", gathered_kernel(_ALL_STEPS, True), SIGNATURE),
    ("recipe_resident: padded, eight channels", resident_kernel(_PADDED, False), SIGNATURE),
]
"""(name, function, argument types) of kernels of some recipes, for compiling them without a GPU."""
