"""How a run's pool is renewed as the run goes on: at the rate that was given, or that was measured and agreed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from fastload.loop.phase import Phase
from fastload.loop.refilling import Refilling
from fastload.loop.rolling_run import RollingRun
from fastload.loop.run_state import RunState
from fastload.loop.settings import LoaderSettings


class Renewing:
    """Brings a run's pool up to date before each batch.

    Arguments:
        rolling: the pool.
        settings: of the run.
        identity: what all ranks have in common.
        refilling: what sets the rate where nobody gave it; made anew by default.
    """

    def __init__(
        self,
        rolling: RollingRun,
        settings: LoaderSettings,
        identity: Mapping[str, Any],
        refilling: Refilling | None = None,
    ) -> None:
        self._made_of = rolling, settings, identity
        self._rolling, self._refilling = rolling, refilling
        if refilling is None and settings.refill == "auto":
            name = f"refill/{xxhash.xxh3_64_hexdigest(repr(identity).encode())}"
            ranks = settings.rank, settings.world_size, settings.store
            self._refilling = Refilling(rolling, *ranks, name, settings.prefetch_depth)

    def restarted(self, step: int) -> Renewing:
        """Return what renews the pool of a run that goes on from `step`."""
        return Renewing(*self._made_of, None if self._refilling is None else self._refilling.restarted(step))

    def renewed(self, state: RunState, asked: float, left: bool, phase: Phase) -> RunState:
        """Return the state, with the rate that was set now; the phase's feed follows it.

        Arguments:
            state: of the run, before its next batch.
            asked: when that was asked for, by `time.perf_counter`.
            left: as for `RunState.last_step`.
            phase: that draws from the pool.
        """
        assert state.renewal is not None
        if self._refilling is not None and len(state.renewal.rates) == 1:
            rate = self._refilling.decide(state.with_last_step(asked, left))
            if rate is not None:
                state = state.with_rate(rate)
        assert state.renewal is not None
        self._rolling.follow(state.renewal, phase, state.step)
        return state
