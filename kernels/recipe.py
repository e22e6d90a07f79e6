"""What a kernel is compiled for, the numbers that it is given, and the random parameters of a sample.

A `Recipe` holds constants of the compiled kernel, so that a recipe pays only for its own steps; `Numbers` are given at
each call. Phase and view come together as a "stream": view · 2^16 + phase.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .augment import corner
from .inlining import exact
from .philox import MASK32, SHIFT32, bounded, philox4x32, unit_interval
from .resampling import resized_side

CENTRE, CORNER, RESIZED = 0, 1, 2
"""Which part of an image: its centre, a random place, or a random part that is resized."""

NO_PAD, REFLECT, CONSTANT = 0, 1, 2

NO_FLIP, RANDOM_FLIP, ALTERNATING_FLIP = 0, 1, 2

NO_COLOR, PAPER, JITTER = 0, 1, 2

BY_CHANNEL, BY_STDDEV, BY_VARIANCE = 0, 1, 2
"""How pixel values are normalized: by numbers of their channel, or by the image's own."""

UINT8 = 3
"""An output's kind, beside FLOAT32, FLOAT16 and BFLOAT16 of `augment`."""

PHASE = np.uint64(0xFFFF)
"""The bits of a stream's number that are the phase."""

TRIES = 10
_CHANCES, _ERASE_TRIES, _FIRST_TRY = 2, 3, 16
"""Blocks of a sample's random words: chances and a rectangle's place, the sizes of that, and the tries for a part."""


class Recipe(NamedTuple):
    """What a kernel is compiled for, as plain ints.

    Attributes:
        region: CENTRE, CORNER or RESIZED.
        resample: 1 where images must be resized.
        pad: NO_PAD, REFLECT or CONSTANT.
        flip: NO_FLIP, RANDOM_FLIP or ALTERNATING_FLIP.
        color: NO_COLOR, PAPER or JITTER.
        clamp: 1 to bring values back to 0…255 after PAPER.
        grayscale: 1 where images may become grey.
        normalize: BY_CHANNEL, BY_STDDEV or BY_VARIANCE.
        erase: 1 where a rectangle may be erased.
        channels: of the images.
        channels_last: 1 for an output in NHWC order, not NCHW.
        kind: FLOAT32, FLOAT16, BFLOAT16 or UINT8, of the output.
        streamed: 1 where stores pass the caches by: for batches that are larger than they are, whose rows begin at
            multiples of 32 bytes.
    """

    region: int
    resample: int
    pad: int
    flip: int
    color: int
    clamp: int
    grayscale: int
    normalize: int
    erase: int
    channels: int
    channels_last: int
    kind: int
    streamed: int = 0


class Numbers(NamedTuple):
    """The numbers of a recipe's steps: uniform draws go from `low` to `low + span`.

    Attributes:
        height: of the output in pixels, int64, as are `width`, `resize` (0 for none) and `pad`.
        width: likewise.
        resize: what the shorter side is brought to.
        pad: pixels added at each edge.
        flip: probability, float64.
        brightness_low: float32, as are the others of colours; what is added (PAPER) or a factor (JITTER).
        brightness_span: likewise.
        contrast_low: a factor.
        contrast_span: likewise.
        saturation_low: a factor.
        saturation_span: likewise.
        hue_low: in turns.
        hue_span: likewise.
        jitter: probability of being changed at all, float64.
        grayscale: probability, float64.
        area_low: share of the image's area, float64, as are the following ones.
        area_span: likewise.
        ratio_low: logarithm of width / height.
        ratio_span: likewise.
        narrowest: least width / height.
        widest: greatest.
        erase: probability.
        erase_area_low: share of the output's area.
        erase_area_span: likewise.
        erase_ratio_low: logarithm of height / width.
        erase_ratio_span: likewise.
        erase_value: float32, in units of the output.
    """

    height: Any
    width: Any
    resize: Any
    pad: Any
    flip: Any
    brightness_low: Any
    brightness_span: Any
    contrast_low: Any
    contrast_span: Any
    saturation_low: Any
    saturation_span: Any
    hue_low: Any
    hue_span: Any
    jitter: Any
    grayscale: Any
    area_low: Any
    area_span: Any
    ratio_low: Any
    ratio_span: Any
    narrowest: Any
    widest: Any
    erase: Any
    erase_area_low: Any
    erase_area_span: Any
    erase_ratio_low: Any
    erase_ratio_span: Any
    erase_value: Any


