"""NumPy's .npz: labels loaded, images streamed from the zip by rows, nothing ever unpickled."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.packed import image_layout
from fastload.sources.base import SPLITS, NumberedNames, Sample, Source, integer_labels

_IMAGES = "images|image|imgs|img|x|data"
_LABELS = "labels|label|targets|target|y|fine_labels"
_PARTS = "|".join(SPLITS)
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


class Npz(Source):
    """Images uint8 [N, H, W, C], [N, C, H, W] or [N, H, W] and labels [N, ...] of an .npz file.

    Arguments:
        path: the file.
        split: for keys like x_train and y_train.
        images, labels: the keys, where they are not usual ones.
    """

    kind = "npz"

    def __init__(self, path: Path, split: str | None, images: str | None, labels: str | None) -> None:
        super().__init__()
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                self._images, label_key, taken = _choose(path, archive, keys, split, images, labels)
                with _member(archive, label_key) as file:
                    self.labels = self._load_labels(file, label_key)
                with _member(archive, self._images) as file:
                    shape = self._image_header(file)
        except (DataError, UsageError):
            raise
        except _BROKEN as error:
            raise self._damaged(error) from error
        if shape[0] != len(self.labels):
            raise DataError(
                f"{path}: '{label_key}' has {len(self.labels):,} rows but '{self._images}' has {shape[0]:,}; "
                "they must match"
            )
        self.names = NumberedNames(shape[0], lambda index: f"{self._images}[{index}]")
        self.details = {"split": taken} if taken else {}

    def _load_labels(self, file: IO[bytes], key: str) -> np.ndarray:
        shape, fortran, dtype = _header(file)
        if dtype.kind not in "iufb" or not shape:
            raise DataError(f"{self._path}: '{key}' has dtype {dtype}; labels are an array of numbers")
        count = int(np.prod(shape, dtype=object))
        data = file.read(count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise DataError(f"{self._path}: '{key}' ends too early: it is truncated; save it again")
        return integer_labels(np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C"))

    def _image_header(self, file: IO[bytes]) -> tuple[int, ...]:
        shape, fortran, dtype = _header(file)
        if dtype != np.uint8:
            raise DataError(f"{self._path}: '{self._images}' has dtype {dtype}; images are uint8, 0 to 255")
        if fortran and len(shape) > 1:
            raise DataError(f"{self._path}: '{self._images}' is in Fortran order; save np.ascontiguousarray of it")
        image_layout(self._path, self._images, shape)
        return shape

    def read(self) -> Iterator[tuple[int, Sample]]:
        try:
            with zipfile.ZipFile(self._path) as archive, _member(archive, self._images) as file:
                shape = self._image_header(file)
                height, width, channels, first = image_layout(self._path, self._images, shape)
                for row in range(shape[0]):
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


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _member(archive: zipfile.ZipFile, key: str) -> Any:
    return archive.open(key + ".npy")


def _choose(
    path: Path,
    archive: zipfile.ZipFile,
    keys: list[str],
    split: str | None,
    images: str | None,
    labels: str | None,
) -> tuple[str, str, str | None]:
    """Return the keys of images and labels, and the split that they are."""
    listed = ", ".join(sorted(keys)[:12]) or "none"
    if images is not None and labels is not None:
        for key in (images, labels):
            if key not in keys:
                raise UsageError(f"{path}: has no array '{key}'; its arrays: {listed}")
        return images, labels, None
    found: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        match = re.fullmatch(rf"(?:({_PARTS})_)?(?:({_IMAGES})|({_LABELS}))(?:_({_PARTS}))?", key.lower())
        if match:
            role = "images" if match[2] else "labels"
            found.setdefault(match[1] or match[4] or "", {}).setdefault(role, []).append(key)
    pairs = {part: roles for part, roles in found.items() if len(roles) == 2}
    if not pairs:
        raise UsageError(
            f"{path}: has no pair of arrays like images and labels (it has {listed}); name --images and --labels"
        )
    if split is None and len(pairs) > 1 and "" not in pairs:
        counts = ", ".join(f"{part} ({_rows(archive, roles['images'][0]):,} images)" for part, roles in pairs.items())
        raise UsageError(f"{path}: holds several splits: {counts}; name one with --split")
    part = split if split is not None else "" if "" in pairs else next(iter(pairs))
    if part not in pairs:
        parts = ", ".join(name for name in pairs if name) or "none"
        raise UsageError(f"{path}: has no split '{split}'; its splits: {parts}")
    for role, names in pairs[part].items():
        if len(names) > 1:
            raise UsageError(f"{path}: {' and '.join(names)} could both be the {role}; name --images and --labels")
    return pairs[part]["images"][0], pairs[part]["labels"][0], part or None


def _rows(archive: zipfile.ZipFile, key: str) -> int:
    with _member(archive, key) as file:
        shape = _header(file)[0]
    return shape[0] if shape else 0
