"""A pool in the device's memory that is renewed while batches are drawn from it: what `RollingOrder` says, in fact.

Threads fetch samples into the pool's slots, in the order in which batches need them; a batch waits until its own are
there. The ring of slots holds more rounds than the pool, so that no slot is written over while a batch reads it: a
round is fetched only once the one in its place is older than what the oldest batch in the making may draw.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from fastload.common.threads import Started, WorkThread
from fastload.errors import ClosedError, DataError
from fastload.feeds.arrival_meter import ArrivalMeter
from fastload.feeds.pool_memory import PoolMemory
from fastload.feeds.pool_writers import Writer
from fastload.feeds.rolling_order import RollingOrder

_AHEAD = 4
"""Pieces that are planned, and asked of the disk, for each thread that fetches."""


class Piece(NamedTuple):
    """Samples that one thread fetches at a time.

    Arguments:
        rows: int64 [b], of the subset and the full set, ascending.
        slots: int64 [b], where they go.
        rounds: int64 [b], of their arrival.
    """

    rows: np.ndarray
    slots: np.ndarray
    rounds: np.ndarray


class RollingPool:
    """The slots of one rank's lanes.

    Arguments:
        order: of the run.
        memory: with `ring` slots for each lane.
        writer: fills it.
        meter: notes how fast samples arrive.
        ids: int64 [N], of the subset's samples and then the full set's.
        sides: every (H, W) that their images have.
        ring: rounds that the memory holds; more than the pool's.
        first_lane: of this rank.
        lanes: how many this rank has.
        threads: that fetch.
        piece: samples that a thread fetches at a time.
    """

    def __init__(
        self,
        order: RollingOrder,
        memory: PoolMemory,
        writer: Writer,
        meter: ArrivalMeter,
        ids: np.ndarray,
        sides: list[tuple[int, int]],
        *,
        ring: int,
        first_lane: int,
        lanes: int,
        threads: int,
        piece: int,
    ) -> None:
        self.order, self.memory, self.writer, self.meter = order, memory, writer, meter
        self.ids, self.sides = ids, sides
        self.ring, self.first_lane, self.lanes = ring, first_lane, lanes
        self.threads, self.piece = threads, piece
        self.wanted = np.full(ring * lanes, -1, np.int64)  # the round that a slot is being filled with, or holds
        self.loaded = np.full(ring * lanes, -1, np.int64)  # the round that it holds
        self.placed = (0, 0)  # rounds that have places in the memory: the first, and the one behind the last
        self._turn: Turn | None = None
        self._closed = False

    def slots(self, rounds: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Return the slots of samples, given their rounds and lanes."""
        return rounds % self.ring * self.lanes + (lanes - self.first_lane)

    def begin(self, start: int) -> Turn:
        """Return what batches are drawn from, from the one at position `start` on, each once."""
        self.end()
        if self._closed:
            raise ClosedError()
        self._turn = turn = Turn(self, start // self.order.shape.batch_size)
        return turn

    def end(self) -> None:
        """Have whoever waits for samples wait no more."""
        turn = self._turn
        if turn is not None:
            turn.stop()

    def close(self) -> None:
        """Let go of the threads. Safe to call twice."""
        self._closed = True
        self.end()
        self.writer.close()

    def prepare(self, step: int) -> None:
        """Begin at another step: keep what the memory holds of its pool, as far as nothing has come into its place."""
        if self._turn is not None:
            self._turn.wait_for_threads()
        self.wanted[:] = self.loaded
        end = self.order.arrived(step)
        oldest = max(0, end - self.order.shape.pool)
        first, behind = self.placed
        if not first <= oldest <= behind:
            self.memory.clear()
            self.wanted[:] = self.loaded[:] = -1
            self.placed = oldest, oldest
        while self.placed[1] < end:
            if not self.place(oldest):
                raise no_room()

    def place(self, oldest: int) -> bool:
        """Give places to the next round; False where the memory has no room beside the rounds from `oldest` on."""
        first, number = self.placed
        if number - self.ring >= oldest:
            return False
        rows, slots = self.of_round(number)
        if not self.memory.place(number, slots, rows, oldest):
            return False
        self.loaded[slots] = -1
        self.placed = max(first, oldest if self.memory.is_ring else number + 1 - self.ring), number + 1
        return True

    def of_round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of this rank's samples of a round, and their slots, int64 [L] each."""
        lanes = np.arange(self.first_lane, self.first_lane + self.lanes)
        rounds = np.full(self.lanes, number)
        return self.order.arrivals(rounds * self.order.shape.lanes + lanes)[0], self.slots(rounds, lanes)


class Turn:
    """Batches drawn from a pool, from one step on, in any threads, each step once.

    Arguments:
        pool: the pool.
        step: the first.
    """

    def __init__(self, pool: RollingPool, step: int) -> None:
        self._pool, self._news = pool, threading.Condition()
        self._lowest, self._done = step, set[int]()  # steps below `lowest` have been made, and those in `done`
        self._planned = step - 1  # the last step whose samples have been asked for
        self._pieces = deque[Piece]()
        self._failure: BaseException | None = None
        self._stopped = False
        self._fetching = 0
        self._rates = pool.order.rates
        pool.prepare(step)
        self._first = pool.order.arrived(step)
        shape = pool.order.shape
        self._lead = shape.pool // shape.share + 8
        self._threads = Started(partial(_threads, self, pool.threads), self.fail)

    # -- batches ---------------------------------------------------------------------------------------------------

    @property
    def images(self) -> torch.Tensor:
        """The images' bytes, uint8."""
        return self._pool.memory.data

    def rows(self, slots: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """See `PoolMemory.rows`."""
        return self._pool.memory.rows(slots)

    @contextmanager
    def drawing(self, start: int, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Wait for the samples of a batch and hold them; gives their slots."""
        pool = self._pool
        step = start // pool.order.shape.batch_size
        drawn, _ = pool.order.draws(step, pool.first_lane, pool.lanes)
        slots = pool.slots(drawn.rounds, drawn.lanes)[: len(rows)]
        with self._news:
            while not (self._stopped or self._failure or np.array_equal(pool.loaded[slots], drawn.rounds[: len(rows)])):
                self._news.wait()
            if self._stopped:
                raise ClosedError()
            if self._failure is not None:
                raise self._failure
        pool.writer.before_reading()
        yield slots
        pool.writer.after_reading()
        with self._news:
            self._done.add(step)
            while self._lowest in self._done:
                self._done.remove(self._lowest)
                self._lowest += 1
            self._news.notify_all()

    def stop(self) -> None:
        """End the threads, and whatever waits for them."""
        with self._news:
            self._stopped = True
            self._news.notify_all()

    def wait_for_threads(self) -> None:
        """Wait until no thread writes to the pool any more."""
        with self._news:
            while self._fetching:
                self._news.wait()

    def fail(self, error: BaseException) -> None:
        """Have all batches that wait raise an error."""
        with self._news:
            self._failure = error
            self._news.notify_all()

    # -- samples ---------------------------------------------------------------------------------------------------

    def next_piece(self) -> Piece | None:
        """Wait for samples to fetch; None where no more are wanted."""
        with self._news:
            while not (self._stopped or self._failure):
                while len(self._pieces) < _AHEAD * self._pool.threads and self._plan():
                    pass
                if self._pieces:
                    self._fetching += 1
                    return self._pieces.popleft()
                self._news.wait()
            return None

    def fetch(self, piece: Piece) -> None:
        """Fetch samples into the pool."""
        pool, rounds = self._pool, np.full_like(piece.rounds, -1)
        try:
            with pool.meter.counting(len(piece.rows)):
                pool.writer.write(piece.rows, piece.slots)
            rounds = piece.rounds
        finally:
            with self._news:
                pool.loaded[piece.slots] = rounds
                self._fetching -= 1
                self._news.notify_all()

    def _plan(self) -> bool:
        """Ask for what the next step needs that nobody has asked for; return whether it could be placed already."""
        pool, order, shape = self._pool, self._pool.order, self._pool.order.shape
        if self._rates is not order.rates:  # what was planned beyond the change has arrived early, and stays
            self._rates = order.rates
            self._planned = min(self._planned, self._rates[-1].step - 1)
        step = self._planned + 1
        if step > self._lowest + self._lead:
            return False
        arrived, oldest = order.arrived(step), max(0, order.arrived(self._lowest) - shape.pool)
        new = list[int]()
        while pool.placed[1] < arrived:
            number = pool.placed[1]
            if not pool.place(oldest):
                if step == self._lowest:
                    raise no_room()
                self._ask_for_rounds(new)
                return False
            new.append(number)
        self._ask_for_rounds(new)
        if arrived - shape.pool < self._first:  # some of what was there at first may never have been asked for
            drawn, _ = order.draws(step, pool.first_lane, pool.lanes)
            self._ask(*np.unique(np.stack([drawn.rounds, drawn.lanes]), axis=1))
        self._planned = step
        return True

    def _ask_for_rounds(self, rounds: Sequence[int]) -> None:
        pool = self._pool
        lanes = np.arange(pool.first_lane, pool.first_lane + pool.lanes)
        self._ask(np.repeat(np.array(rounds, np.int64), len(lanes)), np.tile(lanes, len(rounds)))

    def _ask(self, rounds: np.ndarray, lanes: np.ndarray) -> None:
        """Have samples fetched that have places, unless they are there or have been asked for."""
        pool = self._pool
        slots = pool.slots(rounds, lanes)
        missing = pool.wanted[slots] != rounds
        rounds, lanes, slots = rounds[missing], lanes[missing], slots[missing]
        if not len(rounds):
            return
        pool.wanted[slots] = rounds
        rows = pool.order.arrivals(rounds * pool.order.shape.lanes + lanes)[0]
        by_row = np.argsort(rows)
        rows, slots, rounds = rows[by_row], slots[by_row], rounds[by_row]
        pool.writer.ask(rows)
        for first in range(0, len(rows), pool.piece):
            part = slice(first, first + pool.piece)
            self._pieces.append(Piece(rows[part], slots[part], rounds[part]))
        self._news.notify_all()


class _Fetcher(WorkThread):
    def __init__(self, turn: Turn, number: int) -> None:
        super().__init__(number, turn.stop)
        self._turn = turn

    def run(self) -> None:
        try:
            while (piece := self._turn.next_piece()) is not None:
                self._turn.fetch(piece)
        except BaseException as error:  # it must reach the training loop, whatever it is
            self._turn.fail(error)


def no_room() -> DataError:
    """Return the error of a ring of bytes that holds less than one pool: at most once in a trillion runs."""
    return DataError("the pool's memory has no room for its images: the largest came all together; give a larger pool=")


def _threads(turn: Turn, count: int) -> list[threading.Thread]:
    return [_Fetcher(turn, number) for number in range(count)]
