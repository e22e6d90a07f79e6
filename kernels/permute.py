"""Position → row: a keyed bijection on 0…n-1 that can be evaluated anywhere in O(1) memory.

A balanced Feistel network of 8 rounds over the least even number of bits that holds n, walked in cycles until the
result is below n (Black and Rogaway: "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The expected number of
walks is below 4. docs/determinism.md has the definition and test vectors.
"""

import numpy as np
from numba.extending import register_jitable

from .compiling import njit
from .philox import MASK32, SHIFT32, philox4x32

# The last counter word is phase · 16 + one of these; blocks 0 and 1 of it are the augmentation's.
STREAM_ROWS, STREAM_BLOCKS, STREAM_WINDOW = 15, 14, 13
SEQUENTIAL, SHUFFLED, BLOCKS, BLOCK_NUMBERS = 0, 1, 2, 3

_ONE = np.uint64(1)
_F1, _F2 = np.uint64(0x85EBCA6B), np.uint64(0xC2B2AE35)
_S13, _S16 = np.uint64(13), np.uint64(16)


@register_jitable
def fmix32(h):
    """MurmurHash3's 32-bit finalizer on a uint64 < 2^32."""
    h ^= h >> _S16
    h = (h * _F1) & MASK32
    h ^= h >> _S13
    h = (h * _F2) & MASK32
    return h ^ (h >> _S16)


@register_jitable
def round_keys(seed, second, epoch, last, keys):
    """Fill `keys`, uint64 [8], with Philox's words at counters (j, second, epoch, last), j = 0, 1."""
    low, high = seed & MASK32, seed >> SHIFT32
    for j in range(2):
        a, b, c, d = philox4x32(np.uint64(j), second, epoch, last, low, high)
        keys[4 * j] = a
        keys[4 * j + 1] = b
        keys[4 * j + 2] = c
        keys[4 * j + 3] = d


@register_jitable
def half_bits(n):
    """Return h = b / 2, b the least even number ≥ 2 with 2^b ≥ n (n uint64)."""
    h = np.uint64(1)
    while h < np.uint64(31) and (_ONE << (h + h)) < n:
        h += _ONE
    return h


@register_jitable
def permute(offset, n, half, keys):
    """Return the image of `offset` under the bijection on 0…n-1; all uint64."""
    mask = (_ONE << half) - _ONE
    value = offset
    while True:
        left, right = value >> half, value & mask
        for r in range(8):
            left, right = right, left ^ (fmix32(right ^ keys[r]) & mask)
        value = (left << half) | right
        if value < n:
            return value


@register_jitable
def unpermute(value, n, half, keys):
    """Return the offset that `permute` sends to `value`."""
    mask = (_ONE << half) - _ONE
    while True:
        left, right = value >> half, value & mask
        for r in range(7, -1, -1):
            left, right = right ^ (fmix32(left ^ keys[r]) & mask), left
        value = (left << half) | right
        if value < n:
            return value


