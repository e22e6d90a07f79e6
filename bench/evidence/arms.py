"""The arms: which samples a trainer is shown in a given time, when a stream delivers less than the trainer could take.

Time is counted in steps of a trainer that never waits. In one step's time the stream delivers `share` batches. No arm
looks at a clock: what it can show in `steps` steps' time follows from the counts alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import xxhash

from fastload.feeds.pool_memory import PoolImages
from fastload.feeds.pool_plan import planned_pool
from fastload.feeds.rolling_order import RollingOrder, rate_of
from fastload.loop.advice import MARGIN
from fastload.order import FAST, FINE_TUNE, Order, RowOrder


@dataclass(frozen=True)
class Setting:
    """What an arm has to do with.

    Arguments:
        n: rows in the file.
        rows: of the file that may be trained on, int64.
        pool: which of them begin a pool or are a subset, int64; empty where an arm has none.
        images: what a pool holds.
        share: S/T, above 0 and at most 1.
        steps: of the trainer's time.
        batch: images a step.
        seed: of the orders.
    """

    n: int
    rows: np.ndarray
    pool: np.ndarray
    images: PoolImages
    share: Fraction
    steps: int
    batch: int
    seed: int

    @property
    def stream(self) -> Chosen:
        """The full set, as the loader streams it."""
        return Chosen(Order(len(self.rows), self.seed, FINE_TUNE), self.rows, self.n)

    @property
    def subset(self) -> Chosen:
        """The subset, as the loader draws it."""
        return Chosen(Order(len(self.pool), self.seed, FAST), self.pool, self.n)

    def streamed(self, steps: int) -> int:
        """Return the whole batches that the stream delivers in so many steps' time."""
        return int(steps * self.share)


class Piece(NamedTuple):
    """Steps that follow an order from its beginning on."""

    order: RowOrder
    steps: int


@dataclass(frozen=True)
class Plan:
    """All that a training is shown.

    Arguments:
        pieces: one after the other.
        batch: images a step.
        read: samples that came by the stream.
    """

    pieces: tuple[Piece, ...]
    batch: int
    read: int

    @property
    def steps(self) -> int:
        return sum(piece.steps for piece in self.pieces)

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows and epochs of each step, int64 [batch] each."""
        for order, steps in self.pieces:
            for step in range(steps):
                yield order.rows(step * self.batch, self.batch)

    def digest(self) -> str:
        """Return what two plans share that show the same images, augmented alike, in the same order."""
        found = xxhash.xxh3_128()
        for order, steps in self.pieces:
            found.update(f"{order.seed} {order.phase} {steps};".encode())
        for rows, epochs in self.rows():
            found.update(rows.tobytes())
            found.update(epochs.tobytes())
        return found.hexdigest()

    def samples(self) -> np.ndarray:
        """Return the rows of the samples that are shown, int64, rising."""
        return np.unique(np.concatenate([rows for rows, _ in self.rows()]))


@dataclass(frozen=True)
class Chosen:
    """An order over chosen rows of a file: row i of `order` is `rows[i]`."""

    order: Order | RollingOrder
    chosen: np.ndarray
    n: int

    @property
    def seed(self) -> int:
        return self.order.seed

    @property
    def phase(self) -> int:
        return self.order.phase

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, epochs = self.order.rows(start, count)
        return self.chosen[rows], epochs

    def rows_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs of positions in any order; not of a rolling order."""
        assert isinstance(self.order, Order)
        rows, epochs = self.order.rows_of(positions)
        return self.chosen[rows], epochs


