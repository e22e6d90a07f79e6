"""Data for the benchmarks and checks: generated, but for photographs where they are at hand; nothing is downloaded."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from fastload.errors import DataError
from fastload.packed.file import PackedFile, PackedWriter, SelectionTable
from fastload.packed.set import Packed

PHOTOGRAPHS = "imagenet-250.tar"


def write_noise(path: Path, count: int, side: int, *, width: int | None = None, seed: int = 0) -> Path:
    """Write a raw packed file of `count` random images, side×side×3 or side×width×3, in ten classes."""
    rng, shape = np.random.default_rng(seed), (side, side if width is None else width, 3)
    with PackedWriter(path, shape=(count, *shape), labels=np.arange(count) % 10, source={"kind": "noise"}) as out:
        for row in range(count):
            out.write(row, rng.integers(0, 256, shape, dtype=np.uint8))
    return path


def write_subset(path: Path, full: Path, count: int) -> Path:
    """Write `count` spread rows of a raw packed file as a subset of it."""
    with PackedFile(full) as file:
        assert file.shape is not None and file.labels is not None
        rows = np.linspace(0, len(file) - 1, count).astype(np.int64)
        table = SelectionTable(
            np.zeros(count, np.int32),
            np.arange(count, dtype=np.int32),
            np.zeros(count, np.float32),
            {"strategy": "spread", "full_fingerprint": file.fingerprint},
        )
        with PackedWriter(
            path,
            shape=(count, *file.shape),
            labels=file.labels[rows],
            ids=file.ids[rows],
            source={"kind": "spread"},
            selection=table,
        ) as out:
            for place, row in enumerate(rows):
                out.write(place, file.read(int(row)))
    return path


def write_decoded(path: Path, file: Packed, most_bytes: int) -> Path:
    """Write spread rows of a packed set as pixels: all that `most_bytes` hold, one at least.

    Raises DataError, naming the row, for an image that cannot be decoded.
    """
    raw = file.shape is not None
    first = _pixels(file, 0)
    count = min(
        len(file), max(1, most_bytes // (file.nbytes // len(file) if file.storage != "encoded" else first.size))
    )
    rows = np.linspace(0, len(file) - 1, count).astype(np.int64)
    told: dict[str, Any] = {"shape": (count, *first.shape)} if raw else {"count": count, "storage": "ragged"}
    labels = None if file.labels is None else file.labels[rows]
    with PackedWriter(path, labels=labels, source={"kind": "spread"}, **told) as out:
        for place, row in enumerate(rows.tolist()):
            pixels = _pixels(file, row)
            if raw:
                out.write(place, pixels)
            else:
                out.append(place, pixels, shape=pixels.shape[:2])
    return path


def _pixels(file: Packed, row: int) -> np.ndarray:
    from fastload.packing.decoding import BrokenImage, decode, own_limits

    if file.storage != "encoded":
        return file.read_image(row)
    try:
        with own_limits():
            return decode(file.read(row))
    except BrokenImage as error:
        raise DataError(f"{file.path}: {file.name_of(row)} {error}; pack it again") from error


def write_encoded(path: Path, count: int, side: int, *, seed: int = 0) -> Path:
    """Write an encoded packed file: JPEG files of `count` images, sides from `side` to 4/3 of it; see `_jpegs`."""
    files, labels = _jpegs(count, side, seed)
    sizes = np.array([len(file) for file in files])
    with PackedWriter(path, sizes=sizes, labels=labels, source={"kind": "digits"}) as out:
        for row, file in enumerate(files):
            out.write(row, file)
    return path


def write_jpegs(folder: Path, count: int, side: int, *, seed: int = 0) -> Path:
    """Write JPEG files in class folders, of `count` images, sides from `side` to 4/3 of it; see `_jpegs`."""
    for row, (file, label) in enumerate(zip(*_jpegs(count, side, seed), strict=True)):
        target = folder / str(label) / f"{row:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file)
    return folder


def _jpegs(count: int, side: int, seed: int) -> tuple[list[bytes], np.ndarray]:
    """Return the files, and labels [count].

    They are scikit-learn's handwritten digits, enlarged and coloured, with noise (a photograph's size in bytes, more or
    less); noise alone where scikit-learn is missing.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    digits, labels = _digits()
    files = []
    for row in range(count):
        small = Image.fromarray((digits[row % len(digits)] * 15).astype(np.uint8))
        height, width = (side + int(more) for more in rng.integers(0, side // 3 + 1, 2))
        grey = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        colour = grey[..., None] * rng.uniform(0.4, 1.0, 3) + rng.normal(0, 12, (height, width, 3))
        stored = io.BytesIO()
        Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8)).save(stored, "JPEG", quality=90)
        files.append(stored.getvalue())
    return files, labels[np.arange(count) % len(labels)]


def photographs() -> Path | None:
    """Return the archive of 250 ImageNet photographs from $FASTLOAD_DATA or ../shared/data, None without it."""
    for folder in (os.environ.get("FASTLOAD_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"):
        if folder and (Path(folder) / PHOTOGRAPHS).is_file():
            return Path(folder) / PHOTOGRAPHS
    return None


def write_photographs(path: Path, archive: Path) -> Path:
    """Pack the photographs with their files' own bytes."""
    from fastload.packing.pack import pack

    pack(archive, path, encoded=True)
    return path


def unpack_photographs(folder: Path, archive: Path, *, longest: int | None = None, shorter: int | None = None) -> Path:
    """Write the photographs into class folders: their own files, or JPEG files of quality 90 of smaller pictures.

    Arguments:
        folder: written to.
        archive: of `photographs`.
        longest: pixels that the longest side is brought to; smaller pictures keep their size.
        shorter: pixels that the shorter side is brought to; smaller pictures keep their size.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            target = folder.joinpath(*Path(member.name).parts[-2:])
            target.parent.mkdir(parents=True, exist_ok=True)
            stored = file.read()
            target.write_bytes(stored if longest is shorter is None else _smaller(stored, longest, shorter))
    return folder


def _smaller(stored: bytes, longest: int | None, shorter: int | None) -> bytes:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(stored))).convert("RGB")
    scale = longest / max(image.size) if longest is not None else (shorter or 0) / min(image.size)
    if scale < 1:
        width, height = (max(1, round(scale * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        rng = np.random.default_rng(1)
        return rng.integers(0, 17, (100, 8, 8)), np.arange(100) % 10
    found = load_digits()
    return found.images, found.target
