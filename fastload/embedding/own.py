"""Embeddings that the user brings: a .npy file or an HDF5 dataset, read in chunks, and which sample each row is of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastload.embedding.chunks import Embeddings, check_kind
from fastload.embedding.matrix_file import MatrixFile, UnchangedFile
from fastload.errors import DataError
from fastload.packed.hdf5_reading import checked_dataset, open_hdf5
from fastload.packed.set import Packed

ROWS = "rows"
"""What `embedding_ids` says where row i is of the full set's row i, whatever ids stand beside the embeddings."""

_READ_BYTES = 64 << 20
_LARGEST_READ = 1 << 30


@dataclass(frozen=True)
class OwnEmbeddings:
    """Embeddings and whose they are.

    Arguments:
        vectors: [N, D], in chunks.
        name: the file's and dataset's, for messages.
        row_of: int64 [N], the full set's row that each row of the embeddings is of.
        rule: how that is known, for people.
    """

    vectors: Embeddings
    name: str
    row_of: np.ndarray
    rule: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.vectors.shape


def open_embeddings(spec: str | os.PathLike[str], full: Packed, ids: str | None = None) -> OwnEmbeddings:
    """Open the user's embeddings, one for each sample of the full set. Nothing is read yet but ids.

    Arguments:
        spec: FILE.npy, or FILE.h5[:dataset] (the dataset may be left out where the file has one matrix only).
        full: the full set.
        ids: FILE[:dataset], whose samples the rows are of: ids or, where the full set holds names, names; .npy, HDF5 or
            a text file, one a line. "rows": row i is of row i. By default a dataset `ids` that stands beside the
            embeddings; else row i is of row i.

    Raises DataError for a missing file or dataset, another length, values that are no real numbers, and ids that are
    not the full set's, each once.
    """
    path, dataset = split_spec(os.fspath(spec))
    if not path.exists():
        raise DataError(f"{path}: no such file; embeddings= takes FILE.npy or FILE.h5:dataset")
    ids_beside: np.ndarray | None = None
    if _is_h5(path):
        vectors, name, ids_beside = _open_h5(path, dataset)
    else:
        if dataset is not None:
            raise DataError(f"{path}: is not an HDF5 file, so it has no dataset {dataset!r}")
        vectors, name = _open_npy(path), str(path)
    if vectors.shape[0] != len(full):
        raise DataError(
            f"{name}: has {vectors.shape[0]:,} embeddings but the full set has {len(full):,} samples; bring one for "
            "each"
        )
    if ids is None and ids_beside is not None:
        where = f"{path}:{_ids_beside(name[len(str(path)) + 1 :])}"
        return OwnEmbeddings(vectors, name, _rows_of(full, ids_beside, where, len(full)), f"by the ids of {where}")
    if ids is None or ids == ROWS:
        return OwnEmbeddings(vectors, name, np.arange(len(full)), "row i of the embeddings is of row i of the full set")
    found, where = _read_ids(ids)
    return OwnEmbeddings(vectors, name, _rows_of(full, found, where, len(full)), f"by the ids of {where}")


def split_spec(spec: str) -> tuple[Path, str | None]:
    """Split FILE[:dataset]; a colon inside an existing file's name belongs to the name."""
    if Path(spec).exists() or ":" not in spec:
        return Path(spec), None
    name, _, dataset = spec.rpartition(":")
    return Path(name), dataset


def _is_h5(path: Path) -> bool:
    return path.suffix in (".h5", ".hdf5") or h5py.is_hdf5(path)


# -- the rows ----------------------------------------------------------------------------------------------------


def _open_npy(path: Path) -> MatrixFile:
    try:
        rows = MatrixFile.npy(path)
    except (OSError, ValueError) as error:
        with open(path, "rb") as file:
            archive = file.read(4) == b"PK\x03\x04"
        what = "is an .npz archive" if archive else f"is not a .npy file of numbers ({error})"
        raise DataError(f"{path}: {what}; save the embeddings alone with numpy.save") from error
    check_kind(rows.dtype, str(path))
    return rows


