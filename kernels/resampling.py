"""Antialiased bilinear resizing in whole numbers, the same on every processor: which pixels, and with which weights.

The filter is Pillow's and torchvision's: a triangle as wide as the scale, at least one pixel, cut off at the edges of
what is resized. As in Pillow an image is resized across and down one after the other, and rounded after each. Weights
have 16 bits and sum to 2^16; products are cut to 1/256 of a level, half of which is added back for each pixel under
the triangle.
"""

import math

import numpy as np

from .inlining import exact

ONE = 65536
MOST = 65535


@exact
def window(index, side, size):
    """Return (first, end, centre, 1 / radius) of the source pixels under the triangle of pixel `index` of `size`."""
    return window_within(index, side, size, 0.0, np.float64(side))


@exact
def window_within(index, side, size, begin, length):
    """Return the same where what is resized to `size` begins at `begin` and is `length` long, fractions of pixels."""
    scale = length / np.float64(size)
    radius = max(scale, 1.0)
    centre = begin + (np.float64(index) + 0.5) * scale
    first = np.int64(max(centre - radius + 0.5, 0.0))
    end = np.int64(min(centre + radius + 0.5, np.float64(side)))
    return first, max(end, first + 1), centre, 1.0 / radius


@exact
def tap_height(place, centre, inverse):
    """Return the triangle's height over source pixel `place`."""
    return max(0.0, 1.0 - abs(np.float64(place) + 0.5 - centre) * inverse)


@exact
def most_taps(side, size):
    """Return how many pixels lie under a triangle at most."""
    return np.int64(math.ceil(2.0 * max(np.float64(side) / np.float64(size), 1.0))) + 1


@exact
def rounding(side, size):
    """Return what is added to a sum of cut products before its lower eight bits are dropped: half, and what was cut."""
    return np.int64(128) + np.int64(max(np.float64(side) / np.float64(size), 1.0))


@exact
def resized_side(side, short, resize):
    """Return a side, rounded half up, of an image whose shorter side `short` is brought to `resize`."""
    return (2 * side * resize + short) // (2 * short)


@exact
def is_down_first(rows, to_rows, columns, to_columns):
    """Return whether rows x columns pixels are resized down before they are resized across, as by Pillow 13."""
    return rows > to_rows and rows - to_rows > 2 * (columns - to_columns)
