"""Batches drawn from a rolling pool from one step on, and the threads that fetch what they need meanwhile."""

from __future__ import annotations

import queue
import threading
import time
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

_PATIENCE = 1.0
"""Seconds after which a thread with nothing to fetch looks whether anybody holds the feed any more."""

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

    The trainer's thread, which a signal may interrupt anywhere, makes, starts and stops a turn: it takes no lock, and
    touches nothing of the pool.

    Arguments:
        pool: the pool.
        step: the first.
    """

    def __init__(self, pool: RollingPool, step: int) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._lowest, self._done = step, set[int]()  # steps below `lowest` have been made, and those in `done`
        self._planned = step - 1  # the last step whose samples have been asked for
        self._pieces = queue.SimpleQueue[Piece | None]()  # None: no more are wanted
        self._waiting = list[queue.SimpleQueue[None]]()  # one for each batch that waits
        self._reading = self._fetching = 0  # batches that read the pool, and threads that write to it
        self._failure: BaseException | None = None
        self._stopped = self._is_ready = False
        self._rates = pool.order.rates
        self._absent = 0  # samples that have places, and that nobody has asked for
        shape = pool.order.shape
        self._had_places = 0  # rounds, as this took over: of those only may any be absent
        self._lead = shape.pool // shape.share + 8

    def start(self) -> None:
        """Begin to fetch, once nobody of an earlier turn uses the pool any more."""
        Started(partial(_fetchers, self, self._pool), self.fail)  # not kept: its threads hold this

    def take_over(self, before: Turn | None) -> bool:
        """Bring the pool to the first step, after the turn before; return whether anything is still wanted."""
        if before is not None and not self._stopped:  # stopped, it may come here after a later one
            before.stop()
            while before._is_busy():
                if self._stopped:
                    return False
                time.sleep(0.001)
        with self._lock:
            if self._stopped:
                return False
            self._absent = self._pool.prepare(self._lowest)
            self._had_places = self._pool.placed
            self._plan()
            self._is_ready = True
            self._wake()
            self._waiting.clear()
        return True

    def _is_busy(self) -> bool:
        """Whether anybody uses the pool still; once this is stopped, no more will."""
        with self._lock:
            return bool(self._reading or self._fetching)

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
        news = queue.SimpleQueue[None]()
        while not self._may_read(slots, found.rounds, news):
            news.get()
        try:
            pool.writer.before_reading()
            epochs = found.epochs(pool.passes[slots]) if found.fresh else found.sweeps
            yield Drawn(pool.held[slots[:count]], epochs[:count], slots[:count])
            pool.writer.after_reading()
        finally:
            with self._lock:
                self._reading -= 1
        with self._lock:
            self._done.add(step)
            while self._lowest in self._done:
                self._done.remove(self._lowest)
                self._lowest += 1
            self._plan()

    def _may_read(self, slots: np.ndarray, rounds: np.ndarray, news: queue.SimpleQueue[None]) -> bool:
        """Whether slots hold rounds, so that a batch may read them; if not, `news` comes when it is to ask again."""
        with self._lock:
            if self._is_ready and (self._pool.loaded[slots] == rounds).all():
                self._check()
                self._reading += 1
                return True
            self._waiting.append(news)
        self._check()  # now: who stops this looks at `_waiting` after that
        return False

    def _check(self) -> None:
        """Raise what a batch has to, where nothing more comes."""
        if self._stopped:
            raise ClosedError()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End the threads, and whatever waits for them."""
        self._stopped = True
        self._pieces.put(None)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Have all batches that wait raise an error."""
        self._failure = error
        self._pieces.put(None)
        self._wake()

    def _wake(self) -> None:
        """Have all batches that wait look again."""
        for news in tuple(self._waiting):  # they stay, for an interrupt may come in between
            news.put(None)

    # -- samples ---------------------------------------------------------------------------------------------------

    def next_piece(self) -> Piece | None:
        """Wait for samples to fetch; None where no more are wanted."""
        while not self._pool.dropped:
            try:
                piece = self._pieces.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            with self._lock:
                if piece is None or self._stopped or self._failure:
                    break
                self._plan()
                self._fetching += 1
                return piece
        self._pieces.put(None)  # for the next thread
        return None

    def fetch(self, piece: Piece) -> None:
        """Fetch samples into the pool."""
        pool, came = self._pool, False
        try:
            with pool.meter.counting(len(piece.rows)):
                pool.writer.write(piece.rows, piece.slots)
            came = True
        finally:
            with self._lock:
                if came:
                    pool.loaded[piece.slots] = piece.rounds
                self._fetching -= 1
                self._wake()
                self._waiting.clear()

    def _plan(self) -> None:
        """Ask for what the next steps need, as far as it can be placed."""
        while not self._stopped and self._pieces.qsize() < _AHEAD * self._pool.threads and self._plan_step():
            pass

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
            self._put(pool.missing(rounds))
            if pool.placed < arrived:
                if step == self._lowest:
                    self.fail(no_room())
                return False
        if self._absent > 0 and arrived - shape.pool < self._had_places:
            found = order.draws(step, pool.first_lane, pool.lanes)
            pieces = pool.missing_of(pool.slots(found.rounds, found.lanes), found.rounds)
            self._absent -= sum(len(piece.rows) for piece in pieces)
            self._put(pieces)
        self._planned = step
        return True

    def _put(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._pieces.put(piece)


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


def _fetchers(turn: Turn, pool: RollingPool) -> list[threading.Thread]:
    """Return the threads to start: none where nobody wants batches of this turn any more."""
    return [_Fetcher(turn, number) for number in range(pool.threads)] if pool.hand_over(turn) else []
