"""How ranks agree on the step of the swap and of the end, without the training's own communication.

A planned swap needs no word from anybody. Where the clock, the loss or `swap_now()` decide, rank 0 does. It announces
through a store up to which step nothing changes ("until") and, once decided, the step of the swap and of the end, which
are never before what was announced. A rank that has come to "until" waits for the next announcement, so that all ranks
swap and end at the same step, however far they are apart. The first AHEAD steps are free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import xxhash

from fastload.common.launcher import RankError, default_store
from fastload.errors import ClosedError, UsageError
from fastload.loop.rendezvous import Rendezvous

AHEAD = 16
"""Steps between an announcement and what it may decide; ranks are seldom further apart."""

MARGIN = 4 * AHEAD
"""Steps between the furthest rank and a swap that comes before the planned one: nobody waits for that."""

PATIENCE = 1800.0
"""Seconds that a rank waits for rank 0, as torch.distributed's own operations do by default."""

FAREWELL = 60.0
"""Seconds that rank 0, at the end of its run, waits for ranks that have not signed in: they need its word."""


class Decision(NamedTuple):
    """The steps of the swap and of the end, as far as they are decided."""

    swap: int | None = None
    end: int | None = None


class Wishes(NamedTuple):
    """What a rank would have happen now.

    Arguments:
        asked: swap_now() was called.
        due: to swap, by the clock or the loss.
        end: to end, by the clock.
    """

    asked: bool
    due: bool
    end: bool


class Agreement(Protocol):
    """How ranks agree on the steps of the swap and of the end."""

    at_once: bool
    """Whether what this rank wants happens at its next batch."""

    @property
    def is_done(self) -> bool:
        """Whether nobody needs this rank's word any more, once it has swapped."""

    def decide(self, step: int, decision: Decision, wishes: Wishes) -> Decision:
        """Return the decision as it stands at `step`, before its batch."""

    def leave(self) -> None:
        """Say what others still need to hear, at the end of the run."""

    def restarted(self, step: int) -> Agreement:
        """Return what agrees on a run that goes on from `step`."""


class Alone:
    """One rank: what it wants happens at once."""

    at_once = True
    is_done = True

    def decide(self, step: int, decision: Decision, wishes: Wishes) -> Decision:
        swap, end = decision
        if swap is None and (wishes.asked or wishes.due):
            swap = step
        if end is None and wishes.end:
            end = step
        return Decision(swap, end)

    def leave(self) -> None:
        """Nobody is there to hear anything."""

    def restarted(self, step: int) -> Alone:
        return self


class Planned:
    """Ranks that swap at a planned step: nobody waits for anybody, and `swap_now()` has the swap come earlier.

    Whoever asks for it makes all ranks note at which step they are, now and then; once all have, rank 0 names a step
    far beyond.

    Arguments:
        store: of torch.distributed.
        rank: of this process.
        world_size: how many ranks there are.
        name: of the loader's settings, equal on all ranks.
        start: the step that the run goes on from.
    """

    at_once = False

    def __init__(self, store: Any, rank: int, world_size: int, name: str, start: int) -> None:
        self._made_of = store, rank, world_size, name
        self._rank, self._start = rank, start
        self._shared = Rendezvous(store, rank, world_size, name)
        self._next = start
        self._asked = False

    is_done = True

    def leave(self) -> None:
        """Nobody needs this rank's word."""

    def restarted(self, step: int) -> Planned:
        return Planned(*self._made_of, step)

    def decide(self, step: int, decision: Decision, wishes: Wishes) -> Decision:
        if decision.swap is not None or (step < self._next and wishes.asked == self._asked):
            return decision
        self._next = step + AHEAD // 2
        if not self._shared.join():
            return decision
        if step >= self._start + AHEAD // 2:
            self._shared.keep_run()
        if wishes.asked and not self._asked:
            self._shared.put("asked", True)
            self._asked = True
        if not self._shared.get("asked"):
            return decision
        self._shared.put(f"at/{self._rank}", step)
        announced = self._shared.get("swap")
        if announced is None and self._rank == 0:
            others = self._shared.get_all("at/{}".format)
            if others is not None:
                announced = max([step, *others]) + MARGIN
                self._shared.put("swap", announced)
        if announced is not None and announced < step:
            raise RankError(
                f"rank {self._rank} is at step {step:,} already, and swap_now() has the others swap at step "
                f"{announced:,}: the ranks are too far apart; give swap=Swap.never() where swap_now() is to be called"
            )
        return decision if announced is None else Decision(announced, decision.end)