@dataclass(frozen=True)
class Echoed:
    """Each batch of a stream, several steps long, augmented anew at each.

    After Choi et al., "Faster Neural Network Training with Data Echoing", 2019: batch echoing before augmentation.
    """

    stream: Chosen
    share: Fraction
    batch: int

    @property
    def n(self) -> int:
        return self.stream.n

    @property
    def seed(self) -> int:
        return self.stream.seed

    @property
    def phase(self) -> int:
        return self.stream.phase

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(start, start + count)
        steps, within = np.divmod(positions, self.batch)
        delivered, taken = self.share.numerator, self.share.denominator
        came = steps * delivered // taken  # which batch of the stream
        first = -(-came * taken // delivered)  # the step that shows it first
        rows, epochs = self.stream.rows_of(came * self.batch + within)
        return rows, epochs * -(-taken // delivered) + steps - first


def _unthrottled(on: Setting) -> Plan:
    return Plan((Piece(on.stream, on.steps),), on.batch, on.steps * on.batch)


def _shortened(on: Setting) -> Plan:
    steps = math.ceil(on.steps * on.share)  # time counts from the first batch, which is there
    return Plan((Piece(on.stream, steps),), on.batch, steps * on.batch)


def _cached(on: Setting) -> Plan:
    """An exact cache (Mohan et al., "Analyzing and Mitigating Data Stalls in DNN Training", 2021: MinIO).

    The first samples to arrive stay for good; a sample that is there need not be streamed. The stream works ahead, so
    a step may begin once the samples that it lacks, and those before it, have arrived. Time counts from the first
    batch.
    """
    room, stream, kept = len(on.pool), on.stream, set[int]()
    time, misses, steps = Fraction(0), 0, 0
    while True:
        rows, _ = stream.rows(steps * on.batch, on.batch)
        lacking = [row for row in rows.tolist() if row not in kept]
        kept.update(lacking[: max(0, room - len(kept))])
        arrived = 1 + (Fraction(misses + len(lacking), on.batch) - 1) / on.share
        time = max(time + 1, arrived)
        if time > on.steps:
            return Plan((Piece(stream, steps),), on.batch, misses)
        misses, steps = misses + len(lacking), steps + 1


def _two_phase(on: Setting) -> Plan:
    """The paper's plan: half of the time on the subset, half on the full set."""
    fast = on.steps // 2
    later = on.streamed(on.steps - fast)
    return Plan((Piece(on.subset, fast), Piece(on.stream, later)), on.batch, later * on.batch)


def _echoed(on: Setting) -> Plan:
    order = Echoed(on.stream, on.share, on.batch)
    return Plan((Piece(order, on.steps),), on.batch, math.ceil(on.steps * on.share) * on.batch)


def _fixed(on: Setting) -> Plan:
    return Plan((Piece(on.subset, on.steps),), on.batch, 0)


def _rolling(on: Setting) -> Plan:
    """A pool that begins as the subset. Its rows are the subset's, and then the full set's."""
    return _renewed(on, on.pool, None)


def _growing(on: Setting) -> Plan:
    """A pool that begins as one batch."""
    return _renewed(on, on.pool[:0], len(on.pool))


def _renewed(on: Setting, subset: np.ndarray, pool: int | None) -> Plan:
    refill = MARGIN * float(on.share)
    shape, _ = planned_pool(
        pool,
        refill,
        full=len(on.rows),
        subset=len(subset),
        images=on.images,
        batch_size=on.batch,
        world_size=1,
        shuffle=True,
    )
    order = RollingOrder(shape, on.seed, [rate_of(refill, on.batch)])
    read = order.arrived(on.steps) * shape.lanes - len(subset)
    return Plan((Piece(Chosen(order, np.concatenate([subset, on.rows]), on.n), on.steps),), on.batch, read)


@dataclass(frozen=True)
class Arm:
    """A way to spend the time.

    Arguments:
        name: short, for the command and the tables.
        plan: what it shows.
        by_share: whether the stream's rate matters.
        pool: who chooses the pool that it has: "random", "top-activations" (the paper's), or None for no pool.
    """

    name: str
    plan: Callable[[Setting], Plan]
    by_share: bool = True
    pool: str | None = None


UNTHROTTLED, SHORTENED, CACHED, ECHOED = "unthrottled", "shortened full set", "exact cache", "batch echo"
RANDOM_TWO_PHASE, PAPERS_TWO_PHASE = "two-phase, random", "two-phase, the paper's selection"
FIXED, ROLLING, GROWING = "fixed pool", "rolling", "rolling, growing"

ARMS = {
    arm.name: arm
    for arm in (
        Arm(UNTHROTTLED, _unthrottled, by_share=False),
        Arm(ROLLING, _rolling, pool="random"),
        Arm(GROWING, _growing, pool="random"),
        Arm(FIXED, _fixed, by_share=False, pool="random"),
        Arm(RANDOM_TWO_PHASE, _two_phase, pool="random"),
        Arm(PAPERS_TWO_PHASE, _two_phase, pool="top-activations"),
        Arm(ECHOED, _echoed),
        Arm(CACHED, _cached, pool="random"),
        Arm(SHORTENED, _shortened),
    )
}
