"""Rewrite a JPEG file, losslessly, so that it can be cut: with restart markers, and an index of its segments."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fastload.kernels.jpeg_restarts import add_restarts, empty_codes, find_codes
from fastload.packed.jpeg_index import Cut
from fastload.packing.orientation import exif_segment

_SOF0, _SOF1, _DHT, _SOI, _SOS, _DQT, _DRI, _APP0, _APP14 = 0xC0, 0xC1, 0xC4, 0xD8, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE
_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"

_DC_COUNTS = (
    bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)),
    bytes((0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)),
)
"""Tables K.3 and K.4 of T.81, of brightness and of colour: their symbols are the categories 0 … 11, in order."""

_SEGMENT_PIXELS = 32
"""The largest width of a segment. With 32, 64 and 96 pixels and whole rows, RandomResizedCrop decodes 50, 54, 55 and 73
% of the bytes of photographs of 500 pixels (quality 90), in files that grew by 2.5, 1.4, 1.2 and 0.1 %."""


_LARGEST_HEADER = 1 << 16
"""Many times what tables take; all of it is read and copied for each crop."""

_BLOCK = 64 * 2 * 4
"""The most bytes of a block: codes of up to 27 bits, and a zero behind each byte."""


class Cuttable(NamedTuple):
    """A file that can be cut: its bytes, how, and where its segments begin in it, uint32."""

    data: bytes
    cut: Cut
    segments: np.ndarray


@dataclass
class _Header:
    """What stands before a file's coded pixels."""

    frame: bytes = b""
    scan: bytes = b""
    baseline: int = _SOF0
    interval: int = 0
    jfif: bool = False
    adobe: bytes = b""
    quantization: list[bytes] = field(default_factory=list)
    tables: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    start: int = 0


def cuttable(data: bytes, orientation: int) -> Cuttable | None:
    """Return a JPEG file with the same coefficients that can be cut; None for one that has to stay as it is.

    That is a file that is not baseline (progressive, arithmetic, 12 bits), has several scans or other than one or three
    components, or is damaged.

    Arguments:
        data: the file.
        orientation: 1 to 8, what the new file's EXIF data say; no other metadata are kept.
    """
    try:
        header = _read_header(data)
        return None if header is None else _rewritten(data, header, orientation)
    except (IndexError, struct.error):  # it ends before its pixels
        return None


def fits_index(data: bytes, cut: Cut, sides: tuple[int, int], segments: np.ndarray) -> bool:
    """Return whether an index says where a file can be cut: found out by looking for its markers.

    Arguments:
        data: the file.
        cut: what the index says of it.
        sides: (height, width) of the file's own pixels, as the packed file has them.
        segments: where its segments begin, and its end.
    """
    try:
        header = _read_header(data)
        frame = None if header is None else _read_frame(header)
    except (IndexError, struct.error):
        return False
    if header is None or frame is None or frame.sides != sides:
        return False
    head, place = _new_header(header, header.interval, cut.orientation)
    found = Cut(len(head), place, *frame.mcu, header.interval, cut.orientation)
    coded = np.frombuffer(data, np.uint8)[header.start :]
    ends = np.flatnonzero((coded[:-1] == 0xFF) & (coded[1:] != 0)) + 2
    markers = coded[ends - 1]
    expected = 0xD0 + (np.arange(len(ends)) & 7)
    expected[-1:] = 0xD9
    return (
        found == cut
        and data.startswith(head)
        and np.array_equal(markers, expected)
        and np.array_equal(segments, header.start + np.append(0, ends))
        and segments[-1] == len(data)
    )


def _read_header(data: bytes) -> _Header | None:
    header, place = _Header(), 2
    if data[:2] != bytes((0xFF, _SOI)):
        return None
    while data[place] == 0xFF:
        while data[place + 1] == 0xFF:
            place += 1
        kind, (size,) = data[place + 1], struct.unpack_from(">H", data, place + 2)
        body = data[place + 4 : place + 2 + size]
        if len(body) != size - 2:
            return None
        place += 2 + size
        if kind in (_SOF0, _SOF1):
            if header.frame:
                return None
            header.frame, header.baseline = body, kind
        elif kind == _DHT:
            _read_tables(body, header.tables)
        elif kind == _DQT:
            header.quantization.append(body)
        elif kind == _DRI:
            (header.interval,) = struct.unpack(">H", body)
        elif kind == _APP0:
            header.jfif |= body.startswith(b"JFIF\0") and len(body) >= 14  # libjpeg overlooks shorter ones
        elif kind == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            header.adobe = body
        elif kind == _SOS:
            header.scan, header.start = body, place
            return header
        elif not (0xE0 <= kind <= 0xEF or kind == 0xFE):  # neither metadata nor a comment
            return None
    return None


def _read_tables(body: bytes, tables: dict[int, tuple[bytes, bytes]]) -> None:
    """Read Huffman tables: (counts of each length, symbols) by class · 16 + number."""
    place = 0
    while place < len(body):
        counts = body[place + 1 : place + 17]
        symbols = body[place + 17 : place + 17 + sum(counts)]
        if len(counts) < 16 or len(symbols) < sum(counts) or len(symbols) > 256:
            raise IndexError
        tables[body[place]] = counts, symbols
        place += 17 + len(symbols)


