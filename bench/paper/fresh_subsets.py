"""RS2: a fresh random subset every epoch, as an order over the full set, and its feed.

Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastload.augment import Augment
from fastload.common.memory import resident_room
from fastload.errors import UsageError
from fastload.feeds.batch import Batch, Feed, Output
from fastload.feeds.feed import open_feed
from fastload.order import FINE_TUNE, Order, RowOrder
from fastload.packed.file import PackedFile


@dataclass(frozen=True)
class FreshSubsets:
    """An order like `Order`, whose epoch e is the first `size` places of the full set's e-th permutation.

    Arguments:
        n: rows of the full set.
        size: of each epoch's subset, at most n.
        seed: 64-bit.
        phase: of the augmentation.
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
        parts = [self.full_order.rows(*run) for run in self.runs(start, count)]
        rows, epochs = (np.concatenate(part) for part in zip(*parts, strict=True))
        return rows, epochs

    @property
    def full_order(self) -> Order:
        """The order of the full set, whose epochs begin with the subsets."""
        return Order(self.n, self.seed, self.phase)

    def runs(self, start: int, count: int) -> list[tuple[int, int]]:
        """Return where the positions start … start + count - 1 stand in `full_order`: (first, count) by epoch."""
        found = []
        while count:
            epoch, offset = divmod(start, self.size)
            take = min(count, self.size - offset)
            found.append((epoch * self.n + offset, take))
            start, count = start + take, count - take
        return found


class FreshFeed(Feed):
    """RS2's feed: of the resident full set where TwoPhaseLoader would keep it, else of the stream.

    A resident feed on CUDA finds rows by itself, in the full set's order: a batch within one epoch is a run of that.
    """

    def __init__(self, file: PackedFile, augment: Augment, subsets: FreshSubsets, output: Output) -> None:
        resident = file.shape is not None and file.nbytes <= resident_room(output.device)
        order: RowOrder = subsets.full_order if resident else subsets
        self._feed = open_feed(file, augment, order, output, resident=resident)
        self.kind = self._feed.kind
        self.immediate, self.workers, self._subsets = self._feed.immediate, self._feed.workers, subsets

    def make(self, start: int, count: int) -> Batch:
        """Return the batch of the positions start … start + count - 1."""
        if self.kind == "stream":
            return self._feed.make(start, count)
        parts = [self._feed.make(*run) for run in self._subsets.runs(start, count)]
        return parts[0] if len(parts) == 1 else Batch(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def close(self) -> None:
        self._feed.close()
