"""The packed file: images, labels, ids and digests in one HDF5 file that can be memory-mapped.

`PackedWriter` makes one, `PackedFile` opens one for reading, `damaged_rows` checks every digest. full.h5 and
subset.h5 are the same format (docs/format.md). Pixels never go through h5py: they are written with
`pwrite` and read with `pread`, or through a memory map, at the dataset's offset: h5py has one lock for a process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from fastload.common.arguments import path_of
from fastload.common.dropping import Descriptor
from fastload.errors import DataError, FastloadError, UsageError
from fastload.packed import format as packed_format
from fastload.packed.format import ALIGNMENT, CHUNK, FORMAT, SelectionTable, digest
from fastload.packed.hdf5_reading import damaged, open_hdf5
from fastload.packed.jpeg_index import JpegIndex
from fastload.packed.metadata import Metadata, read_foreign, read_packed
from fastload.packed.names import StoredNames
from fastload.packed.watching import Watch
from fastload.packed.writer import PackedWriter

__all__ = [
    "ALIGNMENT",
    "FORMAT",
    "Extent",
    "PackedFile",
    "PackedWriter",
    "SelectionTable",
    "checksum",
    "damaged_rows",
    "digest",
    "fingerprint",
    "sample_name",
]


_PROBED = 256
"""Rows whose digests tell whether a file whose entry alone changed holds what it did."""


class Extent(NamedTuple):
    """Where image bytes are: an open file, the first byte in it, how many, and who watches the file."""

    file: Descriptor
    offset: int
    nbytes: int
    watch: Watch


class PackedFile:
    """A packed file (or a user's own HDF5 file) opened for reading through a memory map.

    Arguments:
        path: the file.
        images: name of the dataset of images in a user's own HDF5 file, uint8 [N, H, W, C] or [N, C, H, W]; leave it
            out for a packed file.
        labels: name of the dataset of labels there, [N, ...].

    Attributes:
        format: 2, or 1 for an older file; 0 for a user's own.
        storage: "raw", "ragged" (decoded, each image of its own height and width) or "encoded".
        shape: (H, W, C) of every image; None for ragged and encoded storage.
        channels: of every image; encoded ones are decoded to 3.
        shapes: int32 [N, 2], height and width of each ragged or encoded image, upright; None where the file holds none.
        jpeg: where encoded images can be cut; None where none of them can.
        labels: [N, ...] as stored, or None: an unlabelled set.
        ids: int64 [N].
        classes: list of names, maybe empty.
        names: the samples' names in their source, read when asked for; None where the file holds none.
        fingerprint: identifies images and labels; hex.
        checksum: of all but images, labels and digests; hex, None for format 1 and a user's own file.
        source: dict.
        selection: SelectionTable or None.
        created_with: the program that wrote the file.
        data: uint8 [bytes], the mapped image bytes, read-only.
        strides: bytes from one image, row, column and channel to the next, for raw storage.
        offsets: int64 [N + 1] into `data`, for ragged and encoded storage.

    `stored` and `image` are views of the map: where the file may shrink meanwhile, touching one can kill the
    process with SIGBUS, so populate its pages first (see docs/format.md) or take a copy with `read`.
    Raises DataError for anything that is not as the format says: the message names file, dataset and mend.
    """

    def __init__(self, path: str | os.PathLike[str], *, images: str | None = None, labels: str | None = None) -> None:
        self.path = path_of("path", path)
        self.data = np.empty(0, np.uint8)
        self._map: mmap.mmap | None = None
        self._file: Descriptor | None = None
        if (images is None) != (labels is None):
            raise UsageError("images= and labels= name the datasets of your own HDF5 file: give both")
        for argument, name in (("images", images), ("labels", labels)):
            if name is not None and not isinstance(name, str):
                raise UsageError(f"{argument}={name!r}; it is the name of a dataset of your own HDF5 file")
        try:
            with open_hdf5(self.path) as file:
                # The descriptor that HDF5 itself reads, so that map and metadata are of one file, even if replaced.
                self._file = Descriptor(os.dup(file.id.get_vfd_handle()))
                # Before anything is read, so that a change meanwhile is seen too.
                self._watch = Watch(self.path, self.descriptor)
                if images is not None and labels is not None:
                    found = read_foreign(self.path, file, images, labels)
                else:
                    found = read_packed(self.path, file)
            self._take(found)
            self._map_images(found)
            self._remember_some()
            if not found.format:
                self.fingerprint = self._fingerprint_of_some(found)
            self.check_unchanged()
        except FastloadError:
            self.close()
            raise
        except Exception as error:  # whatever HDF5, h5py or NumPy make of damaged structures
            self.close()
            raise damaged(self.path, error) from error

    def _take(self, found: Metadata) -> None:
        self.format, self.storage = found.format, found.storage
        self.shape, self.strides, self.channels = found.shape, found.strides, found.channels
        self.offsets, self.shapes = found.offsets, found.shapes
        self.labels, self.ids, self.digests = found.labels, found.ids, found.digests
        self.classes, self.selection = found.classes, found.selection
        self.source, self.created_with = found.source, found.created_with
        self.fingerprint, self.checksum = found.fingerprint, found.checksum
        self._stored_shape = found.images[1]
        self._names_offset = found.names_place[0]
        self.names = None if found.name_offsets is None else StoredNames(found.name_offsets, self._read_names)
        self.jpeg: JpegIndex | None = None
        if found.jpeg is not None:
            cuts, offsets, place = found.jpeg
            self.jpeg = JpegIndex(cuts, offsets, self._read_segments, [(place, int(offsets[-1]))])

    def _map_images(self, found: Metadata) -> None:
        self.data_offset, self.nbytes = found.image_place
        size = os.fstat(self.descriptor).st_size
        segments = (0, 0) if found.jpeg is None else (found.jpeg[2], 4 * int(found.jpeg[1][-1]))
        for name, (offset, nbytes) in (
            (found.images[0], found.image_place),
            ("names", found.names_place),
            ("segments", segments),
        ):
            if offset + nbytes > size:
                raise self._error(
                    f"dataset '{name}' ends at byte {offset + nbytes:,} but the file has {size:,}: it is truncated; "
                    "pack it again"
                )
        self._map = mmap.mmap(self.descriptor, self.data_offset + self.nbytes, access=mmap.ACCESS_READ)
        self.data = np.frombuffer(self._map, np.uint8)[self.data_offset :]
        self.data.flags.writeable = False

    def _fingerprint_of_some(self, found: Metadata) -> str:
        """Return a fingerprint of up to a thousand of the images and labels of a user's own file, which may be huge."""
        labels = found.labels
        assert labels is not None
        hasher = xxhash.xxh3_128(repr((found.images[1], labels.shape, str(labels.dtype))).encode())
        count = len(labels)
        for row in np.unique(np.linspace(0, count - 1, min(count, 1000)).astype(np.int64)):
            hasher.update(self.read(int(row)))
            hasher.update(np.ascontiguousarray(labels[row]).data)
        return hasher.hexdigest()

    def _remember_some(self) -> None:
        """Let the watch know some rows' digests, by which it knows the content again."""
        for row in np.unique(np.linspace(0, len(self) - 1, min(len(self), _PROBED)).astype(np.int64)).tolist():
            start, stop = self.span(row)
            expected = digest(self.read(row)) if self.digests is None else int(self.digests[row])
            self._watch.known.append((self.data_offset + start, stop - start, expected))

    def _error(self, text: str) -> DataError:
        return DataError(f"{self.path}: {text}")

    # -- reading samples -----------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.ids)

    def name_of(self, row: int) -> str:
        """Return a sample's name in its source, or "row 8 (id 8)" where the file holds no names; for messages."""
        return sample_name(self, row)

    def span(self, row: int) -> tuple[int, int]:
        """Return where a sample's bytes start and stop in `data`."""
        if self.offsets is not None:
            return int(self.offsets[row]), int(self.offsets[row + 1])
        assert self.strides is not None
        return row * self.strides[0], (row + 1) * self.strides[0]

    def stored(self, row: int) -> np.ndarray:
        """Return a sample's stored bytes, uint8 [bytes]: a view of the map."""
        start, stop = self.span(row)
        data = self.data
        if not data.size:  # an image shaped out of nothing would be read from beyond it
            raise self._closed()
        return data[start:stop]

    def image(self, row: int) -> np.ndarray:
        """Return one raw or ragged image, uint8 [H, W, C]: a view of the map."""
        return self._shaped(row, self.stored(row))

    def read(self, row: int) -> bytes:
        """Return a copy of a sample's stored bytes; DataError, never SIGBUS, where the file has shrunk."""
        start, stop = self.span(row)
        return self.read_bytes(start, stop)

    def read_image(self, row: int) -> np.ndarray:
        """Return a copy of one raw or ragged image, uint8 [H, W, C]; DataError where the file has shrunk."""
        return self._shaped(row, np.frombuffer(self.read(row), np.uint8))

    def read_bytes(self, start: int, stop: int) -> bytes:
        """Return a copy of `data[start:stop]`, read with `pread`."""
        return self._read(self.data_offset + start, stop - start)

    def check_unchanged(self) -> None:
        """Raise DataError if the open file was changed since it was opened; whoever reads it does so by himself."""
        file = self.file
        self._watch.check(file.number)

    def _read_names(self, start: int, stop: int) -> bytes:
        return self._read(self._names_offset + start, stop - start)

    def _read_segments(self, start: int, stop: int) -> np.ndarray:
        assert self.jpeg is not None
        return np.frombuffer(self._read(self.jpeg.places[0][0] + 4 * start, 4 * (stop - start)), np.uint32)

    def _read(self, position: int, count: int) -> bytes:
        parts, file = [], self.file
        while count > 0:
            try:
                part = os.pread(file.number, count, position)
            except OSError as error:
                raise self._error(f"cannot be read ({error.strerror}); check the disk") from error
            if not part:
                raise self._error("has become shorter while it was read; pack it again")
            parts.append(part)
            position, count = position + len(part), count - len(part)
        self.check_unchanged()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _shaped(self, row: int, stored: np.ndarray) -> np.ndarray:
        if self.storage == "ragged":
            assert self.shapes is not None
            return stored.reshape(*self.shapes[row].tolist(), self.channels)
        if self.shape is None or self.strides is None:
            raise UsageError(f"{self.path}: holds encoded images; decode `stored(row)` instead")
        return np.lib.stride_tricks.as_strided(stored, self.shape, self.strides[1:], writeable=False)

    @property
    def file(self) -> Descriptor:
        """The open file that `data` maps, at `data_offset`; it stays open for as long as somebody holds this."""
        file = self._file
        if file is None:  # its number may be another file's by now
            raise self._closed()
        return file

    @property
    def descriptor(self) -> int:
        """The descriptor of `file`; also where the path holds another file by now."""
        return self.file.number

    def _closed(self) -> UsageError:
        return UsageError(f"{self.path}: is closed; open it again")

    @property
    def paths(self) -> list[Path]:
        """The files: one; of a set, all of them."""
        return [self.path]

    @property
    def extents(self) -> list[Extent]:
        """Where the image bytes are: one extent; of a set of files, one a file."""
        return [Extent(self.file, self.data_offset, self.nbytes, self._watch)]

    def close(self) -> None:
        """Let go of the memory map and the file, which go when nobody reads them any more. Safe to call twice."""
        self.data = np.empty(0, np.uint8)
        if self._map is not None:
            with contextlib.suppress(BufferError):  # somebody still holds a view: the map goes when that goes
                self._map.close()
            self._map = None
        self._file = None

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def sample_name(file: Any, row: int) -> str:
    """Return what messages call a sample of a packed file or set: its name in the source, or its row and id."""
    if file.names is not None:
        with contextlib.suppress(FastloadError):  # where the file was lost, its names are too
            return file.names[row]
    return f"row {row:,} (id {int(file.ids[row]):,})"


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
    if file.labels is not None:
        hasher.update(np.ascontiguousarray(file.labels).data)
    return hasher.hexdigest()


def checksum(file: PackedFile) -> str:
    """Return the checksum computed anew from what a packed file holds beside images, labels and digests (hex)."""
    return packed_format.checksum(
        storage=file.storage,
        source=file.source,
        created_with=file.created_with,
        images=file._stored_shape,
        labels=file.labels,
        classes=file.classes,
        ids=file.ids,
        offsets=file.offsets,
        shapes=file.shapes,
        names=None if file.names is None else file.names.stored(),
        selection=file.selection,
        jpeg=file.jpeg,
    )
