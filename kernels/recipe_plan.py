"""What the CUDA kernels of recipes are told of a feed, once, and the shape of their launches."""

from enum import IntEnum, auto

import numpy as np

from .cuda_memory import load_long, load_word
from .inlining import exact
from .plan_fields import shared_fields
from .recipe import BY_CHANNEL, NO_COLOR, RESIZED, Numbers
from .resampling import most_taps

MAX_CHANNELS = 32

THREADS = 256
"""The most threads a block, which has one image, has: two of up to 128 registers a thread share a multiprocessor."""

_ITEMS = 4
"""Pixels that a thread has at least, where the image has more than 32."""

SUMS = 4
"""Quantities that threads sum at once."""

_SHARED_BYTES = 46 * 1024
"""What a block may take of shared memory without asking, less what is not sized by the launch."""


class Field(IntEnum):
    """What every image of a feed shares, int64 each in device memory (a "plan"): a launch then takes few numbers.

    Behind them lie the `Numbers`, float64 and float32 by their bits, then MAX_CHANNELS means and as many scales.
    From IMAGES to SHUFFLED, what only the resident kernel needs.
    """

    IMAGE = 0
    DOWN = auto()
    RIGHT = auto()
    ACROSS = auto()
    IMAGE_HEIGHT = auto()
    IMAGE_WIDTH = auto()
    SEED = auto()
    STREAM = auto()
    TAPS_DOWN = auto()
    TAPS_ACROSS = auto()
    IMAGES = auto()
    OFFSETS = auto()
    SHAPES = auto()
    IDS = auto()
    LABELS = auto()
    LABEL_BYTES = auto()
    ROWS = auto()
    SHUFFLED = auto()


_NUMBERS = len(Field)
MEANS = _NUMBERS + len(Numbers._fields)
SCALES = MEANS + MAX_CHANNELS


def plan(
    recipe,
    numbers,
    norm,
    layout,
    sides,
    seed,
    stream,
    *,
    offsets=0,
    shapes=0,
    **resident,
):
    """Return the plan that the CUDA kernels take, int64.

    Arguments:
        recipe: `Recipe` of at most MAX_CHANNELS channels.
        numbers: its `Numbers`.
        norm: (means, scales) for BY_CHANNEL, float32 [C] each, on values 0…255.
        layout: `Layout` of the images.
        sides: every (H, W) that images have.
        seed: of the random parameters, below 2^64.
        stream: of the random parameters; its lower 16 bits are the order's phase.
        offsets: address of int64 [n + 1], where images of their own sizes begin, for the resident kernel.
        shapes: address of int32 [n, 2], their heights and widths, likewise.
        resident: keywords of `shared_fields`, which the resident kernel needs.
    """
    height, width, channels = layout.shape
    taps_down, taps_across = zip(*(_taps(recipe, numbers, *one) for one in sides), strict=True)
    values = shared_fields(layout.strides, seed, stream, **resident) | {
        "IMAGE_HEIGHT": height,
        "IMAGE_WIDTH": width,
        "TAPS_DOWN": max(taps_down),
        "TAPS_ACROSS": max(taps_across),
        "OFFSETS": offsets,
        "SHAPES": shapes,
    }
    normalizing = np.zeros((2, MAX_CHANNELS), np.float32)
    for row, given in zip(normalizing, norm, strict=True):
        row[:channels] = given
    fields = [np.int64(values[field.name]) for field in Field]
    return np.array([*fields, *map(_bits, numbers), *map(_bits, normalizing.reshape(-1))], np.int64)


def _bits(number):
    """Return a number of a recipe as an int64: floats by their bits."""
    if isinstance(number, np.float32):
        return np.int64(number.view(np.uint32))
    return number.view(np.int64)


def _taps(recipe, numbers, height, width):
    """Return how many pixels of an image's column and row an output pixel is made of at most."""
    if not recipe.resample:
        return 0, 0
    down, right, short = numbers.height, numbers.width, min(height, width)
    if recipe.region != RESIZED:
        down = (2 * height * numbers.resize + short) // (2 * short)
        right = (2 * width * numbers.resize + short) // (2 * short)
    return min(most_taps(height, down), height), min(most_taps(width, right), width)


