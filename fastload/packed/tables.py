"""All of a packed file but its images, laid out in memory: attributes, labels, ids, digests, names, the selection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from fastload.common.version import __version__
from fastload.packed.format import FORMAT, SelectionTable, checksum
from fastload.packed.hdf5_layout import FileLayout, place_dataset, set_attributes
from fastload.packed.jpeg_index import JpegIndex


@dataclass(frozen=True)
class Tables:
    """What is stored beside the images.

    Arguments:
        storage: "raw", "ragged" or "encoded".
        source: what the data came from, JSON-able.
        classes: the class names.
        images: the shape of the images' dataset.
        labels: [N, ...], little-endian; None for an unlabelled set.
        ids: int64 [N].
        digests: uint64 [N], of each sample's stored bytes.
        offsets: int64 [N + 1], for ragged and encoded storage.
        shapes: int32 [N, 2], height and width of each ragged or encoded image.
        names: uint8 [bytes] and int64 [N + 1].
        selection: for a subset, why each sample was chosen.
        jpeg: where encoded images can be cut; None where none of them can.
    """

    storage: str
    source: Mapping[str, Any]
    classes: Sequence[str]
    images: Sequence[int]
    labels: np.ndarray | None
    ids: np.ndarray
    digests: np.ndarray
    offsets: np.ndarray | None
    shapes: np.ndarray | None
    names: tuple[np.ndarray, np.ndarray] | None
    selection: SelectionTable | None
    jpeg: JpegIndex | None = None

    def lay_out(self, layout: FileLayout, fingerprint: str) -> list[tuple[int, Any]]:
        """Add all of this to a layout that has the images already; return (position, bytes) of what is to be written.

        Arguments:
            layout: the file's structures, which are continued.
            fingerprint: the xxh3-128 (hex) over images and labels.
        """
        selection = None if self.selection is None else _typed(self.selection)
        classes = [name.encode() for name in self.classes]
        datasets: dict[str, np.ndarray | None] = {
            "offsets": self.offsets,
            "shapes": self.shapes,
            "classes": np.array(classes, h5py.string_dtype("utf-8", max([1, *map(len, classes)]))),
            "labels": self.labels,
            "names": None if self.names is None else self.names[0],
            "name_offsets": None if self.names is None else self.names[1],
            "ids": self.ids,
            "digests": self.digests,
            **({} if self.jpeg is None else dict(self.jpeg.datasets())),
        }
        pieces: list[tuple[int, Any]] = []
        with layout.continued() as file:
            set_attributes(file, self._attributes(fingerprint, selection))
            pieces += _placed(file, datasets)
            if selection is not None:
                group = file.create_group("selection")
                set_attributes(group, selection.attributes)
                columns = {name: getattr(selection, name) for name in ("dimension", "rank", "score")}
                pieces += _placed(group, columns)
        return pieces + layout.pieces

    def _attributes(self, fingerprint: str, selection: SelectionTable | None) -> dict[str, Any]:
        created_with = f"fastload {__version__}"
        return {
            "fastload_format": FORMAT,
            "storage": self.storage,
            "source": json.dumps(self.source, sort_keys=True),
            "created_with": created_with,
            "fingerprint": fingerprint,
            "checksum": checksum(
                storage=self.storage,
                source=self.source,
                created_with=created_with,
                images=self.images,
                labels=self.labels,
                classes=self.classes,
                ids=self.ids,
                offsets=self.offsets,
                shapes=self.shapes,
                names=self.names,
                selection=selection,
                jpeg=self.jpeg,
            ),
        }


def _placed(group: h5py.Group, datasets: Mapping[str, np.ndarray | None]) -> list[tuple[int, Any]]:
    """Make the datasets that there are; return where their bytes go, and the bytes."""
    pieces = []
    for name, array in datasets.items():
        if array is not None:
            position = place_dataset(group, name, array.shape, array.dtype)
            if array.size:
                pieces.append((position, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data))
    return pieces


def _typed(table: SelectionTable) -> SelectionTable:
    """Return a selection as it is stored."""
    return SelectionTable(
        np.ascontiguousarray(table.dimension, np.int32),
        np.ascontiguousarray(table.rank, np.int32),
        np.ascontiguousarray(table.score, np.float32),
        table.attributes,
    )
