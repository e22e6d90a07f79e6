"""The CUDA kernel that puts images, which came in one copy, where a pool in device memory keeps each of them."""

import numpy as np
from numba import types

from .cuda_memory import load_byte, load_four, load_long, store_byte, store_four
from .cuda_target import cuda

THREADS = 256

_BLOCK_BYTES = 16 << 10
"""What a block copies of an image, four loads of 16 bytes a thread: a few large images keep a whole device busy."""

_MOST_PARTS = 64
"""Blocks that share an image, at most: of many small images beside a huge one most blocks would have nothing to do."""


def launch_shape(sizes):
    """Return (blocks, threads) for images of these sizes in bytes, int64 [b], b ≥ 1: blocks are (b, parts of each)."""
    parts = max(1, -(-int(sizes.max()) // _BLOCK_BYTES))
    return (len(sizes), min(parts, _MOST_PARTS)), THREADS


def place_images(source, table):
    """CUDA kernel, a row of blocks an image: copy images from a buffer to where they are kept.

    An image goes in pieces of 16 bytes where both of its addresses leave the same remainder by 16, else byte by byte.

    Arguments, int64:
        source: address of the buffer.
        table: address of int64 [b, 3]: of each image where it begins in the buffer, the address where it goes, which no
            other image's overlaps, and its bytes.
    """
    entry = table + 24 * np.int64(cuda.blockIdx.x)
    begin, target, size = source + load_long(entry), load_long(entry + 8), load_long(entry + 16)
    first = np.int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x
    step = np.int64(cuda.gridDim.y) * cuda.blockDim.x
    head, pieces = size, np.int64(0)
    if (begin ^ target) & 15 == 0:
        head = min(-begin & 15, size)
        pieces = (size - head) >> 4
    for k in range(first, pieces, step):
        a, b, c, d = load_four(begin + head + 16 * k)
        store_four(target + head + 16 * k, a, b, c, d)
    for k in range(first, size - 16 * pieces, step):  # what lies before those pieces and behind them
        at = k if k < head else k + 16 * pieces
        store_byte(target + at, np.uint8(load_byte(begin + at)))


SIGNATURE = (types.int64,) * 2

CUDA_KERNELS = [("place_images", place_images, SIGNATURE)]
"""(name, function, argument types) of each kernel, for compiling them without a GPU."""
