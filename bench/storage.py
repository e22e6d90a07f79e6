"""Files for what reads from the disk: written, evicted from the system's cache, read through."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from fastload.packed.reader import is_cached

READ_BYTES = 8 << 20
TILE_ROWS = 4096


def write_tiled_noise(path: Path, count: int, side: int, *, seed: int = 0) -> Path:
    """Write `count` images side×side×3 and labels as an HDF5 file of datasets `x` and `y`, one noise tile repeated.

    Larger than memory may be: every tile's first bytes are its number, so that no file system stores it once. It is on
    the disk on return, as what is not cannot be evicted.
    """
    tile = np.random.default_rng(seed).integers(0, 256, (min(count, TILE_ROWS), side, side, 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        images = file.create_dataset("x", (count, side, side, 3), np.uint8)
        for first in range(0, count, len(tile)):
            part = tile[: count - first]
            part[0, 0, 0] = np.frombuffer(first.to_bytes(8, "little"), np.uint8)[:3]
            images[first : first + len(part)] = part
        file["y"] = np.arange(count) % 10
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return path


def cached_share(path: Path) -> float:
    """Return the share of a file's pages that the system has in memory, of 256 spread ones."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return sum(is_cached(descriptor, size * place // 256) for place in range(256)) / 256
    finally:
        os.close(descriptor)


def evict(path: Path) -> float:
    """Ask the system to drop a file's pages from its cache; return the share that stayed; see `cached_share`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what is not on the disk yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return cached_share(path)


def read_through(path: Path, size: int | None = None) -> int:
    """Read a file from start to end, or until at least `size` bytes are read; return how many were."""
    buffer, total = bytearray(READ_BYTES), 0
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while (size is None or total < size) and (count := file.readinto(buffer)):
            total += count
    return total
