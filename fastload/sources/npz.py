"""NumPy's .npz: labels loaded, images streamed from the zip by rows, nothing ever unpickled."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.packed.hdf5_reading import image_layout
from fastload.packed.labels import as_labels, check_label_size
from fastload.sources.base import SPLITS, Channels, NumberedNames, Sample, Source

_IMAGES = "images|image|imgs|img|x|data"
_LABELS = "labels|label|targets|target|y|fine_labels"
_PARTS = "|".join(SPLITS)
LARGEST_IMAGE = 1 << 30
_BLOCK = 1 << 20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


class _Header(NamedTuple):
    """What an array in the zip is, by its own header."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 0


class Npz(Source):
    """Images uint8 [N, H, W, C], [N, C, H, W] or [N, H, W] and labels [N, ...] of an .npz file.

    Arguments:
        path: the file.
        split: for keys like x_train and y_train.
        images: the images' key, where it is not a usual one.
        labels: the labels' key.
        channels: as `pack` is given them.
    """

    kind = "npz"

    def __init__(
        self,
        path: Path,
        split: str | None,
        images: str | None,
        labels: str | None,
        channels: Channels = None,
        unlabelled: bool = False,
    ) -> None:
        super().__init__()
        self._path, self._channels = path, channels
        try:
            with zipfile.ZipFile(path) as archive:
                keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                self._images, label_key, taken = _choose(path, archive, keys, split, images, labels, unlabelled)
                self._header = _header(archive, self._images)
                self._check_images()
                if label_key is not None:
                    label_header = _header(archive, label_key)
                    self._check_labels(label_key, label_header)
                    self.labels = as_labels(_load(archive, label_key, label_header), self._where(label_key))
        except (DataError, UsageError):
            raise
        except _BROKEN as error:
            raise self._damaged(error) from error
        self.names = NumberedNames(self._header.rows, lambda index: f"{self._images}[{index}]")
        self.details = {"split": taken} if taken else {}

    def _where(self, key: str) -> str:
        return f"{self._path}: '{key}'"

    def _check_images(self) -> None:
        shape, fortran, dtype = self._header
        if dtype != np.uint8:
            raise DataError(
                f"{self._where(self._images)} has dtype {dtype}; images are uint8, 0 to 255: scale them to that, and "
                "save them as uint8"
            )
        if fortran and len(shape) > 1:
            raise DataError(f"{self._where(self._images)} is in Fortran order; save np.ascontiguousarray of it")
        image_layout(self._path, self._images, shape, self._channels)
        if math.prod(shape[1:]) > LARGEST_IMAGE:
            raise DataError(
                f"{self._where(self._images)} has shape {shape}, {math.prod(shape[1:]):,} bytes an image; "
                f"one may take {LARGEST_IMAGE:,}"
            )

    def _check_labels(self, key: str, header: _Header) -> None:
        """Refuse by their header, before a byte of them is read, labels that cannot be used: it may claim terabytes."""
        as_labels(np.empty([0] * len(header.shape), header.dtype), self._where(key))
        if header.rows != self._header.rows:
            raise DataError(
                f"{self._where(key)} has {header.rows:,} rows but '{self._images}' has {self._header.rows:,}; "
                "they must match"
            )
        check_label_size(header.shape, header.dtype, self._where(key))

    def read(self) -> Iterator[tuple[int, Sample]]:
        try:
            with zipfile.ZipFile(self._path) as archive, _member(archive, self._images) as file:
                shape = self._header.shape
                if _read_header(file) != self._header:
                    raise DataError(f"{self._where(self._images)} changed while it was read; pack again")
                height, width, channels, first = image_layout(self._path, self._images, shape, self._channels)
                for row in range(self._header.rows):
                    data = file.read(height * width * channels)
                    if len(data) != height * width * channels:
                        raise DataError(
                            f"{self._path}: '{self._images}' ends in row {row:,}: it is truncated; save it again"
                        )
                    pixels = np.frombuffer(data, np.uint8)
                    if first:
                        yield row, pixels.reshape(channels, height, width).transpose(1, 2, 0)
                    else:
                        yield row, pixels.reshape(height, width, channels)
        except (DataError, GeneratorExit):
            raise
        except _BROKEN as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path}: is not a sound .npz file ({' '.join(str(error).split())[:120]}); save it again"
        )


def _read_header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return _Header(*read(file))


def _header(archive: zipfile.ZipFile, key: str) -> _Header:
    with _member(archive, key) as file:
        return _read_header(file)


def _load(archive: zipfile.ZipFile, key: str, header: _Header) -> np.ndarray:
    """Return a whole array, of the size that its header claims."""
    data = np.empty(math.prod(header.shape) * header.dtype.itemsize, np.uint8)
    with _member(archive, key) as file:
        _read_header(file)
        done = 0
        while done < len(data):
            part = file.read(min(len(data) - done, _BLOCK))
            if not part:
                raise DataError(f"{archive.filename}: '{key}' ends too early: it is truncated; save it again")
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
    return data.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def _member(archive: zipfile.ZipFile, key: str) -> Any:
    return archive.open(key + ".npy")


def _choose(
    path: Path,
    archive: zipfile.ZipFile,
    keys: list[str],
    split: str | None,
    images: str | None,
    labels: str | None,
    unlabelled: bool,
) -> tuple[str, str | None, str | None]:
    """Return the keys of images and labels (None where those are left out), and the split that they are."""
    listed = ", ".join(sorted(keys)[:12]) or "none"
    if images is not None:
        for key in (images, labels):
            if key is not None and key not in keys:
                raise UsageError(f"{path}: has no array '{key}'; its arrays: {listed}")
        return images, labels, None
    found: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        match = re.fullmatch(rf"(?:({_PARTS})_)?(?:({_IMAGES})|({_LABELS}))(?:_({_PARTS}))?", key.lower())
        if match:
            role = "images" if match[2] else "labels"
            found.setdefault(match[1] or match[4] or "", {}).setdefault(role, []).append(key)
    wanted = {"images"} if unlabelled else {"images", "labels"}
    pairs = {part: {role: roles[role] for role in wanted} for part, roles in found.items() if wanted <= roles.keys()}
    if not pairs:
        raise UsageError(
            f"{path}: has no pair of arrays like images and labels (it has {listed}); name images= and labels="
        )
    if split is None and len(pairs) > 1 and "" not in pairs:
        sizes = {part: _header(archive, roles["images"][0]).rows for part, roles in pairs.items()}
        counts = ", ".join(f"{part} ({rows:,} images)" for part, rows in sizes.items())
        raise UsageError(f"{path}: holds several splits: {counts}; name one with split=")
    part = split if split is not None else "" if "" in pairs else next(iter(pairs))
    if part not in pairs:
        parts = ", ".join(name for name in pairs if name) or "none"
        raise UsageError(f"{path}: has no split '{split}'; its splits: {parts}")
    for role, names in pairs[part].items():
        if len(names) > 1:
            raise UsageError(f"{path}: {' and '.join(names)} could both be the {role}; name images= and labels=")
    return pairs[part]["images"][0], None if unlabelled else pairs[part]["labels"][0], part or None
