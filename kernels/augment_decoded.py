"""All of the augmentation's steps, on one CPU thread, for images that another library decoded.

`resize_crop` makes a crop of an image, `finish_batch` flips, recolours, standardizes and stores crops, `finish_decoded`
does both; the parameters are given, not drawn.
"""

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .augment import Draws, Settings
from .augment_cpu_pixels import augment_one, work_space
from .compiling import njit
from .inlining import LOOSE


@njit(nogil=True, fastmath=LOOSE)
def finish_batch(crops, shape, flip, brightness, contrast, clamp, standardize, out, channels_last, kind):
    """Finish a batch of crops.

    Arguments:
        crops: uint8 [b, h · w · c], in NHWC order.
        shape: (h, w, c).
        flip: bool [b].
        brightness: float32 [b].
        contrast: float32 [b].
        clamp: whether values are brought back to 0…255.
        standardize: KEEP, STDDEV or VARIANCE.
        out: float32 [b, h·w·c], or int16 (the bits) for the other kinds; filled.
        channels_last: whether `out` is in NHWC order, not NCHW.
        kind: FLOAT32, FLOAT16 or BFLOAT16.
    """
    height, width, channels = shape
    none = np.float32(0)
    settings = Settings(
        height=np.int64(height),
        width=np.int64(width),
        centre=np.int64(1),
        draws=Draws(flip=0.0, brightness_low=none, brightness_span=none, contrast_low=none, contrast_span=none),
        clamp=np.int64(clamp),
        standardize=np.int64(standardize),
    )
    strides = (np.int64(height * width * channels), np.int64(width * channels), np.int64(channels), np.int64(1))
    work = work_space(settings, channels)
    data = crops.reshape(crops.size)
    for i in range(flip.size):
        drawn = (np.uint64(0), np.uint64(0), flip[i], brightness[i], contrast[i])
        augment_one(
            data, i * strides[0], drawn, strides, channels, settings, work, out, np.uint64(i), channels_last, kind
        )


@njit(nogil=True, fastmath=LOOSE)
def finish_decoded(addresses, places, crop, flip, brightness, contrast, clamp, standardize, out, channels_last, kind):
    """Resize, crop and finish a batch of decoded images, one at a time, so that a crop is finished out of the cache.

    Arguments:
        addresses: int64 [b], of uint8 [H, W, 3] each.
        places: int64 [b, 6]: H, W, the sides that the image is resized to, the crop's top and left.
        crop: (h, w), which must fit in.

    The others are those of `finish_batch`.
    """
    height, width = crop
    pixels = np.empty((height, width, 3), np.uint8)
    for i in range(addresses.size):
        image = carray(_pointer(addresses[i]), (places[i, 0], places[i, 1], 3), np.uint8)
        resize_crop(image, places[i, 2], places[i, 3], places[i, 4], places[i, 5], pixels)
        one = slice(i, i + 1)
        finish_batch(
            pixels.reshape(1, pixels.size),
            pixels.shape,
            flip[one],
            brightness[one],
            contrast[one],
            clamp,
            standardize,
            out[one],
            channels_last,
            kind,
        )


@intrinsic
def _pointer(typing_context, address):
    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@njit(nogil=True, fastmath=LOOSE)
def resize_crop(image, height, width, top, left, crop):
    """Crop at (top, left) of an image resized to height × width, antialiased bilinear, rounded half up.

    Only the crop is computed, row by row, down the columns first: that is the longer way through the image, and the one
    that vectorizes. It takes less than half of the time of DALI's resize_crop_mirror, whose values it gives but for
    rounding.

    Arguments:
        image: uint8 [H, W, 3], contiguous.
        height: that the image is resized to.
        width: that the image is resized to.
        top: of the crop, with top + h ≤ height.
        left: of the crop, with left + w ≤ width.
        crop: uint8 [h, w, 3], which is filled.
    """
    rows, columns, _ = crop.shape
    if image.shape[0] == height and image.shape[1] == width:
        crop[:] = image[top : top + rows, left : left + columns]
        return
    tops, down = _taps(image.shape[0], height, top, rows)
    lefts, across = _taps(image.shape[1], width, left, columns)
    # What the crop needs of the source's columns.
    begin = 3 * lefts[0]
    count = 3 * (lefts[columns - 1] + across.shape[1]) - begin
    values, row_size = image.reshape(image.size), 3 * image.shape[1]
    line = np.empty(count, np.float32)
    for y in range(rows):
        line[:] = 0
        for k in range(down.shape[1]):
            weight = down[y, k]
            if weight != 0:
                first = (tops[y] + k) * row_size + begin
                source = values[first : first + count]
                for x in range(count):
                    line[x] += weight * np.float32(source[x])
        for x in range(columns):
            at = 3 * lefts[x] - begin
            red = green = blue = np.float32(0.5)
            for k in range(across.shape[1]):
                weight = across[x, k]
                red += weight * line[at + 3 * k]
                green += weight * line[at + 3 * k + 1]
                blue += weight * line[at + 3 * k + 2]
            crop[y, x, 0], crop[y, x, 1], crop[y, x, 2] = np.uint8(red), np.uint8(green), np.uint8(blue)


@njit(nogil=True)
def _taps(side, size, first, count):
    """Return the first source pixel of each of `count` pixels from `first` on, and the weights from there on.

    Of a triangle as wide as the scale, at least 1, over a side that is resized to `size`; edges are replicated.
    """
    scale = side / size
    radius = max(scale, 1.0)
    reach = int(2 * radius) + 1
    taps = min(reach, side)
    starts, weights = np.empty(count, np.int64), np.zeros((count, taps), np.float32)
    for i in range(count):
        centre = (first + i + 0.5) * scale - 0.5
        low = int(np.ceil(centre - radius))
        starts[i] = min(max(low, 0), side - taps)
        total = 0.0
        for t in range(low, low + reach):
            total += max(1 - abs(t - centre) / radius, 0.0)
        for t in range(low, low + reach):
            weight = max(1 - abs(t - centre) / radius, 0.0) / total
            weights[i, min(max(t, 0), side - 1) - starts[i]] += np.float32(weight)
    return starts, weights
