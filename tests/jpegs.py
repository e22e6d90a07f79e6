"""JPEG files for the tests: packed so that they can be cut, and decoded by libturbojpeg, called by ctypes."""

from __future__ import annotations

import ctypes
import io
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastload.kernels.jpeg_cut import MARGIN, cut_files
from fastload.packed.file import PackedWriter
from fastload.packed.reader import SampleReader
from fastload.packing.decoding import jpeg_orientation, upright_sides
from fastload.packing.jpeg_transcode import cuttable

FAST_UPSAMPLE, STOP_ON_WARNING = 256, 8192

TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}
"""From a file's own pixels to the upright image, as EXIF's orientations are defined."""


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libturbojpeg.so.0")
    except OSError:
        pytest.skip("libturbojpeg is not installed")
    library.tjInitDecompress.restype = ctypes.c_void_p
    pointers = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p]
    library.tjDecompress2.argtypes = [*pointers, *[ctypes.c_int] * 5]
    return library


@cache
def _decoder() -> int:
    return _library().tjInitDecompress()


def turbo(data: bytes, flags: int = 0) -> np.ndarray:
    """The file's own pixels, uint8 [H, W, 3], with smooth colours unless flags say otherwise."""
    library, sides = _library(), file_sides(data)
    out = np.empty((*sides, 3), np.uint8)
    decode = library.tjDecompress2
    code = decode(_decoder(), data, len(data), out.ctypes.data, sides[1], 0, sides[0], 0, flags | STOP_ON_WARNING)
    assert code == 0
    return out


def segments_of(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker, the place and the end of each segment before a file's coded pixels."""
    place = 2
    while True:
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        yield data[place + 1], place, place + 2 + size
        if data[place + 1] == 0xDA:
            return
        place += 2 + size


def file_sides(data: bytes) -> tuple[int, int]:
    """Height and width as a file's header has them."""
    (place,) = [place for kind, place, _ in segments_of(data) if kind in (0xC0, 0xC1, 0xC2)]
    height, width = struct.unpack(">HH", data[place + 5 : place + 9])
    return height, width


def pillow(data: bytes) -> np.ndarray:
    """A file's own pixels, as Pillow decodes them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_jpegs(path: Path, files: Sequence[bytes], *, turned: Sequence[int] | None = None, **more) -> Path:
    """Pack files, cuttable where they can be; orientations as they are, or `turned` in place of them."""
    labels = np.arange(len(files)) % 7
    with PackedWriter(path, count=len(files), labels=labels, source={"kind": "test"}, **more) as out:
        for row, data in enumerate(files):
            orientation = jpeg_orientation(data) if turned is None else turned[row]
            made = cuttable(data, orientation) if data[:2] == b"\xff\xd8" else None
            if made is None:
                out.append(row, data, shape=upright_sides(data))
            else:
                sides = file_sides(data)
                shape = sides[::-1] if orientation >= 5 else sides
                out.append(row, made.data, shape=shape, cut=made.cut, segments=made.segments)
    return path


def cut(
    reader: SampleReader, rows: np.ndarray, regions: np.ndarray, margin: int = MARGIN
) -> list[tuple[bytes, list[int]]]:
    """The files of regions of upright images, and what each shows: its first row and column, height and width."""
    files = reader.jpeg_files
    assert files is not None
    sizes = files.offsets[rows + 1] - files.offsets[rows]
    out, parts = np.full(int(sizes.sum()) + 64, 0xA5, np.uint8), np.zeros((len(rows), 5), np.int64)
    assert cut_files(files, rows, regions, margin, out[:-64], parts) == (-1, 0)
    assert (out[-64:] == 0xA5).all()
    ends = np.cumsum(parts[:, 0])
    return [
        (out[end - size : end].tobytes(), part)
        for end, (size, *part) in zip(ends.tolist(), parts.tolist(), strict=True)
    ]


def random_region(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right): often along an edge, sometimes all of it or a single pixel."""
    if rng.random() < 0.05:
        return 0, 0, height, width
    ends = []
    for side in (height, width):
        size = 1 if rng.random() < 0.1 else int(rng.integers(1, side + 1))
        first = int(rng.choice((0, side - size, rng.integers(0, side - size + 1)), p=(0.1, 0.1, 0.8)))
        ends.append((first, first + size))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]
