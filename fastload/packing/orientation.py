"""Read which way up an image is, and write it where decoders disagree: the only place that does either.

Pillow's rule holds: the orientation of the EXIF data (of several EXIF segments of a JPEG the first; of a PNG the `eXIf`
chunk, else the text chunk in which older programs keep it), and where they have none, that of XMP (`tiff:Orientation`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from fastload.packing.file_faults import PNG, png_chunks

SIDEWAYS = (5, 6, 7, 8)
"""Orientations of which the turn swaps height and width."""

_TAG = 0x0112
_METADATA = frozenset(("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image (a PNG's may follow its pixels): 1 to 8, 1 for upright."""
    if image.format != "TIFF" and not _METADATA & image.info.keys():
        return 1
    try:
        value = image.getexif().get(_TAG)
    except Exception:
        return 1  # unreadable EXIF says nothing about the orientation
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image, value: int) -> Image.Image:
    """Return an image turned by an EXIF orientation."""
    turn = _TURNS.get(value)
    return image if turn is None else image.transpose(turn)


def with_orientation(data: bytes, value: int) -> bytes | None:
    """Return a JPEG or PNG file, as long as before, that tells every decoder the same orientation; pixels stay.

    The first segment of EXIF or XMP becomes an EXIF segment that holds the orientation and nothing else, and all others
    become segments that no decoder reads. Returns None for another format, and without such a segment with enough room.
    """
    if data.startswith(b"\xff\xd8"):
        return _rewritten_jpeg(data, value)
    if data.startswith(PNG):
        return _rewritten_png(data, value)
    return None


def _exif(value: int) -> bytes:
    """Return the smallest EXIF data (a TIFF header and one directory) with this orientation."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, _TAG, 3, 1, value, 0, 0)


def exif_segment(value: int) -> bytes:
    """Return a segment of a JPEG file that tells its orientation, and nothing else."""
    content = b"Exif\0\0" + _exif(value)
    return b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content


def _rewritten_jpeg(data: bytes, value: int) -> bytes | None:
    content = b"Exif\0\0" + _exif(value)
    out, written = bytearray(data), False
    for start, stop in _jpeg_metadata(data):
        fits = not written and stop - start >= len(content)
        out[start:stop] = (content if fits else b"").ljust(stop - start, b"\0")
        written |= fits
    return bytes(out) if written else None


def _jpeg_metadata(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the content of each EXIF or XMP segment starts and stops."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:  # the pixels
            return
        start, stop = position + 4, position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xE1 and data[start:stop].startswith((b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0")):
            yield start, stop
        position = stop


_PNG_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")


def _rewritten_png(data: bytes, value: int) -> bytes | None:
    content = _exif(value)
    out, written = bytearray(data), False
    for start, stop in png_chunks(data):
        kind, body = data[start - 4 : start], data[start:stop]
        if kind != b"eXIf" and not (kind in (b"tEXt", b"zTXt", b"iTXt") and body.startswith(_PNG_TEXTS)):
            continue
        fits = not written and stop - start >= len(content)
        kind, body = (b"eXIf", content) if fits else (b"nuLl", b"")  # by its letters' cases: may be passed over
        chunk = kind + body.ljust(stop - start, b"\0")
        out[start - 4 : stop + 4] = chunk + zlib.crc32(chunk).to_bytes(4, "big")
        written |= fits
    return bytes(out) if written else None
