"""The memory of a rolling pool: slots of one size, or a ring of bytes where each image has a size of its own."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fastload.common.memory import check_fits
from fastload.errors import DataError
from fastload.feeds.resident_set import image_views, whole_words
from fastload.kernels.image_layout import Layout, ragged_layout, uniform_layout

_UNLIKELY = math.log(1e12)
"""Of a trillion windows of arrivals, one may be larger than its ring of bytes."""


@dataclass(frozen=True)
class PoolImages:
    """What the images of a pool are like.

    Arguments:
        channels: of every image.
        shape: (H, W, C) where all have one shape, else None.
        strides: of images of one shape, in bytes: (image, row, column, channel).
        sizes: int64 [N], bytes of each image of the subset and the full set, as a pool holds it.
        shapes: int32 [N, 2], their heights and widths; None where all have one shape.
        subset: how many of them are the subset's, the first.
    """

    channels: int
    shape: tuple[int, int, int] | None
    strides: tuple[int, int, int, int] | None
    sizes: np.ndarray
    shapes: np.ndarray | None
    subset: int = 0

    def bytes_for(self, slots: int, *, at_random: bool) -> int:
        """Return how many bytes `slots` images take that follow each other in the order of arrival.

        Images of sizes of their own lie in a ring, one behind the other, where those that arrive need what those that
        leave give back. Their sum is bounded by that of the largest, each as often as the passes that may overlap; and,
        at a chance of 1e-12 to be more, by Bernstein's inequality, which holds for draws without replacement too
        (Hoeffding 1963, section 6), beside the subset's, which come together.

        Arguments:
            slots: images that are there at once.
            at_random: whether they arrive in a random order; else the bound is that of the largest.
        """
        if self.shape is not None:
            return slots * int(self.sizes[0])
        largest, of_full = int(self._largest_first[1]), self.sizes[self.subset :]
        passes = -(-slots // len(of_full)) + 1 + bool(self.subset)
        most = passes * int(self._largest_first[min(-(-slots // passes), len(self.sizes))])
        if at_random:
            mean, variance, more = self._moments
            spread = _UNLIKELY * largest / 3
            beyond = spread + math.sqrt(spread**2 + 2 * _UNLIKELY * slots * variance)
            most = min(most, math.ceil(slots * mean + beyond + more))
        return most + largest  # what is left free where the ring begins again

    @cached_property
    def _largest_first(self) -> np.ndarray:
        """The bytes of the 0, 1, 2, … largest images, int64 [N + 1]."""
        return np.concatenate([[0], np.cumsum(np.sort(self.sizes)[::-1])])

    @cached_property
    def _moments(self) -> tuple[float, float, float]:
        """Mean and variance of the full set's bytes, and how much more than that mean the subset's images take."""
        of_full = self.sizes[self.subset :]
        mean = float(of_full.mean())
        return mean, float(of_full.var()), float(np.maximum(self.sizes[: self.subset] - mean, 0).sum())


class PoolMemory:
    """Slots for images in the device's memory.

    Arguments:
        images: what they are like.
        slots: how many there are.
        size: bytes, by `PoolImages.bytes_for`.
        device: where they are.
        name: of the set, for errors.

    Attributes:
        data: uint8, the images' bytes.
        layout: how they lie in there, by slot; for images of their own sizes filled as they are placed.

    Raises DataError unless the device has memory for it: by how much.
    """

    def __init__(self, images: PoolImages, slots: int, size: int, device: torch.device, name: str) -> None:
        check_fits(size, device, name, what="pool")
        self._images, self._size = images, size
        if device.type == "cpu":
            # NumPy asks the system for huge pages, which torch does not: images are drawn from all over this memory.
            self.data = torch.from_numpy(np.empty(whole_words(size), np.uint8))
        else:
            self.data = torch.empty(whole_words(size), dtype=torch.uint8, device=device)
        self.layout: Layout
        if images.shape is not None and images.strides is not None:
            self.layout = uniform_layout(images.shape, images.strides)
            self._begins = np.arange(slots, dtype=np.int64) * int(images.sizes[0])
        else:
            self._begins = np.zeros(slots + 1, np.int64)
            self.layout = ragged_layout(images.channels, self._begins, np.zeros((slots, 2), np.int32))
        self._end = 0  # of what has been placed, counted on and on as if the ring had no end
        self._round_begins = deque[tuple[int, int]]()  # (round, where it begins), the oldest first

    @property
    def is_ring(self) -> bool:
        """Whether images have sizes of their own."""
        return self._images.shape is None

    def clear(self) -> None:
        """Forget what was placed."""
        self._end = 0
        self._round_begins.clear()

    def place(self, number: int, slots: np.ndarray, rows: np.ndarray, oldest: int) -> bool:
        """Make room for a round of arrivals; return whether there is any beside what is needed still.

        Arguments:
            number: of the round; they come one after the other.
            slots: int64 [L], of its images.
            rows: int64 [L], which images these are.
            oldest: the oldest round that is needed.
        """
        if not self.is_ring:
            return True
        sizes, begins, end = self._images.sizes[rows].tolist(), [], self._end
        for size in sizes:
            if end % self._size + size > self._size:
                end += self._size - end % self._size
            begins.append(end)
            end += size
        kept = self._round_begins
        while kept and kept[0][0] < oldest:
            kept.popleft()
        if end - (kept[0][1] if kept else begins[0]) > self._size:
            return False
        assert self._images.shapes is not None
        kept.append((number, begins[0]))
        self._end = end
        self._begins[slots] = np.array(begins, np.int64) % self._size
        self.layout.shapes[slots] = self._images.shapes[rows]
        return True

    def begins(self, slots: np.ndarray) -> np.ndarray:
        """Return where the images of slots begin in `data`, int64 [b]."""
        return self._begins[slots]

    def rows(self, slots: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """Return images on the device, uint8 [b, H, W, C], or [H, W, C] each where they have sizes of their own."""
        return image_views(self.data, self.layout, slots)


def no_room() -> DataError:
    """Return the error of a ring of bytes that holds less than one pool: see `PoolImages.bytes_for`."""
    return DataError("the pool's memory has no room for its images: the largest came all together; give a larger pool=")