def _open_h5(path: Path, name: str | None) -> tuple[Embeddings, str, np.ndarray | None]:
    """Return the rows, what they are called, and the ids beside them."""
    file = open_hdf5(path)
    try:
        dataset = _dataset(path, file, name)
        name = dataset.name.strip("/")
        where = f"{path}:{name}"
        check_kind(dataset.dtype, where)
        if dataset.ndim < 2:
            raise DataError(f"{where}: has shape {dataset.shape}; embeddings are [N, D], a row for each sample")
        beside = _ids_beside(name)
        ids = None
        if beside in file:
            ids = checked_ids(checked_dataset(path, file, beside), f"{path}:{beside}")
        shape = (dataset.shape[0], int(np.prod(dataset.shape[1:], dtype=object)))
        offset = dataset.id.get_offset() if dataset.chunks is None else None
        opened = UnchangedFile(where, os.dup(file.id.get_vfd_handle()))
        if offset is None:
            return _Hdf5Matrix(file, dataset, opened, shape), where, ids
        rows = MatrixFile(opened, offset, shape, dataset.dtype)
        file.close()
        return rows, where, ids
    except BaseException:
        file.close()
        raise


def _dataset(path: Path, file: h5py.File, name: str | None) -> h5py.Dataset:
    found = {key: item for key in file if isinstance(item := file.get(key), h5py.Dataset)}
    matrices = [key for key, item in found.items() if key != "ids" and len(item.shape or ()) > 1]
    if name is None and len(found if len(found) == 1 else matrices) == 1:
        name = next(iter(found)) if len(found) == 1 else matrices[0]
    if name is None or name not in file:
        what = "name the dataset" if name is None else f"has no dataset {name!r}"
        listed = ", ".join(sorted(found)[:6]) or "none at its top"
        raise DataError(f'{path}: {what}; it has {listed}: give embeddings="{path.name}:NAME"')
    return checked_dataset(path, file, name)


def _ids_beside(name: str) -> str:
    return f"{name.rpartition('/')[0]}/ids".strip("/")


