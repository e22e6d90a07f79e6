"""How a set's decoded images lie in its bytes: all of one shape, or each of its own height and width."""

from typing import Any, NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Where the images of a set begin, and how their pixels lie.

    Attributes:
        shape: (H, W, C) of all images; H and W are 0 where each has its own.
        strides: (image, row, column, channel) of all images in bytes, interleaved or planar; those of images and rows
            are 0 where each has its own.
        largest: bytes of the largest image.
        offsets: int64 [N + 1], where images of their own sizes begin, HWC end to end; empty where all have one shape.
        shapes: int32 [N, 2], their heights and widths; likewise empty.
    """

    shape: Any
    strides: Any
    largest: Any
    offsets: Any
    shapes: Any

    @property
    def is_ragged(self) -> bool:
        """Whether each image has a height and width of its own."""
        return bool(self.offsets.size)


def uniform_layout(shape: tuple[int, int, int], strides: tuple[int, int, int, int]) -> Layout:
    """Return the layout of images that all have a shape (H, W, C), one every `strides[0]` bytes."""
    return Layout(shape, strides, strides[0], np.empty(0, np.int64), np.empty((0, 2), np.int32))


def ragged_layout(channels: int, offsets: np.ndarray, shapes: np.ndarray) -> Layout:
    """Return the layout of images of their own heights and widths: `offsets` int64 [N + 1], `shapes` int32 [N, 2]."""
    largest = int(np.diff(offsets).max(initial=0))
    return Layout((0, 0, channels), (0, 0, channels, 1), largest, offsets, np.ascontiguousarray(shapes, np.int32))
