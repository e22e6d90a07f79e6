"""JPEG files to upright pixels on one CPU thread: cut, decoded and turned, one after the other."""

from typing import Any, NamedTuple

import numpy as np

from .compiling import njit
from .cpu_memory import address_of, get_byte, set_byte
from .inlining import exact, loose
from .jpeg_cut import cut_file, stored_region, stored_sides, upright_region
from .turbojpeg import close_decoder, copy_reason, decode_jpeg, open_decoder

NOT_DECODED, NO_DECODER = -3, -4
"""Why a file was not decoded, beside `jpeg_cut`'s reasons."""

_BEHIND = 8192
"""Bytes behind a file that the decoder may look at: it is slower where a file's last bytes are the last there are."""


class Room(NamedTuple):
    """Memory to cut and turn a file in, which grows with the files that come.

    Attributes:
        entries: int32, the file's entries in the index.
        source: uint8, the file's bytes.
        cut: uint8, the file that is decoded.
        pixels: uint8, the decoded image before it is turned.
    """

    entries: Any
    source: Any
    cut: Any
    pixels: Any


@exact
def no_room():
    """Return a `Room` for nothing yet."""
    return Room(np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.uint8), np.empty(0, np.uint8))


@exact
def room_bytes(room):
    """Return how much a `Room` has; used once more when all is done, it keeps what was passed by its address."""
    return room.entries.size + room.source.size + room.cut.size + room.pixels.size


@exact
def cut_sample(files, row, region, margin, room):
    """Cut a file into a room; return its size in bytes or why there is none, the part that it shows, and the room.

    Arguments:
        files: `JpegFiles`.
        row: which; one that can be cut.
        region: of the upright image.
        margin: pixels around it.
        room: `Room`.
    """
    entries, source, cut, pixels = room
    size = files.offsets[row + 1] - files.offsets[row]
    if size + _BEHIND > source.size:
        source, cut = np.empty(size + _BEHIND, np.uint8), np.zeros(size + _BEHIND, np.uint8)
    count = files.index_offsets[row + 1] - files.index_offsets[row]
    if count > entries.size:
        entries = np.empty(count, np.int32)
    orientation = np.int64(files.cuts[row, 5])
    height, width = stored_sides(np.int64(files.shapes[row, 0]), np.int64(files.shapes[row, 1]), orientation)
    length, part = cut_file(
        files,
        row,
        height,
        width,
        stored_region(region, height, width, orientation),
        margin,
        address_of(entries),
        address_of(source),
        address_of(cut),
    )
    return length, part, Room(entries, source, cut, pixels)


@exact
def decode_upright(decoder, length, height, width, orientation, target, room):
    """Decode the file that `cut_sample` made, upright; return whether that was possible, and the room.

    Arguments:
        decoder: a decoder.
        length: bytes of the file.
        height: of the file's own pixels, or of as many fewer as it is decoded smaller.
        width: likewise.
        orientation: 1 to 8.
        target: address of uint8 [h, w, 3], upright; filled.
        room: `Room`.
    """
    entries, source, cut, pixels = room
    image = target
    if orientation != 1:
        if 3 * height * width > pixels.size:
            pixels = np.empty(3 * height * width, np.uint8)
        image = address_of(pixels)
    done = decode_jpeg(decoder, address_of(cut), length + _BEHIND, height, width, image)
    if done and orientation != 1:
        _turn_upright(image, height, width, orientation, target)
    return done, Room(entries, source, cut, pixels)


@loose
def _turn_upright(source, height, width, orientation, target):
    """Write an image of uint8 [height, width, 3] at address `source` upright to address `target`."""
    for y in range(height):
        for x in range(width):
            top, left, _, _ = upright_region((y, x, y + 1, x + 1), height, width, orientation)
            row = height if orientation >= 5 else width
            for c in range(3):
                set_byte(target, (top * row + left) * 3 + c, get_byte(source, (y * width + x) * 3 + c))


@njit(nogil=True)
def decode_files(files, rows, out, places, message):
    """Decode whole files; return the first that cannot be decoded and why, or (-1, 0).

    `turbojpeg.load` comes before this is called.

    Arguments:
        files: `JpegFiles`.
        rows: int64 [b]; those that cannot be cut are left out.
        out: uint8 [bytes]; filled.
        places: int64 [b], where each image, uint8 [H, W, 3], goes in `out`.
        message: uint8 [n], filled with the decoder's reason.
    """
    room, target = no_room(), address_of(out)
    failed, reason = np.int64(-1), np.int64(0)
    decoder = open_decoder()
    if decoder == 0:
        return np.int64(0), np.int64(NO_DECODER)
    for k in range(rows.size):
        row = rows[k]
        if files.cuts[row, 0] == 0:
            continue
        whole = np.int64(0), np.int64(0), np.int64(files.shapes[row, 0]), np.int64(files.shapes[row, 1])
        length, part, room = cut_sample(files, row, whole, 0, room)
        if length < 0:
            failed, reason = np.int64(k), length
            break
        orientation = np.int64(files.cuts[row, 5])
        done, room = decode_upright(decoder, length, part[2], part[3], orientation, target + places[k], room)
        if not done:
            copy_reason(decoder, message)
            failed, reason = np.int64(k), np.int64(NOT_DECODED)
            break
    close_decoder(decoder)
    if room_bytes(room) + out.size < 0:
        return np.int64(-1), np.int64(0)  # never: what is passed by its address must be held until here
    return failed, reason