class Place(NamedTuple):
    """Which pixels of an image an output is made of, int64.

    The part of `height` × `width` pixels at (`top`, `left`) is resized to `down` × `right`, of which the output begins
    at (`first_row`, `first_column`). Where nothing is resized, `top` and `left` are the output's own corner, before
    the image's where that is padded.
    """

    top: Any
    left: Any
    height: Any
    width: Any
    down: Any
    right: Any
    first_row: Any
    first_column: Any


@exact
def words(sample, epoch, seed, stream, block):
    """Return the four words of a block of a sample's parameters; all uint64."""
    place = stream * np.uint64(16) + ((block >> np.uint64(4)) << np.uint64(8)) + (block & np.uint64(15))
    return philox4x32(
        sample & MASK32, sample >> SHIFT32, epoch & MASK32, place & MASK32, seed & MASK32, seed >> SHIFT32
    )


@exact
def _uniform(word, low, span):
    return np.float64(low) + unit_interval(word) * np.float64(span)


@exact
def draw_place(recipe, numbers, sample, epoch, seed, stream, height, width):
    """Return the `Place` of a sample whose image has height × width pixels (int64), as a tuple."""
    if recipe.region == RESIZED:
        top, left, rows, columns = _random_part(numbers, sample, epoch, seed, stream, height, width)
        return top, left, rows, columns, numbers.height, numbers.width, np.int64(0), np.int64(0)
    down, right = height, width
    if recipe.resample:
        short = min(height, width)
        down = resized_side(height, short, numbers.resize)
        right = resized_side(width, short, numbers.resize)
    room_down, room_right = down + 2 * numbers.pad - numbers.height, right + 2 * numbers.pad - numbers.width
    word0, word1, _, _ = words(sample, epoch, seed, stream, np.uint64(0))
    top = corner(word0, room_down, recipe.region == CENTRE)
    left = corner(word1, room_right, recipe.region == CENTRE)
    if recipe.resample:
        return np.int64(0), np.int64(0), height, width, down, right, top, left
    return top - numbers.pad, left - numbers.pad, height, width, down, right, np.int64(0), np.int64(0)


@exact
def moved(place, row, column):
    """Return a `Place` in the part of an image that begins at a row and column."""
    return place[0] - row, place[1] - column, place[2], place[3], place[4], place[5], place[6], place[7]


@exact
def _random_part(numbers, sample, epoch, seed, stream, height, width):
    """Return (top, left, height, width) of a random part: torchvision's RandomResizedCrop."""
    area = np.float64(height) * np.float64(width)
    for trial in range(TRIES):
        a, r, y, x = words(sample, epoch, seed, stream, np.uint64(_FIRST_TRY + trial))
        wanted = area * _uniform(a, numbers.area_low, numbers.area_span)
        ratio = math.exp(_uniform(r, numbers.ratio_low, numbers.ratio_span))
        columns = np.int64(math.floor(math.sqrt(wanted * ratio) + 0.5))
        rows = np.int64(math.floor(math.sqrt(wanted / ratio) + 0.5))
        if 0 < columns <= width and 0 < rows <= height:
            top = bounded(y, np.uint64(height - rows + 1))
            return top, bounded(x, np.uint64(width - columns + 1)), rows, columns
    rows, columns = height, width
    ratio = np.float64(width) / np.float64(height)
    if ratio < numbers.narrowest:
        rows = min(height, np.int64(math.floor(np.float64(width) / numbers.narrowest + 0.5)))
    elif ratio > numbers.widest:
        columns = min(width, np.int64(math.floor(np.float64(height) * numbers.widest + 0.5)))
    rows, columns = max(rows, np.int64(1)), max(columns, np.int64(1))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


