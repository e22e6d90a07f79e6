"""How fast a rolling pool is renewed, where nobody said it: two rates are measured, and all ranks agree on one."""

from __future__ import annotations

import warnings
from typing import Any

from fastload.common.launcher import RankError, default_store
from fastload.errors import UsageError
from fastload.feeds.rolling_order import Rate
from fastload.loop.advice import regime
from fastload.loop.agreement import AHEAD, MARGIN
from fastload.loop.rendezvous import Rendezvous
from fastload.loop.rolling_run import RollingRun
from fastload.loop.run_state import RunState

WARM_STEPS, MEASURED_STEPS = 8, 24
"""Steps that are not measured, as kernels compile and memory is touched for the first time; and how many are."""


class Refilling:
    """Measures what arrives and what training takes in the first steps, and sets the rate of a pool, once.

    Each rank compares its own stream with its own training. The slowest decides; rank 0 says from which step on.

    Arguments:
        rolling: the pool.
        rank: of this process.
        world_size: how many ranks there are.
        store: of torch.distributed, None for that of its default group.
        name: of the settings, equal on all ranks.
        depth: batches made ahead.
        start: the step that the run goes on from.
    """

    def __init__(
        self, rolling: RollingRun, rank: int, world_size: int, store: Any, name: str, depth: int, start: int = 0
    ) -> None:
        self._made_of = rolling, rank, world_size, store, name, depth
        self._rolling, self._rank, self._world_size, self._depth = rolling, rank, world_size, depth
        self._begins, self._next = start + WARM_STEPS, start + WARM_STEPS
        self._before: tuple[RunState, int, float] | None = None
        self._measured: list[float] | None = None  # images/s of this rank: that arrive, and that training takes
        self._shared: Rendezvous | None = None
        if world_size > 1:
            found = default_store(world_size) if store is None else store
            if found is None:
                raise UsageError(
                    f'refill="auto": {world_size} ranks cannot agree on a rate; initialize torch.distributed, or give '
                    "store= (a torch.distributed.FileStore or TCPStore), or refill= as a number"
                )
            self._shared = Rendezvous(found, rank, world_size, name)

    def restarted(self, step: int) -> Refilling:
        """Return what decides on a run that goes on from `step`."""
        return Refilling(*self._made_of, start=step)

    def decide(self, state: RunState) -> Rate | None:
        """Return the rate that is to be set now, before the batch of `state.step`; None for none."""
        if state.step < self._next or not state.fast.batches:
            return None
        meter = self._rolling.meter
        if self._before is None:
            self._before = state, meter.samples, meter.seconds
            self._next = state.step + MEASURED_STEPS
            return None
        if self._measured is None:
            self._measured = self._measure(state)
            if self._measured is None:
                self._next = state.step + MEASURED_STEPS
                return None
        if self._shared is None:
            return self._rate(state.step + self._depth + 4, *self._measured)
        return self._agree(self._shared, state.step)

    def _measure(self, state: RunState) -> list[float] | None:
        """Return the images/s of this rank that arrive and that training takes; None where too little has arrived."""
        assert self._before is not None
        (before, samples, seconds), meter = self._before, self._rolling.meter
        spent, begun = state.fast, before.fast
        busy = (spent.seconds - begun.seconds) - (spent.waited - begun.waited)
        arrived, taken = meter.samples - samples, meter.seconds - seconds
        images = (spent.batches - begun.batches) * self._rolling.order.shape.batch_size / self._world_size
        if not arrived or taken <= 0:
            return None
        return [arrived / taken, images / max(busy, 1e-9)]

    def _rate(self, step: int, stream: float, trainer: float) -> Rate:
        size = self._rolling.order.shape.batch_size
        chosen = regime(stream, trainer, fits=False, global_batch_size=size)
        if not self._rolling.order.shape.keeps_all:  # or this is only how fast the one pass goes
            self._rolling.choice = chosen.reason
            if chosen.warning:
                warnings.warn(f'refill="auto" is {chosen.refill:.3g}: {chosen.warning}', stacklevel=2)
        return Rate(step, round(chosen.refill * size), 1)

    def _agree(self, shared: Rendezvous, step: int) -> Rate | None:
        self._next = step + AHEAD // 2
        if not shared.join():
            return None
        shared.keep_run()
        assert self._measured is not None
        shared.put(f"rates/{self._rank}", [step, self._depth, *self._measured])
        announced = shared.get("refill")
        if announced is None and self._rank == 0:
            others = shared.get_all("rates/{}".format)
            if others is not None:
                all_of_them = [[step, self._depth, *self._measured], *others]
                slowest = min(all_of_them, key=lambda one: one[2] / one[3])
                begins = max(one[0] + one[1] for one in all_of_them) + MARGIN
                announced = [begins, *(images * self._world_size for images in slowest[2:])]
                shared.put("refill", announced)
        if announced is None:
            return None
        if announced[0] < step:
            raise RankError(
                f"rank {self._rank} is at step {step:,} already, and the pool is to be renewed at another rate from "
                f"step {announced[0]:,} on: the ranks are too far apart; give refill= as a number"
            )
        return self._rate(*announced)
