"""Several packed files as one set: one order over all, read as if they were one file."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fastload.common.arguments import path_of
from fastload.errors import DataError, UsageError
from fastload.packed.file import Extent, PackedFile, sample_name
from fastload.packed.jpeg_index import JpegIndex
from fastload.packed.names import JoinedNames

PathsLike = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One path, a pattern such as "shards/*.h5", or a list of paths."""


class PackedSet:
    """Packed files opened as one set; has what feeds and loaders ask of a `PackedFile`, row after row, file by file.

    Arguments:
        paths: the files, in order; at least one.
        images: as for PackedFile, of every file.
        labels: likewise.

    `ids` are the files' own where no id comes twice. Where files were packed apart, so that each begins at 0, a file's
    ids are raised by what the files before it have taken. `fingerprint` is of the files' fingerprints, in order.

    Raises DataError where the files do not fit together, naming the first that does not.
    """

    def __init__(
        self, paths: Sequence[Path], *, name: str = "", images: str | None = None, labels: str | None = None
    ) -> None:
        self.path = Path(name or f"{paths[0]} and {len(paths) - 1} more")
        self.files: list[PackedFile] = []
        try:
            for path in paths:
                self.files.append(PackedFile(path, images=images, labels=labels))
                self._check(self.files[0], self.files[-1])
        except BaseException:
            self.close()
            raise
        first = self.files[0]
        self.storage, self.shape, self.strides, self.classes = first.storage, first.shape, first.strides, first.classes
        self.channels = first.channels
        self.selection = None
        self.source: dict[str, Any] = {"kind": "set", "files": [file.source for file in self.files]}
        labelled = [file.labels for file in self.files if file.labels is not None]
        self.labels = np.concatenate(labelled) if labelled else None
        self.ids = _ids([file.ids for file in self.files])
        digests = [file.digests for file in self.files]
        self.digests = np.concatenate([part for part in digests if part is not None]) if _all(digests) else None
        shapes, names = [file.shapes for file in self.files], [file.names for file in self.files]
        self.shapes = np.concatenate([part for part in shapes if part is not None]) if _all(shapes) else None
        self.names = JoinedNames([part for part in names if part is not None]) if _all(names) else None
        self.jpeg = JpegIndex.joined([file.jpeg for file in self.files], [len(file) for file in self.files])
        if self.shapes is None:
            self.jpeg = None
        self.nbytes = sum(file.nbytes for file in self.files)
        self._first_rows = np.cumsum([0, *(len(file) for file in self.files)])
        self.offsets = self._joined_offsets()
        hasher = xxhash.xxh3_128()
        for file in self.files:
            hasher.update(file.fingerprint.encode())
        self.fingerprint = hasher.hexdigest()

    @staticmethod
    def _check(first: PackedFile, other: PackedFile) -> None:
        for what, ours, theirs in (
            ("storage", first.storage, other.storage),
            ("images of shape", first.shape, other.shape),
            ("channels", first.channels, other.channels),
            ("an image layout of strides", first.strides, other.strides),
            ("classes", first.classes, other.classes),
            ("labels", *(_label_kind(file) for file in (first, other))),
        ):
            if ours != theirs:
                raise DataError(
                    f"{other.path}: has {what} {_short(theirs)}, but {first.path} has {_short(ours)}; the files of one "
                    "set must agree, pack them alike"
                )
        if other.selection is not None and other is not first:
            raise DataError(f"{other.path}: is a subset; a set is made of full files")

    def _joined_offsets(self) -> np.ndarray | None:
        if self.shape is not None:
            return None
        shifts = np.cumsum([0, *(file.nbytes for file in self.files)])
        parts = [file.offsets[:-1] + shift for file, shift in zip(self.files, shifts, strict=False)]  # type: ignore[index]
        return np.concatenate([*parts, shifts[-1:]])

    def __len__(self) -> int:
        return len(self.ids)

    def name_of(self, row: int) -> str:
        """Return a sample's name in its source, or "row 8 (id 8)" where not all files hold names; for messages."""
        return sample_name(self, row)

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [file.path for file in self.files]

    @property
    def extents(self) -> list[Extent]:
        """Where the image bytes of each file are, in order."""
        return [extent for file in self.files for extent in file.extents]

    def check_unchanged(self) -> None:
        """Raise DataError if an open file was changed since it was opened; whoever reads it does so by himself."""
        for file in self.files:
            file.check_unchanged()

    def _place(self, row: int) -> tuple[PackedFile, int]:
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return self.files[number], row - int(self._first_rows[number])

    def read(self, row: int) -> bytes:
        """Return a copy of a sample's stored bytes."""
        file, inner = self._place(row)
        return file.read(inner)

    def read_image(self, row: int) -> np.ndarray:
        """Return a copy of one raw image, uint8 [H, W, C]."""
        file, inner = self._place(row)
        return file.read_image(inner)

    def close(self) -> None:
        """Close every file. Safe to call twice."""
        for file in self.files:
            file.close()

    def __enter__(self) -> PackedSet:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


Packed = PackedFile | PackedSet


def labels_of(file: Packed, use: str) -> np.ndarray:
    """Return a set's labels; raise UsageError where it has none, saying that `use` needs them."""
    if file.labels is None:
        raise UsageError(f"{file.path}: holds no labels, and {use} needs them")
    return file.labels


def open_packed(
    source: PathsLike, *, images: str | None = None, labels: str | None = None, argument: str = "full"
) -> Packed:
    """Open a packed file, or several as one set.

    Arguments:
        source: a path; a pattern such as "shards/*.h5" (files in the order of their names); or a list of paths.
        images: the images' dataset, where the files are HDF5 files of your own.
        labels: the labels' dataset there.
        argument: what the caller calls `source`, for messages.

    Raises DataError for a pattern without a match and for files that do not fit together.
    """
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        paths = [path_of(argument, path) for path in source]
        if not paths:
            raise UsageError(f"{argument}=[]: an empty list of files; name at least one")
        name = ""
    else:
        path = path_of(argument, source)
        if not glob.has_magic(str(path)) or os.path.exists(path):
            return PackedFile(path, images=images, labels=labels)
        paths = [Path(found) for found in sorted(glob.glob(str(path)))]
        if not paths:
            raise DataError(f"{path}: no file matches this pattern")
        name = str(path)
    if len(paths) == 1:
        return PackedFile(paths[0], images=images, labels=labels)
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise UsageError(f"{name or ', '.join(map(str, paths))}: names a file twice")
    return PackedSet(paths, name=name, images=images, labels=labels)


def _ids(parts: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(parts)
    if len(np.unique(joined)) == len(joined):
        return joined
    taken, shifted = 0, []
    for ids in parts:
        if taken + int(ids.max()) >= 2**63:
            raise DataError(
                f"the files of this set have ids in common, and ids as large as {int(ids.max()):,}, so they cannot be "
                "numbered one after the other; pack them with ids of their own"
            )
        shifted.append(ids + taken)
        taken += int(ids.max()) + 1
    return np.concatenate(shifted)


def _all(parts: Sequence[object]) -> bool:
    return all(part is not None for part in parts)


def _label_kind(file: PackedFile) -> str:
    if file.labels is None:
        return "none"
    return f"{file.labels.dtype} of shape {file.labels.shape[1:]}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
