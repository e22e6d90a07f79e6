"""Which samples a rolling run trains on: its pool is renewed while training draws from it, as a function of the step.

Arrivals are numbered: first the subset's samples in its order, then the full set's in `Order(N, seed, ARRIVALS)`. They
come in rounds of V, one for each of V lanes: arrival j belongs to lane j mod V and to round j // V. Before step k there
have been R(k) rounds; the pool holds the last P' of them, in slot s of a lane the round R(k)-1 - ((R(k)-1-s) mod P').
Each lane gives m = B / V samples to a step: it sweeps over its n slots, each time in another keyed order, and the
number of the sweep is the epoch of the augmentation. All lanes take one permutation, lane v from its offset
v · max(n // V, 1) on, so that what arrived together is not drawn together. A lane is all that a rank needs, so any
number of ranks that divides V shares one pool and draws the same global batches.

While the pool grows, a sweep goes over what had arrived when it began. Where fewer than two sweeps fit into a sample's
stay (e < 2), the rounds that have just arrived go into the batch of their step, so that nothing leaves unseen.
docs/rolling.md and docs/determinism.md define all of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from fastload.kernels import rolling
from fastload.order import ARRIVALS, ROLLING, Order, Shuffle

MOST_LANES = 64

FRESH = 1 << 31
"""Added to the pass of a sample that goes into the batch of its step, for its epoch. No sweep has such a number."""


FINEST = 1 << 16
"""A refill is rounded to a fraction whose denominator is no larger."""


class Rate(NamedTuple):
    """From a step on, `arrivals / steps` samples arrive at each step.

    Arguments:
        step: the first.
        arrivals: how many arrive, 0 or more.
        steps: in how many steps, at least 1.
    """

    step: int
    arrivals: int
    steps: int


def rate_of(refill: float, batch_size: int, step: int = 0) -> Rate:
    """Return the rate at which a share `refill` of each global batch arrives, from `step` on."""
    share = Fraction(refill).limit_denominator(FINEST) * batch_size
    return Rate(step, share.numerator, share.denominator)


def lanes_of(batch_size: int) -> int:
    """Return V: how many lanes a pool has of which global batches of so many images are drawn."""
    return math.gcd(batch_size, MOST_LANES)


@dataclass(frozen=True)
class PoolShape:
    """How many samples a rolling run has to do with; nothing of it hangs on the ranks.

    Arguments:
        full: samples of the full set, N.
        subset: samples of the subset, which arrive first; 0 without one.
        batch_size: images in a global batch, B.
        pool: rounds that the pool holds, P'.
        first: rounds that are there before the first step, at least B / V.
    """

    full: int
    subset: int
    batch_size: int
    pool: int
    first: int

    @cached_property
    def lanes(self) -> int:
        """V."""
        return lanes_of(self.batch_size)

    @cached_property
    def share(self) -> int:
        """What each lane gives to a step, m."""
        return self.batch_size // self.lanes

    @cached_property
    def samples(self) -> int:
        """That the pool holds, P."""
        return self.pool * self.lanes

    @cached_property
    def keeps_all(self) -> bool:
        """Whether the pool holds the whole set, after one pass of which nothing arrives any more."""
        return self.pool >= self.whole

    @cached_property
    def whole(self) -> int:
        """Rounds of a pool that holds the whole set once all has arrived: a round may begin with the subset's last."""
        return -(-(self.subset + self.full) // self.lanes) - self.subset // self.lanes

    @cached_property
    def most_rounds(self) -> int | None:
        """Rounds that arrive in all; None where that has no end."""
        return -(-(self.subset + self.full) // self.lanes) if self.keeps_all else None


class _Course:
    """What has arrived and been drawn by each step, at given rates."""

    def __init__(self, shape: PoolShape, rates: Sequence[Rate]) -> None:
        self.rates, self._shape = tuple(rates), shape
        self._may_be_fresh = any(map(self.is_fresh, self.rates))
        self._counts = [shape.first]  # rounds at the first step of each rate, before what `most_rounds` leaves
        for rate, following in zip(self.rates, self.rates[1:], strict=False):
            self._counts.append(self._counts[-1] + self._since(rate, following.step))
        self._runs = [(0, 0, min(shape.pool, self.arrived(0)))]
        self._table = np.array(self._runs, np.int64)
        self._complete = self._is_settled = False
        self.remembered: dict[tuple[int, int, int], Step] = {}
        self._growing = threading.Lock()

    def _since(self, rate: Rate, step: int) -> int:
        return (step - rate.step) * rate.arrivals // (rate.steps * self._shape.lanes)

    def _of(self, step: int) -> int:
        number = len(self.rates) - 1
        while number and self.rates[number].step > step:
            number -= 1
        return number

    def arrived(self, step: int) -> int:
        """Return the rounds that have arrived before `step`."""
        number = self._of(step)
        count = self._counts[number] + self._since(self.rates[number], step)
        most = self._shape.most_rounds
        return count if most is None else min(count, max(most, self._shape.first))

    def is_fresh(self, rate: Rate) -> bool:
        """Whether samples go into the batch of their step: fewer than two sweeps fit into their stay."""
        return 2 * rate.arrivals > rate.steps * self._shape.batch_size

    def fresh(self, step: int) -> int:
        """Return how many of the rounds that have arrived last go into the batch of `step` first."""
        if not self._may_be_fresh or step == 0 or not self.is_fresh(self.rates[self._of(step)]):
            return 0
        return self.arrived(step) - self.arrived(step - 1)

    def drawn(self, step: int) -> int:
        """Return how many samples each lane has drawn from the pool before `step`."""
        if not self._may_be_fresh:
            return step * self._shape.share
        ends = [*(rate.step for rate in self.rates[1:]), step]
        fresh = 0
        for rate, end in zip(self.rates, ends, strict=True):
            first, last = max(rate.step, 1), min(end, step)
            if last > first and self.is_fresh(rate):
                fresh += self.arrived(last - 1) - self.arrived(first - 1)
        return step * self._shape.share - fresh

    def runs(self, until: int) -> np.ndarray:
        """Return sweeps of the same size, run by run, int64 [r, 3]; see `rolling.rolling_draws`. They reach `until`."""
        table = self._table
        # By the table itself: another thread may have found runs that it has not put in there yet.
        if not self._is_settled and table[-1, 0] <= until:
            with self._growing:
                while not self._complete and self._runs[-1][0] <= until:
                    self._extend()
                self._table = table = np.array(self._runs, np.int64)
                self._is_settled = self._complete
        return table

    def _extend(self) -> None:
        draw, sweep, size = self._runs[-1]
        grows = None if size >= self._shape.pool else _first_step(lambda step: self.arrived(step) > size)
        if grows is None:
            self._complete = True
            return
        count = -(-(self.drawn(grows) - draw) // size)  # of the sweeps that begin before that step
        draw, sweep = draw + count * size, sweep + count
        begins = _first_step(lambda step: self.drawn(step + 1) > draw)
        if begins is None:
            self._complete = True
            return
        self._runs.append((draw, sweep, min(self._shape.pool, self.arrived(begins))))


_REMEMBERED = 32
"""Steps whose draws are kept: more than are made ahead, as a rule."""

_END = 1 << 50
"""No run has so many steps."""


def _first_step(holds: Callable[[int], bool]) -> int | None:
    """Return the first step at which what never ends once it has begun holds; None where it never does."""
    low, high = 0, 1
    while not holds(high):
        if high >= _END:
            return None
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


class Renewal(NamedTuple):
    """How a pool is renewed.

    Arguments:
        pool: how large it is.
        rates: at which samples arrive: the first of step 0, each of a later step than the one before.
    """

    pool: PoolShape
    rates: tuple[Rate, ...]


class Step(NamedTuple):
    """The samples that lanes give to a step, lane by lane.

    Arguments:
        rounds: of their arrival, int64 [b].
        lanes: int64 [b].
        sweeps: of the draws, int64 [b]; -1 of samples that go into the batch of the step that they arrive in.
        fresh: rounds that do.
    """

    rounds: np.ndarray
    lanes: np.ndarray
    sweeps: np.ndarray
    fresh: int

    def epochs(self, passes: np.ndarray) -> np.ndarray:
        """Return the epochs of the samples' augmentation, int64 [b], given their passes over the full set."""
        return np.where(self.sweeps < 0, FRESH + passes, self.sweeps)


_PHASE = np.uint64(ROLLING)


@lru_cache(maxsize=64)
def _lanes(first: int, count: int, share: int) -> np.ndarray:
    """Return the lanes of the samples in a batch."""
    return np.repeat(np.arange(first, first + count), share)


class RollingOrder:
    """The order of a rolling run, a `RowOrder`; its rows are the subset's, and then the full set's.

    Its rates may be set anew as the run goes on, for steps that nobody has asked for; all else is constant.

    Arguments:
        shape: of the pool.
        seed: 64-bit.
        rates: the first of step 0, each of a later step than the one before.
        shuffle: of the arrivals: True, "block" or False. What is drawn from the pool is shuffled unless this is False.
    """

    phase = ROLLING

    def __init__(self, shape: PoolShape, seed: int, rates: Sequence[Rate], shuffle: Shuffle = True) -> None:
        self.shape, self.seed, self.shuffle = shape, seed, shuffle
        self._key = np.uint64(seed)
        self._arrivals = Order(shape.full, seed, ARRIVALS, shuffle)
        self._course = _Course(shape, rates)

    @property
    def n(self) -> int:
        """Rows of the subset and the full set together."""
        return self.shape.subset + self.shape.full

    @property
    def rates(self) -> tuple[Rate, ...]:
        """At which samples arrive."""
        return self._course.rates

    @rates.setter
    def rates(self, rates: Sequence[Rate]) -> None:
        self._course = _Course(self.shape, rates)

    def arrived(self, step: int) -> int:
        """Return the rounds that have arrived before `step`, R(k)."""
        return self._course.arrived(step)

    def arrivals(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of arrivals, int64 [b], and the pass over the full set that each is of."""
        rows, passes = numbers.copy(), np.zeros(len(numbers), np.int64)
        later = numbers >= self.shape.subset
        found, numbered = self._arrivals.rows_of(numbers[later] - self.shape.subset)
        rows[later], passes[later] = self.shape.subset + found, numbered
        return rows, passes

    def draws(self, step: int, first_lane: int, lanes: int) -> Step:
        """Return what lanes give to a step.

        A step is asked for when it is planned, when it is drawn, and by what blends its batch: the last are remembered.
        """
        course = self._course
        key = step, first_lane, lanes
        found = course.remembered.get(key)
        if found is None:
            found = course.remembered[key] = self._draws(course, step, first_lane, lanes)
            # Listed at once: other threads draw, and a dict that changes meanwhile cannot be gone through.
            for oldest in list(course.remembered)[:-_REMEMBERED]:
                course.remembered.pop(oldest, None)
        return found

    def _draws(self, course: _Course, step: int, first_lane: int, lanes: int) -> Step:
        shape = self.shape
        arrived, drawn, fresh = course.arrived(step), course.drawn(step), course.fresh(step)
        rounds = np.empty(lanes * shape.share, np.int64)
        sweeps = np.empty_like(rounds)
        rolling.rolling_draws(
            first_lane,
            shape.lanes,
            shape.share,
            fresh,
            arrived,
            shape.pool,
            drawn,
            course.runs(drawn + shape.share),
            self.shuffle is not False,
            self._key,
            _PHASE,
            rounds,
            sweeps,
        )
        return Step(rounds, _lanes(first_lane, lanes, shape.share), sweeps, fresh)

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs, int64 [count] each, of the positions start … start + count - 1."""
        shape = self.shape
        step, within = divmod(start, shape.batch_size)
        rows, epochs = [], []
        while count > 0:
            taken = min(count, shape.batch_size - within)
            first, last = within // shape.share, -(-(within + taken) // shape.share)
            drawn = self.draws(step, first, last - first)
            found, passes = self.arrivals(drawn.rounds * shape.lanes + drawn.lanes)
            part = slice(within - first * shape.share, within - first * shape.share + taken)
            rows.append(found[part])
            epochs.append(drawn.epochs(passes)[part])
            step, within, count = step + 1, 0, count - taken
        return np.concatenate(rows or [np.empty(0, np.int64)]), np.concatenate(epochs or [np.empty(0, np.int64)])
