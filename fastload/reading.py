"""Read a packed file's samples by row, without the GIL; what cannot be read is an error, never a signal."""

from __future__ import annotations

import os

import numpy as np

from fastload.errors import DataError
from fastload.kernels import augment as kernel
from fastload.packed import PackedFile

_PIECE = 64 << 20


class SampleReader:
    """Gives the samples of an open packed file, which must stay open no longer than this.

    Every method raises DataError, naming the row, where the file can no longer be read (truncated, failed disk).
    Thread-safe. `place` is (descriptor, the images' first byte), for kernels that read by themselves.
    """

    def __init__(self, file: PackedFile) -> None:
        self.place = (-1, 0)
        self._path, self._ids = file.path, file.ids
        self._offsets, self._strides, self._shape = file.offsets, file.strides, file.shape
        self._size = file.nbytes
        self.sample_bytes = 0 if file.strides is None else file.strides[0]
        self.place = (os.dup(file.descriptor), file.data_offset)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy raw samples, one after the other, to uint8 `out` [b · bytes]."""
        sizes = np.full(len(rows), self.sample_bytes)
        places = np.arange(len(rows)) * self.sample_bytes
        self.check(kernel.read_ranges(*self.place, rows * self.sample_bytes, sizes, out, places), rows)

    def everything(self) -> np.ndarray:
        """Return all of the images' bytes, uint8 [bytes]."""
        out = np.empty(self._size, np.uint8)
        starts = np.arange(0, self._size, _PIECE)
        sizes = np.minimum(_PIECE, self._size - starts)
        self.check(kernel.read_ranges(*self.place, starts, sizes, out, starts), starts // max(1, self.sample_bytes))
        return out

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Return raw images, uint8 [b, H, W, C], whatever the file's own layout."""
        assert self._shape is not None and self._strides is not None
        gathered = np.empty(len(rows) * self.sample_bytes, np.uint8)
        self.read(rows, gathered)
        height, width, channels = self._shape
        if self._strides[3] == 1:
            return gathered.reshape(len(rows), height, width, channels)
        return np.ascontiguousarray(gathered.reshape(len(rows), channels, height, width).transpose(0, 2, 3, 1))

    def encoded(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return encoded samples, uint8 [bytes] each."""
        assert self._offsets is not None
        starts = self._offsets[rows]
        sizes = self._offsets[rows + 1] - starts
        places = np.cumsum(sizes) - sizes
        out = np.empty(int(sizes.sum()), np.uint8)
        self.check(kernel.read_ranges(*self.place, starts, sizes, out, places), rows)
        return [out[place : place + size] for place, size in zip(places, sizes, strict=True)]

    def check(self, failed: int, rows: np.ndarray) -> None:
        """Raise DataError unless `failed`, a kernel's index into `rows`, is -1."""
        if failed < 0:
            return
        row = int(rows[failed])
        raise DataError(
            f"{self._path}: row {row:,} (id {self._ids[row]:,}) can no longer be read; the file was truncated or its "
            "disk failed while it was in use. Restore it, and resume from the last checkpoint"
        )

    def close(self) -> None:
        """Give the descriptor back. Safe to call twice; nothing may be read any more."""
        if self.place[0] >= 0:
            os.close(self.place[0])
            self.place = (-1, 0)

    def __del__(self) -> None:
        self.close()
