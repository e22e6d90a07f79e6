"""The fused augmentation on one CPU thread, out of JPEG files: cut, decoded, resized and finished, one after the other.

All that a sample needs lies in the processor's cache until its pixels are done.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .augment_cpu import augment_cut, augment_resized, work_bytes
from .compiling import njit
from .constant_recipe import ConstantRecipe
from .cpu_memory import address_of
from .decode_encoded import NO_DECODER, NOT_DECODED, cut_sample, decode_upright, no_room, room_bytes
from .inlining import LOOSE, exact, loose
from .intrinsics import store_fence
from .jpeg_cut import stored_sides, upright_region
from .recipe import Recipe, moved
from .turbojpeg import close_decoder, copy_reason, open_decoder


@exact
def reduced_place(place, by):
    """Return a `Place` in an image whose pixels are `by` times as large, and the fractions that `make_tables` takes."""
    top, left = place[0] // by, place[1] // by
    rows, columns = (place[0] + place[2] + by - 1) // by - top, (place[1] + place[3] + by - 1) // by - left
    one = np.float64(by)
    above, before = np.float64(place[0]) / one - np.float64(top), np.float64(place[1]) / one - np.float64(left)
    sides = np.float64(place[2]) / one, np.float64(place[3]) / one
    return top, left, rows, columns, place[4], place[5], place[6], place[7], above, sides[0], before, sides[1]


class Drawn(NamedTuple):
    """The random parameters of v views of b samples; see `fastload.augment.parameters.Parameters`.

    Attributes:
        places: int64 [v, b, 8].
        flip: bool [v, b].
        colors: float32 [v, b, 4]: brightness, contrast, saturation, hue.
        grey: bool [v, b].
        erased: int64 [v, b, 4].
    """

    places: Any
    flip: Any
    colors: Any
    grey: Any
    erased: Any


@loose
def _drawn_of(drawn, view, k, origin, by):
    """Return (place, flip, color, erased) of a sample, in the part of its image that begins at `origin`."""
    p, c, e = drawn.places[view, k], drawn.colors[view, k], drawn.erased[view, k]
    place = moved((p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]), origin[0], origin[1])
    return (
        reduced_place(place, by),
        drawn.flip[view, k],
        (c[0], c[1], c[2], c[3], drawn.grey[view, k]),
        (e[0], e[1], e[2], e[3]),
    )


@cache
def encoded_kernel(recipe: Recipe) -> Callable[..., Any]:
    """Return the function that makes a batch of JPEG files, compiled for a recipe.

    It returns the first `k` that cannot be made and why, or (-1, 0). `turbojpeg.load` comes before it is called.

    Arguments of the function:
        files: `JpegFiles`.
        rows: int64 [b], which samples.
        regions: int64 [b, 4], the part of each image that its views need: the first row and column, and those behind
            the last.
        reduced: int64 [b], decode each file at 1/1, 1/2, 1/4 or 1/8.
        margin: pixels around a region.
        decoded: int64 [b], addresses of images that are decoded already, uint8 [H, W, 3]; 0 for files to be cut.
        drawn: `Drawn`.
        numbers: `Numbers`.
        norm: (means, scales) for BY_CHANNEL, float32 [3], on values 0…255.
        outs: int64 [v], addresses of each view's batch, [b, h·w·3] of the recipe's kind; filled.
        message: uint8 [n], filled with the decoder's reason.
    """

    recipe = ConstantRecipe(*recipe)
    augment_one = augment_resized if recipe.resample else augment_cut

    def augment_encoded(files, rows, regions, reduced, margin, decoded, drawn, numbers, norm, outs, message):
        work, pixels, room = np.empty(0, np.uint8), np.empty(0, np.uint8), no_room()
        by_channel = address_of(norm[0]), address_of(norm[1])
        failed, reason = np.int64(-1), np.int64(0)
        decoder = open_decoder()
        if decoder == 0:
            return np.int64(0), np.int64(NO_DECODER)
        for k in range(rows.size):
            row, by = rows[k], reduced[k]
            height, width = np.int64(files.shapes[row, 0]), np.int64(files.shapes[row, 1])
            image, origin = decoded[k], (np.int64(0), np.int64(0))
            if image == 0:
                orientation = np.int64(files.cuts[row, 5])
                region = regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]
                length, part, room = cut_sample(files, row, region, margin, room)
                if length < 0:
                    failed, reason = np.int64(k), length
                    break
                own_height, own_width = stored_sides(height, width, orientation)
                height, width = (part[2] + by - 1) // by, (part[3] + by - 1) // by
                if 3 * height * width + 64 > pixels.size:
                    pixels = np.empty(3 * height * width + 64, np.uint8)
                image = address_of(pixels)
                done, room = decode_upright(decoder, length, height, width, orientation, image, room)
                if not done:
                    copy_reason(decoder, message)
                    failed, reason = np.int64(k), np.int64(NOT_DECODED)
                    break
                # Of a picture decoded smaller the last row and column stand for whole ones, and come first once turned.
                there = part[0], part[1], part[0] + height * by, part[1] + width * by
                there = upright_region(there, own_height, own_width, orientation)
                origin = there[0], there[1]
                if orientation >= 5:
                    height, width = width, height
            needed = work_bytes(recipe, numbers, (height, width))
            if needed > work.size:
                work = np.empty(needed, np.uint8)
            strides = (3 * height * width, 3 * width, np.int64(3), np.int64(1))
            for view in range(outs.size):
                augment_one(
                    recipe,
                    numbers,
                    by_channel,
                    image,
                    np.int64(0),
                    strides,
                    (height, width),
                    _drawn_of(drawn, view, k, origin, by),
                    address_of(work),
                    outs[view],
                    np.int64(k),
                )
        close_decoder(decoder)
        if recipe.streamed:
            store_fence()
        if work.size + pixels.size + room_bytes(room) + norm[0].size < 0:
            return np.int64(-1), np.int64(0)  # never: what is passed by its address must be held until here
        return failed, reason

    return njit(nogil=True, fastmath=LOOSE)(augment_encoded)
