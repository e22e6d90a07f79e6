"""Copies of one image through JPEG at several qualities: near each other, and never equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastload.errors import DataError
from fastload.packed.file import PackedFile
from fastload.packed.format import digest
from fastload.packing.decoding import decode
from fastload.packing.making import jpeg_file


def near_copies(
    file: PackedFile, rows: np.ndarray, qualities: Sequence[int], others: list[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """Yield a copy of each of some images, uint8 [H, W, C], no two equal.

    Arguments:
        file: of raw images.
        rows: int64 [n], of the file; may name one several times.
        qualities: of each copy's JPEG file, 1 to 100, n. Where that makes an equal of an earlier copy, the next lower
            one that does not is taken.
        others: told which copies, by their place from 0 on, were made at another quality, and at which.

    Raises DataError for an image that no lower quality makes another copy of.
    """
    seen: set[int] = set()
    for place, (row, quality) in enumerate(zip(rows.tolist(), qualities, strict=True)):
        original = file.read_image(row)
        for lower in range(quality, 0, -1):
            copy = decode(jpeg_file(original, lower), channels=original.shape[2])
            found = digest(np.ascontiguousarray(copy).data)
            if found not in seen:
                break
        else:
            raise DataError(
                f"{file.path}: {file.name_of(row)} looks the same at every JPEG quality up to {quality}, or like "
                "another image, so it has no near-copies that differ; leave it out"
            )
        seen.add(found)
        if lower != quality:
            others.append((place, lower))
        yield copy
