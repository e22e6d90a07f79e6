"""The fused augmentation on one CPU thread: a batch out of memory, out of mapped files, or read image by image."""

import numpy as np

from .augment import corner, draw
from .augment_cpu_pixels import augment_one, work_space
from .compiling import njit
from .file_ranges import are_whole, part_of, read_range
from .inlining import LOOSE, loose
from .intrinsics import prefetch

_PREFETCHED = 8192
"""Bytes of a crop that are asked for ahead; the rest is a sequence, which the processor sees by itself."""


@njit(nogil=True)
def draw_batch(ids, epochs, seed, phase, draws, top, left, flip, brightness, contrast):
    """Fill the parameters of a batch, for engines that take them as inputs.

    Arguments:
        ids: int64 [b], of the samples.
        epochs: int64 [b], of the samples.
        seed: uint64.
        phase: uint64.
        draws: `Draws`.
        top: uint32 [b], filled, as all that follow: the words of the corners (see `corner`).
        left: uint32 [b].
        flip: bool [b].
        brightness: float32 [b].
        contrast: float32 [b].
    """
    for i in range(ids.size):
        word0, word1, mirrored, bright, factor = draw(np.uint64(ids[i]), np.uint64(epochs[i]), seed, phase, draws)
        top[i] = word0
        left[i] = word1
        flip[i] = mirrored
        brightness[i] = bright
        contrast[i] = factor


@loose
def _place(drawn, strides, shape, settings):
    """Return how far into its image a crop begins, in bytes."""
    top = corner(drawn[0], shape[0] - settings.height, settings.centre)
    left = corner(drawn[1], shape[1] - settings.width, settings.centre)
    return top * strides[1] + left * strides[2]


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
            augment_one(data, first, drawn, strides, shape[2], settings, work, out, np.uint64(k), channels_last, kind)
        drawn, first = drawn_next, first_next
    # Here, in the same call: to give the GIL away and get it back once more a batch took a fifth of the speed.
    return -1 if are_whole(mapped, ends) else rows.size


_NO_FILES = (np.empty(0, np.int32), np.empty(0, np.int64))

_ONE_PART = (np.zeros(1, np.int64), np.array([0, np.iinfo(np.int64).max]))


def augment_batch(data, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind):
    """Augment a batch on one CPU thread, out of images in memory.

    Bound by memory's latency, unless the next crop is asked for while this one is worked on: images of 3 KB lie at
    random places (0.65 µs an image without, 0.53 with; AMD EPYC, 32² → 24²). Then by arithmetic: three passes over
    the crop's bytes, which stay in the first-level cache.

    Arguments:
        data: uint8 [bytes], writeable.
        rows: int64 [b], which images of it.
        strides: (image, row, column, channel) in bytes, interleaved or planar.
        shape: (H, W, C) of the images.
        ids: int64 [b], of the samples.
        epochs: int64 [b], of the samples.
        seed: of the random parameters, uint64.
        phase: of the random parameters, uint64.
        settings: `Settings`.
        out: float32 [b, h·w·c], or int16 (the bits) for the other kinds; filled.
        channels_last: whether `out` is in NHWC order, not NCHW.
        kind: FLOAT32, FLOAT16 or BFLOAT16.
    """
    _augment_images(
        _NO_FILES[0],
        *_ONE_PART,
        *_NO_FILES,
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
    )


def augment_parts(
    mapped,
    ends,
    begins,
    firsts,
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
    """Augment a batch as `augment_batch`, out of a set whose files are mapped into `data`, each for itself.

    Returns whether all files still were as long afterwards as they must be.

    Arguments, beside those of `augment_batch`:
        mapped: int32 [F], the files.
        ends: int64 [F], how long each must be.
        begins: int64 [F], where each one's image bytes begin in `data`.
        firsts: int64 [F + 1], the place of each one's first byte in the set, and the end.
    """
    failed = _augment_images(
        _NO_FILES[0],
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
    )
    return failed < 0


def augment_stream(
    descriptors, begins, firsts, rows, strides, shape, ids, epochs, seed, phase, settings, out, channels_last, kind
):
    """Augment a batch as `augment_batch`, reading each image from a set's files.

    Of image `rows[i]` the lines that the crop needs are read to one buffer that stays in the first-level cache.
    Returns the first unreadable `i`, or -1. Bound by the system call and the copy out of the page cache.

    Arguments, beside those of `augment_batch`:
        descriptors: int32 [F], the files.
        begins: int64 [F], where each one's image bytes begin in it.
        firsts: int64 [F + 1], the place of each one's first byte in the set, and the end.
    """
    image = np.empty(strides[0], np.uint8)
    return _augment_images(
        descriptors,
        begins,
        firsts,
        *_NO_FILES,
        image,
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
    )
