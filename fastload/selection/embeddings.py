"""Any two-dimensional array as embeddings in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastload.errors import DataError
from fastload.read_ahead import FileRows
from fastload.selection.base import Embeddings

_READ_BYTES = 64 << 20
# Slices of an array in memory cost nothing, and the kernels meet sorted rows better in long chunks.
_VIEW_BYTES = 1 << 30


@dataclass(frozen=True)
class ArrayEmbeddings:
    """An array, memory map, HDF5 dataset or CPU tensor, `chunk_rows` rows at a time, as float32 or 16-bit floats."""

    array: Any
    chunk_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, dims = self.array.shape
        return int(rows), int(dims)

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows)."""
        for start in range(0, self.shape[0], self.chunk_rows):
            chunk = self.array[start : start + self.chunk_rows]
            if not _is_served(chunk):
                with np.errstate(over="ignore"):  # too large for float32 is reported as infinity, with its ids
                    chunk = chunk.astype(np.float32)
            yield start, chunk


@dataclass(frozen=True)
class FileEmbeddings:
    """Rows of a file, read ahead by a thread while the chunk before is looked at."""

    rows: FileRows
    chunk_rows: int | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows)."""
        return self.rows.chunks(self.chunk_rows)


def as_embeddings(source: Any, chunk_rows: int | None = None) -> Embeddings:
    """Return embeddings [n, dims] in chunks.

    Arguments:
        source: NumPy array or memory map, h5py dataset, CPU tensor; or an object with `shape` and `chunks()`, which
            is returned as it is.
        chunk_rows: rows at a time; by default what makes a chunk of 128 MiB read ahead from a memory map's file, 64 MiB
            read from what else is no array, or 1 GiB looked at in memory.

    Raises DataError for what is not a non-empty matrix of real numbers.
    """
    shape = getattr(source, "shape", None)
    if shape is None:
        source = np.asarray(source)
        shape = source.shape
    shape = tuple(int(extent) for extent in shape)
    if len(shape) != 2:
        raise DataError(f"embeddings of shape {shape}; one row a sample, [samples, dimensions], was expected")
    if shape[0] < 1 or shape[1] < 1:
        raise DataError(f"embeddings of shape {shape} are empty; at least one sample and one dimension are needed")
    if hasattr(source, "chunks") and callable(source.chunks):
        return source
    kind = getattr(source.dtype, "kind", "f" if getattr(source, "is_floating_point", lambda: False)() else "?")
    if kind not in "fiu" or (hasattr(source, "data_ptr") and not _is_served(source)):
        raise DataError(f"embeddings of type {source.dtype}; real numbers, best float32, were expected")
    if chunk_rows is not None and chunk_rows < 1:
        raise DataError(f"chunk_rows={chunk_rows}; at least 1 is needed")
    if _is_served(source) and (rows := FileRows.of(source)) is not None:
        return FileEmbeddings(rows, chunk_rows)
    if chunk_rows is None:
        in_memory = isinstance(source, np.ndarray) and _is_served(source) and source.flags.c_contiguous
        row_bytes = shape[1] * max(4, getattr(source.dtype, "itemsize", 4))
        chunk_rows = max(1, (_VIEW_BYTES if in_memory else _READ_BYTES) // row_bytes)
    return ArrayEmbeddings(source, chunk_rows)


def most_rows(dims: int) -> int:
    """Return how many rows of float32 the largest chunk has."""
    return max(1, _VIEW_BYTES // (4 * dims))


def _is_served(array: Any) -> bool:
    """Whether the kernels take the array's type as it is."""
    dtype = array.dtype
    if isinstance(dtype, np.dtype):
        return dtype.isnative and dtype in (np.dtype(np.float32), np.dtype(np.float16))
    return str(dtype).rpartition(".")[2] in ("float32", "float16", "bfloat16")
