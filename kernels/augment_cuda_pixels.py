"""How a thread of the CUDA augmentation reads, augments and stores an item: four neighbouring pixels, or one."""

import numpy as np

from .augment import FLOAT16, FLOAT32, bfloat16_bits
from .augment_plan import PIXEL, PLANES, RGB
from .cuda_memory import load_byte, load_word, round_to_half, store_four, store_short, store_two, store_word
from .inlining import exact


@exact
def _unaligned(address):
    """Return the word at any address. An aligned word that holds a byte of ours can be read whole."""
    place = address & ~np.int64(3)
    shift = np.uint64((address & 3) * 8)
    low, high = np.uint64(load_word(place)), np.uint64(0)
    if shift > np.uint64(0):
        high = np.uint64(load_word(place + 4))
    return np.uint32((((high << np.uint64(32)) | low) >> shift) & np.uint64(0xFFFFFFFF))


@exact
def _three_words(address):
    """Return the three words at any address, from at most four loads."""
    place = address & ~np.int64(3)
    shift, up = np.uint64((address & 3) * 8), np.uint64(32)
    w0, w1, w2 = np.uint64(load_word(place)), np.uint64(load_word(place + 4)), np.uint64(load_word(place + 8))
    w3 = np.uint64(0)
    if shift > np.uint64(0):
        w3 = np.uint64(load_word(place + 12))
    mask = np.uint64(0xFFFFFFFF)
    return (
        np.uint32((((w1 << up) | w0) >> shift) & mask),
        np.uint32((((w2 << up) | w1) >> shift) & mask),
        np.uint32((((w3 << up) | w2) >> shift) & mask),
    )


@exact
def _four_bytes(a, b, c, d, shift_a, shift_b, shift_c, shift_d):
    """Return the word of one byte each of four words, each word shifted right first."""
    mask = np.uint32(0xFF)
    low = np.uint32(((a >> np.uint32(shift_a)) & mask) | (((b >> np.uint32(shift_b)) & mask) << np.uint32(8)))
    high = np.uint32(((c >> np.uint32(shift_c)) & mask) | (((d >> np.uint32(shift_d)) & mask) << np.uint32(8)))
    return np.uint32(low | np.uint32(high << np.uint32(16)))


@exact
def read_item(address, across, channels, read, flip):
    """Return a word a channel of uint8 pixels, the output's first in the lowest byte: four of them or (PIXEL) one."""
    a, b, c, d = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    if read == RGB:
        x, y, z = _three_words(address)
        a = _four_bytes(x, x, y, z, 0, 24, 16, 8)
        b = _four_bytes(x, y, y, z, 8, 0, 24, 16)
        c = _four_bytes(x, y, z, z, 16, 8, 0, 24)
    elif read == PLANES:
        a = _unaligned(address)
        if channels > 1:
            b = _unaligned(address + across)
        if channels > 2:
            c = _unaligned(address + 2 * across)
        if channels > 3:
            d = _unaligned(address + 3 * across)
    else:
        a = load_byte(address)
        if channels > 1:
            b = load_byte(address + across)
        if channels > 2:
            c = load_byte(address + 2 * across)
        if channels > 3:
            d = load_byte(address + 3 * across)
    if flip and read != PIXEL:
        a = _four_bytes(a, a, a, a, 24, 16, 8, 0)
        b = _four_bytes(b, b, b, b, 24, 16, 8, 0)
        c = _four_bytes(c, c, c, c, 24, 16, 8, 0)
        d = _four_bytes(d, d, d, d, 24, 16, 8, 0)
    return a, b, c, d


@exact
def byte_sum(word):
    pairs = np.uint32((word & np.uint32(0x00FF00FF)) + ((word >> np.uint32(8)) & np.uint32(0x00FF00FF)))
    return np.uint32((pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16)))


@exact
def _augmented(word, lane, contrast, offset, low, high):
    """Return the augmented value of byte `lane` of a word. 2^23 + byte is a float32 by its bits: no conversion."""
    byte = np.uint32((word >> np.uint32(8 * lane)) & np.uint32(0xFF))
    value = np.uint32(byte | np.uint32(0x4B000000)).view(np.float32) - np.float32(8388608)
    return min(max(np.float32(value * contrast + offset), low), high)


@exact
def item_moments(word, read, contrast, offset, low, high, middle):
    """Return the sums of v - middle and of its square over the pixels of a channel's word, float32."""
    first = _augmented(word, 0, contrast, offset, low, high) - middle
    total, squares = first, first * first
    if read != PIXEL:
        for lane in (1, 2, 3):
            away = _augmented(word, lane, contrast, offset, low, high) - middle
            total += away
            squares += away * away
    return total, squares


@exact
def _bits(value, kind):
    if kind == FLOAT32:
        return np.uint32(np.float32(value).view(np.uint32))
    if kind == FLOAT16:
        return np.uint32(round_to_half(np.float32(value)))
    return np.uint32(bfloat16_bits(value))


@exact
def _store_values(address, a, b, c, d, kind):
    """Store four neighbours with one instruction: 16 bytes of float32, or 8."""
    p, q, r, s = _bits(a, kind), _bits(b, kind), _bits(c, kind), _bits(d, kind)
    if kind == FLOAT32:
        store_four(address, p, q, r, s)
    else:
        store_two(address, np.uint32(p | np.uint32(q << np.uint32(16))), np.uint32(r | np.uint32(s << np.uint32(16))))


@exact
def _standardized(word, lane, contrast, offset, low, high, mean, scale):
    return np.float32(_augmented(word, lane, contrast, offset, low, high) - mean) * scale


@exact
def store_plane(address, word, read, contrast, offset, low, high, mean, scale, kind):
    """Store the pixels of a channel's word as neighbours."""
    a = _standardized(word, 0, contrast, offset, low, high, mean, scale)
    if read == PIXEL:
        if kind == FLOAT32:
            store_word(address, _bits(a, kind))
        else:
            store_short(address, np.uint16(_bits(a, kind)))
        return
    b = _standardized(word, 1, contrast, offset, low, high, mean, scale)
    c = _standardized(word, 2, contrast, offset, low, high, mean, scale)
    d = _standardized(word, 3, contrast, offset, low, high, mean, scale)
    _store_values(address, a, b, c, d, kind)


@exact
def store_interleaved(address, a, b, c, contrast, o0, o1, o2, low, high, mean, scale, step, kind):
    """Store four pixels of three channels as neighbours: three stores, `step` bytes apart."""
    r0 = _standardized(a, 0, contrast, o0, low, high, mean, scale)
    g0 = _standardized(b, 0, contrast, o1, low, high, mean, scale)
    b0 = _standardized(c, 0, contrast, o2, low, high, mean, scale)
    r1 = _standardized(a, 1, contrast, o0, low, high, mean, scale)
    _store_values(address, r0, g0, b0, r1, kind)
    g1 = _standardized(b, 1, contrast, o1, low, high, mean, scale)
    b1 = _standardized(c, 1, contrast, o2, low, high, mean, scale)
    r2 = _standardized(a, 2, contrast, o0, low, high, mean, scale)
    g2 = _standardized(b, 2, contrast, o1, low, high, mean, scale)
    _store_values(address + step, g1, b1, r2, g2, kind)
    b2 = _standardized(c, 2, contrast, o2, low, high, mean, scale)
    r3 = _standardized(a, 3, contrast, o0, low, high, mean, scale)
    g3 = _standardized(b, 3, contrast, o1, low, high, mean, scale)
    b3 = _standardized(c, 3, contrast, o2, low, high, mean, scale)
    _store_values(address + 2 * step, b2, r3, g3, b3, kind)
