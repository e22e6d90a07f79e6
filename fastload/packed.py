"""The packed file: images, labels, ids and digests in one HDF5 file that can be memory-mapped.

`PackedWriter` makes one, `PackedFile` opens one for reading, `damaged_rows` checks every digest. full.h5 and
subset.h5 are the same format (docs/format.md). Pixels never go through h5py: they are written with
`pwrite` and read with `pread`, or through a memory map, at the dataset's offset: h5py has one lock for a process.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xxhash

from fastload.arguments import path_of
from fastload.errors import DataError, FastloadError, UsageError
from fastload.labels import LARGEST_LABELS, as_labels
from fastload.packed_writer import ALIGNMENT, CHUNK, FORMAT, PackedWriter, SelectionTable, digest

__all__ = [
    "ALIGNMENT",
    "FORMAT",
    "Extent",
    "PackedFile",
    "PackedWriter",
    "SelectionTable",
    "checked_dataset",
    "damaged_rows",
    "digest",
    "fingerprint",
    "open_hdf5",
]


class Extent(NamedTuple):
    """Where image bytes are: an open file's descriptor, the first byte in it, and how many."""

    descriptor: int
    offset: int
    nbytes: int


class PackedFile:
    """A packed file (or a user's own HDF5 file) opened for reading through a memory map.

    Arguments:
        path: the file.
        images, labels: names of the datasets in a user's own HDF5 file, uint8 [N, H, W, C] or [N, C, H, W]
            and [N, ...]; leave both out for a packed file.

    Attributes:
        storage: "raw" or "encoded".
        shape: (H, W, C) of every image; None for encoded storage.
        labels: [N, ...] as stored. ids: int64 [N]. classes: list of names, maybe empty.
        fingerprint: identifies images and labels; hex. source: dict. selection: SelectionTable or None.
        created_with: the program that wrote the file.
        data: uint8 [bytes], the mapped image bytes, read-only.
        strides: bytes from one image, row, column and channel to the next, for raw storage.
        offsets: int64 [N + 1] into `data`, for encoded storage.

    `stored` and `image` are views of the map: where the file may shrink meanwhile, touching one can kill the
    process with SIGBUS, so populate its pages first (see docs/format.md) or take a copy with `read`.
    Raises DataError for anything that is not as the format says: the message names file, dataset and mend.
    """

    def __init__(self, path: str | os.PathLike[str], *, images: str | None = None, labels: str | None = None) -> None:
        self.path = path_of("path", path)
        self.storage = "raw"
        self.shape: tuple[int, int, int] | None = None
        self.strides: tuple[int, int, int, int] | None = None
        self.offsets: np.ndarray | None = None
        self.selection: SelectionTable | None = None
        self.classes: list[str] = []
        self.source: dict[str, Any] = {}
        self.created_with = ""
        self.digests: np.ndarray | None = None
        self.labels: np.ndarray
        self.ids: np.ndarray
        self.data: np.ndarray
        self._map: mmap.mmap | None = None
        self._release: weakref.finalize | None = None
        self._descriptor = -1
        if (images is None) != (labels is None):
            raise UsageError("images= and labels= name the datasets of your own HDF5 file: give both")
        for argument, name in (("images", images), ("labels", labels)):
            if name is not None and not isinstance(name, str):
                raise UsageError(f"{argument}={name!r}; it is the name of a dataset of your own HDF5 file")
        try:
            with open_hdf5(self.path) as file:
                if images is not None and labels is not None:
                    self._read_foreign(file, images, labels)
                else:
                    self._read_packed(file)
        except FastloadError:
            self.close()
            raise
        except Exception as error:  # whatever HDF5, h5py or NumPy make of damaged structures
            self.close()
            raise damaged(self.path, error) from error

    # -- reading the metadata ------------------------------------------------------------------

    def _read_packed(self, file: h5py.File) -> None:
        check_format(self.path, file)
        self.storage = str(read_attribute(self.path, file, "storage"))
        if self.storage not in ("raw", "encoded"):
            raise self._error(f"says storage {self.storage!r}, neither 'raw' nor 'encoded'; pack it again")
        self.fingerprint = str(read_attribute(self.path, file, "fingerprint"))
        if not re.fullmatch("[0-9a-f]{32}", self.fingerprint):
            raise self._error("has no valid 'fingerprint' attribute; pack it again")
        self.source = self._read_source(file)
        self.created_with = str(read_attribute(self.path, file, "created_with") or "")
        dataset = self._inner(file, "images", np.uint8)
        labels = self._inner(file, "labels")
        if self.storage == "raw":
            if dataset.ndim != 4:
                raise self._error(f"dataset 'images' has {dataset.ndim} dimensions, not 4; pack it again")
            count = dataset.shape[0]
            self._set_raw(*dataset.shape[1:], channels_first=False)
        else:
            self.offsets = self._read_offsets(file, dataset)
            count = len(self.offsets) - 1
        self.labels = read_labels(self.path, labels, "images", count)
        self.ids = self._column(file, "ids", np.int64, count)
        if len(self.ids) and self.ids.min() < 0:
            raise self._error("dataset 'ids' has negative ids; it is damaged, pack it again")
        self.digests = self._column(file, "digests", np.uint64, count)
        self.classes = self._read_classes(file)
        self._map_dataset(file, dataset)
        if "selection" in file:
            self.selection = self._read_selection(file, count)

    def _read_source(self, file: h5py.File) -> dict[str, Any]:
        try:
            source = json.loads(read_attribute(self.path, file, "source"))
        except (TypeError, ValueError, RecursionError):
            source = None
        if not isinstance(source, dict):
            raise self._error("has a 'source' attribute that is not a JSON object; pack it again")
        return source

    def _read_offsets(self, file: h5py.File, images: h5py.Dataset) -> np.ndarray:
        if images.ndim != 1:
            raise self._error(f"dataset 'images' has {images.ndim} dimensions, not 1; pack it again")
        dataset = self._inner(file, "offsets", np.int64)
        if dataset.ndim != 1 or not dataset.shape[0]:
            raise self._error(f"dataset 'offsets' has shape {dataset.shape}, not (N + 1,); pack it again")
        offsets = dataset[()]
        if offsets[0] != 0 or offsets[-1] != images.shape[0] or (offsets[1:] <= offsets[:-1]).any():
            raise self._error(
                "dataset 'offsets' does not rise from 0 to the size of 'images'; it is damaged, pack it again"
            )
        return offsets

    def _read_classes(self, file: h5py.File) -> list[str]:
        if "classes" not in file:
            return []
        dataset = self._inner(file, "classes")
        if dataset.ndim != 1 or dataset.dtype.kind != "S":
            raise self._error("dataset 'classes' is not a list of names; pack it again")
        return [str(name) for name in dataset.asstr()[()]]

    def _read_selection(self, file: h5py.File, count: int) -> SelectionTable:
        group = file["selection"] if isinstance(file.get("selection", getlink=True), h5py.HardLink) else None
        if not isinstance(group, h5py.Group):
            raise self._error("'selection' is not a group of this file; build the subset again")
        return SelectionTable(
            self._column(group, "dimension", np.int32, count),
            self._column(group, "rank", np.int32, count),
            self._column(group, "score", np.float32, count),
            {key: read_attribute(self.path, group, key) for key in group.attrs},
        )

    def _read_foreign(self, file: h5py.File, images: str, labels: str) -> None:
        dataset = checked_dataset(self.path, file, images, np.uint8)
        height, width, channels, first = image_layout(self.path, images, dataset.shape)
        found = read_labels(self.path, checked_dataset(self.path, file, labels), images, dataset.shape[0])
        self.labels = as_labels(found, f"{self.path}: dataset '{labels}'")
        self._set_raw(height, width, channels, channels_first=first)
        self.ids = np.arange(len(self.labels), dtype=np.int64)
        self.source = {"kind": "hdf5", "images": images, "labels": labels}
        self._map_dataset(file, dataset)
        hasher = xxhash.xxh3_128(repr((dataset.shape, self.labels.shape, str(self.labels.dtype))).encode())
        count = len(self.labels)
        for row in np.unique(np.linspace(0, count - 1, min(count, 1000)).astype(np.int64)):
            hasher.update(self.read(int(row)))
            hasher.update(np.ascontiguousarray(self.labels[row]).data)
        self.fingerprint = hasher.hexdigest()

    def _set_raw(self, height: int, width: int, channels: int, *, channels_first: bool) -> None:
        if min(height, width, channels) < 1:
            raise self._error(f"has images of {height}×{width}×{channels}; pack it again")
        size = height * width * channels
        self.shape = (height, width, channels)
        self.strides = (size, width, 1, height * width) if channels_first else (size, width * channels, channels, 1)

    def _inner(self, group: h5py.Group, name: str, dtype: Any = None) -> h5py.Dataset:
        """Return a packed file's own dataset: checked, and contiguous, so that its size is really there."""
        dataset = checked_dataset(self.path, group, name, dtype)
        if dataset.chunks is not None or (math.prod(dataset.shape) and dataset.id.get_offset() is None):
            raise self._error(f"dataset '{name}' is not contiguous, as a packed file's are; pack it again")
        return dataset

    def _column(self, group: h5py.Group, name: str, dtype: Any, count: int) -> np.ndarray:
        dataset = self._inner(group, name, dtype)
        if dataset.shape != (count,):
            raise self._error(f"dataset '{name}' has shape {dataset.shape}, not ({count},); pack it again")
        return dataset[()]

    def _map_dataset(self, file: h5py.File, dataset: h5py.Dataset) -> None:
        name, nbytes = dataset.name.strip("/"), math.prod(dataset.shape)
        if nbytes == 0:
            raise self._error(f"dataset '{name}' is empty: there is not one image; pack it again")
        if dataset.chunks is not None:
            raise self._error(
                f"dataset '{name}' is chunked or compressed, so it cannot be memory-mapped; convert it with "
                f"`fastload pack {self.path.name} OUT.h5 --images {name} --labels NAME`"
            )
        offset = dataset.id.get_offset()
        if offset is None:
            raise self._error(f"dataset '{name}' was never written; write it, then try again")
        # The descriptor that HDF5 itself reads, so that map and metadata are of one file, even if it is replaced.
        descriptor = os.dup(file.id.get_vfd_handle())
        self._release = weakref.finalize(self, os.close, descriptor)
        self._descriptor, self._offset, self.nbytes = descriptor, offset, nbytes
        size, stop = os.fstat(descriptor).st_size, offset + nbytes
        if stop > size:
            raise self._error(
                f"dataset '{name}' ends at byte {stop:,} but the file has {size:,}: it is truncated; pack it again"
            )
        self._map = mmap.mmap(descriptor, stop, access=mmap.ACCESS_READ)
        self.data_offset = int(offset)
        self.data = np.frombuffer(self._map, np.uint8)[offset:]
        self.data.flags.writeable = False

    def _error(self, text: str) -> DataError:
        return DataError(f"{self.path}: {text}")

    # -- reading samples -----------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.labels)

    def span(self, row: int) -> tuple[int, int]:
        """Return where a sample's bytes start and stop in `data`."""
        if self.offsets is not None:
            return int(self.offsets[row]), int(self.offsets[row + 1])
        assert self.strides is not None
        return row * self.strides[0], (row + 1) * self.strides[0]

    def stored(self, row: int) -> np.ndarray:
        """Return a sample's stored bytes, uint8 [bytes]: a view of the map."""
        start, stop = self.span(row)
        return self.data[start:stop]

    def image(self, row: int) -> np.ndarray:
        """Return one raw image, uint8 [H, W, C]: a view of the map."""
        return self._shaped(self.stored(row))

    def read(self, row: int) -> bytes:
        """Return a copy of a sample's stored bytes; DataError, never SIGBUS, where the file has shrunk."""
        start, stop = self.span(row)
        return self.read_bytes(start, stop)

    def read_image(self, row: int) -> np.ndarray:
        """Return a copy of one raw image, uint8 [H, W, C]; DataError where the file has shrunk."""
        return self._shaped(np.frombuffer(self.read(row), np.uint8))

    def read_bytes(self, start: int, stop: int) -> bytes:
        """Return a copy of `data[start:stop]`, read with `pread`."""
        parts, descriptor = [], self.descriptor
        while start < stop:
            try:
                part = os.pread(descriptor, stop - start, self._offset + start)
            except OSError as error:
                raise self._error(f"cannot be read ({error.strerror}); check the disk") from error
            if not part:
                raise self._error("has become shorter while it was read; pack it again")
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _shaped(self, stored: np.ndarray) -> np.ndarray:
        if self.shape is None or self.strides is None:
            raise UsageError(f"{self.path}: holds encoded images; decode `stored(row)` instead")
        return np.lib.stride_tricks.as_strided(stored, self.shape, self.strides[1:], writeable=False)

    @property
    def descriptor(self) -> int:
        """The open file that `data` maps, at `data_offset`; also where the path holds another file by now."""
        if self._descriptor < 0:  # its number may be another file's by now
            raise UsageError(f"{self.path}: is closed; open it again")
        return self._descriptor

    @property
    def paths(self) -> list[Path]:
        """The files: one; of a set, all of them."""
        return [self.path]

    @property
    def extents(self) -> list[Extent]:
        """Where the image bytes are: one extent; of a set of files, one a file."""
        return [Extent(self.descriptor, self.data_offset, self.nbytes)]

    def close(self) -> None:
        """Give the memory map and the file back. Safe to call twice."""
        self.data = np.empty(0, np.uint8)
        if self._map is not None:
            with contextlib.suppress(BufferError):  # somebody still holds a view: the map goes when that goes
                self._map.close()
            self._map = None
        self._descriptor = -1
        if self._release is not None:
            self._release()

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_format(path: Path, file: h5py.File) -> None:
    """Raise DataError unless the file says that it is a packed file of this format."""
    version = read_attribute(path, file, "fastload_format")
    if version is None:
        names = ", ".join(sorted(file)[:6]) or "none"
        raise DataError(
            f"{path}: is HDF5, but not a packed file (its datasets: {names}); pack it with `fastload pack`, or "
            "name its datasets with --images and --labels (images=, labels=)"
        )
    if not isinstance(version, int | np.integer) or version != FORMAT:
        raise DataError(f"{path}: has format {version!s:.20}, this fastload reads {FORMAT}; update fastload")


