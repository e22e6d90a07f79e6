"""What an HDF5 file says of itself, checked: a packed file's metadata, or those of a user's own file."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastload.errors import DataError
from fastload.packed.format import FORMAT, READABLE, SelectionTable
from fastload.packed.hdf5_reading import (
    MOST_CHANNELS,
    checked_dataset,
    image_layout,
    open_hdf5,
    read_attribute,
    read_labels,
)
from fastload.packed.jpeg_index import FIELDS, check_index
from fastload.packed.labels import LARGEST_LABELS


@dataclass
class Metadata:
    """All of a file but its images' and names' bytes; see `PackedFile` for what they mean.

    `images`: the dataset's name and shape. `image_place`, `names_place`: the bytes' offset in the file, and how many.
    `format`: 0 for a user's own file. `jpeg`: (cuts, segment_offsets, where `segments` begins in the file).
    """

    format: int
    storage: str
    images: tuple[str, tuple[int, ...]]
    image_place: tuple[int, int]
    labels: np.ndarray | None
    ids: np.ndarray
    channels: int = 3
    shape: tuple[int, int, int] | None = None
    strides: tuple[int, int, int, int] | None = None
    offsets: np.ndarray | None = None
    shapes: np.ndarray | None = None
    digests: np.ndarray | None = None
    classes: list[str] = field(default_factory=list)
    name_offsets: np.ndarray | None = None
    names_place: tuple[int, int] = (0, 0)
    selection: SelectionTable | None = None
    source: dict[str, Any] = field(default_factory=dict)
    created_with: str = ""
    fingerprint: str = ""
    checksum: str | None = None
    jpeg: tuple[np.ndarray, np.ndarray, int] | None = None


def read_packed(path: Path, file: h5py.File) -> Metadata:
    """Return a packed file's metadata; DataError, naming the dataset and the mend, for what is not as it must be."""
    return _Reader(path, file).read()


def read_foreign(path: Path, file: h5py.File, images: str, labels: str) -> Metadata:
    """Return the metadata of a user's own datasets, uint8 [N, H, W, C], [N, C, H, W] or [N, H, W] and [N, ...]."""
    dataset = checked_dataset(path, file, images, np.uint8)
    height, width, channels, first = image_layout(path, images, dataset.shape)
    values = read_labels(path, checked_dataset(path, file, labels), images, dataset.shape[0])
    shape, strides = _raw(path, height, width, channels, channels_first=first)
    return Metadata(
        0,
        "raw",
        (images, dataset.shape),
        _place(path, dataset),
        values,
        np.arange(len(values), dtype=np.int64),
        channels,
        shape,
        strides,
        source={"kind": "hdf5", "images": images, "labels": labels},
    )


_SELECTION_TYPES: dict[str, Any] = {
    "strategy": str,
    "settings": str,
    "full_fingerprint": str,
    "embeddings": str,
    "seed": int,
}
_NAMES: dict[Any, str] = {str: "text", int: "a whole number", str | int | float: "text or a number"}


