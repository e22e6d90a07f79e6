"""The fused augmentation on one CPU thread: a batch out of memory, out of mapped files, or read image by image."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .compiling import njit
from .constant_recipe import ConstantRecipe
from .cpu_memory import address_of, get_long, get_word
from .crop_cpu import copy_row, load_planes
from .file_ranges import are_whole, part_of, read_range
from .finish_cpu import element_bytes, erase_box, set_colors, set_normalizing, store_pixels
from .image_layout import Layout
from .inlining import LOOSE, loose
from .intrinsics import store_fence
from .recipe import (
    BY_CHANNEL,
    JITTER,
    NO_PAD,
    PAPER,
    Recipe,
    draw_color,
    draw_erased,
    draw_flip,
    draw_place,
)
from .resample_cpu import AHEAD, make_row, whole_blocks
from .resample_tables import make_tables, scratch_bytes
from .resample_vectors import prefetch_address

_PREFETCHED = 8192
"""Bytes of a crop that are asked for ahead; the rest is a sequence, which the processor sees by itself."""


class Images(NamedTuple):
    """Where a set's images are: in memory, in mapped files, or in files that are read.

    Attributes:
        descriptors: int32 [F], the files that are read; none where `data` holds the images.
        begins: int64 [F], where each file's image bytes begin, in it or in `data`.
        firsts: int64 [F + 1], the place of each file's first byte in the set, and the end.
        mapped: int32 [F], the files that are mapped into `data`, if any.
        ends: int64 [F], how long each of those must be.
        data: uint8 [bytes], writeable; of images that are read, room for one.
        layout: how they lie in the set.
    """

    descriptors: Any
    begins: Any
    firsts: Any
    mapped: Any
    ends: Any
    data: Any
    layout: Any


_NO_FILES = np.empty(0, np.int32), np.empty(0, np.int64)
_ONE_PART = np.zeros(1, np.int64), np.array([0, np.iinfo(np.int64).max])


def images_in_memory(data: np.ndarray, layout: Layout) -> Images:
    """Return the `Images` of a set whose bytes are `data`, uint8 [bytes]."""
    return Images(_NO_FILES[0], *_ONE_PART, *_NO_FILES, data, layout)


def images_in_map(place: tuple[np.ndarray, ...], data: np.ndarray, layout: Layout) -> Images:
    """Return the `Images` of a set whose files are mapped into `data`.

    Arguments:
        place: (mapped files, how long they must be, where in `data` their image bytes begin, their places in the set).
        data: uint8 [bytes].
        layout: of the set.
    """
    mapped, ends, begins, firsts = place
    return Images(_NO_FILES[0], begins, firsts, mapped, ends, data, layout)


def images_in_files(place: tuple[np.ndarray, ...], layout: Layout) -> Images:
    """Return the `Images` of a set whose files (descriptors, first image bytes, places in the set) are read.

    The room for one image is this batch's own: batches are made side by side.
    """
    descriptors, begins, firsts = place
    return Images(descriptors, begins, firsts, *_NO_FILES, np.empty(layout.largest, np.uint8), layout)


@loose
def _find_image(recipe, offsets, shapes, strides, sides, row):
    """Return where an image begins in its set, its strides and its sides.

    Arguments:
        recipe: `Recipe`.
        offsets: address of int64 [N + 1], where images of their own sizes begin; 0 where all have one shape.
        shapes: address of int32 [N, 2], their sides.
        strides: of all images, where they have one shape.
        sides: likewise.
        row: which image.
    """
    if offsets == 0:
        return row * strides[0], strides, sides
    height, width = np.int64(get_word(shapes, 2 * row)), np.int64(get_word(shapes, 2 * row + 1))
    right = np.int64(recipe.channels)
    down = width * right
    return get_long(offsets, row), (height * down, down, right, np.int64(1)), (height, width)


@loose
def _needs_all_pixels(recipe):
    """Whether what is stored of a pixel depends on the whole crop."""
    return recipe.color == PAPER or recipe.color == JITTER or recipe.normalize != BY_CHANNEL


@loose
def work_bytes(recipe, numbers, sides):
    """Return how much scratch memory an image of `sides` (H, W) takes; see `augment_cut`."""
    count = numbers.height * numbers.width * recipe.channels
    size = 64 + 16 * recipe.channels + 2 * (count + 64)
    return size + scratch_bytes(recipe, numbers, sides) if recipe.resample else size


@loose
def _offsets(work):
    """Return the address of an image's offsets, float32 [channels], in its scratch memory."""
    return (work + 63) // 64 * 64


@loose
def _planes(recipe, work):
    """Return the address of an image's planes."""
    return _offsets(work) + (12 * recipe.channels + 63) // 64 * 64


