"""Embeddings in a file of our own, float32 [N, D] in NumPy's format: written chunk by chunk, and read back."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np

from fastload.common.folder_files import FolderFile
from fastload.common.replacing import write_all
from fastload.embedding.matrix_file import MatrixFile
from fastload.errors import DataError


class RowWriter:
    """Rows of float32 written with `pwrite` into a .npy file whose space is taken at once.

    Not through a memory map: on a full disk that ends in SIGBUS, where this ends in an error.

    Arguments:
        place: the file.
        rows: of the matrix.
        columns: of the matrix.
        keep: leave the rows of an existing file of that shape as they are.

    Raises DataError where the file cannot be written, and where one to be kept has another shape.
    """

    def __init__(self, place: FolderFile | Path, rows: int, columns: int, *, keep: bool = False) -> None:
        self._file, self._columns = FolderFile.of(place), columns
        if keep and saved_shape(self._file) != (rows, columns):
            raise DataError(f"{place}: is not the embeddings that were begun; run with fresh=True")
        header = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
        np.lib.format.write_array_header_1_0(header, described)
        self._offset = header.tell()
        self._descriptor = -1
        try:
            self._descriptor = self._file.open(write=True) if keep else self._file.create()
            if not keep:
                os.pwrite(self._descriptor, header.getvalue(), 0)
            os.posix_fallocate(self._descriptor, self._offset, max(1, rows * columns * 4))
        except OSError as error:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            with contextlib.suppress(OSError):
                self._file.remove()
            raise DataError(
                f"{place}: cannot be written ({error.strerror}); the embeddings need {rows * columns * 4 / 1e6:,.0f} MB"
            ) from error

    def write(self, row: int, values: np.ndarray) -> None:
        """Write float32 [b, columns] from `row` on."""
        data = np.ascontiguousarray(values, dtype=np.float32).data
        try:
            write_all(self._descriptor, self._offset + row * self._columns * 4, data)
        except OSError as error:
            raise DataError(f"{self._file}: cannot be written ({error.strerror}); make room there") from error

    def sync(self) -> None:
        """Wait until what is written is on disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Wait until all is on disk, and close the file. Safe to call twice."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1


def open_stored(place: FolderFile | Path) -> MatrixFile | None:
    """Return the rows of a file that a RowWriter made, whole or not yet; None where there is no such file."""
    try:
        rows = MatrixFile.npy(place)
    except (OSError, ValueError, DataError):
        return None
    return rows if rows.dtype == np.dtype("<f4") else None


def saved_shape(place: FolderFile | Path) -> tuple[int, int] | None:
    """Return the shape of such a file; None where there is none."""
    rows = open_stored(place)
    return rows.shape if rows is not None else None
