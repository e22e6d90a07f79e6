"""A pool in the device's memory that is renewed while batches are drawn from it: what `RollingOrder` says, in fact.

Threads fetch samples into the pool's slots, in the order in which batches need them; a batch waits until its own are
there. The ring of slots holds more rounds than the pool, so that no slot is written over while a batch reads it: a
round is fetched only once the one in its place is older than what the oldest batch in the making may draw.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import numpy as np

from fastload.errors import ClosedError
from fastload.feeds.arrival_meter import ArrivalMeter
from fastload.feeds.pool_memory import PoolMemory, no_room
from fastload.feeds.pool_turn import Piece, Turn
from fastload.feeds.pool_writers import Writer
from fastload.feeds.rolling_order import RollingOrder


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

    Attributes:
        loaded: int64 [slots], the round that each holds, -1 for none.
        wanted: int64 [slots], the round that each holds or is being filled with.
        held: int64 [slots], the row that goes with it.
        passes: int64 [slots], the pass over the full set that it is of.
        dropped: whether nobody holds the feed any more: no sample is wanted then.
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
        self.first_lane, self.lanes, self.threads = first_lane, lanes, threads
        self._ring, self._piece = ring, piece
        self._own_lanes = np.arange(first_lane, first_lane + lanes)
        self.loaded, self.wanted = (np.full(ring * lanes, -1, np.int64) for _ in range(2))
        self.held, self.passes = (np.zeros(ring * lanes, np.int64) for _ in range(2))
        self._placed = (0, 0)  # rounds that have places in the memory: the first, and the one behind the last
        # Not held, or the two would hold each other, and the memory until the garbage is collected.
        self._turn: weakref.ref[Turn] | None = None
        self._last: weakref.ref[Turn] | None = None  # that used what follows here
        self._handing_over = threading.Lock()
        self._closed = self.dropped = False

    def begin(self, start: int) -> Turn:
        """Return what batches are drawn from, from the one at position `start` on, each once."""
        self.end()
        if self._closed:
            raise ClosedError()
        turn = Turn(self, start // self.order.shape.batch_size)
        self._turn = weakref.ref(turn)  # before it starts: an interrupt must not leave threads that nobody knows of
        turn.start()
        if self._closed:  # meanwhile
            turn.stop()
        return turn

    def hand_over(self, turn: Turn) -> bool:
        """Have a turn use the pool in the place of the one before; return whether it still wants to."""
        with self._handing_over:
            if not turn.take_over(None if self._last is None else self._last()):
                return False
            self._last = weakref.ref(turn)
            return True

    def end(self) -> None:
        """Have whoever waits for samples wait no more."""
        turn = None if self._turn is None else self._turn()
        if turn is not None:
            turn.stop()

    def close(self) -> None:
        """Let go of the threads and the files. Safe to call twice."""
        self._closed = True
        self.end()
        self.writer.close()

    def slots(self, rounds: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Return the slots of samples, given their rounds and lanes."""
        return rounds % self._ring * self.lanes + (lanes - self.first_lane)

    # -- for the turn, which calls one of these at a time --------------------------------------------------------------

    def prepare(self, step: int) -> int:
        """Begin at a step; return how many of the samples that have places the memory does not hold.

        What it holds of them is kept, as far as nothing has come into its place.
        """
        self.wanted[:] = self.loaded
        end = self.order.arrived(step)
        oldest = max(0, end - self.order.shape.pool)
        first, behind = self._placed
        if not first <= oldest <= behind:
            self.memory.clear()
            self.wanted[:] = self.loaded[:] = -1
            self._placed = oldest, oldest
        self.place_until(end, oldest)
        if self._placed[1] < end:
            raise no_room()
        rounds = np.arange(oldest, self._placed[1])  # also what the turn before has placed, and not fetched any more
        return int((self.wanted[self.slots(rounds[:, None], self._own_lanes)] != rounds[:, None]).sum())

    def place_until(self, end: int, oldest: int) -> list[int]:
        """Give places to rounds up to `end`, as far as there is room beside those from `oldest` on; return them."""
        first, number = self._placed
        end = min(end, oldest + self._ring)
        if number >= end:
            return []
        rounds = np.arange(number, end)
        rows, passes, slots = self._of_rounds(rounds)
        for at in range(len(rounds)):
            if not self.memory.place(number, slots[at], rows[at], oldest):
                break
            number += 1
        count = number - int(rounds[0])
        self.loaded[slots[:count]] = self.wanted[slots[:count]] = -1
        self.held[slots[:count]], self.passes[slots[:count]] = rows[:count], passes[:count]
        self._placed = max(first, oldest if self.memory.is_ring else number - self._ring), number
        return rounds[:count].tolist()

    @property
    def placed(self) -> int:
        """Rounds that have had places so far."""
        return self._placed[1]

    def _of_rounds(self, rounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows, passes and slots of this rank's samples of some rounds, int64 [r, L] each."""
        numbers = rounds[:, None] * self.order.shape.lanes + self._own_lanes
        rows, passes = self.order.arrivals(numbers.ravel())
        return rows.reshape(numbers.shape), passes.reshape(numbers.shape), self.slots(rounds[:, None], self._own_lanes)

    def missing(self, rounds: Sequence[int]) -> list[Piece]:
        """Return what is to be fetched of rounds that have places."""
        numbers = np.array(rounds, np.int64)
        slots = self.slots(numbers[:, None], self._own_lanes).ravel()
        return self.missing_of(slots, np.repeat(numbers, self.lanes))

    def missing_of(self, slots: np.ndarray, rounds: np.ndarray) -> list[Piece]:
        """Return what is to be fetched of samples that have places, given their slots and rounds."""
        absent = self.wanted[slots] != rounds
        if not absent.any():
            return []
        slots, first = np.unique(slots[absent], return_index=True)
        rounds = rounds[absent][first]
        self.wanted[slots] = rounds
        rows = self.held[slots]
        by_row = np.argsort(rows)
        rows, slots, rounds = rows[by_row], slots[by_row], rounds[by_row]
        self.writer.ask(rows)
        parts = [slice(at, at + self._piece) for at in range(0, len(rows), self._piece)]
        return [Piece(rows[part], slots[part], rounds[part]) for part in parts]
