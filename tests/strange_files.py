"""Image files that decoders read differently, or that are damaged: made from sound ones, byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin
from samples import encode

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth image without symmetry, so that each orientation and each missing part shows."""
    small = np.random.default_rng(seed).integers(1, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def exif(orientation: int) -> bytes:
    """The content of an EXIF segment."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp(orientation: int, attribute: bool = True) -> bytes:
    """An XMP packet, with the orientation as an attribute or as an element."""
    inner = (
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        if attribute
        else f"<rdf:Description><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
    )
    return f"<x:xmpmeta><rdf:RDF>{inner}</rdf:RDF></x:xmpmeta>".encode()


def jpeg_with(jpeg: bytes, *contents: bytes) -> bytes:
    """A JPEG with APP1 segments of these contents, in this order, after its first segment."""
    first = 4 + int.from_bytes(jpeg[4:6], "big")
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content for content in contents)
    return jpeg[:first] + segments + jpeg[first:]


def jpeg_xmp(orientation: int, attribute: bool = True) -> bytes:
    """The content of an XMP segment."""
    return b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation, attribute)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and body of each chunk of a PNG."""
    position = len(SIGNATURE)
    while position < len(png):
        size = int.from_bytes(png[position : position + 4], "big")
        yield png[position + 4 : position + 8], png[position + 8 : position + 8 + size]
        position += 12 + size


def png_with(png: bytes, kind: bytes, body: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with a chunk more, before the first of that kind."""
    parts, done = [SIGNATURE], False
    for found, content in chunks(png):
        if found == before and not done:
            parts.append(chunk(kind, body))
            done = True
        parts.append(chunk(found, content))
    return b"".join(parts)


def raw_profile(pixels: np.ndarray, orientation: int, name: str = "exif") -> bytes:
    """A PNG that keeps its EXIF data in a text chunk, as ImageMagick does."""
    content = exif(orientation)
    digits = content.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    info = PngImagePlugin.PngInfo()
    info.add_text(f"Raw profile type {name}", f"\n{name}\n{len(content):8d}\n{lines}\n", zip=True)
    return encode(pixels, "PNG", pnginfo=info)


def short_png(pixels: np.ndarray, rows: int, interlaced: bool = False) -> bytes:
    """A PNG whose compressed pixels end, in good order, after some of its rows (or bytes of the passes)."""
    parts = [SIGNATURE]
    for kind, body in chunks(encode(pixels, "PNG")):
        if kind == b"IHDR":
            body = body[:12] + bytes([interlaced])
        elif kind == b"IDAT":
            body = zlib.compress(zlib.decompress(body)[: rows * (1 + pixels[0].size)])
        parts.append(chunk(kind, body))
    return b"".join(parts)


def cut_jpeg(pixels: np.ndarray, share: float, **options: object) -> bytes:
    """A JPEG whose pixels end after a share of their bytes, with an end marker there."""
    jpeg = encode(pixels, "JPEG", **options)
    start = jpeg.index(b"\xff\xda") + 14
    return jpeg[: start + int((len(jpeg) - start) * share)] + b"\xff\xd9"


def cmyk_without_marker(pixels: np.ndarray) -> bytes:
    """A CMYK JPEG without Adobe's marker, which says whether its colours are inverted."""
    jpeg = encode(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95)
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with one kind of damage, at random: bytes changed, a part cut out, doubled or zeroed, or the end lost."""
    content = bytearray(data)
    place = int(rng.integers(2, len(content)))
    size = int(rng.integers(1, 40))
    kind = rng.integers(6)
    if kind == 0:
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(2, len(content)))] ^= int(rng.integers(1, 256))
    elif kind == 1:
        del content[place : place + size]
    elif kind == 2:
        content[place:place] = content[place : place + size]
    elif kind == 3:
        content[place : place + size] = bytes(len(content[place : place + size]))
    elif kind == 4:
        del content[place:]
    else:
        content[place] ^= 1 << int(rng.integers(8))
    return bytes(content)
