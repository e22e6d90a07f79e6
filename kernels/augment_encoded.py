"""The fused augmentation on one CPU thread, out of JPEG files: cut, decoded, resized and finished, one after the other.

All that a sample needs lies in the processor's cache until its pixels are done.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from .augment_cpu import augment_cut, augment_resized, draw_sample, work_bytes
from .compiling import njit
from .constant_recipe import ConstantRecipe
from .cpu_memory import address_of, get_byte, set_byte
from .inlining import LOOSE, exact, loose
from .intrinsics import store_fence
from .jpeg_cut import cut_file, cut_margin, stored_region, stored_sides, upright_region
from .recipe import Recipe, draw_place, moved
from .turbojpeg import close_decoder, copy_reason, decode_jpeg, open_decoder

NOT_DECODED, NO_DECODER = -3, -4
"""Why a batch was not made, beside `jpeg_cut`'s reasons."""

_BEHIND = 8192
"""Bytes behind a file that the decoder may look at: it is slower where a file's last bytes are the last there are."""


@exact
def part_of_image(recipe, numbers, place, height, width):
    """Return the region of an image of height × width pixels that the crop at `place` is made of."""
    top, left = place[0], place[1]
    if recipe.resample:
        return top, left, top + place[2], left + place[3]
    bottom, right = top + numbers.height, left + numbers.width
    if top >= 0 and left >= 0 and bottom <= height and right <= width:
        return top, left, bottom, right
    return np.int64(0), np.int64(0), height, width  # what is added at its edges is made of its own pixels


@exact
def reduction(recipe, numbers, place):
    """Return by how much an image can be decoded smaller, 1, 2, 4 or 8, with a crop no smaller than the output."""
    if recipe.resample == 0:
        return np.int64(1)
    down, right = place[2] // max(place[4], 1), place[3] // max(place[5], 1)
    least = min(down, right)
    return np.int64(8) if least >= 8 else np.int64(4) if least >= 4 else np.int64(2) if least >= 2 else np.int64(1)


