"""Rows of a file in order, read by a thread of their own while the rows before them are worked on."""

from __future__ import annotations

import mmap
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastload.errors import DataError

CHUNK_BYTES = 128 << 20
"""Long, since ascending rows renew a top-k's lists in each chunk, at about the same cost whatever its length."""

BUFFERS = 3
"""One is worked on, one is full, one is being filled."""

_PIECE = 8 << 20
_ASKED = 32 << 20
"""How far ahead of each read the disk is asked for what follows: 2.7 instead of 1.7 GB/s on a virtual disk."""


@dataclass(frozen=True)
class FileRows:
    """A C-contiguous matrix in a file: its path, where it begins, its shape and its element type."""

    path: str
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype

    @classmethod
    def of(cls, array: Any) -> FileRows | None:
        """Return where the rows of a read-only memory map [n, dims] stand in its file; None for anything else."""
        if not isinstance(array, np.memmap) or array.ndim != 2 or array.mode != "r" or not array.flags.c_contiguous:
            return None
        if array.filename is None or not array.size:
            return None
        # A view of a map keeps the map's own offset, so the place is told by its address.
        begin = np.frombuffer(array._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
        first = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        rows, dims = (int(extent) for extent in array.shape)
        found = cls(os.fspath(array.filename), first + array.ctypes.data - begin, (rows, dims), array.dtype)
        return found if found._is_of(array) else None

    def _is_of(self, array: np.ndarray) -> bool:
        """Whether the name still leads to the file that is mapped: its first and last row are the same there."""
        row_bytes = self.shape[1] * self.dtype.itemsize
        try:
            with open(self.path, "rb", buffering=0) as file:
                for row in (0, self.shape[0] - 1):
                    if os.pread(file.fileno(), row_bytes, self.offset + row * row_bytes) != array[row].tobytes():
                        return False
        except OSError:
            return False
        return True

    def chunks(self, chunk_rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows), `chunk_rows` at a time, 128 MiB by default; a chunk holds until the next is wanted.

        Raises DataError for a file that cannot be read or is too short.
        """
        rows, dims = self.shape
        row_bytes = dims * self.dtype.itemsize
        step = min(rows, chunk_rows or max(1, CHUNK_BYTES // row_bytes))
        empty: queue.Queue[np.ndarray | None] = queue.Queue()
        filled: queue.Queue[tuple[int, np.ndarray] | BaseException | None] = queue.Queue()
        for _ in range(min(BUFFERS, -(-rows // step))):
            empty.put(np.empty((step, dims), self.dtype))

        def read() -> None:
            try:
                with open(self.path, "rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), self.offset, rows * row_bytes, os.POSIX_FADV_SEQUENTIAL)
                    for start in range(0, rows, step):
                        buffer = empty.get()
                        if buffer is None:
                            return
                        chunk = buffer[: min(step, rows - start)]
                        self._fill(file.fileno(), chunk, self.offset + start * row_bytes)
                        filled.put((start, buffer))
                filled.put(None)
            except BaseException as error:
                filled.put(error)

        thread = threading.Thread(target=read, name="fastload-read-ahead", daemon=True)
        thread.start()
        try:
            while (found := filled.get()) is not None:
                if isinstance(found, OSError):
                    raise DataError(f"{self.path}: cannot be read ({found.strerror or found})") from found
                if isinstance(found, BaseException):
                    raise found
                start, buffer = found
                yield start, buffer[: min(step, rows - start)]
                empty.put(buffer)
        finally:
            empty.put(None)
            thread.join()

    def _fill(self, descriptor: int, chunk: np.ndarray, position: int) -> None:
        view = chunk.data.cast("B")
        while view:
            os.posix_fadvise(descriptor, position + _ASKED, _PIECE, os.POSIX_FADV_WILLNEED)
            count = os.preadv(descriptor, [view[:_PIECE]], position)
            if count == 0:
                raise DataError(f"{self.path}: ends at byte {position:,}, before its {self.shape[0]:,} rows do")
            view, position = view[count:], position + count
