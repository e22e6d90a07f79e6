"""A matrix in a file: its rows in order, read by a thread of their own while the rows before them are worked on.

Nothing is mapped: where a file is cut short or written to meanwhile, that is an error and no signal.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastload.common.dropping import Descriptor
from fastload.common.folder_files import FolderFile
from fastload.errors import DataError
from fastload.packed.format import digest
from fastload.packed.watching import Watch

CHUNK_BYTES = 128 << 20
"""Long, since ascending rows renew a top-k's lists in each chunk, at about the same cost whatever its length."""

BUFFERS = 3
"""One is worked on, one is full, one is being filled."""

_PIECE = 8 << 20
_ASKED = 32 << 20
"""How far ahead of each read the disk is asked for what follows: 2.7 instead of 1.7 GB/s on a virtual disk."""

_BLOCKS, _BLOCK = 16, 4096
"""What a file's content is known by where only its times were set back."""

_SERVED = (np.dtype(np.float32), np.dtype(np.float16))


class UnchangedFile:
    """A file that is read as it was when it was opened here, or not at all.

    Arguments:
        name: for messages.
        descriptor: of the open file; this object's own from now on.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self.descriptor = name, descriptor
        self._open = Descriptor(descriptor)
        self.size = os.fstat(descriptor).st_size
        self._watch = Watch(Path(name), descriptor)
        for position in np.linspace(0, max(0, self.size - _BLOCK), _BLOCKS).astype(int).tolist():
            block = os.pread(descriptor, _BLOCK, position)
            self._watch.known.append((position, _BLOCK, digest(block)))

    def check(self) -> None:
        """Raise DataError where the file was written to, cut short or replaced in place since it was opened."""
        self._watch.check(self.descriptor)

    def fill(self, buffer: memoryview, position: int) -> None:
        """Fill a buffer with the bytes from a position on. Raises DataError where they end, OSError."""
        while buffer:
            os.posix_fadvise(self.descriptor, position + _ASKED, _PIECE, os.POSIX_FADV_WILLNEED)
            count = os.preadv(self.descriptor, [buffer[:_PIECE]], position)
            if count == 0:
                raise DataError(f"{self.name}: ends at byte {position:,}, before its rows do")
            buffer, position = buffer[count:], position + count


class MatrixFile:
    """A matrix in a file, read in chunks of rows; several passes may be made.

    Arguments:
        file: where it is.
        offset: its first byte.
        shape: rows and columns.
        dtype: of real numbers.
        columns: None where rows follow each other; where columns do (Fortran's order), which of them each is.
    """

    def __init__(
        self,
        file: UnchangedFile,
        offset: int,
        shape: tuple[int, int],
        dtype: np.dtype,
        columns: np.ndarray | None = None,
    ) -> None:
        self.file, self.offset, self.shape, self.dtype, self._columns = file, offset, shape, np.dtype(dtype), columns
        if offset + shape[0] * shape[1] * self.dtype.itemsize > file.size:
            raise DataError(f"{file.name}: is cut short: it has {file.size:,} bytes; write it again")

    @classmethod
    def of(cls, array: Any) -> MatrixFile | None:
        """Return the rows of a read-only memory map [n, dims] of real numbers; None for anything else.

        Raises DataError where the file was cut short since it was mapped: touching the map would end the process.
        """
        if not isinstance(array, np.memmap) or array.ndim != 2 or array.mode != "r" or not array.flags.c_contiguous:
            return None
        if array.filename is None or not array.size:
            return None
        # A view of a map keeps the map's own offset, so the place is told by its address.
        begin = np.frombuffer(array._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
        offset = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + array.ctypes.data - begin
        try:
            file = UnchangedFile(os.fspath(array.filename), os.open(array.filename, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return None
        # Whether the name still leads to the file that is mapped: its first and last row are the same there.
        rows = cls(file, offset, (int(array.shape[0]), int(array.shape[1])), array.dtype)
        row_bytes = array[0].nbytes
        for row in (0, len(array) - 1):
            if os.pread(file.descriptor, row_bytes, offset + row * row_bytes) != array[row].tobytes():
                return None
        return rows

    @classmethod
    def npy(cls, place: FolderFile | Path) -> MatrixFile:
        """Open a .npy file of real numbers [n, …] as [n, dims].

        Raises OSError where it cannot be opened, ValueError for what is no such file, DataError for one cut short.
        """
        descriptor = place.open() if isinstance(place, FolderFile) else os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        file = UnchangedFile(str(place), descriptor)
        with open(descriptor, "rb", closefd=False) as header:
            shape, fortran, dtype = _npy_header(header)
            offset = header.tell()
        if len(shape) < 2:
            raise DataError(f"{place}: has shape {shape}; embeddings are [N, D], a row for each sample")
        rows, dims = shape[0], int(np.prod(shape[1:], dtype=object))
        columns = np.arange(dims).reshape(shape[1:]).flatten("F") if fortran else None
        return cls(file, offset, (rows, dims), dtype, columns)

    def chunks(self, chunk_rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows), `chunk_rows` at a time, 128 MiB by default; a chunk holds until the next is wanted.

        Rows are float32, or float16 where the file's are; what does not fit float32 becomes infinite.

        Raises DataError for a file that cannot be read, is too short, or changes meanwhile.
        """
        rows, dims = self.shape
        itemsize = max(self.dtype.itemsize, 4 if self._converts else 0)
        step = min(rows, chunk_rows or max(1, CHUNK_BYTES // (dims * itemsize)))
        empty: queue.Queue[np.ndarray | None] = queue.Queue()
        filled: queue.Queue[tuple[int, np.ndarray] | BaseException | None] = queue.Queue()
        for _ in range(min(BUFFERS, -(-rows // step))):
            empty.put(np.empty((step, dims), np.float32 if self._converts else self.dtype))

        def read() -> None:
            try:
                raw = np.empty(step * dims if self._converts or self._columns is not None else 0, self.dtype)
                for start in range(0, rows, step):
                    buffer = empty.get()
                    if buffer is None:
                        return
                    self._fill(start, buffer[: min(step, rows - start)], raw)
                    self.file.check()
                    filled.put((start, buffer))
                filled.put(None)
            except BaseException as error:
                filled.put(error)

        thread = threading.Thread(target=read, name="fastload-read-ahead", daemon=True)
        thread.start()
        try:
            while (found := filled.get()) is not None:
                if isinstance(found, OSError):
                    raise DataError(f"{self.file.name}: cannot be read ({found.strerror or found})") from found
                if isinstance(found, BaseException):
                    raise found
                start, buffer = found
                yield start, buffer[: min(step, rows - start)]
                empty.put(buffer)
        finally:
            empty.put(None)
            thread.join()

    @property
    def _converts(self) -> bool:
        return self.dtype not in _SERVED

    def _fill(self, start: int, chunk: np.ndarray, raw: np.ndarray) -> None:
        """Read the rows from `start` on into `chunk`, by way of `raw` where they are not stored so."""
        rows, dims = self.shape
        size = self.dtype.itemsize
        if self._columns is None:
            into = raw[: chunk.size].reshape(chunk.shape) if self._converts else chunk
            self.file.fill(into.data.cast("B"), self.offset + start * dims * size)
        else:
            stored = raw[: chunk.size].reshape(dims, len(chunk))
            for place, column in enumerate(stored):
                self.file.fill(column.data.cast("B"), self.offset + (place * rows + start) * size)
            into = np.empty_like(stored)
            into[self._columns] = stored
            into = into.T
        if into is not chunk:
            with np.errstate(over="ignore", invalid="ignore"):
                chunk[:] = into


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether in Fortran's order, and type; ValueError for another file."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (EOFError, SyntaxError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if dtype.hasobject:
        raise ValueError("Python objects, which fastload does not unpickle")
    return shape, fortran, dtype
