"""RS2: a fresh random subset every epoch, as an order over the full set.

Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastload.errors import UsageError
from fastload.order import FINE_TUNE, Order


@dataclass(frozen=True)
class FreshSubsets:
    """An order like `Order`, whose epoch e is the first `size` places of the full set's e-th permutation.

    Arguments:
        n: rows of the full set. size: of each epoch's subset, at most n. seed: 64-bit. phase: of the augmentation.
    """

    n: int
    size: int
    seed: int = 0
    phase: int = FINE_TUNE

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.n:
            raise UsageError(f"size={self.size}; a subset of {self.n:,} rows has from 1 to {self.n:,}")

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs, int64 [count] each, of the positions start … start + count - 1."""
        whole = Order(self.n, self.seed, self.phase)
        rows, epochs = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, offset = divmod(start + done, self.size)
            take = min(count - done, self.size - offset)
            rows[done : done + take], epochs[done : done + take] = whole.rows(epoch * self.n + offset, take)
            done += take
        return rows, epochs
