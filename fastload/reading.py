"""Read a packed set's samples by row, without the GIL; what cannot be read is an error, never a signal."""

from __future__ import annotations

import os
import threading
from itertools import pairwise

import numpy as np

from fastload.errors import DataError
from fastload.kernels import augment as kernel
from fastload.order import Order
from fastload.packed_set import Packed

_PIECE = 64 << 20
_WINDOW_BYTES = 256 << 20  # a window of blocks larger than this is asked for sample by sample
Place = tuple[np.ndarray, np.ndarray, np.ndarray]
_CLOSED: Place = (np.empty(0, np.int32), np.empty(0, np.int64), np.zeros(1, np.int64))


class SampleReader:
    """Gives the samples of an open packed file or set, which must stay open no longer than this.

    Every method raises DataError, naming the row, where a file can no longer be read (truncated, failed disk).
    Thread-safe. `place` is (descriptors int32 [F], first image bytes int64 [F], their places in the set int64 [F + 1]),
    for kernels that read by themselves.
    """

    def __init__(self, file: Packed) -> None:
        self.place = _CLOSED
        self._path, self._ids = file.path, file.ids
        self._offsets, self._strides, self._shape = file.offsets, file.strides, file.shape
        self._size = file.nbytes
        self.sample_bytes = 0 if file.strides is None else file.strides[0]
        extents = file.extents
        self.place = (
            np.array([os.dup(extent.descriptor) for extent in extents], np.int32),
            np.array([extent.offset for extent in extents], np.int64),
            np.cumsum([0, *(extent.nbytes for extent in extents)]).astype(np.int64),
        )

    def ranges(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where samples start in the set, and their sizes, int64 [b] bytes each."""
        if self._offsets is not None:
            starts = self._offsets[rows]
            return starts, self._offsets[rows + 1] - starts
        return rows * self.sample_bytes, np.full(len(rows), self.sample_bytes)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy samples, one after the other, to uint8 `out`, which is as large as all of them."""
        starts, sizes = self.ranges(rows)
        self.check(kernel.read_ranges(*self.place, starts, sizes, out, np.cumsum(sizes) - sizes), rows)

    def everything(self) -> np.ndarray:
        """Return all of the images' bytes, uint8 [bytes]."""
        out = np.empty(self._size, np.uint8)
        firsts = self.place[2]
        starts = np.concatenate([np.arange(a, b, _PIECE) for a, b in pairwise(firsts)])
        sizes = np.diff(np.append(starts, self._size))
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
        sizes = self.ranges(rows)[1]
        out = np.empty(int(sizes.sum()), np.uint8)
        self.read(rows, out)
        return np.split(out, np.cumsum(sizes)[:-1])

    def check(self, failed: int, rows: np.ndarray) -> None:
        """Raise DataError unless `failed`, a kernel's index into `rows`, is -1."""
        if failed < 0:
            return
        row = int(rows[failed])
        raise DataError(
            f"{self._path}: row {row:,} (id {self._ids[row]:,}) can no longer be read; the file was truncated or its "
            "disk failed while it was in use. Restore it, and resume from the last checkpoint"
        )

    def cached(self, starts: np.ndarray) -> bool:
        """Whether the bytes at `starts` can be read without waiting for a disk."""
        buffer = bytearray(1)
        for start in starts:
            part = int(np.searchsorted(self.place[2], start, side="right")) - 1
            offset = int(self.place[1][part] + start - self.place[2][part])
            try:
                os.preadv(int(self.place[0][part]), [buffer], offset, os.RWF_NOWAIT)
            except OSError:  # not there yet, or a file system that cannot say
                return False
        return True

    def close(self) -> None:
        """Give the descriptors back. Safe to call twice; nothing may be read any more."""
        descriptors, self.place = self.place[0], _CLOSED
        for descriptor in descriptors:
            os.close(int(descriptor))

    def __del__(self) -> None:
        self.close()


class ReadAhead:
    """Asks the system to begin reading what an order wants next, ahead of who makes the batches.

    Only where it does not lie in the page cache yet (a few spread samples tell): asking costs as much as reading from
    there. It asks for a unit of positions at a time, whose rows come sorted, and neighbours as one: `"block"` mixes
    rows within windows of blocks, so a window is read in 64 long runs rather than in 16,384 pieces.

    Arguments:
        reader: whose samples. order: of the positions. sample_bytes: of a sample, on average.
        window: bytes to be ahead.
    """

    PROBES = 8

    def __init__(self, reader: SampleReader, order: Order, sample_bytes: int, window: int) -> None:
        self._reader, self._order = reader, order
        self._unit = max(1, window // 2 // max(1, sample_bytes))
        # An order of another kind, such as one that follows the losses, may not know yet what comes.
        self._foresees = isinstance(order, Order)
        self._in_blocks = False
        if self._foresees and order.shuffle == "block":
            mixed = order.block_rows * order.window_blocks
            self._in_blocks = mixed * sample_bytes <= max(window, _WINDOW_BYTES)
            self._unit = mixed if self._in_blocks else self._unit
        self._reached = -1
        self._lock = threading.Lock()

    def want(self, start: int, count: int) -> None:
        """Say that the positions start … start + count - 1 are about to be read."""
        if not self._foresees:
            return
        with self._lock:
            if not start <= self._reached <= start + 4 * self._unit + 8 * count:  # the first call, or a jump
                self._reached = self._unit_of(start)[0]
            units = []
            while self._reached < start + count + 2 * self._unit:
                units.append(self._unit_of(self._reached))
                self._reached = units[-1][1]
        for first, last in units:
            self._ask(first, last - first)

    def _unit_of(self, position: int) -> tuple[int, int]:
        """Return the first position of the unit that holds `position`, and the end; units begin anew in each epoch."""
        epoch, offset = divmod(position, self._order.n)
        first = offset // self._unit * self._unit
        return epoch * self._order.n + first, epoch * self._order.n + min(first + self._unit, self._order.n)

    def _ask(self, start: int, count: int) -> None:
        probes = [self._order.rows(start + count * i // self.PROBES, 1)[0] for i in range(min(count, self.PROBES))]
        if self._reader.cached(self._reader.ranges(np.concatenate(probes))[0]):
            return
        rows = self._order.rows(start, count)[0]
        if self._in_blocks:  # whole blocks: a short block moves the windows' ends away from the units'
            size = self._order.block_rows
            rows = np.unique(rows // size)[:, None] * size + np.arange(size)
        rows = np.unique(rows[rows < self._order.n])
        starts, sizes = self._reader.ranges(rows)
        part = np.searchsorted(self._reader.place[2], starts, side="right")
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(part) != 0)) + 1
        first, last = np.append(0, breaks), np.append(breaks, len(rows)) - 1
        kernel.advise_ranges(*self._reader.place, starts[first], starts[last] + sizes[last] - starts[first])
