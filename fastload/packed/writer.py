"""Writing a packed file: every byte by `pwrite`, pixels from any thread; renamed when it is complete and read back."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
import xxhash

from fastload.common.replacing import Replacement, target_of
from fastload.errors import DataError, FastloadError, UsageError
from fastload.packed.appending import Appended
from fastload.packed.format import ALIGNMENT, CHUNK, SelectionTable, digest
from fastload.packed.hdf5_layout import FileLayout, place_dataset
from fastload.packed.jpeg_index import WHOLE, Cut, JpegIndex
from fastload.packed.labels import as_ids, as_labels
from fastload.packed.names import stored_names
from fastload.packed.tables import Tables


class PackedWriter:
    """Write a packed file beside its final name and rename it when it is complete.

    with PackedWriter("full.h5", shape=(n, h, w, c), labels=labels, classes=names, source={...}) as out:
        out.write(row, pixels)          # any order, from any thread

    Where sizes are known only as samples are made, `append` takes them one after the other. They may come in another
    order than that of the rows; the file is then written once more.

    Arguments:
        path: the final name; an existing file is replaced only on success. A link's target is written, the link stays.
        shape: (N, H, W, C) for raw storage. Give one of this, `sizes` and `count`.
        sizes: of the samples in bytes, int64 [N], for ragged or encoded storage.
        count: N, where sizes are not known yet: samples are appended.
        storage: "ragged" or "encoded", where there is no `shape`.
        labels: [N, ...], any numeric dtype, or None for an unlabelled set; may be set later, as `writer.labels`, before
            the block ends.
        ids: int64 [N], not negative; row numbers when None.
        classes: the class names; may be empty.
        source: what the data came from, JSON-able, without absolute paths or times.
        selection: for a subset, why each sample was chosen.
        names: the samples' names in their source, N; None where it has none.
        shapes: int32 [N, 2], height and width of each ragged or encoded image, upright; may be set later, as
            `writer.shapes`, or given row by row to `write`.
        jpeg: where encoded images can be cut; given here, or row by row to `append`.

    Leaving the block by an exception removes what was written. Rows given to `skip` are left out of the file.
    Raises DataError where the disk cannot hold the file, UsageError where the path cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        labels: np.ndarray | None = None,
        shape: tuple[int, int, int, int] | None = None,
        sizes: np.ndarray | None = None,
        count: int | None = None,
        storage: Literal["ragged", "encoded"] = "encoded",
        ids: np.ndarray | None = None,
        classes: Sequence[str] = (),
        source: Mapping[str, Any],
        selection: SelectionTable | None = None,
        names: Sequence[str] | None = None,
        shapes: np.ndarray | None = None,
        jpeg: JpegIndex | None = None,
    ) -> None:
        if sum(given is not None for given in (shape, sizes, count)) != 1:
            raise ValueError("give one of shape (raw storage), sizes and count")
        self.path = Path(path)
        self.shape, self.storage = shape, "raw" if shape is not None else storage
        self.offsets = None if sizes is None else _offsets_of(sizes)
        known = shape[0] if shape is not None else None if sizes is None else len(sizes)
        self.count: int = known if known is not None else count  # type: ignore[assignment]
        self.jpeg = jpeg
        self._appended: Appended | None = None if count is None else Appended(count)
        self.labels = labels
        self.classes = list(classes)
        self.source = dict(source)
        self.selection = selection
        self.names, self.shapes = names, shapes
        self.ids = np.arange(self.count, dtype=np.int64) if ids is None else as_ids(ids, f"{path}: ids")
        self._digests = np.zeros(self.count, dtype=np.uint64)
        self._written = np.zeros(self.count, dtype=bool)
        self._skipped = np.zeros(self.count, dtype=bool)
        self._lock = threading.Lock()
        self._layout = FileLayout()
        self._file: Replacement | None = None
        for what, given in (("ids", self.ids), ("labels", labels), ("names", names), ("shapes", shapes)):
            if given is not None and len(given) != self.count:
                raise ValueError(f"{self.count} images and {len(given)} {what} do not go together")

    def __enter__(self) -> PackedWriter:
        check_target(self.path)
        try:
            self._image_offset = self._begin_layout()
            self._file = Replacement(self.path)
            if self._appended is None:
                self._file.reserve(self._layout.size)
        except BaseException as error:
            self._abandon()
            raise self._explained(error) from error
        return self

    def _begin_layout(self) -> int:
        """Lay the images out, and return where they begin: at the same place however many there are."""
        self._layout = FileLayout()
        with self._layout.begun(ALIGNMENT) as file:
            return place_dataset(file, "images", self._extent or (1,), np.uint8)

    @property
    def image_bytes(self) -> int:
        """Bytes of all images together, as stored."""
        if self.shape is not None:
            return int(np.prod(self.shape, dtype=object))
        if self.offsets is not None:
            return int(self.offsets[-1])
        assert self._appended is not None
        return self._appended.end

    @property
    def _extent(self) -> tuple[int, ...] | None:
        """The extent of the dataset of images; None as long as samples are appended."""
        if self.shape is not None:
            return self.shape
        return None if self.offsets is None else (self.image_bytes,)

    @property
    def _out(self) -> Replacement:
        if self._file is None:
            raise ValueError("a PackedWriter writes within its block only")
        return self._file

    def write(self, row: int, data: Any, *, shape: tuple[int, int] | None = None) -> None:
        """Store one sample: uint8 [H, W, C] pixels, or the encoded file's bytes. Thread-safe.

        `shape`: an encoded image's height and width, upright; given for each row, or for none.
        """
        view = (np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)).cast("B")
        start, stop = self._span(row)
        if len(view) != stop - start:
            raise ValueError(f"row {row} holds {stop - start} bytes, not {len(view)}")
        self._digests[row] = digest(view)
        if shape is not None:
            self._set_shape(row, shape)
        try:
            self._out.write(self._image_offset + start, view)
        except OSError as error:
            raise self._explained(error) from error
        self._written[row] = True

    def append(
        self,
        row: int,
        data: Any,
        *,
        shape: tuple[int, int],
        cut: Cut = WHOLE,
        segments: np.ndarray | None = None,
    ) -> None:
        """Store one sample behind those that were appended before; not thread-safe.

        Arguments:
            row: which it is.
            data: uint8 [H, W, C] pixels, or the encoded file's bytes.
            shape: height and width, upright.
            cut: how an encoded file can be cut.
            segments: its entries of the index, uint32.
        """
        appended = self._appended
        if appended is None:
            raise ValueError("a PackedWriter of samples of known sizes takes no others")
        view = (np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)).cast("B")
        self._digests[row] = digest(view)
        self._set_shape(row, shape)
        try:
            self._out.write(self._image_offset + appended.end, view)
        except OSError as error:
            raise self._explained(error) from error
        appended.add(row, len(view), cut, segments)
        self._written[row] = True

    def _set_shape(self, row: int, shape: tuple[int, int]) -> None:
        if self.shape is not None:
            raise ValueError("raw images have one shape, which was given already")
        with self._lock:
            if self.shapes is None:
                self.shapes = np.zeros((self.count, 2), np.int32)
        self.shapes[row] = shape

    def skip(self, row: int) -> None:
        """Leave a row out of the finished file."""
        self._skipped[row] = True

    def _span(self, row: int) -> tuple[int, int]:
        if self.shape is not None:
            size = self.image_bytes // max(1, self.count)
            return row * size, (row + 1) * size
        if self._appended is not None:
            start = int(self._appended.starts[row])
            return start, start + int(self._appended.sizes[row])
        assert self.offsets is not None
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            missing = np.flatnonzero(~self._written & ~self._skipped)
            if len(missing):
                raise ValueError(f"{len(missing)} rows were never written, the first is {missing[0]}")
            if self._appended is not None:
                self._settle(self._appended)
            if self._skipped.any() or (self._appended is not None and not self._appended.in_order):
                self._write_anew()
            else:
                self._finish()
        except BaseException as failure:
            self._abandon()
            raise self._explained(failure) from failure

    def _finish(self) -> None:
        """Lay the rest out, write it, read it back, rename."""
        out, tables = self._out, _tables_of(self, self._digests)
        fingerprint = _fingerprint(out, self._image_offset, self.image_bytes, tables.labels)
        pieces = tables.lay_out(self._layout, fingerprint)
        out.reserve(self._layout.size)
        for position, data in pieces:
            out.write(position, data)
        out.sync()
        for position, data in pieces:  # images have digests, and were read again for the fingerprint
            out.check(position, data)
        out.publish()
        self._file = None

    def _settle(self, appended: Appended) -> None:
        """Once all samples are appended: their index, and where they are if they lie as they should."""
        self.jpeg = appended.index()
        if appended.in_order and not self._skipped.any():
            self.offsets = _offsets_of(appended.sizes)
            if self._begin_layout() != self._image_offset:
                raise ValueError("the images do not begin where they were written")

    def _write_anew(self) -> None:
        """Write the file once more, without skipped rows and in order: contiguous storage has no gaps."""
        keep = np.flatnonzero(~self._skipped)
        if not len(keep):
            raise DataError(f"{self.path}: not one image could be read, so nothing was written")
        spans = [self._span(row) for row in keep.tolist()]
        with _writer_of(self, keep, np.array([stop - start for start, stop in spans], np.int64)) as out:
            for new, (start, stop) in enumerate(spans):
                out.write(new, self._out.read(self._image_offset + start, stop - start))
        self._abandon()

    def _abandon(self) -> None:
        if self._file is not None:
            self._file.abandon()
            self._file = None

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and not isinstance(error, FastloadError):
            return DataError(
                f"{self.path}: cannot be written ({error.strerror or error}); it needs "
                f"{self.image_bytes / 1e6:,.1f} MB there; nothing was left behind"
            )
        return error


