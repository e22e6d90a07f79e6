"""Output buffers that are used again once the last tensor on them is released."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np
import torch

_STORED = {torch.float32: np.float32, torch.float16: np.int16, torch.bfloat16: np.int16, torch.uint8: np.uint8}
IMAGE_TYPES = tuple(_STORED)

_LINE = 64
_REMEMBERED = 64
"""Buffers in use that are looked at again; of a caller who holds more, the oldest are left to their tensors."""


class BufferRing:
    """CPU output buffers of one batch's size, each lent to one tensor at a time.

    A yielded tensor is the caller's: its storage keeps a NumPy view alive, and only when that view is dead, with the
    last tensor that shares the storage, is the buffer lent again. Fresh memory for each batch would cost a page
    fault every 4 KiB. At most `keep` idle buffers are kept; a caller who holds on to batches gets new ones.

    Nothing is called when a view dies: `take` looks which ones are dead (see `fastload.common.dropping` for why).

    Arguments:
        batch_size: images in a buffer.
        shape: (C, h, w) of an image.
        dtype: torch.float32, float16, bfloat16 or uint8.
        last: whether channels are stored last.
        keep: idle buffers to keep.
    """

    def __init__(self, batch_size: int, shape: tuple[int, int, int], dtype: torch.dtype, last: bool, keep: int) -> None:
        channels, height, width = shape
        self._shape = (batch_size, height, width, channels) if last else (batch_size, channels, height, width)
        self._dtype, self._last, self._keep = dtype, last, keep
        self._lent: list[tuple[np.ndarray, weakref.ref[Any]]] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return a tensor [count, C, h, w] and the array [count, C·h·w] of its values (bits, for 16-bit types)."""
        with self._lock:
            buffer = self._idle()
            if buffer is None:
                buffer = _aligned(self._shape, np.dtype(_STORED[self._dtype]))
            lease = buffer[:count]
            self._lent.append((buffer, weakref.ref(lease)))
        tensor = torch.from_numpy(lease)
        if tensor.dtype != self._dtype:
            tensor = tensor.view(self._dtype)
        values = buffer[:count].reshape(count, -1)
        return tensor.permute(0, 3, 1, 2) if self._last else tensor, values

    def _idle(self) -> np.ndarray | None:
        """Return a buffer that nobody uses, the one lent last, or None; forget those that are too many."""
        used = [entry for entry in self._lent if entry[1]() is not None]
        idle = [entry for entry in self._lent if entry[1]() is None]
        found = idle.pop()[0] if idle else None
        self._lent = used[-_REMEMBERED:] + idle[-self._keep :]
        return found


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array that begins where a cache line does: kernels store past the caches there."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + size].view(dtype).reshape(shape)