def read_attribute(path: Path, holder: h5py.HLObject, name: str) -> Any:
    """Return an attribute as a plain number, text or array; None where there is none.

    Raises DataError for text of variable length, which reading from a damaged file may never end.
    """
    if name not in holder.attrs:
        return None
    if holder.attrs.get_id(name).dtype.hasobject:
        raise DataError(f"{path}: attribute '{name}' is not of fixed length, as a packed file's are; pack it again")
    value = holder.attrs[name]
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without locks; DataError says what is there instead."""
    try:
        path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; make it with `fastload pack SOURCE {path.name}`") from error
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a null byte
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be opened ({reason}); check the path and the permissions") from error
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not an HDF5 file; `fastload pack {path.name} OUT.h5` packs a folder")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file")
    try:
        with open(path, "rb") as handle:
            handle.read(1)
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: is not an HDF5 file; `fastload pack SOURCE {path.name}` makes one")
        return h5py.File(path, "r", locking=False)
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; check its permissions") from error
    except OSError as error:
        if "truncated" in str(error):
            raise DataError(f"{path}: is truncated; pack it again") from error
        raise damaged(path, error) from error


def damaged(path: Path, error: BaseException) -> DataError:
    """Return the DataError for a file of whose structures HDF5 could make nothing."""
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return DataError(f"{path}: is damaged ({reason}); pack it again")


def checked_dataset(path: Path, group: h5py.Group, name: str, dtype: Any = None) -> h5py.Dataset:
    """Return a dataset that lies in this very file, has this dtype, and claims no more than the file can hold.

    Arguments:
        path: the file's name, for messages. group: where to look. name: may hold slashes.
        dtype: what it must be; anything when None.

    Raises DataError for links, external or virtual storage, another dtype, an impossible size.
    """
    where = f"dataset '{(group.name.strip('/') + '/' + name).strip('/')}'"
    parent = group
    for part in name.strip("/").split("/"):
        link = parent.get(part, getlink=True) if isinstance(parent, h5py.Group) else None
        if link is None:
            raise DataError(f"{path}: has no {where}; pack it again, or name the right one")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: {where} is a link; fastload does not follow links, copy the data instead")
        parent = parent[part]
    dataset = parent
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {where} is a group, not a dataset")
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: {where} is stored outside the file; copy the data into it")
    if dataset.shape is None:
        raise DataError(f"{path}: {where} holds nothing; pack it again")
    if dtype is not None and dataset.dtype != np.dtype(dtype):
        raise DataError(f"{path}: {where} has dtype {dataset.dtype}, not {np.dtype(dtype)}; convert it first")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    # Compression seldom goes beyond 1:1000; chunks never written would make any size out of nothing.
    room = path.stat().st_size if dataset.chunks is None else 2000 * dataset.id.get_storage_size()
    if claimed > room:
        raise DataError(
            f"{path}: {where} says {claimed:,} bytes, more than the file can hold; it is damaged, pack it again"
        )
    return dataset


def read_labels(path: Path, dataset: h5py.Dataset, images: str, count: int) -> np.ndarray:
    """Return labels, [count, ...] in native byte order; DataError where they are no numbers or of another length."""
    name = dataset.name.strip("/")
    if dataset.dtype.kind not in "iufb" or dataset.dtype.itemsize > 8 or not dataset.ndim:
        raise DataError(f"{path}: dataset '{name}' has dtype {dataset.dtype}; labels are an array of numbers")
    if dataset.shape[0] != count:
        raise DataError(
            f"{path}: dataset '{name}' has {dataset.shape[0]:,} rows but '{images}' has {count:,}; was the file "
            "truncated? Pack it again"
        )
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if size > LARGEST_LABELS:
        raise DataError(
            f"{path}: dataset '{name}' has shape {dataset.shape}, {size:,} bytes; labels may take {LARGEST_LABELS:,}"
        )
    labels = dataset[()]
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def image_layout(where: object, name: str, shape: tuple[int, ...]) -> tuple[int, int, int, bool]:
    """Return height, width, channels and whether channels come first, of images [N, H, W(, C)] or [N, C, H, W]."""
    if 0 in shape[1:]:
        raise DataError(f"{where}: '{name}' has shape {shape}: its images hold not one pixel")
    if len(shape) == 3:
        return shape[1], shape[2], 1, False
    if len(shape) == 4 and shape[3] in (1, 2, 3, 4):
        return shape[1], shape[2], shape[3], False
    if len(shape) == 4 and shape[1] in (1, 2, 3, 4):
        return shape[2], shape[3], shape[1], True
    raise DataError(
        f"{where}: '{name}' has shape {shape}; images are [N, H, W, C], [N, C, H, W] with 1 to 4 channels or [N, H, W]"
    )


def damaged_rows(file: PackedFile) -> list[int]:
    """Return the rows whose stored bytes do not have the digest that was recorded."""
    if file.digests is None:
        raise UsageError(f"{file.path}: is not a packed file and has no digests to verify")
    return [row for row in range(len(file)) if digest(file.read(row)) != int(file.digests[row])]


def fingerprint(file: PackedFile) -> str:
    """Return the fingerprint computed anew from a packed file's images and labels (hex)."""
    hasher = xxhash.xxh3_128()
    for start in range(0, file.nbytes, CHUNK):
        hasher.update(file.read_bytes(start, min(start + CHUNK, file.nbytes)))
    hasher.update(np.ascontiguousarray(file.labels).data)
    return hasher.hexdigest()
