"""IDX files, the format of MNIST and Fashion-MNIST: a magic number, the sides, then the bytes; gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from fastload.errors import DataError

_GZIP = b"\x1f\x8b"


def read_labelled(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [N, H, W], and labels, uint8 [N], of `train` or `t10k`.

    Raises DataError, naming the file, where one is missing, damaged, or does not fit the other.
    """
    pixels_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    pixels, labels = read_idx(pixels_path, 3), read_idx(labels_path, 1)
    if len(pixels) != len(labels):
        raise DataError(
            f"{labels_path}: holds {len(labels):,} labels, but {pixels_path} holds {len(pixels):,} images; take both "
            "from one source"
        )
    return pixels, labels


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return what an IDX file of bytes holds, uint8 of so many dimensions.

    Raises DataError where it cannot be read, is no such file, or does not hold as much as it says.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:  # EOFError: gzip's word for a file that is cut off
        raise DataError(f"{path}: cannot be read ({error}); replace it by a whole copy") from error
    magic, first = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if not data.startswith(magic) or len(data) < first:
        raise DataError(
            f"{path}: begins with {data[:4].hex() or 'nothing'}, and an IDX file of bytes in {dimensions} dimensions "
            f"begins with {magic.hex()} and their sizes; name the right file, or replace it by a whole copy"
        )
    sides = struct.unpack(f">{dimensions}I", data[4:first])
    if len(data) - first != math.prod(sides):
        raise DataError(
            f"{path}: holds {len(data) - first:,} bytes after its header, which says "
            f"{'×'.join(f'{side:,}' for side in sides)} = {math.prod(sides):,}; replace it by a whole copy"
        )
    return np.frombuffer(data, np.uint8, offset=first).reshape(sides)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder}: holds neither {name} nor {name}.gz; name the folder with the set's four IDX files")
