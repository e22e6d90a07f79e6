"""Any two-dimensional array as embeddings in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import h5py
import numpy as np
import torch

from fastload.common.arguments import integer
from fastload.embedding.matrix_file import MatrixFile
from fastload.errors import DataError

_READ_BYTES = 64 << 20
# Slices of an array in memory cost nothing, and the kernels meet sorted rows better in long chunks.
_VIEW_BYTES = 1 << 30
_KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ArrayEmbeddings:
    """A matrix that is given in slices, as float32 or 16-bit floats.

    Arguments:
        array: an array, memory map, HDF5 dataset or tensor, [n, dims].
        chunk_rows: rows at a time.
    """

    array: Any
    chunk_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, dims = self.array.shape
        return int(rows), int(dims)

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows)."""
        for start in range(0, self.shape[0], self.chunk_rows):
            yield start, _as_kernels_take(self.array[start : start + self.chunk_rows])


def _as_kernels_take(chunk: Any) -> Any:
    """Return rows as the kernels take them: float32 or float16 arrays, tensors of those or of bfloat16."""
    if isinstance(chunk, torch.Tensor):
        return chunk if chunk.dtype in _KERNEL_TYPES else chunk.to(torch.float32)
    chunk = np.asarray(chunk)  # whatever gives arrays in slices
    if _kernels_take(chunk):
        return chunk
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float32 is reported as infinity, with its ids
        return chunk.astype(np.float32)


@dataclass(frozen=True)
class FileEmbeddings:
    """A matrix in a file, read ahead by a thread while the chunk before is looked at.

    Arguments:
        matrix: the file's, [n, dims].
        chunk_rows: rows at a time; None for 128 MiB.
    """

    matrix: MatrixFile
    chunk_rows: int | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows)."""
        return self.matrix.chunks(self.chunk_rows)


def as_embeddings(source: Any, chunk_rows: int | None = None) -> Embeddings:
    """Return embeddings [n, dims] in chunks.

    Arguments:
        source: NumPy array or memory map, h5py dataset, tensor, nested lists, what NumPy makes an array of; or an
            object with `shape` and `chunks()`, which is returned as it is. Real numbers; float64 becomes float32.
        chunk_rows: rows at a time; by default what makes a chunk of 128 MiB read ahead from a memory map's file, 64 MiB
            read from what else is no array, or 1 GiB looked at in memory.

    Raises DataError for what is not a non-empty dense matrix of real numbers: sparse, masked, complex, text, uint16.
    """
    if chunk_rows is not None:
        chunk_rows = integer("chunk_rows", chunk_rows, 1)
    if callable(getattr(source, "chunks", None)) and hasattr(source, "shape"):
        _check_shape(tuple(source.shape))
        return source
    source = _dense(source)
    _check_shape(tuple(source.shape))
    check_kind(source.dtype, "embeddings")
    if isinstance(source, np.memmap) and (matrix := MatrixFile.of(source)) is not None:
        return FileEmbeddings(matrix, chunk_rows)
    if chunk_rows is None:
        in_memory = isinstance(source, np.ndarray) and _kernels_take(source) and source.flags.c_contiguous
        row_bytes = int(source.shape[1]) * max(4, getattr(source.dtype, "itemsize", 4))
        chunk_rows = max(1, (_VIEW_BYTES if in_memory else _READ_BYTES) // row_bytes)
    return ArrayEmbeddings(source, chunk_rows)


def most_rows(dims: int) -> int:
    """Return how many rows of float32 the largest chunk has."""
    return max(1, _VIEW_BYTES // (4 * dims))


def _dense(source: Any) -> Any:
    """Return what has a shape, a type and rows; refuse what only looks so."""
    if isinstance(source, np.ma.MaskedArray):
        if np.ma.is_masked(source):
            raise DataError("embeddings are a masked array with masked values; fill them, or leave those samples out")
        return source.data
    if isinstance(source, torch.Tensor):
        if source.layout != torch.strided or source.is_meta or source.is_quantized:
            what = (
                f"a tensor of layout {source.layout}" if source.layout != torch.strided else "a tensor without values"
            )
            raise DataError(f"embeddings are {what}; give a dense one, for example with .to_dense()")
        return source.detach()
    if hasattr(source, "toarray") or hasattr(source, "todense"):
        raise DataError(f"embeddings are a sparse {type(source).__name__}; give a dense array, with .toarray()")
    if isinstance(source, np.ndarray | h5py.Dataset):
        return source
    if len(getattr(source, "shape", ())) == 2 and isinstance(getattr(source, "dtype", None), np.dtype):
        return source
    try:
        return np.asarray(source)
    except Exception as error:
        raise DataError(f"embeddings are a {type(source).__name__} that is no matrix of numbers ({error})") from error


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise DataError(f"embeddings of shape {shape}; one row a sample, [samples, dimensions], was expected")
    if shape[0] < 1 or shape[1] < 1:
        raise DataError(f"embeddings of shape {shape} are empty; at least one sample and one dimension are needed")


def check_kind(dtype: Any, where: str) -> None:
    """Raise DataError, naming `where`, unless a NumPy or torch type is one of real numbers."""
    if isinstance(dtype, torch.dtype):
        if dtype.is_complex:
            raise DataError(f"{where}: of type {dtype}; real numbers, best float32, were expected")
        name = str(dtype).removeprefix("torch.")
    else:
        name = str(dtype)
        if dtype == np.dtype("V2"):
            raise DataError(f"{where}: of type {name}, as bfloat16 is saved; save it as float32")
        if dtype.kind not in "fiub":
            raise DataError(f"{where}: of type {name}, not real numbers; real numbers, best float32, were expected")
    if name.lstrip("<>=|") in ("uint16", "u2"):
        # Such files came from bfloat16 tensors seen as integers: their order is that of the bits.
        raise DataError(f"{where}: of type uint16, in which bfloat16's bits are kept; save float32 (or int32 counts)")


def _kernels_take(array: np.ndarray) -> bool:
    """Whether the kernels take the array's type as it is."""
    return array.dtype.isnative and array.dtype in (np.dtype(np.float32), np.dtype(np.float16))


class Embeddings(Protocol):
    """Embeddings that can be read several times over, in chunks of rows, in the order of rows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, float32 or float16 [rows, dims]), without gaps.

        A chunk holds until the next is asked for: its memory may be used again then.
        """
        ...
