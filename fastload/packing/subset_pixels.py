"""A subset's images: of which sizes they are, and their pixels, decoded and brought to that size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.packed.set import Packed
from fastload.packing.decoding import BrokenImage, decode, default_max_pixels, resized, strict_pillow, upright_sides
from fastload.packing.fit import Fit

_LOOKED_AT = 1000


@dataclass(frozen=True)
class SubsetImages:
    """What a subset's images are: raw, all of one shape, or ragged, each of its own height and width.

    Arguments:
        fit: to what size the full set's images are brought; None leaves them as they are.
        channels: of every image.
        shape: (H, W, C) of raw images; None of ragged ones.
        shapes: int64 [N, 2], height and width of what each image of the full set becomes; None of raw ones.
    """

    fit: Fit | None
    channels: int
    shape: tuple[int, int, int] | None = None
    shapes: np.ndarray | None = None

    def expected(self, row: int) -> tuple[int, int, int]:
        """Return (H, W, C) of what the image in a row of the full set becomes."""
        if self.shapes is None:
            assert self.shape is not None
            return self.shape
        return int(self.shapes[row, 0]), int(self.shapes[row, 1]), self.channels

    @property
    def pixel_bytes(self) -> np.ndarray:
        """Bytes of each image, int64 [N]; of raw ones [1]."""
        sides = np.array([(self.shape or ())[:2]]) if self.shapes is None else self.shapes
        return sides.prod(axis=1, dtype=np.int64) * self.channels


def subset_images(file: Packed, fit: Fit | None) -> SubsetImages:
    """Return what the images of a full set become in a subset.

    They are brought to the size that was asked for, or stay as they are: a raw or ragged set's own, or those of an
    encoded set whose images have one size.

    Raises UsageError where encoded images have different sizes and there is no `fit`. Where a file does not say
    them (format 1), 1,000 images spread over the set are looked at.
    """
    if fit.whole if fit is not None else file.storage == "ragged":
        shapes = _shapes(file)
        return SubsetImages(fit, file.channels, shapes=shapes if fit is None else fit.output(shapes))
    if fit is not None:
        return SubsetImages(fit, file.channels, (fit.side, fit.side, file.channels))
    if file.shape is not None:
        return SubsetImages(None, file.channels, file.shape)
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
    return SubsetImages(None, file.channels, (int(sizes[0, 0]), int(sizes[0, 1]), file.channels))


def _shapes(file: Packed) -> np.ndarray:
    if file.shape is not None:
        return np.tile(np.array(file.shape[:2], np.int64), (len(file), 1))
    if file.shapes is None:
        raise UsageError(
            f"{file.path}: does not hold the sizes of its images (format 1), which a subset of whole pictures needs; "
            "pack it again, or cut squares with resize=S"
        )
    return file.shapes.astype(np.int64)


def sample_bytes(file: Packed, images: SubsetImages) -> np.ndarray:
    """Return how many bytes each sample takes in a subset, at most: pixels, label, name, the rest; int64 [N] or [1]."""
    labels = 0 if file.labels is None else file.labels.nbytes // len(file)
    names = 0 if file.names is None else 8 + max(len(name.encode()) for name in file.names)
    places = 0 if images.shapes is None else 16  # offset, height and width
    return images.pixel_bytes + labels + names + places + 28  # id, digest, dimension, rank, score


def _size(file: Packed, row: int) -> tuple[int, int]:
    try:
        return upright_sides(file.read(row))
    except BrokenImage as error:
        raise DataError(f"{file.path}: {file.name_of(row)} {error}; pack it again") from error


def _different(file: Packed, row: int, size: tuple[int, ...], other: int, known: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"{file.path}: holds images of different sizes ({file.name_of(other)} is {known[0]}×{known[1]}, "
        f"{file.name_of(row)} is {size[0]}×{size[1]}): give resize=S (shorter side to S, centre square) or "
        "short_side=S (the whole picture)"
    )


def decode_rows(file: Packed, rows: np.ndarray, images: SubsetImages, threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index into `rows`, pixels uint8 [H, W, C]) in that order, decoded in `threads` threads.

    Raises DataError that names a broken image, UsageError for one that is not of the one shape of raw images.
    """

    def load(row: int) -> np.ndarray:
        try:
            pixels = _pixels(file, row, images.fit)
        except BrokenImage as error:
            raise DataError(f"{file.path}: {file.name_of(row)} {error}; pack it again") from error
        expected = images.expected(row)
        if pixels.shape != expected:
            if images.shapes is None:
                raise _different(file, row, pixels.shape, int(rows[0]), expected)
            height, width, _ = pixels.shape
            raise DataError(
                f"{file.path}: {file.name_of(row)} becomes {height}×{width}, where its sides in 'shapes' become "
                f"{expected[0]}×{expected[1]}; pack it again"
            )
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


def _pixels(file: Packed, row: int, fit: Fit | None) -> np.ndarray:
    if file.storage == "encoded":
        # As many pixels as `pack` took; a file that does not say so holds no more than Pillow's limit.
        most = default_max_pixels() if file.shapes is None else int(file.shapes[row].prod(dtype=np.int64))
        return decode(file.read(row), fit, max_pixels=most)
    image = file.read_image(row)
    return image if fit is None else resized(image, fit)