@exact
def draw_flip(recipe, numbers, sample, epoch, seed, stream):
    """Return whether a sample is mirrored."""
    if recipe.flip == NO_FLIP:
        return False
    if recipe.flip == ALTERNATING_FLIP:
        _, _, word, _ = words(sample, np.uint64(0), seed, stream, np.uint64(0))
        return (unit_interval(word) < 0.5) != ((epoch & np.uint64(1)) == np.uint64(1))
    _, _, word, _ = words(sample, epoch, seed, stream, np.uint64(0))
    return unit_interval(word) < numbers.flip


@exact
def draw_color(recipe, numbers, sample, epoch, seed, stream):
    """Return (brightness, contrast, saturation, hue), float32, and whether the image becomes grey."""
    bright, factor, purity, turn = np.float32(0), np.float32(1), np.float32(1), np.float32(0)
    grey = False
    if recipe.color == JITTER:
        bright = np.float32(1)
    if recipe.color != NO_COLOR or recipe.grayscale:
        _, _, _, word = words(sample, epoch, seed, stream, np.uint64(0))
        contrast, saturation, hue, greying = words(sample, epoch, seed, stream, np.uint64(1))
        changed = recipe.color != NO_COLOR
        if recipe.color == JITTER and numbers.jitter < 1.0:
            _, _, _, chance = words(sample, epoch, seed, stream, np.uint64(_CHANCES))
            changed = unit_interval(chance) < numbers.jitter
        if changed:
            bright = np.float32(_uniform(word, numbers.brightness_low, numbers.brightness_span))
            factor = np.float32(_uniform(contrast, numbers.contrast_low, numbers.contrast_span))
            if recipe.color == JITTER:
                purity = np.float32(_uniform(saturation, numbers.saturation_low, numbers.saturation_span))
                turn = np.float32(_uniform(hue, numbers.hue_low, numbers.hue_span))
        if recipe.grayscale:
            grey = unit_interval(greying) < numbers.grayscale
    return bright, factor, purity, turn, grey


@exact
def draw_erased(numbers, sample, epoch, seed, stream):
    """Return (top, left, height, width) of the rectangle of the output that is erased; empty where none is."""
    chance, y, x, _ = words(sample, epoch, seed, stream, np.uint64(_CHANCES))
    nothing = np.int64(0)
    if unit_interval(chance) >= numbers.erase:
        return nothing, nothing, nothing, nothing
    a0, r0, a1, r1 = words(sample, epoch, seed, stream, np.uint64(_ERASE_TRIES))
    rows, columns = _erased_sides(numbers, a0, r0)
    if rows > numbers.height or columns > numbers.width:
        rows, columns = _erased_sides(numbers, a1, r1)
    rows, columns = min(rows, numbers.height), min(columns, numbers.width)
    top = bounded(y, np.uint64(numbers.height - rows + 1))
    return top, bounded(x, np.uint64(numbers.width - columns + 1)), rows, columns


@exact
def _erased_sides(numbers, a, r):
    area = np.float64(numbers.height) * np.float64(numbers.width)
    wanted = area * _uniform(a, numbers.erase_area_low, numbers.erase_area_span)
    ratio = math.exp(_uniform(r, numbers.erase_ratio_low, numbers.erase_ratio_span))
    rows = np.int64(math.floor(math.sqrt(wanted * ratio) + 0.5))
    columns = np.int64(math.floor(math.sqrt(wanted / ratio) + 0.5))
    return max(rows, np.int64(1)), max(columns, np.int64(1))


@exact
def mirrored(place, size):
    """Return the pixel that stands for one outside of `size` pixels when they are reflected at their edges."""
    if place < 0:
        place = -place
    return 2 * (size - 1) - place if place >= size else place