@exact
def reduced_place(place, by):
    """Return the `Place` of a crop in an image whose pixels are `by` times as large: to the nearest of them."""
    top, left = (place[0] + by // 2) // by, (place[1] + by // 2) // by
    bottom, right = (place[0] + place[2] + by // 2) // by, (place[1] + place[3] + by // 2) // by
    return top, left, max(bottom - top, 1), max(right - left, 1), place[4], place[5], place[6], place[7]


@loose
def turn_upright(source, height, width, orientation, target):
    """Write an image of uint8 [height, width, 3] at address `source` upright to address `target`."""
    for y in range(height):
        for x in range(width):
            top, left, _, _ = upright_region((y, x, y + 1, x + 1), height, width, orientation)
            row = height if orientation >= 5 else width
            for c in range(3):
                set_byte(target, (top * row + left) * 3 + c, get_byte(source, (y * width + x) * 3 + c))


@cache
def encoded_kernel(recipe: Recipe, reduced: bool) -> Callable[..., Any]:
    """Return the function that makes a batch of JPEG files, compiled for a recipe.

    It returns the first `k` that cannot be made and why, or (-1, 0). `turbojpeg.load` comes before it is called.

    Arguments:
        recipe: of three channels.
        reduced: whether files are decoded at 1/2, 1/4 or 1/8 where the crop is at least that much larger.

    Arguments of the function:
        files: `JpegFiles`.
        rows: int64 [b], which samples.
        decoded: int64 [b], addresses of images that are decoded already, uint8 [H, W, 3]; 0 for files to be cut.
        ids: int64 [b], of the samples.
        epochs: int64 [b], of the samples.
        seed: of the random parameters, uint64.
        streams: uint64 [v], of each view.
        numbers: `Numbers`.
        norm: (means, scales) for BY_CHANNEL, float32 [3], on values 0…255.
        outs: int64 [v], addresses of each view's batch, [b, h·w·3] of the recipe's kind; filled.
        message: uint8 [n], filled with the decoder's reason.
    """

    recipe = ConstantRecipe(*recipe)
    augment_one = augment_resized if recipe.resample else augment_cut
    margin = cut_margin(reduced)

    def augment_encoded(files, rows, decoded, ids, epochs, seed, streams, numbers, norm, outs, message):
        work, pixels, turned = np.empty(0, np.uint8), np.empty(0, np.uint8), np.empty(0, np.uint8)
        source, cut = np.empty(0, np.uint8), np.empty(0, np.uint8)
        entries = np.empty(0, np.int32)
        by_channel = address_of(norm[0]), address_of(norm[1])
        failed, reason = np.int64(-1), np.int64(0)
        decoder = open_decoder()
        if decoder == 0:
            return np.int64(0), np.int64(NO_DECODER)
        for k in range(rows.size):
            row = rows[k]
            height, width = np.int64(files.shapes[row, 0]), np.int64(files.shapes[row, 1])
            sample, epoch = np.uint64(ids[k]), np.uint64(epochs[k])
            image, begin, start, by = decoded[k], np.int64(0), np.int64(0), np.int64(1)
            part_height, part_width = height, width
            if image == 0:
                by = np.int64(8)
                top, left, bottom, right = height, width, np.int64(0), np.int64(0)
                for stream in streams:
                    place = draw_place(recipe, numbers, sample, epoch, seed, stream, height, width)
                    part = part_of_image(recipe, numbers, place, height, width)
                    top, left = min(top, part[0]), min(left, part[1])
                    bottom, right = max(bottom, part[2]), max(right, part[3])
                    by = min(by, reduction(recipe, numbers, place)) if reduced else np.int64(1)
                size = files.offsets[row + 1] - files.offsets[row]
                if size + _BEHIND > source.size:
                    source, cut = np.empty(size + _BEHIND, np.uint8), np.zeros(size + _BEHIND, np.uint8)
                count = files.index_offsets[row + 1] - files.index_offsets[row]
                if count > entries.size:
                    entries = np.empty(count, np.int32)
                orientation = np.int64(files.cuts[row, 5])
                own_height, own_width = stored_sides(height, width, orientation)
                region = stored_region((top, left, bottom, right), own_height, own_width, orientation)
                length, there = cut_file(
                    files,
                    row,
                    own_height,
                    own_width,
                    region,
                    margin,
                    address_of(entries),
                    address_of(source),
                    address_of(cut),
                )
                if length < 0:
                    failed, reason = np.int64(k), length
                    break
                rows_there, columns_there = (there[2] + by - 1) // by, (there[3] + by - 1) // by
                if 3 * rows_there * columns_there + 64 > pixels.size:
                    pixels = np.empty(3 * rows_there * columns_there + 64, np.uint8)
                image = address_of(pixels)
                if not decode_jpeg(decoder, address_of(cut), length + _BEHIND, rows_there, columns_there, image):
                    copy_reason(decoder, message)
                    failed, reason = np.int64(k), np.int64(NOT_DECODED)
                    break
                up = upright_region(
                    (there[0], there[1], there[0] + there[2], there[1] + there[3]), own_height, own_width, orientation
                )
                begin, start = up[0], up[1]
                part_height, part_width = rows_there, columns_there
                if orientation != 1:
                    if pixels.size > turned.size:
                        turned = np.empty(pixels.size, np.uint8)
                    turn_upright(image, rows_there, columns_there, orientation, address_of(turned))
                    image = address_of(turned)
                    if orientation >= 5:
                        part_height, part_width = columns_there, rows_there
            needed = work_bytes(recipe, numbers, (part_height, part_width))
            if needed > work.size:
                work = np.empty(needed, np.uint8)
            strides = (3 * part_height * part_width, 3 * part_width, np.int64(3), np.int64(1))
            for view in range(streams.size):
                place, flip, color, erased = draw_sample(
                    recipe, numbers, sample, epoch, seed, streams[view], height, width
                )
                place = moved(place, begin, start)
                if reduced and by > 1:
                    place = reduced_place(place, by)
                augment_one(
                    recipe,
                    numbers,
                    by_channel,
                    image,
                    np.int64(0),
                    strides,
                    (part_height, part_width),
                    (place, flip, color, erased),
                    address_of(work),
                    outs[view],
                    np.int64(k),
                )
        close_decoder(decoder)
        if recipe.streamed:
            store_fence()
        if work.size + pixels.size + turned.size + source.size + cut.size + entries.size + norm[0].size < 0:
            return np.int64(-1), np.int64(0)  # never: what is passed by its address must be held until here
        return failed, reason

    return njit(nogil=True, fastmath=LOOSE)(augment_encoded)