def _writer_of(other: PackedWriter, rows: np.ndarray, sizes: np.ndarray) -> PackedWriter:
    """Return a writer of some of another one's rows, int64, of as many bytes as `sizes` says."""
    table, names = other.selection, other.names
    return PackedWriter(
        other.path,
        labels=None if other.labels is None else other.labels[rows],
        shape=None if other.shape is None else (len(rows), *other.shape[1:]),
        sizes=None if other.shape is not None else sizes,
        storage="ragged" if other.storage == "ragged" else "encoded",
        ids=other.ids[rows],
        classes=other.classes,
        source=other.source,
        selection=None if table is None else _rows_of(table, rows),
        names=None if names is None else [names[row] for row in rows.tolist()],
        shapes=None if other.shapes is None else other.shapes[rows],
        jpeg=None if other.jpeg is None else other.jpeg.of_rows(rows),
    )


def _tables_of(writer: PackedWriter, digests: np.ndarray) -> Tables:
    return Tables(
        storage=writer.storage,
        source=writer.source,
        classes=writer.classes,
        images=writer.shape if writer.shape is not None else (writer.image_bytes,),
        labels=_stored_labels(writer.labels, writer.count, writer.path),
        ids=writer.ids,
        digests=digests,
        offsets=writer.offsets,
        shapes=_stored_shapes(writer.shapes, writer.count),
        names=None if writer.names is None else stored_names(writer.names),
        selection=writer.selection,
        jpeg=writer.jpeg,
    )


