"""Reports on a run: stats with advice, scalars for a writer, a progress bar. No batch depends on any of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastload.common.memory import free_memory
from fastload.feeds.batch import Output
from fastload.feeds.engine_choice import choose_engine
from fastload.loop.bar import Bar, Shown
from fastload.loop.loops import Loop
from fastload.loop.phase import Phase
from fastload.loop.rolling_run import RollingRun, refill_at
from fastload.loop.run_state import RunState
from fastload.loop.telemetry import ScalarLog, advice, phase_stats
from fastload.packed.set import Packed


class Reporter:
    """Reports on a run, from its state.

    Arguments:
        phases: fast and fine-tune, each with its file.
        output: how batches come out.
        steps: of the run, None where that is open.
        bar_kind: "rich", "tqdm" or None.
        judge: returns the advice on a phase's stats, given its file and the device's free memory.
        rolling: the pool of the fast phase, or None.
    """

    def __init__(
        self,
        phases: tuple[tuple[Phase, Packed | None], tuple[Phase, Packed | None]],
        output: Output,
        steps: int | None,
        bar_kind: str | None,
        judge: Callable[[dict[str, Any], Packed, int | None], str],
        rolling: RollingRun | None = None,
    ) -> None:
        self._rolling = rolling
        self._phases, self._output, self._steps, self._judge = phases, output, steps, judge
        self._bar_kind = bar_kind
        self._bar: Bar | None = None
        self.log: ScalarLog | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether each batch is to be reported."""
        return self.log is not None or self._bar_kind is not None

    def costs(self, state: RunState) -> dict[str, dict[str, Any]]:
        """Return the stats by phase, without advice."""
        found, rolling, renewal = dict[str, dict[str, Any]](), self._rolling, state.renewal
        for (phase, _), spent in zip(self._phases, (state.fast, state.fine), strict=True):
            read = {"stream": 1.0, "rolling": 0.0 if renewal is None else refill_at(renewal, state.step)}
            found[phase.name] = phase_stats(
                spent,
                feed=phase.kind,
                fill=phase.fill,
                batch_size=self._output.batch_size,
                sample_bytes=phase.sample_bytes * read.get(phase.kind, 0.0),
            )
            if rolling is not None and renewal is not None and phase is self._phases[0][0]:
                found[phase.name] |= rolling.stats(renewal, state.step)
        return found

    def stats(self, state: RunState) -> dict[str, dict[str, Any]]:
        """Return the stats by phase; see `TwoPhaseLoader.stats`."""
        found = self.costs(state)
        free: int | None = None
        for stats, (_, file) in zip(found.values(), self._phases, strict=True):
            stats["advice"] = ""
            if file is not None and stats["waited"] > 0:
                free = free_memory(self._output.device) if free is None else free
                stats["advice"] = self._judge(stats, file, free)
        return found

    def begin_again(self, from_nothing: bool) -> None:
        """The run goes on from another step, which may have been reported before; `from_nothing`, as a new one."""
        if self.log is not None:
            self.log.begin_again(from_nothing)

    def report(self, state: RunState, loop: Loop, now: Callable[[], RunState]) -> None:
        """Report a batch that is about to be delivered; `now` returns where the run stands, whenever it is called."""
        log = self.log
        if log is not None and log.due(state.step):
            log.step(state.step, int(state.swapped_at is not None), self.costs(state))
        if self._bar_kind is not None:
            if loop.bar is None:
                self._bar = loop.bar = Bar(self._bar_kind, self._steps, lambda: self._shown(now()), loop)
            loop.bar.start()

    def _shown(self, state: RunState) -> Shown:
        number = int(state.swapped_at is not None)
        spent = (state.fast, state.fine)[number]
        rate = spent.batches * self._output.batch_size / max(spent.seconds, 1e-9)
        return Shown(state.step, self._phases[number][0].name, rate)

    def close(self) -> None:
        """End the progress bar. Safe to call twice."""
        if self._bar is not None:
            self._bar.end()


def advice_on(
    engine: str, augment: Any, shuffle: object, *, on_cuda: bool
) -> Callable[[dict[str, Any], Packed, int | None], str]:
    """Return what judges a phase's stats for a loader of these settings."""

    def judge(stats: dict[str, Any], file: Packed, free: int | None) -> str:
        return advice(
            stats,
            encoded=file.storage == "encoded",
            engine=choose_engine(engine, file, augment, on_cuda=on_cuda),
            shuffle=shuffle,
            size=file.nbytes,
            free=free,
        )

    return judge
