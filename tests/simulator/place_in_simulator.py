"""Run by tests/kernels/test_simulator.py in a process of its own with NUMBA_ENABLE_CUDASIM=1, which is read at import.

The kernel that places images, between memory before and behind which nobody may read or write.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from walled import walled

from fastload.kernels import place_cuda
from fastload.kernels.compiling import cuda_jit
from fastload.kernels.cuda_target import SIMULATED

assert SIMULATED
place_cuda.THREADS = 8
kernel = cuda_jit(place_cuda.place_images)
rng = np.random.default_rng(0)


def check(sizes, source_gap, target_gap):
    """Images one after the other with gaps; the last one ends where the memory of both buffers does."""
    sizes = np.array(sizes, np.int64)
    offsets, places = (np.cumsum(sizes + gap) - sizes for gap in (source_gap, target_gap))
    staging = walled(rng.integers(0, 256, offsets[-1] + sizes[-1]).astype(np.uint8))
    pool = walled(np.full(places[-1] + sizes[-1], 0xA5, np.uint8))
    wanted = pool.copy()
    for offset, place, size in zip(offsets, places, sizes, strict=True):
        wanted[place : place + size] = staging[offset : offset + size]
    table = walled(np.column_stack([offsets, pool.ctypes.data + places, sizes]))
    blocks, threads = place_cuda.launch_shape(sizes)
    kernel[blocks, threads](staging.ctypes.data, table.ctypes.data)
    assert np.array_equal(pool, wanted), (sizes, source_gap, target_gap)
    return blocks[1]


for gaps in ((0, 0), (3, 3), (0, 8), (1, 2), (7, 16)):
    assert check([5, 1, 16, 33, 200, 15, 31, 48], *gaps) == 1
place_cuda._BLOCK_BYTES = 64
for gaps in ((0, 0), (5, 4)):
    assert check([700, 3, 301, 64], *gaps) == 11
place_cuda._MOST_PARTS = 2
assert check([1, 700, 96], 0, 0) == 2
print("placed in the simulator")
