"""Philox4x32-10, the counter-based generator behind order and augmentation.

Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; checked in the tests against
the known answers that Random123 publishes. All arithmetic is in uint64 with masks: NumPy's simulator scalars
multiply uint32 by uint32 in 32 bits where compiled code widens, and a signed operand would make Numba use float64.
"""

import numpy as np
from numba.extending import register_jitable

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
MASK32 = np.uint64(0xFFFFFFFF)
SHIFT32 = np.uint64(32)
_UNIT = 2.0**-24


@register_jitable
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Return the four 32-bit words, as uint64, at counter (c0, c1, c2, c3) under key (k0, k1), all uint64 < 2^32."""
    for _ in range(10):
        product0 = _M0 * c0
        product1 = _M1 * c2
        c0, c1, c2, c3 = (
            (product1 >> SHIFT32) ^ c1 ^ k0,
            product1 & MASK32,
            (product0 >> SHIFT32) ^ c3 ^ k1,
            product0 & MASK32,
        )
        k0 = (k0 + _W0) & MASK32
        k1 = (k1 + _W1) & MASK32
    return c0, c1, c2, c3


@register_jitable
def bounded(word, n):
    """Map a word to an integer in 0…n-1: (word · n) >> 32. `n` is uint64 < 2^32."""
    return np.int64((word * n) >> SHIFT32)


@register_jitable
def unit_interval(word):
    """Map a word to a float64 in [0, 1) with 24 random bits: (word >> 8) · 2^-24."""
    return np.float64(word >> np.uint64(8)) * _UNIT
