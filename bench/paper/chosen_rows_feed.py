"""A stream feed whose rows are chosen anew for each epoch, for rivals that choose them as training goes on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastload.augment import Augment
from fastload.feeds.batch import Batch, Output
from fastload.feeds.feed import open_feed
from fastload.feeds.prefetch import Prefetcher
from fastload.order import FINE_TUNE
from fastload.packed.file import PackedFile


class _ChosenRows:
    """An order like `Order` over the rows that were chosen for an epoch."""

    def __init__(self, seed: int) -> None:
        self.seed, self.phase = seed, FINE_TUNE
        self.choose(np.zeros(1, np.int64), 0)

    def choose(self, rows: np.ndarray, epoch: int) -> None:
        self.chosen, self.epoch = rows, epoch

    @property
    def n(self) -> int:
        return len(self.chosen)

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self.chosen[start : start + count], np.full(count, self.epoch, np.int64)


class ChosenRowsFeed:
    """Batches of rows that are chosen epoch by epoch, made ahead by threads within an epoch."""

    def __init__(self, file: PackedFile, augment: Augment, output: Output, seed: int) -> None:
        self._order, self._output, self._epoch = _ChosenRows(seed), output, 0
        self._feed = open_feed(file, augment, self._order, output)

    def epoch(self, rows: np.ndarray) -> Iterator[tuple[Batch, slice]]:
        """Yield full batches of `rows`, and which of them each one holds; a remainder is left out, unless it is all."""
        self._order.choose(rows, self._epoch)
        self._epoch += 1
        size = min(self._output.batch_size, len(rows))
        steps, feed = len(rows) // size, self._feed
        ahead = Prefetcher(
            lambda step: feed.make(step * size, size),
            0,
            steps,
            depth=feed.workers + 1,
            workers=feed.workers,
            device=self._output.device,
        )
        try:
            for step in range(steps):
                yield ahead.get(step), slice(step * size, (step + 1) * size)
        finally:
            ahead.close()

    def close(self) -> None:
        self._feed.close()
