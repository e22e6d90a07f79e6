"""Output buffers that go back to their ring when the last tensor on them is released."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import torch

_STORED = {torch.float32: np.float32, torch.float16: np.int16, torch.bfloat16: np.int16}
FLOAT_TYPES = tuple(_STORED)


class BufferRing:
    """CPU output buffers of one batch's size, each lent to one tensor at a time.

    A yielded tensor is the caller's: its storage keeps a NumPy view alive, and only when that view dies, with the
    last tensor that shares the storage, does the buffer return. Fresh memory for each batch would cost a page
    fault every 4 KiB. At most `keep` idle buffers are kept; a caller who holds on to batches gets new ones.
    """

    def __init__(self, batch_size: int, shape: tuple[int, int, int], dtype: torch.dtype, last: bool, keep: int) -> None:
        """`shape` is (C, h, w); `last` stores the channels last."""
        channels, height, width = shape
        self._shape = (batch_size, height, width, channels) if last else (batch_size, channels, height, width)
        self._dtype, self._last, self._keep = dtype, last, keep
        self._idle: list[np.ndarray] = []
        self._lent: dict[int, Any] = {}
        # Re-entrant: a garbage collection inside `take` can run `_give_back` on the same thread.
        self._lock = threading.RLock()

    def take(self, count: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return a tensor [count, C, h, w] and the array [count, C·h·w] of its values (bits, for 16-bit types)."""
        with self._lock:
            buffer = self._idle.pop() if self._idle else np.empty(self._shape, _STORED[self._dtype])
        lease = buffer[:count]
        ring = weakref.ref(self)

        def give_back(reference: Any) -> None:
            owner = ring()
            if owner is not None:
                owner._give_back(reference, buffer)

        reference = weakref.ref(lease, give_back)
        with self._lock:
            self._lent[id(reference)] = reference
        tensor = torch.from_numpy(lease)
        if tensor.dtype != self._dtype:
            tensor = tensor.view(self._dtype)
        values = buffer[:count].reshape(count, -1)
        return tensor.permute(0, 3, 1, 2) if self._last else tensor, values

    def _give_back(self, reference: Any, buffer: np.ndarray) -> None:
        with self._lock:
            self._lent.pop(id(reference), None)
            if len(self._idle) < self._keep:
                self._idle.append(buffer)
