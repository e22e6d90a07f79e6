"""What the CUDA augmentation is told of a feed, once, and the shape of its launches."""

from enum import IntEnum, auto

import numpy as np

from .augment import MAX_CHANNELS, STDDEV, VARIANCE, Draws, Settings
from .cuda_memory import load_word
from .inlining import exact
from .plan_fields import shared_fields
from .recipe import ALTERNATING_FLIP, BY_CHANNEL, BY_STDDEV, CENTRE, JITTER, NO_PAD, PAPER, UINT8

THREADS = 384
"""The most threads a block has: two blocks of up to 80 registers a thread share a multiprocessor's 65,536."""

SMALL = 96
"""Threads that an image has at most, unless each of them would have more than ITEMS: three warps of the 28 that 72
registers a thread leave a multiprocessor, so that the eight images that 132 of them get of 1,024 are all worked on."""

ITEMS = 4

MAX_IMAGES = 8
"""The most images a block has: with more, a batch of 1,024 would leave multiprocessors of an H200 without any."""


class Field(IntEnum):
    """What every image of a feed shares, one int64 each in device memory (a "plan"): a launch then takes few numbers.

    A float64 (FLIP) or float32 (brightness, contrast) is there by its bits; the random number's bounds are those of
    `Draws`. From IMAGES on, what only the resident kernel needs.
    """

    HEIGHT = 0
    WIDTH = auto()
    CENTRE = auto()
    FLIP = auto()
    BRIGHTNESS_LOW = auto()
    BRIGHTNESS_SPAN = auto()
    CONTRAST_LOW = auto()
    CONTRAST_SPAN = auto()
    CLAMP = auto()
    STANDARDIZE = auto()
    IMAGE = auto()
    DOWN = auto()
    RIGHT = auto()
    ACROSS = auto()
    ROOM_DOWN = auto()
    ROOM_RIGHT = auto()
    CHANNELS = auto()
    SEED = auto()
    STREAM = auto()
    CHANNELS_LAST = auto()
    KIND = auto()
    READ = auto()
    IMAGES = auto()
    IDS = auto()
    LABELS = auto()
    LABEL_BYTES = auto()
    ROWS = auto()
    SHUFFLED = auto()


# How a thread reads: one pixel, four neighbours of each plane, or four neighbours of red, green and blue interleaved.
PIXEL, PLANES, RGB = 0, 1, 2


def settings_of(recipe, numbers):
    """Return the `Settings` that a recipe is for these kernels, or None where it has steps that they do not know.

    Arguments:
        recipe: `Recipe`.
        numbers: its `Numbers`.
    """
    whole = recipe.resample == 0 and recipe.pad == NO_PAD and recipe.flip != ALTERNATING_FLIP
    colors = recipe.color != JITTER and recipe.grayscale == 0 and recipe.erase == 0
    output = recipe.kind != UINT8 and recipe.channels <= MAX_CHANNELS and recipe.normalize != BY_CHANNEL
    if not (whole and colors and output):
        return None
    one, nothing = np.float32(1), np.float32(0)
    factors = (nothing, nothing, one, nothing)
    if recipe.color == PAPER:
        factors = numbers.brightness_low, numbers.brightness_span, numbers.contrast_low, numbers.contrast_span
    return Settings(
        numbers.height,
        numbers.width,
        np.int64(recipe.region == CENTRE),
        Draws(numbers.flip, *factors),
        np.int64(recipe.clamp),
        np.int64(STDDEV if recipe.normalize == BY_STDDEV else VARIANCE),
    )


def plan(
    settings,
    strides,
    shape,
    seed,
    stream,
    channels_last,
    kind,
    **resident,
):
    """Return the plan that the CUDA kernels take, int64, in the order of `Field`.

    Arguments:
        settings: `Settings` of the augmentation.
        strides: (image, row, column, channel) in bytes, interleaved or planar.
        shape: (H, W, C) of the images.
        seed: of the random parameters, below 2^64.
        stream: of the random parameters; its lower 16 bits are the order's phase.
        channels_last: whether the output is in NHWC order, not NCHW.
        kind: FLOAT32, FLOAT16 or BFLOAT16, of the output.
        resident: keywords of `shared_fields`, which the resident kernel needs.
    """
    height, width, channels = shape
    last = bool(channels_last) and channels > 1
    read = PIXEL
    if settings.width % 4 == 0 and (not last or channels == 3):
        read = PLANES if strides[2] == 1 else RGB if channels == 3 else PIXEL
    draws = settings.draws
    values = shared_fields(strides, seed, stream, **resident) | {
        "HEIGHT": settings.height,
        "WIDTH": settings.width,
        "CENTRE": settings.centre,
        "FLIP": np.float64(draws.flip).view(np.int64),
        "BRIGHTNESS_LOW": np.float32(draws.brightness_low).view(np.uint32),
        "BRIGHTNESS_SPAN": np.float32(draws.brightness_span).view(np.uint32),
        "CONTRAST_LOW": np.float32(draws.contrast_low).view(np.uint32),
        "CONTRAST_SPAN": np.float32(draws.contrast_span).view(np.uint32),
        "CLAMP": settings.clamp,
        "STANDARDIZE": settings.standardize,
        "ROOM_DOWN": height - settings.height,
        "ROOM_RIGHT": width - settings.width,
        "CHANNELS": channels,
        "CHANNELS_LAST": last,
        "KIND": kind,
        "READ": read,
    }
    return np.array([np.int64(values[field.name]) for field in Field])


def launch_shape(plan, count):
    """Return (blocks, (threads an image, images a block), bytes of shared memory) for a batch of `count` images.

    Threads follow from the plan alone: they set the order of sums, and a sample's bits are the same in any batch.
    """
    items = int(plan[Field.HEIGHT] * plan[Field.WIDTH]) // (1 if plan[Field.READ] == PIXEL else 4)
    each = min(ITEMS, -(-items // SMALL))
    threads = min(THREADS, -(-items // each))
    images = 1
    while 2 * images <= min(MAX_IMAGES, THREADS // threads):
        images *= 2
    return -(-count // images), (threads, images), threads * images * MAX_CHANNELS * 8


@exact
def load_int32(plan, field):
    """Return a field that is small: half of the registers, which set how many blocks a multiprocessor takes."""
    return np.int32(load_word(plan + 8 * field))


@exact
def load_float32(plan, field):
    """Return a field that holds the bits of a float32."""
    return np.uint32(load_word(plan + 8 * field)).view(np.float32)
