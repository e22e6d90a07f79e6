"""Small packed files for the tests, of noise images with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastload.packed import PackedFile, PackedWriter, SelectionTable


def noise_images(count: int, height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def write_raw(path: Path, images: np.ndarray, labels: np.ndarray, *, ids=None, selection=None, classes=()) -> Path:
    with PackedWriter(
        path, shape=images.shape, labels=labels, ids=ids, classes=classes, source={"kind": "test"}, selection=selection
    ) as out:
        for row, image in enumerate(images):
            out.write(row, image)
    return path


def write_encoded(path: Path, files: list[bytes], labels: np.ndarray) -> Path:
    sizes = np.array([len(file) for file in files])
    with PackedWriter(path, sizes=sizes, labels=labels, source={"kind": "test"}) as out:
        for row, file in enumerate(files):
            out.write(row, file)
    return path


def write_pair(folder: Path, count: int = 300, chosen: int = 40, **shape: int) -> tuple[Path, Path]:
    """A full set and a subset of it, made by hand with the attributes that build-subset gives."""
    images = noise_images(count, **shape)
    labels = np.arange(count) % 10
    full = write_raw(folder / "full.h5", images, labels)
    rows = np.random.default_rng(1).permutation(count)[:chosen]
    table = SelectionTable(
        np.zeros(chosen, np.int32),
        np.arange(chosen, dtype=np.int32),
        np.ones(chosen, np.float32),
        {"strategy": "by-hand", "full_fingerprint": PackedFile(full).fingerprint},
    )
    subset = write_raw(folder / "subset.h5", images[rows], labels[rows], ids=rows, selection=table)
    return full, subset