class _Hdf5Matrix:
    """A chunked or compressed dataset, read by HDF5."""

    def __init__(self, file: h5py.File, dataset: h5py.Dataset, opened: UnchangedFile, shape: tuple[int, int]) -> None:
        self._file, self._dataset, self._opened, self.shape = file, dataset, opened, shape

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 rows). Raises DataError for what cannot be read, or changes meanwhile."""
        rows, dims = self.shape
        row_bytes = dims * max(4, self._dataset.dtype.itemsize)
        # Whole chunks of the file, each of which is decompressed at once.
        stored = self._dataset.chunks[0] if self._dataset.chunks else 1
        wanted = max(1, _READ_BYTES // row_bytes)
        step = min(-(-wanted // stored) * stored, max(1, _LARGEST_READ // row_bytes))
        for start in range(0, rows, step):
            try:
                chunk = self._dataset[start : start + step]
            except (OSError, RuntimeError) as error:
                self._opened.check()
                raise DataError(f"{self._opened.name}: cannot be read ({error}); write it again") from error
            self._opened.check()
            with np.errstate(over="ignore", invalid="ignore"):
                yield start, chunk.reshape(len(chunk), dims).astype(np.float32, copy=False)


# -- whose they are -------------------------------------------------------------------------------------------------


def _read_ids(spec: str) -> tuple[np.ndarray, str]:
    """Return ids or names [N], and what they are called."""
    path, dataset = split_spec(spec)
    if not path.exists():
        raise DataError(f"{path}: no such file; embedding_ids= takes FILE.npy, FILE.h5:dataset or FILE.txt, or 'rows'")
    if _is_h5(path):
        with open_hdf5(path) as file:
            return checked_ids(checked_dataset(path, file, dataset or "ids"), f"{path}:{dataset or 'ids'}"), (
                f"{path}:{dataset or 'ids'}"
            )
    if dataset is not None:
        raise DataError(f"{path}: is not an HDF5 file, so it has no dataset {dataset!r}")
    return read_list(path), str(path)


def read_list(path: Path) -> np.ndarray:
    """Return the ids (int64) or names (text) [N] of a .npy file, or of a text file with one a line."""
    try:
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                return checked_ids(np.load(path, allow_pickle=False), str(path))
            file.seek(0)
            lines = [line for line in file.read().decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot be read as a list ({reason}); give one id or name a line, or a .npy"
        ) from error
    return ids_of(lines)


def ids_of(entries: list[str]) -> np.ndarray:
    """Return entries as ids (int64) where all are whole numbers, else as names."""
    if all(entry.strip().isascii() and entry.strip().isdigit() and len(entry.strip()) < 19 for entry in entries):
        return np.array([int(entry) for entry in entries], np.int64)
    return np.array([entry.strip() for entry in entries], np.str_)


def checked_ids(source: Any, where: str) -> np.ndarray:
    """Return an array or dataset as ids (int64) or names [N]."""
    if len(source.shape) != 1:
        raise DataError(f"{where}: has shape {source.shape}; ids are one a row, [N]")
    dtype = source.dtype
    if isinstance(source, h5py.Dataset) and h5py.check_string_dtype(dtype) is not None:
        return source.asstr()[()].astype(np.str_)
    array = np.asarray(source[()])
    if dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: holds names that are not UTF-8; write them again") from error
    if dtype.kind == "U":
        return array
    if dtype.kind not in "iu":
        raise DataError(f"{where}: holds {dtype}; ids are whole numbers, or the samples' names")
    if dtype.kind == "u" and len(array) and int(array.max()) >= 2**63:
        raise DataError(f"{where}: holds {int(array.max())}, which is no id: they are below 2^63")
    return array.astype(np.int64)


def _rows_of(full: Packed, ids: np.ndarray, where: str, count: int) -> np.ndarray:
    """Return the full set's row of each id or name; DataError unless each sample is named once."""
    if len(ids) != count:
        raise DataError(f"{where}: has {len(ids):,} ids for {count:,} embeddings; there is one for each row")
    mend = "; bring one embedding for each sample, or say embedding_ids="
    rows = find_rows(full, ids, where, mend)
    order = np.sort(rows)
    again = np.flatnonzero(order[1:] == order[:-1])
    if len(again):
        row = int(order[again[0]])
        missing = int(np.setdiff1d(np.arange(len(full)), rows)[0])
        raise DataError(
            f"{where}: has {id_and_name(full, row)} more than once, and {id_and_name(full, missing)} not at all{mend}"
        )
    return rows


def find_rows(full: Packed, ids: np.ndarray, where: str, mend: str = "") -> np.ndarray:
    """Return the rows, int64, at which a full set holds samples of these ids (int64) or names (text).

    Raises DataError that names the first it does not hold.
    """
    if ids.dtype.kind == "U":
        held = getattr(full, "names", None)
        if held is None:
            raise DataError(
                f"{where}: has names such as {str(ids[0])!r}, but {full.path} holds none; give ids, or pack it again"
            )
        row_of = {name: row for row, name in enumerate(held)}
        rows = np.array([row_of.get(str(name), -1) for name in ids], np.int64)
    else:
        order = np.argsort(full.ids, kind="stable")
        place = np.minimum(np.searchsorted(full.ids, ids, sorter=order), len(order) - 1)
        rows = np.where(full.ids[order[place]] == ids, order[place], -1)
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        first = ids[unknown[0]]
        told = f"the name {str(first)!r}" if ids.dtype.kind == "U" else f"id {first}"
        raise DataError(f"{where}: has {told}, which {full.path} does not hold{mend}")
    return rows


def id_and_name(full: Packed, row: int) -> str:
    """Return what a sample is called: its id, and its name where the set holds names."""
    names = getattr(full, "names", None)
    return f"id {full.ids[row]}" + (f" ({names[row]})" if names is not None else "")
