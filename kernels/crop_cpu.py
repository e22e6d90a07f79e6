"""How a CPU thread reads the pixels of a crop that is not resized, into one plane of bytes a channel.

Images, planes and scratch are given by their addresses: see cpu_memory.py.
"""

import numpy as np

from .cpu_memory import copy16, copy64, get_byte, set_byte
from .inlining import loose
from .intrinsics import unseen
from .recipe import CONSTANT, NO_PAD, mirrored


@loose
def copy_row(target, at, source, begin, size):
    """Copy a row in blocks, the last one overlapping: a loop over bytes took 5 ns a row more for its remainder."""
    if size >= 64:
        for k in range(0, size - 63, 64):
            copy64(target + at + k, source + begin + k)
        copy64(target + at + size - 64, source + begin + size - 64)
    elif size >= 16:
        for k in range(0, size - 15, 16):
            copy16(target + at + k, source + begin + k)
        copy16(target + at + size - 16, source + begin + size - 16)
    else:
        for k in range(size):
            set_byte(target, at + k, get_byte(source, begin + k))


@loose
def load_crop(data, first, strides, height, width, channels, flip, packed, planes):
    """Read a crop into `planes`, [channels · height · width], mirrored where `flip` says so; scratch: `packed`.

    Mirrored, the rows are packed from the last to the first, and all of that is then reversed: a single long loop.
    """
    _, down, right, across = strides
    pixels = height * width
    planar = right == 1
    runs, size = (channels, width) if planar else (1, channels * width)
    for c in range(unseen(runs)):
        for y in range(height):
            row = c * height + (height - 1 - y if flip else y)
            begin = first + c * across + y * down
            copy_row(planes if planar and not flip else packed, row * size, data, begin, size)
    if planar:
        if flip:
            for c in range(channels):
                start, last = c * pixels, c * pixels + pixels - 1
                for p in range(pixels):
                    set_byte(planes, start + p, get_byte(packed, last - p))
    elif channels == 3:  # constant strides are what LLVM vectorizes
        split_three(packed, pixels, flip, planes)
    else:
        for c in range(unseen(channels)):
            for p in range(pixels):
                place = pixels - 1 - p if flip else p
                set_byte(planes, c * pixels + place, get_byte(packed, p * channels + c))


@loose
def split_three(packed, pixels, flip, planes):
    blue = 2 * pixels
    if flip:
        last = pixels - 1
        for p in range(pixels):
            set_byte(planes, last - p, get_byte(packed, 3 * p))
            set_byte(planes, pixels + last - p, get_byte(packed, 3 * p + 1))
            set_byte(planes, blue + last - p, get_byte(packed, 3 * p + 2))
    else:
        for p in range(pixels):
            set_byte(planes, p, get_byte(packed, 3 * p))
            set_byte(planes, pixels + p, get_byte(packed, 3 * p + 1))
            set_byte(planes, blue + p, get_byte(packed, 3 * p + 2))


@loose
def load_padded(recipe, data, first, strides, sides, top, left, height, width, flip, planes):
    """Read a crop that may begin before its image and end after it, as `recipe.pad` says, into `planes`.

    Arguments:
        recipe: `Recipe`.
        data: address of uint8.
        first: where the image begins in it.
        strides: (image, row, column, channel) in bytes.
        sides: (H, W) of the image.
        top: of the crop; negative before the image.
        left: likewise.
        height: of the crop.
        width: of the crop.
        flip: whether it is mirrored.
        planes: address of uint8 [channels · height · width], filled.
    """
    _, down, right, across = strides
    rows, columns = sides
    for c in range(unseen(recipe.channels)):
        for y in range(height):
            row = top + y
            target = (c * height + y) * width
            outside = row < 0 or row >= rows
            source = first + c * across + mirrored(row, rows) * down
            if recipe.pad == CONSTANT and outside:
                for x in range(width):
                    set_byte(planes, target + x, np.uint8(0))
            else:
                for x in range(width):
                    column = left + (width - 1 - x if flip else x)
                    value = np.uint8(0)
                    if recipe.pad != CONSTANT or (column >= 0 and column < columns):
                        value = get_byte(data, source + mirrored(column, columns) * right)
                    set_byte(planes, target + x, value)


@loose
def load_planes(recipe, data, first, strides, sides, place, height, width, flip, packed, planes):
    """Read the crop at `place` of the image that begins at byte `first` into `planes`; see `load_crop`."""
    top, left = place[0], place[1]
    inside = top >= 0 and left >= 0 and top + height <= sides[0] and left + width <= sides[1]
    if recipe.pad == NO_PAD or inside:
        begin = first + top * strides[1] + left * strides[2]
        load_crop(data, begin, strides, height, width, recipe.channels, flip, packed, planes)
    else:
        load_padded(recipe, data, first, strides, sides, top, left, height, width, flip, planes)
