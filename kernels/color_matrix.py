"""Brightness, contrast, saturation and hue as one map of colours: `v' = M·v + t`, one M and t a sample."""

import math

import numpy as np

from .inlining import exact

RED, GREEN, BLUE = 0.299, 0.587, 0.114
"""How much of a colour is grey (ITU-R BT.601)."""

# RGB → (I, Q), two axes at right angles to Y of YIQ, and the way back. The rows of TO_IQ sum to 0, so that grey has
# neither and a turn leaves it as it is.
_TO_YIQ = np.array([[RED, GREEN, BLUE], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
I_RED, I_GREEN, I_BLUE = (float(x) for x in _TO_YIQ[1])
Q_RED, Q_GREEN, Q_BLUE = (float(x) for x in _TO_YIQ[2])
RED_I, GREEN_I, BLUE_I = (float(x) for x in _FROM_YIQ[:, 1])
RED_Q, GREEN_Q, BLUE_Q = (float(x) for x in _FROM_YIQ[:, 2])


@exact
def turned(hue):
    """Return the cosine and the sine, float64, of -0.5 … 0.5 turns: the series for a quarter of them, doubled twice.

    The library's functions keep an array for angles of any size, on a GPU in memory, whether there are any or not.
    """
    angle = 0.5 * math.pi * np.float64(hue)
    square, cosine, sine = angle * angle, 1.0, 1.0
    for k in range(16, 0, -2):
        sine = 1.0 - sine * square / np.float64(k * (k + 1))
        cosine = 1.0 - cosine * square / np.float64(k * (k - 1))
    sine *= angle
    for _ in range(2):
        cosine, sine = 1.0 - 2.0 * sine * sine, 2.0 * sine * cosine
    return cosine, sine


@exact
def hue_row(cosine, sine, from_i, from_q):
    """Return a row of the matrix that turns colours, less the part of Y that each row has alike; red goes to yellow."""
    i, q = from_i * cosine - from_q * sine, from_q * cosine + from_i * sine
    return i * I_RED + q * Q_RED, i * I_GREEN + q * Q_GREEN, i * I_BLUE + q * Q_BLUE


@exact
def color_row(factor, saturation, cosine, sine, from_i, from_q):
    """Return a channel's row of M, float32, all times `factor`, brightness · contrast.

    Of a colour v, saturation leaves Y and stretches (I, Q); hue turns (I, Q): so both are Y + s·turn(I, Q).
    """
    red, green, blue = hue_row(cosine, sine, from_i, from_q)
    return (
        np.float32(factor * (RED + saturation * red)),
        np.float32(factor * (GREEN + saturation * green)),
        np.float32(factor * (BLUE + saturation * blue)),
    )


@exact
def color_matrix(brightness, contrast, saturation, hue):
    """Return M's nine elements, row by row, float32; brightness first, then contrast, saturation, hue."""
    factor = np.float64(brightness) * np.float64(contrast)
    (cosine, sine), s = turned(hue), np.float64(saturation)
    return (
        *color_row(factor, s, cosine, sine, RED_I, RED_Q),
        *color_row(factor, s, cosine, sine, GREEN_I, GREEN_Q),
        *color_row(factor, s, cosine, sine, BLUE_I, BLUE_Q),
    )


@exact
def color_shift(brightness, contrast, grey_mean):
    """Return t, float32: what contrast adds to all channels, of the mean of the grey image before all steps."""
    return np.float32(np.float64(brightness) * (1.0 - np.float64(contrast)) * np.float64(grey_mean))
