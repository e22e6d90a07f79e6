"""A subset's pixels: decoded, and brought to one size."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from fastload.decoding import BrokenImage, decode, strict_pillow
from fastload.errors import DataError, UsageError
from fastload.packed_set import Packed

_LOOKED_AT = 1000
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


def output_shape(file: Packed, resize: int | None) -> tuple[int, int, int]:
    """Return (H, W, C) of a subset's images: the raw set's own, `resize` square, or the encoded images' one size.

    Raises UsageError where encoded images have different sizes (1,000 spread over the set are looked at) and
    there is no `resize`.
    """
    if resize is not None and resize < 1:
        raise UsageError(f"--resize {resize}: it is a side in pixels, at least 1")
    if file.shape is not None:
        return file.shape if resize is None else (resize, resize, file.shape[2])
    if resize is not None:
        return resize, resize, 3
    rows = np.unique(np.linspace(0, len(file) - 1, min(len(file), _LOOKED_AT)).astype(np.int64))
    with strict_pillow():
        first = _size(file, int(rows[0]))
        for row in rows[1:]:
            if (size := _size(file, int(row))) != first:
                raise _different(file, int(row), size, int(rows[0]), first)
    return (*first, 3)


def _size(file: Packed, row: int) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(file.read(row))) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(_ORIENTATION) in _ROTATED else (height, width)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file.path}: the image of id {file.ids[row]} cannot be decoded ({error})") from error


def _different(file: Packed, row: int, size: tuple[int, ...], other: int, known: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"{file.path}: holds images of different sizes (id {file.ids[other]} is {known[0]}×{known[1]}, id "
        f"{file.ids[row]} is {size[0]}×{size[1]}), but a subset has one: give --resize S (shorter side to S, centre "
        "square)"
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
            raise DataError(f"{file.path}: the image of id {file.ids[row]} {error}; pack it again") from error
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
        return decode(file.read(row), resize)
    image = file.read_image(row)
    if resize is None or image.shape[:2] == (resize, resize):
        return image
    if image.shape[2] == 3:
        return decode(np.ascontiguousarray(image), resize)
    planes = (np.ascontiguousarray(image[:, :, c]) for c in range(image.shape[2]))
    return np.stack([decode(plane, resize)[:, :, 0] for plane in planes], axis=2)
