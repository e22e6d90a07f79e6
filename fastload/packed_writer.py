"""Writing a packed file: pixels by `pwrite` from any thread, the rest by h5py, renamed when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import xxhash

from fastload import __version__
from fastload.errors import DataError, FastloadError, UsageError
from fastload.labels import as_ids, as_labels
from fastload.packed_format import ALIGNMENT, CHUNK, FORMAT, SelectionTable, checksum, digest
from fastload.packed_names import stored_names

_LIBVER = ("v110", "v110")  # checksums on all of HDF5's own structures: a flipped bit there is an error


class PackedWriter:
    """Write a packed file beside its final name and rename it when it is complete.

    with PackedWriter("full.h5", shape=(n, h, w, c), labels=labels, classes=names, source={...}) as out:
        out.write(row, pixels)          # any order, from any thread

    Arguments:
        path: the final name; an existing file is replaced only on success. A link's target is written, the link stays.
        shape: (N, H, W, C) for raw storage. Give this or `sizes`.
        sizes: the encoded files' sizes in bytes, int64 [N], for encoded storage.
        labels: [N, ...], any numeric dtype, or None for an unlabelled set; may be set later, as `writer.labels`, before
            the block ends.
        ids: int64 [N], not negative; row numbers when None.
        classes: the class names; may be empty.
        source: what the data came from, JSON-able, without absolute paths or times.
        selection: for a subset, why each sample was chosen.
        names: the samples' names in their source, N; None where it has none.
        shapes: int32 [N, 2], height and width of each encoded image, upright; may be set later, as `writer.shapes`, or
            given row by row to `write`.

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
        ids: np.ndarray | None = None,
        classes: Sequence[str] = (),
        source: Mapping[str, Any],
        selection: SelectionTable | None = None,
        names: Sequence[str] | None = None,
        shapes: np.ndarray | None = None,
    ) -> None:
        if (shape is None) == (sizes is None):
            raise ValueError("give shape (raw storage) or sizes (encoded storage), one of the two")
        self.path = self._target = Path(path)
        self.shape = shape
        self.offsets = None if sizes is None else np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.count = shape[0] if shape is not None else len(self.offsets) - 1  # type: ignore[arg-type]
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
        self._descriptor = -1
        self._partial: Path | None = None
        for what, given in (("ids", self.ids), ("labels", labels), ("names", names), ("shapes", shapes)):
            if given is not None and len(given) != self.count:
                raise ValueError(f"{self.count} images and {len(given)} {what} do not go together")

    def __enter__(self) -> PackedWriter:
        # Where the name is a link, what it leads to is written: that disk was chosen for its room.
        self._target = Path(os.path.realpath(self.path)) if os.path.islink(self.path) else self.path
        check_target(self._target)
        _remove_orphans(self._target)
        try:
            self._descriptor, name = tempfile.mkstemp(
                prefix=f".{self._target.name}.", suffix=".partial", dir=self._target.parent
            )
        except OSError as error:
            raise self._explained(error) from error
        self._partial = Path(name)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # tells a later writer that this one is alive
            os.fchmod(self._descriptor, 0o666 & ~_umask())
            self._image_offset = self._create()
            if self.image_bytes:
                os.posix_fallocate(self._descriptor, self._image_offset, self.image_bytes)
        except BaseException as error:
            self._abandon()
            raise self._explained(error) from error
        return self

    @property
    def image_bytes(self) -> int:
        """Bytes of all images together, as stored."""
        return int(np.prod(self.shape, dtype=object)) if self.shape is not None else int(self.offsets[-1])  # type: ignore[index]

    @property
    def _extent(self) -> tuple[int, ...]:
        return self.shape if self.shape is not None else (self.image_bytes,)

    def _create(self) -> int:
        """Create the file with room for the images; return their offset. All else follows in `_finish`."""
        # A threshold of 1, so that the images are aligned however few bytes they are.
        with h5py.File(
            self._partial,
            "w",
            libver=_LIBVER,
            locking=False,
            alignment_threshold=1,
            alignment_interval=ALIGNMENT,
        ) as file:
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.CONTIGUOUS)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            layout.set_obj_track_times(False)
            extent = h5py.h5s.create_simple(self._extent)
            images = h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, extent, layout)
            return images.get_offset() or 0

    def write(self, row: int, data: Any, *, shape: tuple[int, int] | None = None) -> None:
        """Store one sample: uint8 [H, W, C] pixels, or the encoded file's bytes. Thread-safe.

        `shape`: an encoded image's height and width, upright; given for each row, or for none.
        """
        view = (np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)).cast("B")
        start, stop = self._span(row)
        if len(view) != stop - start:
            raise ValueError(f"row {row} holds {stop - start} bytes, not {len(view)}")
        position = self._image_offset + start
        self._digests[row] = digest(view)
        if shape is not None:
            self._set_shape(row, shape)
        try:
            while view:
                count = os.pwrite(self._descriptor, view, position)
                view, position = view[count:], position + count
        except OSError as error:
            raise self._explained(error) from error
        self._written[row] = True

    def _set_shape(self, row: int, shape: tuple[int, int]) -> None:
        if self.offsets is None:
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
        assert self.offsets is not None
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            if self._skipped.any():
                self._compact()
            else:
                self._finish()
        except BaseException as failure:
            self._abandon()
            raise self._explained(failure) from failure

    def _finish(self) -> None:
        """Check that all is there, take the fingerprint, write the other datasets, rename."""
        missing = np.flatnonzero(~self._written)
        if len(missing):
            raise ValueError(f"{len(missing)} rows were never written, the first is {missing[0]}")
        assert self._partial is not None
        labels, shapes = self._checked_labels(), self._checked_shapes()
        names = None if self.names is None else stored_names(self.names)
        hasher = xxhash.xxh3_128()
        for start in range(0, self.image_bytes, CHUNK):
            size = min(CHUNK, self.image_bytes - start)
            hasher.update(os.pread(self._descriptor, size, self._image_offset + start))
        if labels is not None:
            hasher.update(labels.data)
        storage, created_with = "raw" if self.shape is not None else "encoded", f"fastload {__version__}"
        selection = None if self.selection is None else _typed(self.selection)
        total = checksum(
            storage=storage, source=self.source, created_with=created_with, images=self._extent, labels=labels,
            classes=self.classes, ids=self.ids, offsets=self.offsets, shapes=shapes, names=names, selection=selection,
        )  # fmt: skip
        with h5py.File(self._partial, "r+", libver=_LIBVER, locking=False) as file:
            file.attrs["fastload_format"] = FORMAT
            set_text(file, "storage", storage)
            set_text(file, "source", json.dumps(self.source, sort_keys=True))
            set_text(file, "created_with", created_with)
            set_text(file, "fingerprint", hasher.hexdigest())
            set_text(file, "checksum", total)
            if self.offsets is not None:
                file.create_dataset("offsets", data=self.offsets)
            if shapes is not None:
                file.create_dataset("shapes", data=shapes)
            classes = [name.encode() for name in self.classes]
            text = h5py.string_dtype("utf-8", max([1, *map(len, classes)]))
            file.create_dataset("classes", data=np.array(classes, dtype=text))
            if labels is not None:
                file.create_dataset("labels", data=labels)
            if names is not None:
                file.create_dataset("names", data=names[0])
                file.create_dataset("name_offsets", data=names[1])
            file.create_dataset("ids", data=self.ids)
            file.create_dataset("digests", data=self._digests)
            if selection is not None:
                group = file.create_group("selection")
                for name in ("dimension", "rank", "score"):
                    group.create_dataset(name, data=getattr(selection, name))
                for key, value in selection.attributes.items():
                    if isinstance(value, str):
                        set_text(group, key, value)
                    else:
                        group.attrs[key] = value
        os.fsync(self._descriptor)
        os.replace(self._partial, self._target)
        self._partial = None
        self._abandon()

    def _checked_labels(self) -> np.ndarray | None:
        if self.labels is None:
            return None
        if len(self.labels) != self.count:
            raise ValueError(f"{self.count:,} images but {len(self.labels):,} labels")
        labels = as_labels(self.labels, f"{self.path}: labels")
        return np.ascontiguousarray(labels, dtype=labels.dtype.newbyteorder("<"))

    def _checked_shapes(self) -> np.ndarray | None:
        if self.shapes is None:
            return None
        shapes = np.ascontiguousarray(self.shapes, np.int32)
        if shapes.shape != (self.count, 2) or (shapes < 1).any():
            raise ValueError(
                f"shapes of {self.count} images are positive, int32 [N, 2], and given for each or for none"
            )
        return shapes

    def _compact(self) -> None:
        """Write the file anew without the skipped rows: contiguous storage cannot be cut in the middle."""
        keep = np.flatnonzero(~self._skipped)
        if not len(keep):
            raise DataError(f"{self.path}: not one image could be read, so nothing was written")
        table = self.selection
        smaller = PackedWriter(
            self.path,
            labels=None if self.labels is None else self.labels[keep],
            shape=None if self.shape is None else (len(keep), *self.shape[1:]),
            sizes=None if self.offsets is None else np.diff(self.offsets)[keep],
            ids=self.ids[keep],
            classes=self.classes,
            source=self.source,
            selection=table
            and SelectionTable(table.dimension[keep], table.rank[keep], table.score[keep], table.attributes),
            names=None if self.names is None else [self.names[row] for row in keep.tolist()],
            shapes=None if self.shapes is None else self.shapes[keep],
        )
        with smaller as out:
            for new, old in enumerate(keep):
                start, stop = self._span(int(old))
                out.write(new, os.pread(self._descriptor, stop - start, self._image_offset + start))
        self._abandon()

    def _abandon(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
            self._partial = None

    def _explained(self, error: BaseException) -> BaseException:
        # A disk that fills up while h5py closes a file is a RuntimeError of its own.
        if isinstance(error, OSError | RuntimeError) and not isinstance(error, FastloadError):
            return DataError(
                f"{self.path}: cannot be written ({getattr(error, 'strerror', None) or error}); it needs "
                f"{self.image_bytes / 1e6:,.1f} MB there; nothing was left behind"
            )
        return error


def _typed(table: SelectionTable) -> SelectionTable:
    """Return a selection as it is stored."""
    return SelectionTable(
        np.ascontiguousarray(table.dimension, np.int32),
        np.ascontiguousarray(table.rank, np.int32),
        np.ascontiguousarray(table.score, np.float32),
        table.attributes,
    )


def set_text(holder: Any, name: str, text: str) -> None:
    """Store an attribute as text of fixed length.

    Text of variable length lies in HDF5's global heap, the one structure without a checksum: a flipped bit there
    made the library loop for ever.
    """
    data = text.encode()
    holder.attrs[name] = np.array(data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def check_target(path: Path) -> None:
    """Raise UsageError unless a packed file can go there: before hours of work, not after them."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a null byte
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be written ({reason}); choose another name or place") from error
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name the file to write, like {path / 'full.h5'}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    if path.exists() and not _replaceable(path):
        raise UsageError(f"{path}: exists and is not a packed file, so it is not replaced; choose another name")


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove_orphans(path: Path) -> None:
    """Remove what killed writers of the same file left: partial files that nobody holds a lock on."""
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        try:
            descriptor = os.open(orphan, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphan.unlink(missing_ok=True)
        except OSError:
            pass  # alive
        finally:
            os.close(descriptor)