class _Frame(NamedTuple):
    """The sides of an image, and of its MCUs, in pixels; the blocks of an MCU, int64 [b, 3] as `add_restarts` says."""

    sides: tuple[int, int]
    mcu: tuple[int, int]
    blocks: np.ndarray


def _read_frame(header: _Header) -> _Frame | None:
    bits, height, width, count = struct.unpack_from(">BHHB", header.frame)
    if bits != 8 or not height or not width or count not in (1, 3) or len(header.frame) != 6 + 3 * count:
        return None
    parts = [header.frame[6 + 3 * k : 9 + 3 * k] for k in range(count)]
    factors = [(part[1] >> 4, part[1] & 15) for part in parts]
    if header.scan[0] != count or len(header.scan) != 4 + 2 * count or header.scan[1 + 2 * count :] != b"\0\x3f\0":
        return None
    if any(not 1 <= factor <= 4 for pair in factors for factor in pair):
        return None
    blocks = []
    for component, (part, (across, down)) in enumerate(zip(parts, factors, strict=True)):
        name, tables = header.scan[1 + 2 * component : 3 + 2 * component]
        dc, ac = tables >> 4, tables & 15
        if name != part[0] or dc > 1 or ac > 1 or dc not in header.tables or 16 + ac not in header.tables:
            return None
        blocks += [(component, dc, ac)] * (across * down if count > 1 else 1)
    # A single component is coded block by block, whatever its factors.
    most = (max(down for _, down in factors), max(across for across, _ in factors)) if count > 1 else (1, 1)
    if len(blocks) > 10 or any(most[0] % down or most[1] % across for across, down in factors if count > 1):
        return None
    return _Frame((height, width), (8 * most[0], 8 * most[1]), np.array(blocks, np.int64))


def _interval(columns: int, mcu_width: int) -> int:
    """Return how many MCUs a segment has: the largest divisor of those of a row that is not too wide."""
    most = max(1, _SEGMENT_PIXELS // mcu_width)
    return max(k for k in range(1, most + 1) if columns % k == 0)


def _rewritten(data: bytes, header: _Header, orientation: int) -> Cuttable | None:
    frame = _read_frame(header)
    if frame is None:
        return None
    rows, columns = (-(-side // unit) for side, unit in zip(frame.sides, frame.mcu, strict=True))
    interval = _interval(columns, frame.mcu[1])
    codes = empty_codes()
    for number, (counts, symbols) in header.tables.items():
        place = 2 * (number >> 4) + (number & 15)
        if number in (0, 1, 16, 17):
            padded = np.frombuffer(symbols.ljust(256, b"\0"), np.uint8)
            if not find_codes(np.frombuffer(counts, np.uint8), padded, place, codes):
                return None
    head, place_of_height = _new_header(header, interval, orientation)
    mcus = rows * columns
    count, coded = mcus // interval, len(data) - header.start
    if len(head) > _LARGEST_HEADER or 4 * coded < mcus * len(frame.blocks):  # a block has two bits at least
        return None
    # Twice: each byte may come out as 255, with a zero behind it; DC codes may become longer. Where the file ends
    # within an MCU, that is seen only behind it, and all of its codes may have come out of nothing.
    out = np.empty(2 * coded + (8 * mcus + _BLOCK) * len(frame.blocks) + 4 * count + 64, np.uint8)
    segments = np.zeros(count + 1, np.int64)
    source = np.frombuffer(data, np.uint8)
    size = add_restarts(
        source, header.start, codes, frame.blocks, mcus, header.interval, interval, *_DC_CODES, out, segments
    )
    if size < 0:
        return None
    cut = Cut(len(head), place_of_height, *frame.mcu, interval, orientation)
    return Cuttable(head + out[:size].tobytes(), cut, (segments + len(head)).astype(np.uint32))


def _segment(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, 2 + len(body)) + body


def _new_header(header: _Header, interval: int, orientation: int) -> tuple[bytes, int]:
    """Return the new file's bytes up to its coded pixels, and where the height stands in them."""
    head = bytes((0xFF, _SOI))
    head += _segment(_APP0, _JFIF) if header.jfif else b""
    head += exif_segment(orientation) if orientation != 1 else b""
    head += _segment(_APP14, header.adobe) if header.adobe else b""
    head += b"".join(_segment(_DQT, body) for body in header.quantization)
    place = len(head) + 5
    head += _segment(header.baseline, header.frame)
    used = {0, 1, 16, 17} & header.tables.keys()
    for number in sorted(used):
        counts, symbols = header.tables[number] if number >= 16 else (_DC_COUNTS[number], bytes(range(12)))
        head += _segment(_DHT, bytes((number,)) + counts + symbols)
    return head + _segment(_DRI, struct.pack(">H", interval)) + _segment(_SOS, header.scan), place


def _dc_codes() -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of tables K.3 and K.4, uint64 [2, 12], and their lengths, int64 [2, 12]."""
    codes, lengths = np.zeros((2, 12), np.uint64), np.zeros((2, 12), np.int64)
    for table, counts in enumerate(_DC_COUNTS):
        code, symbol = 0, 0
        for length, count in enumerate(counts, 1):
            for _ in range(count):
                codes[table, symbol], lengths[table, symbol] = code, length
                code, symbol = code + 1, symbol + 1
            code <<= 1
    return codes, lengths


_DC_CODES = _dc_codes()