@exact
def sums_pixels(recipe):
    """Return whether what is stored of a pixel depends on sums over the whole crop."""
    return recipe.color != NO_COLOR or recipe.normalize != BY_CHANNEL


def has_tables(recipe, numbers, plan):
    """Return whether the weights of an image's rows and columns find room in shared memory, if it is resized."""
    return bool(recipe.resample) and _shared_bytes(recipe, numbers, plan, tabled=True) <= _SHARED_BYTES


def _threads(numbers):
    pixels = int(numbers.height * numbers.width)
    return min(THREADS, -(-pixels // (32 * _ITEMS)) * 32)


def _shared_bytes(recipe, numbers, plan, tabled):
    size = 8 * SUMS * _threads(numbers) if sums_pixels(recipe) else 0
    if tabled:
        height, width = int(numbers.height), int(numbers.width)
        down, across = int(plan[Field.TAPS_DOWN]), int(plan[Field.TAPS_ACROSS])
        size += 4 * (height + width) + 2 * (height * (down + 1) + width * (across + 1))
    return size


def launch_shape(recipe, numbers, plan, count):
    """Return (blocks, threads, bytes of shared memory) for a batch of `count` images.

    Threads follow from the output's sides alone: they set the order of sums, and a sample's bits are the same in any
    batch.
    """
    tabled = has_tables(recipe, numbers, plan)
    return count, _threads(numbers), _shared_bytes(recipe, numbers, plan, tabled)


@exact
def stored_image(ragged, plan, row):
    """Return the address, height and width of image `row` of the set, int64; `ragged`: each has sides of its own."""
    images = load_long(plan + 8 * Field.IMAGES)
    if ragged:
        sides = load_long(plan + 8 * Field.SHAPES) + 8 * row
        offset = load_long(load_long(plan + 8 * Field.OFFSETS) + 8 * row)
        return images + offset, np.int64(load_word(sides)), np.int64(load_word(sides + 4))
    return gathered_image(False, plan, images, row)


@exact
def gathered_image(ragged, plan, images, slot):
    """Return the address, height and width of image `slot` of a batch that lies at `images`.

    Ragged, that is the address of int64 [b, 3], which holds them.
    """
    if ragged:
        place = images + 24 * slot
        return load_long(place), load_long(place + 8), load_long(place + 16)
    height, width = load_long(plan + 8 * Field.IMAGE_HEIGHT), load_long(plan + 8 * Field.IMAGE_WIDTH)
    return images + slot * load_long(plan + 8 * Field.IMAGE), height, width


@exact
def _load_float32(plan, place):
    return np.uint32(load_word(plan + 8 * place)).view(np.float32)


@exact
def load_four_floats(plan, place):
    """Return the float32 whose bits lie at a place of the plan and at the three behind it."""
    return (
        _load_float32(plan, place),
        _load_float32(plan, place + 1),
        _load_float32(plan, place + 2),
        _load_float32(plan, place + 3),
    )


@exact
def _load_float64(plan, place):
    return load_long(plan + 8 * place).view(np.float64)


@exact
def load_numbers(plan):
    """Return the plan's `Numbers`: by place, since Numba takes few arguments by name."""
    at = _NUMBERS
    return Numbers(
        load_long(plan + 8 * at),
        load_long(plan + 8 * (at + 1)),
        load_long(plan + 8 * (at + 2)),
        load_long(plan + 8 * (at + 3)),
        _load_float64(plan, at + 4),
        _load_float32(plan, at + 5),
        _load_float32(plan, at + 6),
        _load_float32(plan, at + 7),
        _load_float32(plan, at + 8),
        _load_float32(plan, at + 9),
        _load_float32(plan, at + 10),
        _load_float32(plan, at + 11),
        _load_float32(plan, at + 12),
        _load_float64(plan, at + 13),
        _load_float64(plan, at + 14),
        _load_float64(plan, at + 15),
        _load_float64(plan, at + 16),
        _load_float64(plan, at + 17),
        _load_float64(plan, at + 18),
        _load_float64(plan, at + 19),
        _load_float64(plan, at + 20),
        _load_float64(plan, at + 21),
        _load_float64(plan, at + 22),
        _load_float64(plan, at + 23),
        _load_float64(plan, at + 24),
        _load_float64(plan, at + 25),
        _load_float32(plan, at + 26),
    )