@loose
def _finish(recipe, numbers, norm, color, work, out, target):
    """Colour, normalize and store an image whose crop lies in its planes; erase a rectangle."""
    height, width, channels = numbers.height, numbers.width, recipe.channels
    pixels = height * width
    offsets, planes = _offsets(work), _planes(recipe, work)
    means, scales = norm
    look, centre = set_colors(recipe, color, planes, pixels, offsets)
    if recipe.normalize != BY_CHANNEL:
        means, scales = offsets + 4 * channels, offsets + 8 * channels
        set_normalizing(recipe, planes, pixels, look, offsets, centre, means, scales)
    store_pixels(recipe, planes, pixels, np.int64(0), pixels, look, offsets, means, scales, out, target, pixels)


@loose
def augment_cut(recipe, numbers, norm, data, first, strides, sides, drawn, work, out, i):
    """Augment an image that is not resized into the `i`-th of a batch.

    Arguments:
        recipe: `Recipe`.
        numbers: `Numbers`.
        norm: (means, scales) for BY_CHANNEL, addresses of float32 [channels], on values 0…255.
        data: address of uint8.
        first: where the image begins in it.
        strides: (image, row, column, channel) in bytes.
        sides: (H, W) of the image.
        drawn: (place, flip, color, erased) of the sample.
        work: address of `work_bytes`.
        out: address of the output.
        i: which image.
    """
    place, flip, color, erased = drawn
    height, width = numbers.height, numbers.width
    count = height * width * recipe.channels
    planes = _planes(recipe, work)
    packed = planes + (count + 63) // 64 * 64
    load_planes(recipe, data, first, strides, sides, place, height, width, flip, packed, planes)
    _finish(recipe, numbers, norm, color, work, out, i * count)
    if recipe.erase:
        erase_box(recipe, erased, height, width, numbers.erase_value, out, i * count)


@loose
def augment_resized(recipe, numbers, norm, data, first, strides, sides, drawn, work, out, i):
    """Augment an image that is resized; arguments as for `augment_cut`."""
    place, flip, color, erased = drawn
    height, width, channels = numbers.height, numbers.width, recipe.channels
    pixels = height * width
    planes, offsets = _planes(recipe, work), _offsets(work)
    target, size = i * pixels * channels, element_bytes(recipe)
    means, scales = norm
    whole = _needs_all_pixels(recipe)
    scratch = planes + (pixels * channels + 63) // 64 * 64
    tables = make_tables(recipe, place, height, width, flip, strides[2] != 1, scratch)
    # What hangs on all pixels is found again once they are there.
    look, _ = set_colors(recipe, color, planes, np.int64(0), offsets)
    begin = whole_blocks(recipe, width)
    done = np.int64(0)
    for y in range(height):
        row = target + y * width * (channels if recipe.channels_last else 1)
        here = out + size * row
        done = make_row(recipe, tables, width, data, first, strides, place, y, done, means, scales, here, size * pixels)
        if whole:
            for c in range(channels):
                copy_row(planes, c * pixels + y * width, tables.line, c * tables.width, width)
        else:
            store_pixels(
                recipe, tables.line, tables.width, begin, width, look, offsets, means, scales, out, row, pixels
            )
    if whole:
        _finish(recipe, numbers, norm, color, work, out, target)
    if recipe.erase:
        erase_box(recipe, erased, height, width, numbers.erase_value, out, target)


@loose
def draw_sample(recipe, numbers, sample, epoch, seed, stream, height, width):
    """Return (place, flip, color, erased) of a sample whose image has height × width pixels."""
    place = draw_place(recipe, numbers, sample, epoch, seed, stream, height, width)
    flip = draw_flip(recipe, numbers, sample, epoch, seed, stream)
    color = draw_color(recipe, numbers, sample, epoch, seed, stream)
    none = np.int64(0)
    erased = (none, none, none, none)
    if recipe.erase:
        erased = draw_erased(numbers, sample, epoch, seed, stream)
    return place, flip, color, erased


@loose
def _lines(recipe, numbers, place, sides):
    """Return the image's rows that a crop needs: the first, and how many."""
    if recipe.resample:
        return place[0], place[2]
    top = min(max(place[0], 0), sides[0] - 1)
    if recipe.pad == NO_PAD:
        return top, numbers.height
    return np.int64(0), np.int64(sides[0])


@loose
def _prefetch_crop(recipe, numbers, image, strides, sides, place):
    """Begin to read the first rows of the crop at `place` of the image at address `image`."""
    _, down, right, across = strides
    top, count = _lines(recipe, numbers, place, sides)
    if recipe.resample and right != 1:  # the rows that follow are asked for as they come near
        size = place[3] * right
        for y in range(top, top + min(count, AHEAD)):
            for k in range(0, size, 64):
                prefetch_address(image + y * down + place[1] * right + k)
        return
    left = max(place[1], 0)
    span = min(_PREFETCHED, (count - 1) * down + min(numbers.width, sides[1]) * right)
    for c in range(recipe.channels if right == 1 else 1):
        begin = image + top * down + left * right + c * across
        for k in range(0, span, 64):
            prefetch_address(begin + k)
        prefetch_address(begin + span - 1)