@register_jitable
def locate_in_blocks(offset, n, block, window, seed, epoch, phase, keys, window_keys):
    """Return the row at `offset` of an epoch of `shuffle="block"`.

    Blocks of `block` rows come in permuted order (`keys`); each run of `window` blocks in that order is a window,
    whose rows are permuted among themselves. Only the file's last block can be short; it keeps its length at its
    permuted place, so all windows but one have the same size.
    """
    blocks = (n + block - _ONE) // block
    short = n - (blocks - _ONE) * block
    half = half_bits(blocks)
    place = unpermute(blocks - _ONE, blocks, half, keys)  # where the short block stands
    missing = block - short
    span = window * block
    short_window = place // window
    # Windows after the short one start `missing` rows earlier than they would otherwise.
    number = offset // span
    if number >= short_window:
        number = max(short_window, (offset + missing) // span)
    start = number * span
    if number > short_window:
        start -= missing
    first = number * window
    last = min(first + window, blocks)
    size = (last - first) * block
    if number == short_window:
        size -= missing
    round_keys(seed, number, epoch, phase * np.uint64(16) + np.uint64(STREAM_WINDOW), window_keys)
    inner = permute(offset - start, size, half_bits(size), window_keys)
    which = first + inner // block
    within = inner % block
    if number == short_window:
        edge = (place - first) * block
        if inner >= edge + short:
            which = first + (inner + missing) // block
            within = (inner + missing) % block
    return permute(which, blocks, half, keys) * block + within


WALKERS = 256
"""Offsets that walk through the network together: few enough for the first-level cache, enough for vectors."""


@register_jitable
def _fmix32_narrow(h):
    """`fmix32` in uint32, which vectorizes; each product is narrowed, since Numba widens it. CPU only."""
    h = np.uint32(h ^ (h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x85EBCA6B))
    h = np.uint32(h ^ (h >> np.uint32(13)))
    h = np.uint32(h * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@register_jitable
def _walk(pending, n, half, keys, rows, left, right, place):
    """Fill `rows` at `place` with the images of `pending` offsets below n ≤ 2^32, whose halves stand in left and right.

    They take each round together, a vector at a time; those that have to walk on are packed.
    """
    mask = np.uint32((_ONE << half) - _ONE)
    while pending:
        for r in range(0, 8, 2):  # two rounds bring the halves back to their places
            even, odd = np.uint32(keys[r]), np.uint32(keys[r + 1])
            for k in range(pending):
                left[k] ^= _fmix32_narrow(right[k] ^ even) & mask
            for k in range(pending):
                right[k] ^= _fmix32_narrow(left[k] ^ odd) & mask
        again = 0
        for k in range(pending):
            a, b, at = left[k], right[k], place[k]
            value = (np.uint64(a) << half) | np.uint64(b)
            rows[at] = np.int64(value)
            left[again], right[again], place[again] = a, b, at
            again += value >= n
        pending = again


@register_jitable
def _permute_run(first, n, half, keys, rows, left, right, place):
    """Fill `rows` with the images of the offsets first, first + 1, …, all below n ≤ 2^32; scratch: [WALKERS]."""
    mask = np.uint32((_ONE << half) - _ONE)
    for begin in range(0, rows.size, WALKERS):
        pending = min(WALKERS, rows.size - begin)
        for k in range(pending):
            offset = first + np.uint64(begin + k)
            left[k] = np.uint32(offset >> half)
            right[k] = np.uint32(offset) & mask
            place[k] = begin + k
        _walk(pending, n, half, keys, rows, left, right, place)


@register_jitable
def permute_all(offsets, n, half, keys, rows, left, right, place):
    """Fill `rows` with the images of `offsets`, uint64 [b], all below n ≤ 2^32; scratch: [WALKERS]."""
    mask = np.uint32((_ONE << half) - _ONE)
    for begin in range(0, offsets.size, WALKERS):
        pending = min(WALKERS, offsets.size - begin)
        for k in range(pending):
            offset = offsets[begin + k]
            left[k] = np.uint32(offset >> half)
            right[k] = np.uint32(offset) & mask
            place[k] = begin + k
        _walk(pending, n, half, keys, rows, left, right, place)


@njit(nogil=True)
def rows_at(start, n, seed, phase, mode, block, window, rows, epochs):
    """Fill int64 `rows` and `epochs` for the positions start, start + 1, … of an endless stream over n rows.

    With BLOCK_NUMBERS, n is the number of blocks, and `rows` are the blocks that BLOCKS takes one after the other.

    Bound by arithmetic: 4 to 12 ns a row shuffled (AMD EPYC, one thread), as up to four walks are needed.
    Arguments but the outputs and `mode` are uint64.
    """
    keys = np.zeros(8, np.uint64)
    window_keys = np.zeros(8, np.uint64)
    half = half_bits(n)
    left, right, place = np.empty(WALKERS, np.uint32), np.empty(WALKERS, np.uint32), np.empty(WALKERS, np.int64)
    done = 0
    while done < rows.size:  # what is left of an epoch at a time
        position = start + np.uint64(done)
        epoch = position // n
        offset = position - epoch * n
        count = np.int64(min(np.uint64(rows.size - done), n - offset))
        epochs[done : done + count] = np.int64(epoch)
        if mode != SEQUENTIAL:
            stream = STREAM_ROWS if mode == SHUFFLED else STREAM_BLOCKS
            round_keys(seed, np.uint64(0), epoch & MASK32, phase * np.uint64(16) + np.uint64(stream), keys)
        if mode in (SHUFFLED, BLOCK_NUMBERS) and half <= _S16:
            _permute_run(offset, n, half, keys, rows[done : done + count], left, right, place)
        else:
            for i in range(count):
                row = offset + np.uint64(i)
                if mode in (SHUFFLED, BLOCK_NUMBERS):
                    row = permute(row, n, half, keys)
                elif mode == BLOCKS:
                    row = locate_in_blocks(row, n, block, window, seed, epoch & MASK32, phase, keys, window_keys)
                rows[done + i] = np.int64(row)
        done += count


@njit(nogil=True)
def rows_of(positions, n, seed, phase, mode, block, window, rows, epochs):
    """Fill `rows` and `epochs` for positions in any order, int64 [b]; see `rows_at`, for those that follow each other.

    Fastest where neighbours are of the same epoch. Not for BLOCK_NUMBERS.
    """
    keys = np.zeros(8, np.uint64)
    window_keys = np.zeros(8, np.uint64)
    half = half_bits(n)
    stream = phase * np.uint64(16) + np.uint64(STREAM_ROWS if mode == SHUFFLED else STREAM_BLOCKS)
    keyed = np.uint64(0)
    for k in range(positions.size):
        position = np.uint64(positions[k])
        epoch = position // n
        row = position - epoch * n
        if mode != SEQUENTIAL and (k == 0 or epoch != keyed):
            round_keys(seed, np.uint64(0), epoch & MASK32, stream, keys)
            keyed = epoch
        if mode == SHUFFLED:
            row = permute(row, n, half, keys)
        elif mode == BLOCKS:
            row = locate_in_blocks(row, n, block, window, seed, epoch & MASK32, phase, keys, window_keys)
        rows[k], epochs[k] = np.int64(row), np.int64(epoch)