class Together:
    """Several ranks that share a store of torch.distributed, and rank 0's decisions.

    Arguments:
        store: as for `Planned`, and so are rank, world_size, name and start.
        open_end: whether the end is decided too.
        stopped: asked while waiting; True ends the wait.
    """

    at_once = False

    def __init__(
        self, store: Any, rank: int, world_size: int, name: str, start: int, open_end: bool, stopped: Callable[[], bool]
    ) -> None:
        self._made_of = store, rank, world_size, name
        self._rank, self._start, self._open_end, self._stopped = rank, start, open_end, stopped
        self._shared = Rendezvous(store, rank, world_size, name)
        self._until = start + AHEAD
        self._next = start + AHEAD // 2
        # What is decided stands here first, since an interrupt may come before the caller has it.
        self._decision: Decision | None = None
        self._unsaid: dict[str, Any] | None = None  # by rank 0: announced as soon as it decides anything more
        self._all_joined = rank != 0

    @property
    def is_done(self) -> bool:
        """Whether nobody needs this rank's word any more, once all is decided."""
        return self._all_joined

    def leave(self) -> None:
        """Rank 0: wait for those who have not signed in yet, where they have to hear what was announced."""
        give_up = time.monotonic() + FAREWELL
        while (
            self._decision is not None and not self._all_joined and not self._stopped() and time.monotonic() < give_up
        ):
            self._all_joined = self._shared.join()
            time.sleep(0.002)

    def restarted(self, step: int) -> Together:
        return Together(*self._made_of, step, self._open_end, self._stopped)

    def decide(self, step: int, decision: Decision, wishes: Wishes) -> Decision:
        decision = self._decision or decision
        if self._rank == 0:
            return self._announce(step, decision, wishes)
        return self._listen(step, decision, wishes.asked)

    def _announce(self, step: int, decision: Decision, wishes: Wishes) -> Decision:
        if self._decision is None and self._is_final(decision):
            return decision  # of the checkpoint that all go on from: nobody listens
        self._all_joined = self._shared.join()
        if self._unsaid is None:
            swap, end = decision
            wants_swap = swap is None and (wishes.asked or wishes.due)
            wants_end = end is None and wishes.end
            if step < self._next and not (wants_swap or wants_end):
                return decision
            if swap is None and not wants_swap and self._all_joined and self._shared.get("asked"):
                wants_swap = True
            until = max(self._until, step + AHEAD)
            swap, end = until if wants_swap else swap, until if wants_end else end
            self._unsaid = {"from": self._start, "until": until, "swap": swap, "end": end}
        said = self._unsaid
        self._shared.put("told", said)
        self._until, self._next = said["until"], step + AHEAD // 2
        self._decision = Decision(said["swap"], said["end"])
        self._unsaid = None
        return self._decision

    def _listen(self, step: int, decision: Decision, asked: bool) -> Decision:
        if self._is_final(decision):
            return decision
        give_up, pause = time.monotonic() + PATIENCE, 0.0002
        while True:
            if self._shared.join():
                if asked and not self._shared.get("asked"):
                    self._shared.put("asked", True)
                if step >= self._next or step >= self._until:
                    decision = self._read_announcement(step, decision)
            if step < self._until or self._is_final(decision):
                return decision
            if self._stopped():
                raise ClosedError()
            if time.monotonic() > give_up:
                raise RankError(
                    f"rank {self._rank} waited {PATIENCE / 60:.0f} minutes at step {step:,} for rank 0 to go on; did "
                    "its process end, does it take fewer batches, or did the ranks make different numbers of loaders?"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def _read_announcement(self, step: int, decision: Decision) -> Decision:
        """Return what rank 0 has announced for this run last."""
        announced = self._shared.get("told")
        if announced is None or announced["from"] != self._start:
            return decision
        self._shared.keep_run()
        self._decision = Decision(announced["swap"], announced["end"])
        self._until = max(self._until, announced["until"])
        self._next = min(self._until, step + AHEAD // 2)
        return self._decision

    def _is_final(self, decision: Decision) -> bool:
        return (decision.end if self._open_end else decision.swap) is not None


def agree(
    store: Any,
    rank: int,
    world_size: int,
    identity: Mapping[str, Any],
    *,
    planned: bool,
    open_end: bool,
    closed: Callable[[], bool],
) -> Agreement | None:
    """Return how a rank learns when to swap and to end; None for ranks that have no means to agree, and no need.

    Arguments:
        store: of torch.distributed; None for that of its default group, where there is one.
        rank: of this process.
        world_size: how many ranks there are.
        identity: the loader's settings, equal on all ranks.
        planned: whether the swap and the end are planned steps.
        open_end: whether the end is decided as the run goes on.
        closed: whether the loader is closed; asked while waiting.

    Raises UsageError for what is no store, or where there must be one.
    """
    if world_size == 1:
        return Alone()
    if store is not None and not all(callable(getattr(store, name, None)) for name in ("get", "set", "check")):
        raise UsageError(f"store={store!r}; it is a torch.distributed store, such as FileStore or TCPStore")
    store = default_store(world_size) if store is None else store
    if store is None:
        if not planned:
            raise UsageError(
                f"{world_size} ranks cannot agree on when to swap or to end by the clock or the loss: "
                "initialize torch.distributed, or give store= (a torch.distributed.FileStore or TCPStore)"
            )
        return None
    name = xxhash.xxh3_64_hexdigest(repr(identity).encode())
    if planned:
        return Planned(store, rank, world_size, name, 0)
    return Together(store, rank, world_size, name, 0, open_end, closed)
