"""Write the coded pixels of a JPEG file anew, with restart markers every few MCUs; coefficients stay as they are.

A block's AC codes are copied bit by bit. Its DC code tells the difference from the block before, which a restart sets
to 0: DC codes are written anew, out of tables that have all categories. See ITU-T T.81, F.1.2 (codes), F.2.2 (decoding)
and B.1.1.5 (stuffed bytes).
"""

from typing import Any, NamedTuple

import numpy as np

from .compiling import njit
from .cpu_memory import address_of, get_byte, get_long, set_byte
from .inlining import exact

_PEEK = 10
"""Bits that are looked up at once; longer codes are searched for."""

_MOST_DC, _MOST_AC = 11, 10
"""Categories of 8-bit files: how many bits follow a code."""


class Codes(NamedTuple):
    """Huffman tables, two of DC and two of AC, as `find_codes` fills them.

    Attributes:
        found: int64 [4, 2^_PEEK], by the bits that come: length · 256 + symbol; 0 for longer codes, and for none.
        limits: int64 [4, 17], by length: the first value of 16 bits that is beyond all codes of it.
        places: int64 [4, 17], by length: what makes of a code its symbol's place.
        symbols: uint8 [4, 256].
    """

    found: Any
    limits: Any
    places: Any
    symbols: Any


def empty_codes() -> Codes:
    return Codes(
        np.zeros((4, 1 << _PEEK), np.int64),
        np.zeros((4, 17), np.int64),
        np.zeros((4, 17), np.int64),
        np.zeros((4, 256), np.uint8),
    )


@njit(nogil=True)
def find_codes(counts, symbols, table, codes):
    """Fill one of the tables; return whether it is one: codes that no other begins with.

    Arguments:
        counts: uint8 [16], how many codes there are of each length.
        symbols: uint8 [256], of the codes in order.
        table: which.
        codes: `Codes`, filled.
    """
    code, place = 0, 0
    codes.found[table, :] = 0
    codes.symbols[table, :] = symbols
    for length in range(1, 17):
        codes.places[table, length] = place - code
        for _ in range(counts[length - 1]):
            if length <= _PEEK:
                first = code << (_PEEK - length)
                for k in range(first, min(first + (1 << (_PEEK - length)), 1 << _PEEK)):
                    codes.found[table, k] = length * 256 + symbols[place]
            code, place = code + 1, place + 1
        codes.limits[table, length] = code << (16 - length)
        if code > 1 << length:
            return False
        code <<= 1
    return True


@exact
def _word(data, place):
    """Return four bytes at address `data` + `place`, the first one highest: LLVM makes one load of it."""
    high = (np.uint32(get_byte(data, place)) << np.uint32(24)) | (np.uint32(get_byte(data, place + 1)) << np.uint32(16))
    return high | (np.uint32(get_byte(data, place + 2)) << np.uint32(8)) | np.uint32(get_byte(data, place + 3))


@exact
def _holds_marker(word):
    """Whether one of four bytes is 255."""
    return (~word - np.uint32(0x01010101)) & word & np.uint32(0x80808080) != 0


@exact
def _filled(data, stop, place, bits, count, beyond):
    """Take bytes up to at least 32 bits; beyond a marker zeros are taken, and counted."""
    if place + 4 <= stop:
        word = _word(data, place)
        if not _holds_marker(word):
            return place + 4, (bits << np.uint64(32)) | np.uint64(word), count + 32, beyond
    while count <= 32:
        byte = np.uint64(0)
        if place < stop and get_byte(data, place) != 0xFF:
            byte = np.uint64(get_byte(data, place))
            place += 1
        elif place + 1 < stop and get_byte(data, place + 1) == 0:
            byte = np.uint64(0xFF)
            place += 2
        else:
            beyond += 8
        bits = (bits << np.uint64(8)) | byte
        count += 8
    return place, bits, count, beyond


@exact
def _code(codes, table, bits, count):
    """Return the length and the symbol of the code that comes; (0, 0) for none."""
    window = np.int64((bits >> np.uint64(count - 16)) & np.uint64(0xFFFF))
    entry = get_long(codes.found, (table << _PEEK) + (window >> (16 - _PEEK)))
    if entry:
        return entry >> 8, entry & 255
    for length in range(_PEEK + 1, 17):
        if window < get_long(codes.limits, 17 * table + length):
            place = get_long(codes.places, 17 * table + length) + (window >> (16 - length))
            return np.int64(length), np.int64(get_byte(codes.symbols, 256 * table + (place & 255)))
    return np.int64(0), np.int64(0)


@exact
def _flushed(out, at, bits, count, least):
    """Write whole bytes, and a zero after each of 255, until there are fewer than `least` bits.

    Returns where it goes on, and how many bits are left.
    """
    if count >= 32:
        word = np.uint32((bits >> np.uint64(count - 32)) & np.uint64(0xFFFFFFFF))
        if not _holds_marker(word):
            for k in range(4):
                set_byte(out, at + k, np.uint8((word >> np.uint32(24 - 8 * k)) & np.uint32(0xFF)))
            at += 4
            count -= 32
    while count >= least:
        count -= 8
        byte = np.uint8((bits >> np.uint64(count)) & np.uint64(0xFF))
        set_byte(out, at, byte)
        at += 1
        if byte == 0xFF:
            set_byte(out, at, np.uint8(0))
            at += 1
    return at, count


