"""Small packed files for the tests, of noise images with labels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import xxhash

from fastload.packed.file import PackedFile, PackedWriter, SelectionTable


def noise_images(count: int, height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def write_raw(path: Path, images: np.ndarray, labels: np.ndarray | None, **more) -> Path:
    with PackedWriter(path, shape=images.shape, labels=labels, source={"kind": "test"}, **more) as out:
        for row, image in enumerate(images):
            out.write(row, image)
    return path


def write_ragged(path: Path, images: list[np.ndarray], labels: np.ndarray | None, **more) -> Path:
    with PackedWriter(path, count=len(images), storage="ragged", labels=labels, source={"kind": "test"}, **more) as out:
        for row, image in enumerate(images):
            out.append(row, image, shape=image.shape[:2])
    return path


def write_encoded(path: Path, files: list[bytes], labels: np.ndarray | None, **more) -> Path:
    sizes = np.array([len(file) for file in files])
    with PackedWriter(path, sizes=sizes, labels=labels, source={"kind": "test"}, **more) as out:
        for row, file in enumerate(files):
            out.write(row, file)
    return path


def write_format_1(path: Path, images: np.ndarray, labels: np.ndarray, *, offsets=None, ids=None) -> Path:
    """A file as fastload 0.0 wrote it, by h5py alone: raw `images` [N, H, W, C], or encoded [bytes] with `offsets`."""
    rows = images if offsets is None else [images[a:b] for a, b in pairwise(offsets)]
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["images"], file["labels"] = images, labels
        file["ids"] = np.arange(len(labels)) if ids is None else ids
        file["digests"] = np.array([xxhash.xxh3_64_intdigest(row.tobytes()) for row in rows], np.uint64)
        file["classes"] = np.array([], "S1")
        if offsets is not None:
            file["offsets"] = offsets
        file.attrs["fastload_format"] = 1
        text = {
            "storage": "raw" if offsets is None else "encoded",
            "source": '{"kind": "test"}',
            "created_with": "fastload 0.0",
            "fingerprint": xxhash.xxh3_128_hexdigest(images.tobytes() + np.ascontiguousarray(labels).tobytes()),
        }
        for name, value in text.items():
            file.attrs[name] = np.bytes_(value)
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
