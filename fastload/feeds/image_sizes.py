"""The sizes of a set's decoded images: how the images lie, and whether an augmentation fits all of them."""

from __future__ import annotations

import math

import numpy as np

from fastload.augment import Augment
from fastload.errors import UsageError
from fastload.kernels.image_layout import Layout, ragged_layout, uniform_layout
from fastload.packed.set import Packed


def layout_of(file: Packed) -> Layout:
    """Return how the images of a raw or ragged set lie in its bytes."""
    if file.storage == "ragged":
        assert file.offsets is not None and file.shapes is not None
        return ragged_layout(file.channels, file.offsets, file.shapes)
    assert file.shape is not None and file.strides is not None
    return uniform_layout(file.shape, file.strides)


def distinct_sides(layout: Layout) -> list[tuple[int, int]]:
    """Return every (H, W) that images of a set have."""
    if not layout.is_ragged:
        return [tuple(layout.shape[:2])]
    return [(height, width) for height, width in distinct_shapes(layout.shapes)[0].tolist()]


def batch_bytes(layout: Layout, count: int) -> int:
    """Return how many bytes `count` images of a set take; of a ragged set, what hardly any batch drawn at random does.

    Six standard deviations above the mean: the largest images together may be a hundred times as much.
    """
    if not layout.is_ragged:
        return count * layout.largest
    sizes = np.diff(layout.offsets)
    return min(count * layout.largest, math.ceil(count * sizes.mean() + 6 * math.sqrt(count) * sizes.std()))


def check_sizes(augment: Augment, file: Packed) -> None:
    """Raise UsageError, naming the first sample that does not fit, unless all images of a set can be augmented.

    Of raw sets `choose_engine` has checked the one shape; encoded images of sizes that the file does not tell are
    checked as they are decoded.
    """
    if file.shapes is None:
        return
    sides, firsts, counts = distinct_shapes(file.shapes)
    problems = [augment.misfit((height, width)) for height, width in sides.tolist()]
    wrong = [k for k, problem in enumerate(problems) if problem]
    if not wrong:
        return
    first = min(wrong, key=firsts.__getitem__)
    count = int(counts[wrong].sum())
    others = f" ({count:,} of {len(file):,} images do not fit)" if count > 1 else ""
    raise UsageError(f"{file.path}: {file.name_of(int(firsts[first]))} is {problems[first]}{others}")


def distinct_shapes(shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct rows of int32 [N, 2], the first place of each, and how often it occurs."""
    # As one number each: a million rows take 0.1 s so, and 1 s by np.unique(axis=0).
    keys, firsts, counts = np.unique(
        shapes[:, 0].astype(np.int64) << 32 | shapes[:, 1], return_index=True, return_counts=True
    )
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1), firsts, counts
