"""Which sample comes at which position of a phase: a pure function of seed, phase, epoch and offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from fastload.common.arguments import seed64
from fastload.errors import UsageError
from fastload.kernels import permute

FAST, FINE_TUNE, AUTOENCODER, ONCE, ROLLING, ARRIVALS = range(6)
"""The phases. ONCE is for orders drawn a single time: `pack(order="shuffled")` and the random selection; ROLLING for
what is drawn from a rolling pool, ARRIVALS for what arrives in it."""

Shuffle = bool | Literal["block"]


def shuffle_of(value: Any) -> Shuffle:
    """Return a `shuffle` as plain True, False or "block"; raise UsageError for anything else, such as 1 or an array."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str) and value == "block":
        return "block"
    raise UsageError(f'shuffle={value!r}; it is True, False or "block"')


class RowOrder(Protocol):
    """What a feed asks of an order: which rows of a file come at which positions, and in which epoch of the run.

    `Order` is one. Others may choose rows as training goes on.
    """

    @property
    def n(self) -> int:
        """Rows in the file."""

    @property
    def seed(self) -> int:
        """64-bit; decides the augmentation, with phase, epoch and sample id."""

    @property
    def phase(self) -> int:
        """One of the phases above."""

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs, int64 [count] each, of the positions start … start + count - 1."""


@dataclass(frozen=True)
class Order:
    """The endless stream of positions over n rows: `epoch, offset = divmod(position, n)`, `row = permute(offset)`.

    Arguments:
        n: rows in the file.
        seed: 64-bit.
        phase: one of the phases above.
        shuffle: True for a permutation of all rows, "block" for one that keeps reads sequential (blocks of
            `block_rows` rows, mixed within windows of `window_blocks` blocks), False for file order.
        block_rows: rows in a block, at least 1.
        window_blocks: blocks that are mixed with each other, at least 1.

    Raises UsageError for an empty file or settings out of range. See docs/determinism.md.
    """

    n: int
    seed: int = 0
    phase: int = FAST
    shuffle: Shuffle = True
    block_rows: int = 256
    window_blocks: int = 64

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"an order needs at least one row, not {self.n}")
        seed64(self.seed)
        shuffle_of(self.shuffle)
        if self.block_rows < 1 or self.window_blocks < 1:
            raise UsageError(f"block_rows={self.block_rows} and window_blocks={self.window_blocks} must be positive")

    @property
    def mode(self) -> int:
        """The kernels' name for `shuffle`."""
        if self.shuffle == "block":
            return permute.BLOCKS
        return permute.SHUFFLED if self.shuffle else permute.SEQUENTIAL

    def blocks(self, start: int, count: int) -> np.ndarray:
        """Return which blocks of rows come at the places start … start + count - 1, int64 [count], in `"block"` order.

        The stream is endless: each epoch has its ceil(n / block_rows) blocks in an order of its own, and mixes the rows
        of `window_blocks` of them at a time.
        """
        number = -(-self.n // self.block_rows)
        return self._permuted(number, permute.BLOCK_NUMBERS, start, count)[0]

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs, int64 [count] each, of the positions start … start + count - 1."""
        return self._permuted(self.n, self.mode, start, count)

    def rows_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs, int64 [b] each, of positions in any order, int64 [b]."""
        rows, epochs = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        where = np.uint64(self.n), np.uint64(self.seed), np.uint64(self.phase)
        permute.rows_of(
            positions, *where, self.mode, np.uint64(self.block_rows), np.uint64(self.window_blocks), rows, epochs
        )
        return rows, epochs

    def _permuted(self, n: int, mode: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, epochs = np.empty(count, np.int64), np.empty(count, np.int64)
        where = np.uint64(start), np.uint64(n), np.uint64(self.seed), np.uint64(self.phase)
        permute.rows_at(*where, mode, np.uint64(self.block_rows), np.uint64(self.window_blocks), rows, epochs)
        return rows, epochs


def permutation(n: int, seed: int, number: int = 0) -> np.ndarray:
    """Return a keyed permutation of 0…n-1, int64 [n]: of a seed's endless many, the one of this number.

    `pack(order="shuffled")` and `random` use number 0.
    """
    return Order(n, seed, ONCE).rows(number * n, n)[0]


def sorted_by_label(labels: np.ndarray) -> bool:
    """Whether rows stand class by class, so that an order which keeps reads sequential would not mix classes."""
    return labels.ndim == 1 and len(labels) > 1 and labels[0] != labels[-1] and bool((np.diff(labels) >= 0).all())
