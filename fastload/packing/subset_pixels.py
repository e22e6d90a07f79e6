"""A subset's pixels: decoded, and brought to one size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.packed.set import Packed
from fastload.packing.decoding import BrokenImage, decode, default_max_pixels, resized, strict_pillow, upright_sides

_LOOKED_AT = 1000


def output_shape(file: Packed, resize: int | None) -> tuple[int, int, int]:
    """Return (H, W, C) of a subset's images: the raw set's own, `resize` square, or the encoded images' one size.

    Raises UsageError where encoded images have different sizes and there is no `resize`. Where a file does not say
    them (format 1), 1,000 images spread over the set are looked at.
    """
    if resize is not None and resize < 1:
        raise UsageError(f"resize={resize}: it is a side in pixels, at least 1")
    if file.shape is not None:
        return file.shape if resize is None else (resize, resize, file.shape[2])
    if resize is not None:
        return resize, resize, 3
    rows = np.arange(len(file))
    if file.shapes is None:
        rows = np.unique(np.linspace(0, len(file) - 1, min(len(file), _LOOKED_AT)).astype(np.int64))
        with strict_pillow():
            sizes = np.array([_size(file, int(row)) for row in rows])
    else:
        sizes = file.shapes
    different = np.flatnonzero((sizes != sizes[0]).any(axis=1))
    if len(different):
        other = int(different[0])
        raise _different(file, int(rows[other]), tuple(sizes[other]), int(rows[0]), tuple(sizes[0]))
    return int(sizes[0, 0]), int(sizes[0, 1]), 3


def sample_bytes(file: Packed, shape: tuple[int, int, int]) -> int:
    """Return how many bytes a sample takes in a subset of images (H, W, C), at most: pixels, label, name, the rest."""
    labels = 0 if file.labels is None else file.labels.nbytes // len(file)
    names = 0 if file.names is None else 8 + max(len(name.encode()) for name in file.names)
    return shape[0] * shape[1] * shape[2] + labels + names + 28  # id, digest, dimension, rank, score


def _size(file: Packed, row: int) -> tuple[int, int]:
    try:
        return upright_sides(file.read(row))
    except BrokenImage as error:
        raise DataError(f"{file.path}: {file.name_of(row)} {error}; pack it again") from error


def _different(file: Packed, row: int, size: tuple[int, ...], other: int, known: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"{file.path}: holds images of different sizes ({file.name_of(other)} is {known[0]}×{known[1]}, "
        f"{file.name_of(row)} is {size[0]}×{size[1]}), but a subset has one: give resize=S (shorter side to S, "
        "centre square)"
    )


def decode_rows(
    file: Packed, rows: np.ndarray, resize: int | None, shape: tuple[int, int, int], threads: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index into `rows`, pixels uint8 [H, W, C]) in that order, decoded in `threads` threads.

    Raises DataError that names a broken image, UsageError for one that is not of `shape`.
    """

    def load(row: int) -> np.ndarray:
        try:
            pixels = _pixels(file, row, resize)
        except BrokenImage as error:
            raise DataError(f"{file.path}: {file.name_of(row)} {error}; pack it again") from error
        if pixels.shape != shape:
            raise _different(file, row, pixels.shape, int(rows[0]), shape)
        return pixels

    pool = ThreadPoolExecutor(threads, thread_name_prefix="fastload-decode")
    try:
        with strict_pillow():
            waiting: deque[Future[np.ndarray]] = deque()
            done = 0
            for row in rows:
                waiting.append(pool.submit(load, int(row)))
                if len(waiting) > 4 * threads:
                    yield done, waiting.popleft().result()
                    done += 1
            while waiting:
                yield done, waiting.popleft().result()
                done += 1
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(file: Packed, row: int, resize: int | None) -> np.ndarray:
    if file.shape is None:
        # As many pixels as `pack` took; a file that does not say so holds no more than Pillow's limit.
        most = default_max_pixels() if file.shapes is None else int(file.shapes[row].prod(dtype=np.int64))
        return decode(file.read(row), resize, max_pixels=most)
    image = file.read_image(row)
    return image if resize is None else resized(image, resize)
