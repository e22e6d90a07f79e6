"""CIFAR-10 and CIFAR-100 as their authors publish them: Python pickles or binary, archive or folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.sources import safe_pickle
from fastload.sources.base import NumberedNames, Sample, Source
from fastload.sources.files import walk
from fastload.sources.kinds import system_part
from fastload.sources.members import Member, whole_file

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    """Which files a published version consists of."""

    kind: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    binary: bool
    label_key: str
    label_bytes: int = 0  # before each image, the last of them being the label


_LAYOUTS = (
    _Layout(
        "cifar-10",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        False,
        "labels",
    ),
    _Layout(
        "cifar-10",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        True,
        "label_names",
        1,
    ),
    _Layout("cifar-100", ("train",), ("test",), "meta", False, "fine_labels"),
    _Layout("cifar-100", ("train.bin",), ("test.bin",), "fine_label_names.txt", True, "fine_label_names", 2),
)


def find_layout(members: Sequence[Member]) -> tuple[_Layout, str] | None:
    """Return the published version that these files are, and the folder (with a slash, or "") they lie in."""
    files = {member.name for member in members if member.kind == "file" and system_part(member.name) is None}
    for layout in _LAYOUTS:
        for name in sorted(files):
            folder, slash, base = name.rpartition("/")
            if base == layout.names and {folder + slash + file for file in layout.train + layout.test} & files:
                return layout, folder + slash
    return None


class Cifar(Source):
    """The training (default) or test images in the published order, with fine labels and their names."""

    def __init__(
        self,
        path: Path,
        members: Sequence[Member],
        layout: _Layout,
        folder: str,
        split: str | None,
        unlabelled: bool = False,
    ) -> None:
        super().__init__()
        if split not in (None, "train", "test"):
            raise UsageError(f"{path}: has no split '{split}'; CIFAR has train and test")
        split = split or "train"
        self.kind = layout.kind
        self._path, self._layout = path, layout
        self._files = [folder + name for name in (layout.train if split == "train" else layout.test)]
        present = {member.name for member in members}
        for name in [*self._files, folder + layout.names]:
            if name not in present:
                raise DataError(f"{path}: '{name}' is missing; fetch the archive again")
        contents = dict(self._contents([*self._files, folder + layout.names]))
        self.classes = _class_names(contents[folder + layout.names], layout, f"{path}: {folder}{layout.names}")
        labels = [contents[name][1] for name in self._files]
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in labels])])
        self.labels = np.concatenate(labels)
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise DataError(f"{path}: labels go beyond its {len(self.classes)} class names; fetch it again")
        self.names = NumberedNames(len(self.labels), self._name)
        if unlabelled:
            self.labels, self.classes = None, ()
        self.details = {"split": split}

    def read(self) -> Iterator[tuple[int, Sample]]:
        for name, (pixels, _) in self._contents(self._files):
            start = int(self._starts[self._files.index(name)])
            for row, planes in enumerate(pixels):
                yield start + row, planes.reshape(3, 32, 32).transpose(1, 2, 0)

    def _contents(self, wanted: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yield (name, content): pixels uint8 [n, 3072] and labels int64 [n] of a batch, anything of the names."""
        for member, load in walk(self._path):
            if member.name not in wanted or member.kind != "file":
                continue
            where = f"{self._path}: {member.name}"
            data = whole_file(self._path, member, load)
            if not member.name.endswith(self._layout.names):
                decode = _binary_batch if self._layout.binary else _pickled_batch
                yield member.name, decode(data, self._layout, where)
            else:
                yield member.name, data if self._layout.binary else safe_pickle.load(data, where)

    def _name(self, index: int) -> str:
        batch = int(np.searchsorted(self._starts, index, "right")) - 1
        return f"{self._files[batch]}[{index - self._starts[batch]}]"


def _pickled_batch(data: bytes, layout: _Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch = safe_pickle.load(data, where)
    pixels = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get(layout.label_key) if isinstance(batch, dict) else None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise DataError(f"{where}: has no 'data' of uint8 [n, {_PIXELS}]; is it a CIFAR batch?")
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise DataError(f"{where}: has no list '{layout.label_key}' of integers from 0 to 255; is it a CIFAR batch?")
    if len(labels) != len(pixels):
        raise DataError(f"{where}: has {len(pixels):,} images but {len(labels):,} labels; fetch it again")
    return pixels, np.array(labels, dtype=np.int64)


def _binary_batch(data: bytes, layout: _Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    record = layout.label_bytes + _PIXELS
    if not data or len(data) % record:
        raise DataError(
            f"{where}: has {len(data):,} bytes, not a multiple of {record:,}; it is truncated, fetch it again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1].astype(np.int64)


def _class_names(content: Any, layout: _Layout, where: str) -> list[str]:
    if layout.binary:
        return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    key = "label_names" if layout.kind == "cifar-10" else "fine_label_names"
    names = content.get(key) if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{where}: has no list '{key}'; fetch it again")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
