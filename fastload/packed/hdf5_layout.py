"""Lay out HDF5's structures in memory: the pieces that h5py would write, for the caller to write.

h5py buffers what it is given and writes when objects are freed and files closed, where it prints and ignores a full
disk, or crashes. So it never sees the disk: it lays the file out here, and each byte goes out by `pwrite`, whose errors
are errors.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

_LIBVER = ("v110", "v110")  # checksums on all of HDF5's own structures: a flipped bit there is an error


class FileLayout:
    """An HDF5 file without the bytes of its datasets, which are contiguous and have their places already.

    Attributes:
        pieces: (position, bytes) of HDF5's own structures; they do not overlap.
        size: of the whole file in bytes.
    """

    def __init__(self) -> None:
        self._file = _SparseFile()

    @property
    def pieces(self) -> list[tuple[int, bytes]]:
        return list(self._file.pieces)

    @property
    def size(self) -> int:
        return self._file.size

    @contextmanager
    def begun(self, alignment: int) -> Iterator[h5py.File]:
        """Begin the file; what is placed meanwhile stands at multiples of `alignment`, however small it is."""
        with h5py.File(self._file, "w", libver=_LIBVER, alignment_threshold=1, alignment_interval=alignment) as file:
            yield file

    @contextmanager
    def continued(self) -> Iterator[h5py.File]:
        """Go on with the file."""
        with h5py.File(self._file, "r+", libver=_LIBVER) as file:
            yield file


def place_dataset(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any) -> int:
    """Make a contiguous dataset, give it room, and return where its bytes begin; 0 where it has none."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    dataset = h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), layout)
    return int(dataset.get_offset() or 0)


def set_attributes(holder: Any, values: Mapping[str, Any]) -> None:
    """Store attributes, text as text of fixed length.

    Text of variable length lies in HDF5's global heap, the one structure without a checksum: a flipped bit there
    made the library loop for ever.
    """
    for name, value in values.items():
        if isinstance(value, str):
            data = value.encode()
            value = np.array(data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))
        holder.attrs[name] = value


class _SparseFile(io.RawIOBase):
    """What HDF5 wrote, and nothing of what it left out."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size = self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        for position, data in self.pieces:
            first, last = max(position, self._position), min(position + len(data), self._position + len(view))
            if first < last:
                view[first - self._position : last - self._position] = data[first - position : last - position]
        self._position += len(view)
        return len(view)

    def write(self, buffer: Any) -> int:
        data, start = bytes(buffer), self._position
        stop, kept = start + len(data), []
        for position, old in self.pieces:
            if position < start:
                kept.append((position, old[: start - position]))
            if position + len(old) > stop:
                kept.append((max(position, stop), old[max(0, stop - position) :]))
        self.pieces = sorted([*kept, (start, data)])
        self._position, self.size = stop, max(self.size, stop)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        self.pieces = [(start, data[: self.size - start]) for start, data in self.pieces if start < self.size]
        return self.size