@cache
def batch_kernel(recipe: Recipe) -> Callable[..., int]:
    """Return the function that augments a batch on one CPU thread, compiled for a recipe.

    It takes (images, rows, ids, epochs, seed, stream, numbers, norm, out) and returns the first `k` whose
    image cannot be read, the batch's size if a mapped file is shorter than it must be, or -1.

    Bound by memory's latency, unless the next crop is asked for while this one is worked on: images of 3 KB lie at
    random places (0.65 µs an image without, 0.53 with; AMD EPYC, 32² → 24²). Then by arithmetic: three passes over
    the crop's bytes, which stay in the first-level cache.

    One function for images in memory, in a map and in files: compiled apart, their sums could be taken in another
    order, and a sample's bits would differ.

    Arguments of the function:
        images: `Images`.
        rows: int64 [b], which images.
        ids: int64 [b], of the samples.
        epochs: int64 [b], of the samples.
        seed: of the random parameters, uint64.
        stream: of the random parameters, uint64.
        numbers: `Numbers`.
        norm: (means, scales) for BY_CHANNEL, float32 [channels], on values 0…255.
        out: [b, h·w·c], float32, uint8, or int16 (the bits) for the other kinds; filled.
    """

    recipe = ConstantRecipe(*recipe)
    augment_one = augment_resized if recipe.resample else augment_cut  # only what is called is compiled

    def augment_batch(images, rows, ids, epochs, seed, stream, numbers, norm, out):
        if rows.size == 0:
            return np.int64(-1)
        data, layout = images.data, images.layout
        by_channel = address_of(norm[0]), address_of(norm[1])
        in_memory = images.descriptors.size == 0
        # The layout by addresses and numbers: see cpu_memory.py.
        offsets = address_of(layout.offsets) if layout.offsets.size > 0 else np.int64(0)
        shapes, of_all = address_of(layout.shapes), (layout.strides, layout.shape[:2])
        position, strides, sides = _find_image(recipe, offsets, shapes, *of_all, rows[0])
        needed = work_bytes(recipe, numbers, sides)
        if offsets != 0:
            for row in rows:
                _, _, others = _find_image(recipe, offsets, shapes, *of_all, row)
                needed = max(needed, work_bytes(recipe, numbers, others))
        work = np.empty(needed, np.uint8)
        address, scratch, target = address_of(data), address_of(work), address_of(out)
        drawn = draw_sample(recipe, numbers, np.uint64(0), np.uint64(0), seed, stream, *sides)
        first, failed = np.int64(0), np.int64(-1)
        for k in range(-1, rows.size):  # one image behind: the crop that comes next is known, and on its way
            n = min(k + 1, rows.size - 1)
            position_next, strides_next, sides_next = _find_image(recipe, offsets, shapes, *of_all, rows[n])
            drawn_next = draw_sample(
                recipe, numbers, np.uint64(ids[n]), np.uint64(epochs[n]), seed, stream, *sides_next
            )
            first_next = np.int64(0)
            if in_memory:
                part = part_of(images.firsts, position_next)
                first_next = images.begins[part] + position_next - images.firsts[part]
                _prefetch_crop(recipe, numbers, address + first_next, strides_next, sides_next, drawn_next[0])
            if k >= 0:
                if not in_memory:
                    # Of interleaved images only the lines that the crop needs.
                    line, lines = _lines(recipe, numbers, drawn[0], sides)
                    down, across = strides[1], strides[3]
                    skip, size = (line * down, lines * down) if down > across else (np.int64(0), strides[0])
                    there = np.uint64(address + skip)
                    if not read_range(images.descriptors, images.begins, images.firsts, position + skip, size, there):
                        failed = k
                        break
                augment_one(
                    recipe, numbers, by_channel, address, first, strides, sides, drawn, scratch, target, np.int64(k)
                )
            drawn, first, position, strides, sides = drawn_next, first_next, position_next, strides_next, sides_next
        if recipe.streamed:
            store_fence()
        held = layout.offsets.size + layout.shapes.size + norm[0].size + norm[1].size
        if work.size == 0 or data.size == 0 or out.size == 0 or held == 0:
            return np.int64(-1)  # never: what is passed by its address must be held until here
        if failed >= 0:
            return failed
        # Here, in the same call: to give the GIL away and get it back once more a batch took a fifth of the speed.
        return np.int64(-1) if are_whole(images.mapped, images.ends) else np.int64(rows.size)

    return njit(nogil=True, fastmath=LOOSE)(augment_batch)
