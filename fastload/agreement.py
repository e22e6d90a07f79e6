"""How ranks agree on the step of the swap and of the end, without the training's own communication.

Rank 0 decides. It announces, through a store, up to which step nothing changes ("until") and, once decided, the step of
the swap and of the end, which are never before what was announced. A rank that has come to "until" waits for the next
announcement, so that all ranks swap and end at the same step, however far they are apart.
"""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastload.errors import FastloadError, UsageError

AHEAD = 16
"""Steps between an announcement and what it may decide; ranks are seldom further apart."""

PATIENCE = 1800.0
"""Seconds that a rank waits for rank 0, as torch.distributed's own operations do by default."""

_loaders: collections.Counter[str] = collections.Counter()


@dataclass
class Decision:
    """The steps of the swap and of the end, as far as they are decided."""

    swap: int | None = None
    end: int | None = None


class RankError(FastloadError):
    """Rank 0 did not say how to go on."""


class Alone:
    """One rank: what it wants happens at once."""

    def decide(self, step: int, decision: Decision, wants_swap: bool, wants_end: bool) -> Decision:
        """Return the decision as it stands at `step`, before its batch."""
        if wants_swap and decision.swap is None:
            decision.swap = step
        if wants_end and decision.end is None:
            decision.end = step
        return decision

    def request_swap(self, step: int, decision: Decision) -> bool:
        """Ask for the swap, before the batch of `step`; returns whether the caller has to want it from now on."""
        self.decide(step, decision, True, False)
        return False

    def restart(self) -> None:
        """Forget what was announced: the loader goes on from another state."""


class Together:
    """Several ranks: see the module.

    Arguments:
        store: a torch.distributed store that all ranks reach. rank: this one. name: of the run, equal on all ranks.
        open_end: whether the end is decided too. stopped: asked while waiting; True ends the wait.
    """

    def __init__(self, store: Any, rank: int, name: str, open_end: bool, stopped: Callable[[], bool]) -> None:
        _loaders[name] += 1  # ranks make loaders of the same run in the same order
        self._prefix = f"fastload/{name}/{_loaders[name]}"
        self._store, self._rank, self._open_end, self._stopped = store, rank, open_end, stopped
        self._generation = -1
        self.restart()

    def restart(self) -> None:
        self._generation += 1
        self._until = -1
        self._next = 0

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{self._generation}/{name}"

    def request_swap(self, step: int, decision: Decision) -> bool:
        if self._rank != 0:
            self._store.set(self._key("request"), "swap")
        return self._rank == 0

    def decide(self, step: int, decision: Decision, wants_swap: bool, wants_end: bool) -> Decision:
        if self._rank == 0:
            return self._announce(step, decision, wants_swap, wants_end)
        return self._listen(step, decision)

    def _announce(self, step: int, decision: Decision, wants_swap: bool, wants_end: bool) -> Decision:
        wants_swap = wants_swap and decision.swap is None
        wants_end = wants_end and decision.end is None
        if step < self._next and not (wants_swap or wants_end):
            return decision
        if decision.swap is None and not wants_swap and self._store.check([self._key("request")]):
            wants_swap = True
        self._next = step + AHEAD // 2
        self._until = max(self._until, step + AHEAD)
        if wants_swap:
            decision.swap = self._until
        if wants_end:
            decision.end = self._until
        told = {"until": self._until, "swap": decision.swap, "end": decision.end}
        self._store.set(self._key("told"), json.dumps(told))
        return decision

    def _listen(self, step: int, decision: Decision) -> Decision:
        if step < self._next:
            return decision
        give_up = time.monotonic() + PATIENCE
        pause = 0.0002
        while True:
            if self._store.check([self._key("told")]):
                told = json.loads(self._store.get(self._key("told")))
                decision.swap, decision.end = told["swap"], told["end"]
                settled = decision.end is not None if self._open_end else decision.swap is not None
                if told["until"] > step or settled:
                    self._next = step + AHEAD // 2 if settled else min(told["until"], step + AHEAD // 2)
                    return decision
            if self._stopped():
                raise UsageError("this loader is closed; make a new one")
            if time.monotonic() > give_up:
                raise RankError(
                    f"rank {self._rank} waited {PATIENCE / 60:.0f} minutes at step {step:,} for rank 0 to go on; did "
                    "its process end, or does it take fewer batches than the others?"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.02)


def launched() -> tuple[int, int]:
    """Return the rank and world size that a launcher such as torchrun has given this process; (0, 1) without one."""
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def default_store(world_size: int) -> Any:
    """Return the store of torch.distributed's default group, where there is one of this size, or None."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()) or group.get_world_size() != world_size:
        return None
    return group.distributed_c10d._get_default_store()
