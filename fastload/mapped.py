"""Read samples through a packed file's memory map; a page that cannot be read is an error, never a signal."""

from __future__ import annotations

import mmap
import os

import numpy as np

from fastload.errors import DataError
from fastload.kernels import augment as kernel
from fastload.packed import PackedFile


def _kernel_populates() -> bool:
    """Whether the kernel has MADV_POPULATE_READ (Linux 5.14)."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        address = np.frombuffer(page, np.uint8).ctypes.data
        return kernel.populate(np.uint64(address), np.zeros(1, np.int64), np.ones(1, np.int64)) < 0


class SampleReader:
    """Gives samples by row.

    Arguments:
        file: an open packed file.
        resident: copy the whole file into memory first, so that later reads touch no file.

    Every method raises DataError where the file can no longer be read (truncated, vanished storage).
    """

    def __init__(self, file: PackedFile, resident: bool) -> None:
        self._path = file.path
        self._offsets, self._strides, self._shape = file.offsets, file.strides, file.shape
        self._ids = file.ids
        self.sample_bytes = 0 if file.strides is None else file.strides[0]
        self._data = file.data
        self._descriptor = -1
        self._mapped = True
        self._populates = _kernel_populates()
        if not self._populates:
            self._descriptor = os.open(file.path, os.O_RDONLY)
            self._begin = file.data_offset
        if resident:
            whole = np.zeros(1, np.int64)
            self._check(whole, np.array([len(file.data)]), whole)
            self._data = file.data.copy() if self._populates else self._read(0, len(file.data))
            self._data.flags.writeable = False  # as the map's: one type, so one compilation of each kernel
            self._mapped = False

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (uint8 data, int64 first bytes in it) of raw samples; the bytes can be touched safely."""
        starts = rows * self.sample_bytes
        if not self._mapped or self._populates:
            self._check(starts, np.full(len(rows), self.sample_bytes), rows)
            return self._data, starts
        gathered = np.empty((len(rows), self.sample_bytes), np.uint8)
        self.gather(rows, gathered)
        return gathered.reshape(-1), np.arange(len(rows)) * self.sample_bytes

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy raw samples to the rows of uint8 `out` [b, bytes], without the GIL."""
        if self._mapped and not self._populates:
            for i, row in enumerate(rows):
                out[i] = self._read(int(row) * self.sample_bytes, self.sample_bytes)
            return
        starts = rows * self.sample_bytes
        self._check(starts, np.full(len(rows), self.sample_bytes), rows)
        kernel.gather(self._data, starts, self.sample_bytes, out)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Return raw images, uint8 [b, H, W, C], whatever the file's own layout."""
        assert self._shape is not None and self._strides is not None
        gathered = np.empty((len(rows), self.sample_bytes), np.uint8)
        self.gather(rows, gathered)
        height, width, channels = self._shape
        if self._strides[3] == 1:
            return gathered.reshape(len(rows), height, width, channels)
        return np.ascontiguousarray(
            gathered.reshape(len(rows), channels, height, width).transpose(0, 2, 3, 1)
        )

    def views(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return encoded samples, uint8 [bytes] each: views of the map whose pages are present."""
        assert self._offsets is not None
        starts, stops = self._offsets[rows], self._offsets[rows + 1]
        if self._mapped and not self._populates:
            return [self._read(int(a), int(b - a)) for a, b in zip(starts, stops, strict=True)]
        self._check(starts, stops - starts, rows)
        return [self._data[a:b] for a, b in zip(starts, stops, strict=True)]

    def _check(self, starts: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> None:
        if not self._mapped or not self._populates:
            return
        failed = kernel.populate(np.uint64(self._data.ctypes.data), starts, sizes)
        if failed >= 0:
            raise self._unreadable(int(rows[failed]))

    def _read(self, start: int, size: int) -> np.ndarray:
        try:
            data = np.frombuffer(os.pread(self._descriptor, size, self._begin + start), np.uint8)
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be read ({error.strerror}); is the disk still there?"
            ) from error
        if len(data) != size:
            raise self._unreadable(start // max(1, self.sample_bytes))
        return data

    def _unreadable(self, row: int) -> DataError:
        return DataError(
            f"{self._path}: row {row:,} (id {self._ids[row]:,}) can no longer be read; the file was truncated or its "
            "disk failed while it was in use. Restore it, and resume from the last checkpoint"
        )

    def close(self) -> None:
        """Forget the data. Safe to call twice."""
        self._data = np.empty(0, np.uint8)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
