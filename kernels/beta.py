"""Quantiles of the symmetric Beta distribution, which MixUp and CutMix draw from."""

import math

from .compiling import njit
from .inlining import exact

_HALVINGS = 32
_MOST_TERMS = 300


@exact
def beta_share(alpha, x):
    """Return the probability of at most `x` under Beta(alpha, alpha), for x up to 1/2: its continued fraction.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.5.8, by Lentz's method.
    """
    if x <= 0.0:
        return 0.0
    front = math.exp(math.lgamma(2.0 * alpha) - 2.0 * math.lgamma(alpha) + alpha * (math.log(x) + math.log1p(-x)))
    tiny = 1e-300
    c, d = 1.0, 1.0 - 2.0 * alpha * x / (alpha + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    total = d
    for m in range(1, _MOST_TERMS):
        even = m * (alpha - m) * x / ((alpha + 2 * m - 1.0) * (alpha + 2 * m))
        odd = -(alpha + m) * (2.0 * alpha + m) * x / ((alpha + 2 * m) * (alpha + 2 * m + 1.0))
        for term in (even, odd):
            d, c = 1.0 + term * d, 1.0 + term / c
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            step = c * d
            total *= step
        if abs(step - 1.0) < 1e-15:
            break
    return front * total / alpha


@njit(nogil=True)
def beta_quantiles(alpha, probabilities, out):
    """Fill `out` with the quantiles of Beta(alpha, alpha) at `probabilities` in 0…1; both float64 [b]."""
    for i in range(probabilities.size):
        upper = probabilities[i] > 0.5
        wanted = 1.0 - probabilities[i] if upper else probabilities[i]
        low, high = 0.0, 0.5
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            if beta_share(alpha, middle) < wanted:
                low = middle
            else:
                high = middle
        out[i] = 1.0 - high if upper else high