@exact
def _ended(out, at, bits, count, marker):
    """Fill the last byte with ones and write a marker; return where it goes on."""
    at, count = _flushed(out, at, bits, count, 8)
    if count:
        missing = 8 - count
        bits = (bits << np.uint64(missing)) | np.uint64((1 << missing) - 1)
        at, _ = _flushed(out, at, bits, np.int64(8), 8)
    set_byte(out, at, np.uint8(0xFF))
    set_byte(out, at + 1, marker)
    return at + 2


@exact
def _marker_at(data, stop, place):
    """Return the marker at a place, and where it ends; 0 for none. Bytes of 255 may stand before it."""
    if place >= stop or get_byte(data, place) != 0xFF:
        return np.int64(0), place
    while place < stop and get_byte(data, place) == 0xFF:
        place += 1
    return (np.int64(get_byte(data, place)), place + 1) if place < stop else (np.int64(0), place)


@exact
def _category(value):
    size, value = 0, abs(value)
    while value:
        size, value = size + 1, value >> 1
    return size


@njit(nogil=True)
def add_restarts(data, start, codes, blocks, mcus, old_interval, interval, dc_codes, dc_lengths, out, segments):
    """Write the coded pixels that begin at `start`, up to the end marker; return how many bytes came out.

    Returns -1 where the file is not as it must be: damaged, with several scans, or with codes that no 8-bit file has.

    Arguments:
        data: uint8 [bytes], the file.
        start: of its coded pixels.
        codes: `Codes`: tables 0 and 1 of DC, 2 and 3 of AC.
        blocks: int64 [b, 3], of an MCU: each block's component, its DC table and its AC table (0 or 1).
        mcus: how many there are.
        old_interval: MCUs between the file's own restart markers; 0 where it has none.
        interval: MCUs between the new ones.
        dc_codes: uint64 [2, 12], the new DC codes, by category.
        dc_lengths: int64 [2, 12].
        out: uint8 [bytes], large enough; filled.
        segments: int64 [-(-mcus // interval) + 1], where each segment begins in `out`, and the end; filled.
    """
    stop, place, source, target = np.int64(data.size), np.int64(start), address_of(data), address_of(out)
    tables = Codes(
        *(address_of(codes.found), address_of(codes.limits), address_of(codes.places), address_of(codes.symbols))
    )
    bits, count, beyond = np.uint64(0), np.int64(0), np.int64(0)
    new_bits, new_count, at = np.uint64(0), np.int64(0), np.int64(0)
    values, written = np.zeros(4, np.int64), np.zeros(4, np.int64)
    segments[0] = 0
    for mcu in range(mcus):
        if mcu > 0 and old_interval > 0 and mcu % old_interval == 0:
            marker, place = _marker_at(source, stop, place)
            if count - beyond >= 8 or marker != 0xD0 + (mcu // old_interval - 1) % 8:
                return np.int64(-1)
            bits, count, beyond = np.uint64(0), np.int64(0), np.int64(0)
            values[:] = 0
        if mcu > 0 and mcu % interval == 0:
            segment = mcu // interval
            at = _ended(target, at, new_bits, new_count, np.uint8(0xD0 + (segment - 1) % 8))
            new_bits, new_count = np.uint64(0), np.int64(0)
            segments[segment] = at
            written[:] = 0
        for block in range(blocks.shape[0]):
            component, dc, ac = blocks[block, 0], blocks[block, 1], blocks[block, 2]
            if count <= 32:
                place, bits, count, beyond = _filled(source, stop, place, bits, count, beyond)
            length, size = _code(tables, dc, bits, count)
            if length == 0 or size > _MOST_DC:
                return np.int64(-1)
            count -= length + size
            more = np.int64((bits >> np.uint64(count)) & np.uint64((1 << size) - 1))
            if size > 0 and more < 1 << (size - 1):
                more -= (1 << size) - 1
            values[component] += more
            difference = values[component] - written[component]
            written[component] = values[component]
            size = _category(difference)
            if size > _MOST_DC:
                return np.int64(-1)
            more = difference if difference >= 0 else difference + (1 << size) - 1
            new_bits = (new_bits << np.uint64(dc_lengths[dc, size])) | dc_codes[dc, size]
            new_bits = (new_bits << np.uint64(size)) | np.uint64(more)
            at, new_count = _flushed(target, at, new_bits, new_count + dc_lengths[dc, size] + size, 32)
            k = 1
            while k < 64:
                if count <= 32:
                    place, bits, count, beyond = _filled(source, stop, place, bits, count, beyond)
                length, symbol = _code(tables, 2 + ac, bits, count)
                run, size = symbol >> 4, symbol & 15
                if length == 0 or size > _MOST_AC or (size == 0 and 0 < run < 15):
                    return np.int64(-1)
                taken = length + size
                count -= taken
                same = (bits >> np.uint64(count)) & np.uint64((1 << taken) - 1)
                new_bits = (new_bits << np.uint64(taken)) | same
                at, new_count = _flushed(target, at, new_bits, new_count + taken, 32)
                if symbol == 0:
                    break
                k += run + 1
                if k > 64:
                    return np.int64(-1)
        if count < beyond:
            return np.int64(-1)
    marker, place = _marker_at(source, stop, place)
    if count - beyond >= 8 or marker != 0xD9:
        return np.int64(-1)
    at = _ended(target, at, new_bits, new_count, np.uint8(0xD9))
    segments[segments.size - 1] = at
    if data.size + out.size + codes.found.size + codes.limits.size + codes.places.size + codes.symbols.size == 0:
        return np.int64(-1)  # never: what is passed by its address must be held until here
    return at