def full_set_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of a packed full set; None for a subset, and for whatever else lies at the path."""
    try:
        with open_hdf5(path) as file:
            if file.get("selection", getlink=True) is None:
                found = read_attribute(path, file, "fingerprint")
                return found if isinstance(found, str) else None
    except Exception:  # another file's damage is not that of the one that is looked at, however HDF5 says it
        return None
    return None


def _kind_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return {str: "text", int: "a whole number", float: "a number"}.get(type(value), f"a {type(value).__name__}")


class _Reader:
    """Reads one packed file's metadata, part by part."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file

    def read(self) -> Metadata:
        version = self._format()
        storage = str(self._attribute("storage"))
        if storage not in ("raw", "ragged", "encoded"):
            raise self._error(f"says storage {storage!r:.40}, not 'raw', 'ragged' or 'encoded'; pack it again")
        dataset = self._inner(self.file, "images", np.uint8)
        shape = strides = offsets = shapes = jpeg = None
        channels = 3
        if storage == "raw":
            if dataset.ndim != 4:
                raise self._error(f"dataset 'images' has {dataset.ndim} dimensions, not 4; pack it again")
            count = dataset.shape[0]
            shape, strides = _raw(self.path, *dataset.shape[1:], channels_first=False)
            channels = shape[2]
        else:
            offsets = self._read_offsets(dataset)
            count = len(offsets) - 1
            shapes = self._read_shapes(count)
            if storage == "ragged":
                channels = self._ragged_channels(offsets, shapes)
            else:
                jpeg = self._read_jpeg(shapes)
        name_offsets, names_place = self._read_names(count)
        return Metadata(
            version,
            storage,
            ("images", dataset.shape),
            _place(self.path, dataset),
            self._read_labels(version, count),
            self._read_ids(count),
            channels,
            shape,
            strides,
            offsets,
            shapes,
            self._column(self.file, "digests", np.uint64, count),
            self._read_classes(),
            name_offsets,
            names_place,
            self._read_selection(count),
            self._read_source(),
            str(self._attribute("created_with") or ""),
            self._hash("fingerprint"),
            self._hash("checksum") if version > 1 else None,
            jpeg,
        )

    def _format(self) -> int:
        version = self._attribute("fastload_format")
        if version is None:
            names = ", ".join(sorted(self.file)[:6]) or "none"
            raise DataError(
                f"{self.path}: is HDF5, but not a packed file (its datasets: {names}); pack it with `fastload pack`, "
                "or name its datasets with images= and labels="
            )
        if type(version) is not int or version not in READABLE:
            raise self._error(f"has format {version!s:.20}, this fastload reads up to {FORMAT}; update fastload")
        return version

    def _hash(self, name: str) -> str:
        found = str(self._attribute(name))
        if not re.fullmatch("[0-9a-f]{32}", found):
            raise self._error(f"has no valid '{name}' attribute; pack it again")
        return found

    def _read_source(self) -> dict[str, Any]:
        text = self._attribute("source")
        try:
            source = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            source = None
        if not isinstance(source, dict):
            raise self._error("has a 'source' attribute that is not a JSON object; pack it again")
        return source

    def _read_offsets(self, images: h5py.Dataset) -> np.ndarray:
        if images.ndim != 1:
            raise self._error(f"dataset 'images' has {images.ndim} dimensions, not 1; pack it again")
        dataset = self._inner(self.file, "offsets", np.int64)
        if dataset.ndim != 1 or not dataset.shape[0]:
            raise self._error(f"dataset 'offsets' has shape {dataset.shape}, not (N + 1,); pack it again")
        offsets = dataset[()]
        if offsets[0] != 0 or offsets[-1] != images.shape[0] or (offsets[1:] <= offsets[:-1]).any():
            raise self._error(
                "dataset 'offsets' does not rise from 0 to the size of 'images'; it is damaged, pack it again"
            )
        return offsets

    def _read_shapes(self, count: int) -> np.ndarray | None:
        if not self._holds("shapes"):
            return None
        dataset = self._inner(self.file, "shapes", np.int32)
        if dataset.shape != (count, 2):
            raise self._error(f"dataset 'shapes' has shape {dataset.shape}, not ({count}, 2); pack it again")
        shapes = dataset[()]
        if (shapes < 1).any():
            raise self._error("dataset 'shapes' has sides below 1; it is damaged, pack it again")
        return shapes

    def _ragged_channels(self, offsets: np.ndarray, shapes: np.ndarray | None) -> int:
        """Return how many channels the images have whose sizes and sides these are."""
        if shapes is None:
            raise self._error("has ragged images but no dataset 'shapes'; pack it again")
        sizes, areas = np.diff(offsets), shapes.prod(axis=1, dtype=np.int64)
        channels = int(sizes[0] // areas[0])
        if not 1 <= channels <= MOST_CHANNELS or (sizes != channels * areas).any():
            raise self._error("dataset 'offsets' leaves other room than images of these 'shapes' take; pack it again")
        return channels

    def _read_jpeg(self, shapes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Return where files can be cut, and where in the file the dataset `segments` begins."""
        if shapes is None or not self._holds("jpeg"):
            return None
        count = len(shapes)
        dataset = self._inner(self.file, "jpeg", np.int32)
        if dataset.shape != (count, FIELDS):
            raise self._error(f"dataset 'jpeg' has shape {dataset.shape}, not ({count}, {FIELDS}); pack it again")
        cuts, offsets = dataset[()], self._column(self.file, "segment_offsets", np.int64, count + 1)
        segments = self._inner(self.file, "segments", np.uint32)
        if segments.ndim != 1 or offsets[0] != 0 or offsets[-1] != segments.shape[0] or (np.diff(offsets) < 0).any():
            raise self._error(
                "dataset 'segment_offsets' does not rise from 0 to the size of 'segments'; it is damaged, pack it again"
            )
        check_index(self.path, cuts, offsets, shapes)
        return cuts, offsets, int(segments.id.get_offset() or 0)

    def _read_labels(self, version: int, count: int) -> np.ndarray | None:
        if version > 1 and not self._holds("labels"):
            return None
        return read_labels(self.path, self._inner(self.file, "labels"), "images", count)

    def _read_ids(self, count: int) -> np.ndarray:
        ids = self._column(self.file, "ids", np.int64, count)
        if len(ids) and ids.min() < 0:
            raise self._error("dataset 'ids' has negative ids; it is damaged, pack it again")
        return ids

    def _read_classes(self) -> list[str]:
        if not self._holds("classes"):
            return []
        dataset = self._inner(self.file, "classes")
        if dataset.ndim != 1 or dataset.dtype.kind != "S":
            raise self._error("dataset 'classes' is not a list of names; pack it again")
        return [str(name) for name in dataset.asstr()[()]]

    def _read_names(self, count: int) -> tuple[np.ndarray | None, tuple[int, int]]:
        """Return where each sample's name begins in `names`, and where those bytes lie in the file."""
        if not self._holds("names"):
            return None, (0, 0)
        dataset = self._inner(self.file, "names", np.uint8)
        if dataset.ndim != 1:
            raise self._error(f"dataset 'names' has {dataset.ndim} dimensions, not 1; pack it again")
        offsets = self._column(self.file, "name_offsets", np.int64, count + 1)
        if offsets[0] != 0 or offsets[-1] != dataset.shape[0] or (offsets[1:] < offsets[:-1]).any():
            raise self._error(
                "dataset 'name_offsets' does not rise from 0 to the size of 'names'; it is damaged, pack it again"
            )
        return offsets, (int(dataset.id.get_offset() or 0), dataset.shape[0])

    def _read_selection(self, count: int) -> SelectionTable | None:
        if not self._holds("selection"):
            return None
        group = self.file["selection"] if isinstance(self._link("selection"), h5py.HardLink) else None
        if not isinstance(group, h5py.Group):
            raise self._error("'selection' is not a group of this file; build the subset again")
        attributes = {key: read_attribute(self.path, group, key) for key in group.attrs}
        for key, value in attributes.items():
            wanted = _SELECTION_TYPES.get(key, str | int | float)
            if not isinstance(value, wanted):
                raise self._error(
                    f"attribute '{key:.40}' of 'selection' is {_kind_of(value)}, not {_NAMES[wanted]}; build the "
                    "subset again"
                )
        return SelectionTable(
            self._column(group, "dimension", np.int32, count),
            self._column(group, "rank", np.int32, count),
            self._column(group, "score", np.float32, count),
            attributes,
        )

    def _link(self, name: str) -> Any:
        return self.file.get(name, getlink=True)

    def _holds(self, name: str) -> bool:
        return self._link(name) is not None

    def _attribute(self, name: str) -> Any:
        return read_attribute(self.path, self.file, name)

    def _inner(self, group: h5py.Group, name: str, dtype: Any = None) -> h5py.Dataset:
        """Return a packed file's own dataset: checked, and contiguous, so that its size is really there."""
        dataset = checked_dataset(self.path, group, name, dtype)
        size = math.prod(dataset.shape) * dataset.dtype.itemsize
        if (
            name not in ("images", "names", "segments") and size > LARGEST_LABELS
        ):  # a file may have holes, and claim anything
            raise self._error(
                f"dataset '{name}' has shape {dataset.shape}, {size:,} bytes; it may take {LARGEST_LABELS:,}: split "
                "the set into several files"
            )
        if dataset.chunks is not None or (math.prod(dataset.shape) and dataset.id.get_offset() is None):
            raise self._error(f"dataset '{name}' is not contiguous, as a packed file's are; pack it again")
        return dataset

    def _column(self, group: h5py.Group, name: str, dtype: Any, count: int) -> np.ndarray:
        dataset = self._inner(group, name, dtype)
        if dataset.shape != (count,):
            raise self._error(f"dataset '{name}' has shape {dataset.shape}, not ({count},); pack it again")
        return dataset[()]

    def _error(self, text: str) -> DataError:
        return DataError(f"{self.path}: {text}")


def _raw(
    path: Path, height: int, width: int, channels: int, *, channels_first: bool
) -> tuple[tuple[int, int, int], tuple[int, int, int, int]]:
    """Return the shape and the strides of raw images."""
    if min(height, width, channels) < 1:
        raise DataError(f"{path}: has images of {height}×{width}×{channels}; pack it again")
    size = height * width * channels
    strides = (size, width, 1, height * width) if channels_first else (size, width * channels, channels, 1)
    return (height, width, channels), strides


def _place(path: Path, dataset: h5py.Dataset) -> tuple[int, int]:
    """Return where the images' bytes begin in the file, and how many they are."""
    name, nbytes = dataset.name.strip("/"), math.prod(dataset.shape)
    if nbytes == 0:
        raise DataError(f"{path}: dataset '{name}' is empty: there is not one image; pack it again")
    if dataset.chunks is not None:
        raise DataError(
            f"{path}: dataset '{name}' is chunked or compressed, so it cannot be memory-mapped; convert it with "
            f"`fastload pack {path.name} OUT.h5 --images {name} --labels NAME`"
        )
    offset = dataset.id.get_offset()
    if offset is None:
        raise DataError(f"{path}: dataset '{name}' was never written; write it, then try again")
    return int(offset), nbytes
