"""HDF5 as a source: a packed file to be packed anew, or a user's own file, chunked and compressed ones too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastload.errors import DataError, FastloadError, UsageError
from fastload.packed.file import PackedFile
from fastload.packed.hdf5_reading import checked_dataset, damaged, image_layout, open_hdf5, read_labels
from fastload.sources.base import Channels, NumberedNames, Sample, Source

_BLOCK = 16 << 20


class PackedSource(Source):
    """A packed file's samples in the order of their ids, which they keep; a subset's reasons are left behind."""

    kind = "packed"

    def __init__(self, path: Path, unlabelled: bool = False) -> None:
        super().__init__()
        self._file = PackedFile(path)
        rows = np.argsort(self._file.ids, kind="stable")
        self._index = np.argsort(rows, kind="stable")
        self.labels = None if unlabelled or self._file.labels is None else self._file.labels[rows]
        self.ids = self._file.ids[rows]
        self.classes = () if unlabelled else self._file.classes
        self.names = NumberedNames(len(rows), lambda index: f"row {rows[index]}")
        if self._file.names is not None:
            names = list(self._file.names)
            self.names = [names[row] for row in rows]
        if self._file.storage == "encoded" and self._file.offsets is not None:
            self.sizes = np.diff(self._file.offsets)[rows]
        self.ragged = self._file.storage == "ragged"
        # The original's description, so that packing again in its order gives the original's bytes.
        self.details = {key: value for key, value in self._file.source.items() if key not in ("order", "seed")}

    def read(self) -> Iterator[tuple[int, Sample]]:
        with self._file as file:
            for row, index in enumerate(self._index):
                yield int(index), file.read(row) if self.sizes is not None else file.read_image(row)


class UserHdf5(Source):
    """A user's own datasets: uint8 [N, H, W, C], [N, C, H, W] or [N, H, W] and numbers [N, ...]."""

    kind = "hdf5"

    def __init__(self, path: Path, images: str, labels: str | None, channels: Channels = None) -> None:
        super().__init__()
        self._path, self._images = path, images
        try:
            with open_hdf5(path) as file:
                shape = checked_dataset(path, file, images, np.uint8).shape
                self._layout = image_layout(path, images, shape, channels)
                if labels is not None:
                    self.labels = read_labels(path, checked_dataset(path, file, labels), images, shape[0])
        except FastloadError:
            raise
        except Exception as error:
            raise damaged(path, error) from error
        self.names = NumberedNames(shape[0], lambda index: f"{images}[{index}]")
        self.details = {"images": images} if labels is None else {"images": images, "labels": labels}

    def read(self) -> Iterator[tuple[int, Sample]]:
        channels_first = self._layout[3]
        try:
            with open_hdf5(self._path) as file:
                dataset = checked_dataset(self._path, file, self._images, np.uint8)
                row_bytes = max(1, int(np.prod(dataset.shape[1:])))
                rows = max(1, _BLOCK // row_bytes)
                if dataset.chunks is not None:  # whole chunks, or each would be decompressed several times
                    rows = max(dataset.chunks[0], rows // dataset.chunks[0] * dataset.chunks[0])
                for start in range(0, dataset.shape[0], rows):
                    for row, pixels in enumerate(dataset[start : start + rows], start):
                        yield row, pixels.transpose(1, 2, 0) if channels_first else pixels
        except (FastloadError, GeneratorExit):
            raise
        except Exception as error:
            raise damaged(self._path, error) from error


def open_hdf5_source(
    path: Path,
    split: str | None,
    images: str | None,
    labels: str | None,
    channels: Channels = None,
    unlabelled: bool = False,
) -> Source:
    """Return a packed file, or with images and labels a user's own, as a source."""
    if split is not None:
        raise UsageError(f"{path}: an HDF5 file has no splits; leave split= out")
    if images is not None and (unlabelled or labels is not None):
        return UserHdf5(path, images, labels, channels)
    try:
        return PackedSource(path, unlabelled)
    except DataError as error:
        if "is HDF5, but not a packed file" in str(error):
            text = str(error).split("; pack it with")[0]
            raise UsageError(f"{text}; name your datasets with images= and labels=") from error
        raise
