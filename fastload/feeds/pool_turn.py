"""Batches drawn from a rolling pool from one step on, and the threads that fetch what they need meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from fastload.common.threads import Started, WorkThread
from fastload.errors import ClosedError
from fastload.feeds.pool_memory import no_room
from fastload.feeds.resident_set import Drawn
from fastload.order import RowOrder

if TYPE_CHECKING:
    from fastload.feeds.rolling_pool import RollingPool

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


class Turn:
    """Batches drawn from a pool, from one step on, in any threads, each step once.

    Whoever has made a batch plans what may be fetched now; threads wake up for what there is to fetch, and batches for
    what has come. So neither costs anything while nothing arrives.

    Arguments:
        pool: the pool.
        step: the first.

    Raises DataError where the pool's memory has no room for its images.
    """

    def __init__(self, pool: RollingPool, step: int) -> None:
        self._pool = pool
        lock = threading.RLock()  # a signal's handler may close the loader while its thread is in here
        self._come, self._wanted = threading.Condition(lock), threading.Condition(lock)
        self._lowest, self._done = step, set[int]()  # steps below `lowest` have been made, and those in `done`
        self._planned = step - 1  # the last step whose samples have been asked for
        self._pieces = deque[Piece]()
        self._waiting = self._idle = self._fetching = 0  # batches; threads without and with something to fetch
        self._failure: BaseException | None = None
        self._stopped = False
        self._rates = pool.order.rates
        self._absent = pool.prepare(step)  # samples that have places, and that nobody has asked for
        shape = pool.order.shape
        self._first = pool.order.arrived(step)
        self._lead = shape.pool // shape.share + 8
        with lock:
            self._plan()
        self._threads = Started(partial(_fetchers, self, pool.threads), self.fail)

    # -- batches ---------------------------------------------------------------------------------------------------

    @property
    def images(self) -> torch.Tensor:
        """The images' bytes, uint8."""
        return self._pool.memory.data

    def rows(self, places: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """See `PoolMemory.rows`."""
        return self._pool.memory.rows(places)

    @contextmanager
    def drawing(self, order: RowOrder, start: int, count: int) -> Iterator[Drawn]:
        """Wait for the samples of a batch, and hold them."""
        pool = self._pool
        step = start // pool.order.shape.batch_size
        found = pool.order.draws(step, pool.first_lane, pool.lanes)
        slots = pool.slots(found.rounds, found.lanes)
        with self._come:
            while not (self._stopped or self._failure or (pool.loaded[slots] == found.rounds).all()):
                self._waiting += 1
                try:
                    self._come.wait()
                finally:
                    self._waiting -= 1
            if self._stopped:
                raise ClosedError()
            if self._failure is not None:
                raise self._failure
        pool.writer.before_reading()
        epochs = found.epochs(pool.passes[slots]) if found.fresh else found.sweeps
        yield Drawn(pool.held[slots[:count]], epochs[:count], slots[:count])
        pool.writer.after_reading()
        with self._come:
            self._done.add(step)
            while self._lowest in self._done:
                self._done.remove(self._lowest)
                self._lowest += 1
            self._plan()

    def stop(self) -> None:
        """End the threads, and whatever waits for them."""
        with self._come:
            self._stopped = True
            self._come.notify_all()
            self._wanted.notify_all()

    def wait_for_threads(self) -> None:
        """Wait until no thread writes to the pool any more."""
        with self._come:
            while self._fetching:
                self._come.wait()

    def fail(self, error: BaseException) -> None:
        """Have all batches that wait raise an error."""
        with self._come:
            self._failure = error
            self._come.notify_all()
            self._wanted.notify_all()

    # -- samples ---------------------------------------------------------------------------------------------------

    def next_piece(self) -> Piece | None:
        """Wait for samples to fetch; None where no more are wanted."""
        with self._wanted:
            while not (self._stopped or self._failure):
                if self._pieces:
                    piece = self._pieces.popleft()
                    self._fetching += 1
                    self._plan()
                    return piece
                self._idle += 1
                try:
                    self._wanted.wait()
                finally:
                    self._idle -= 1
            return None

    def fetch(self, piece: Piece) -> None:
        """Fetch samples into the pool."""
        pool, came = self._pool, False
        try:
            with pool.meter.counting(len(piece.rows)):
                pool.writer.write(piece.rows, piece.slots)
            came = True
        finally:
            with self._come:
                if came:
                    pool.loaded[piece.slots] = piece.rounds
                self._fetching -= 1
                if self._waiting or self._stopped:
                    self._come.notify_all()

    def _plan(self) -> None:
        """Ask for what the next steps need, as far as it can be placed, and wake threads for it."""
        while len(self._pieces) < _AHEAD * self._pool.threads and self._plan_step():
            pass
        if self._pieces and self._idle:
            self._wanted.notify(min(len(self._pieces), self._idle))

    def _plan_step(self) -> bool:
        """Ask for what the next step needs that nobody has asked for; return whether all of it could be placed."""
        pool, order, shape = self._pool, self._pool.order, self._pool.order.shape
        if self._rates is not order.rates:  # what was planned beyond the change has arrived early, and stays
            self._rates = order.rates
            self._planned = min(self._planned, self._rates[-1].step - 1)
        step = self._planned + 1
        if step > self._lowest + self._lead:
            return False
        arrived = order.arrived(step)
        if pool.placed < arrived:
            rounds = pool.place_until(arrived, max(0, order.arrived(self._lowest) - shape.pool))
            self._pieces.extend(pool.missing(rounds))
            if pool.placed < arrived:
                if step == self._lowest:
                    self._failure = no_room()
                return False
        if self._absent > 0 and arrived - shape.pool < self._first:
            found = order.draws(step, pool.first_lane, pool.lanes)
            pieces = pool.missing_of(pool.slots(found.rounds, found.lanes), found.rounds)
            self._absent -= sum(len(piece.rows) for piece in pieces)
            self._pieces.extend(pieces)
        self._planned = step
        return True


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


def _fetchers(turn: Turn, count: int) -> list[threading.Thread]:
    return [_Fetcher(turn, number) for number in range(count)]