def _fingerprint(out: Replacement, offset: int, size: int, labels: np.ndarray | None) -> str:
    """Return the fingerprint (hex) of `size` bytes of images that were written from `offset` on, and of labels."""
    hasher = xxhash.xxh3_128()
    for start in range(0, size, CHUNK):
        hasher.update(out.read(offset + start, min(CHUNK, size - start)))
    if labels is not None:
        hasher.update(labels.data)
    return hasher.hexdigest()


def _stored_labels(found: np.ndarray | None, count: int, path: Path) -> np.ndarray | None:
    """Return labels as they are stored, checked."""
    if found is None:
        return None
    if len(found) != count:
        raise ValueError(f"{count:,} images but {len(found):,} labels")
    labels = as_labels(found, f"{path}: labels")
    return np.ascontiguousarray(labels, dtype=labels.dtype.newbyteorder("<"))


def _stored_shapes(found: np.ndarray | None, count: int) -> np.ndarray | None:
    """Return images' sides as they are stored, checked."""
    if found is None:
        return None
    shapes = np.ascontiguousarray(found, np.int32)
    if shapes.shape != (count, 2) or (shapes < 1).any():
        raise ValueError(f"shapes of {count} images are positive, int32 [N, 2], and given for each or for none")
    return shapes


def _offsets_of(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _rows_of(table: SelectionTable, keep: np.ndarray) -> SelectionTable:
    return SelectionTable(table.dimension[keep], table.rank[keep], table.score[keep], table.attributes)


def check_target(path: Path) -> None:
    """Raise UsageError unless a packed file can go there: before hours of work, not after them."""
    path = check_place(path, "full.h5")
    if path.exists() and not _replaceable(path):
        raise UsageError(f"{path}: exists and is not a packed file, so it is not replaced; choose another name")


def check_place(path: Path, example: str) -> Path:
    """Return what a path leads to; UsageError for a folder, where there is none, and for what is no name.

    `example`: a file's name, for the message about a folder.
    """
    path = target_of(path)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a null byte
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be written ({reason}); choose another name or place") from error
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name the file to write, like {path / example}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    return path


def _replaceable(path: Path) -> bool:
    """Whether a file is a packed one, whole or damaged, or empty: not somebody's tar or own HDF5 data."""
    if not path.is_file():
        return False
    with contextlib.suppress(OSError, RuntimeError), h5py.File(path, "r", locking=False) as file:
        return "fastload_format" in file.attrs
    try:
        with open(path, "rb") as handle:
            return handle.read(8) in (b"", b"\x89HDF\r\n\x1a\n")
    except OSError:
        return False
