"""One run of batches: its files and phases, where it stands, and how it goes on, batch by batch."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from fastload.augment.schedule import final_augment
from fastload.common.launcher import check_still_alone
from fastload.errors import ClosedError, UsageError
from fastload.feeds.batch import as_tuple
from fastload.loop.agreement import agree
from fastload.loop.callbacks import SwapCallbacks
from fastload.loop.checkpoint import Snapshot
from fastload.loop.delivery import deliveries
from fastload.loop.files import RunFiles
from fastload.loop.loops import Loop, Pass, next_pass
from fastload.loop.renewing import Renewing
from fastload.loop.reporting import Reporter, advice_on
from fastload.loop.rolling_run import renewal_state
from fastload.loop.run_state import RunState, Spent
from fastload.loop.settings import LoaderSettings
from fastload.loop.swapping import Swapping
from fastload.order import FAST, FINE_TUNE

EMPTY_LOOPS = 1_000
"""After so many loops that got nothing, the next is an error: a framework without a limit would go on for ever."""

NextBatch = tuple[RunState, tuple[torch.Tensor, ...]]
"""What the run becomes with the next batch, and the batch."""


class Run:
    """What runs behind a `TwoPhaseLoader`; it holds no reference to the loader, so that a dropped one is freed at once.

    Raises UsageError and DataError as the loader does.
    """

    def __init__(self, settings: LoaderSettings) -> None:
        self.callbacks = SwapCallbacks()
        self._pass: Pass | None = None
        self._resumed_at: int | None = None
        self._empty_loops = 0
        self._closed, self._process = False, os.getpid()
        self.lock = threading.RLock()  # two threads may draw from one loader; a callback may use it
        try:
            self._prepare(settings)
        except BaseException as error:
            self.close()
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise UsageError(
                    f"out of memory while the loader was made ({error}); choose a smaller batch_size= (here "
                    f"{settings.batch_size:,}), prefetch= or resident_budget="
                ) from error
            raise

    def _prepare(self, given: LoaderSettings) -> None:
        self.files = files = RunFiles(given)
        self.settings = settings = files.settings
        policy = settings.new_policy()
        # What changes as the run goes on. A batch counts when `state` is set, at once with its delivery.
        self.renewing = None if files.rolling is None else Renewing(files.rolling, settings, self.identity())
        self.state = RunState(swapped_at=0 if policy.starts_on_full else None, renewal=files.first_renewal)
        self.fast, self.fine = files.phase(FAST), files.phase(FINE_TUNE)
        phases = (self.fast, files.subset if files.rolling is None else files.full), (self.fine, files.full)
        on_cuda = settings.output.device.type == "cuda"
        judge = advice_on(settings.engine, final_augment(settings.augment), settings.shuffle, on_cuda=on_cuda)
        self.reports = Reporter(phases, settings.output, settings.steps, settings.bar, judge, files.rolling)
        by_clock, this = settings.seconds is not None, weakref.ref(self)
        agreement = agree(
            settings.store,
            settings.rank,
            settings.world_size,
            self.identity(),
            planned=policy.step is not None and not by_clock,
            open_end=by_clock,
            closed=lambda: (run := this()) is None or run._closed,
        )
        self.swapping = Swapping(policy, settings.steps, settings.seconds, agreement, self.state.swapped_at)
        if not policy.starts_on_full:
            self.fast.prepare()
        if files.full is not None and (settings.steps is None or policy.step != settings.steps):
            self.fine.prepare()

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with this run, as JSON-able plain values."""
        return self.settings.identity(self.files.fingerprints())

    def check_usable(self) -> None:
        """Raise UsageError once this is closed, and in a fork."""
        if self._closed:
            raise ClosedError()
        if os.getpid() != self._process:
            raise UsageError("this loader was made before a fork, which has none of its threads; make one after it")

    def is_finished(self, step: int) -> bool:
        """Whether no batch is left at `step`."""
        return self.swapping.is_finished(step)

    @property
    def progress(self) -> float:
        """The share of the run that has been delivered, 0 to 1."""
        state, steps, seconds = self.state, self.settings.steps, self.settings.seconds
        if self.is_finished(state.step):
            return 1.0
        if steps is not None:
            return state.step / steps
        assert seconds is not None
        return min(1.0, state.seconds / seconds)

    # -- loops -----------------------------------------------------------------------------------------------------

    def length(self) -> int:
        """Return how many batches the loop has that runs, or else the next one; see `len(loader)`."""
        running = self._pass
        start, end = (running.first, running.end) if running is not None and running.runs else self.next_pass()
        if end is None or self.settings.seconds is not None:
            raise TypeError("this run ends after seconds=, so it has no length")
        return end - start

    def next_pass(self) -> tuple[int, int | None]:
        """Return the first step that the next loop's length counts, and the step that the loop ends before."""
        step, settings = self.state.step, self.settings
        return next_pass(step, settings.steps, settings.steps_per_epoch, resumed=step == self._resumed_at)

    def loop(self, loader: Any) -> Iterator[tuple[torch.Tensor, ...]]:
        """Return an iterator over the batches of the next loop; `loader` is what callbacks are given."""
        self.check_usable()
        if self.settings.found_alone:
            check_still_alone()
        first, end = self.next_pass()
        step = self.state.step
        if self.is_finished(step):
            self._empty_loops += 1
            if self._empty_loops > EMPTY_LOOPS:
                raise UsageError(
                    f"all {step:,} steps have been delivered, and {EMPTY_LOOPS:,} loops since have got none; end "
                    f"training with the loader (while loader.step < …; Lightning: max_steps={step} at most)"
                )
            warnings.warn(f"all {step:,} steps have been delivered; this loop gets none", stacklevel=3)
        loop = Loop(step, end)
        self._pass = Pass(first, loop)
        return deliveries(self, "state", self.lock, partial(self._next, loop, loader))

    def _next(self, loop: Loop, loader: Any) -> NextBatch:
        """Return what the next batch of a loop makes of the state, and the batch; StopIteration where there is none."""
        try:
            return self._advance(loop, loader)
        except BaseException as error:
            if self._pass is not None and self._pass.is_of(loop):  # as a rule the loop ends with it
                self._pass = None
            if self._closed and isinstance(error, Exception) and not isinstance(error, ClosedError):
                raise ClosedError() from error  # whatever a file or a feed says that was closed in mid-use
            raise

    def _advance(self, loop: Loop, loader: Any) -> NextBatch:
        asked = time.perf_counter()
        self.check_usable()
        state, left, swapping = self.state, self.state.step == loop.start, self.swapping
        while True:
            if loop.over or (loop.end is not None and state.step >= loop.end):
                raise self._ended(loop, state.with_last_step(asked, left))
            if swapping.must_decide:
                swapping.decide(state, state.seconds + state.last_step(asked, left))
            if swapping.is_finished(state.step):
                raise self._ended(loop, state.with_last_step(asked, left))
            swap_step = swapping.step(state)
            if state.swapped_at is None and state.step >= swap_step:
                if self.files.full is None:
                    raise UsageError("it is time to swap, but full= is missing; make the loader with it")
                self.state = state = state.with_swap()
            if state.step == state.swapped_at and not swapping.policy.starts_on_full:
                self._cross_over(loader)
            if self.state is state:
                break
            state = self.state  # a callback has drawn batches
        steps = self.settings.steps
        if state.swapped_at is None:
            if self.renewing is not None:
                self.state = state = self.renewing.renewed(state, asked, left, self.fast)
            may_start = not self.fine.is_ahead and self.files.full is not None
            if may_start and swapping.is_near(state, state.seconds + state.last_step(asked, left), self.fine.depth):
                self.fine.start_ahead()
            batch = self.fast.get(state.step, steps if swap_step == math.inf else int(swap_step))
        else:
            batch = self.fine.get(state.step - state.swapped_at, None if steps is None else steps - state.swapped_at)
        state = state.with_batch(asked, time.perf_counter(), left)
        if self.reports.is_wanted:
            self.reports.report(state, loop, lambda: self.state)
        return state, as_tuple(batch, self.settings.with_ids)

    def _cross_over(self, loader: Any) -> None:
        """Do what comes between the subset's last batch and the full set's first; after an interrupt, once more."""
        self.swapping.clear_request()
        if self.settings.keep_resident:
            self.fast.pause()
        else:
            self.fast.release()
        self.callbacks.call(loader)
        if self._closed:
            raise ClosedError("an on_swap callback closed this loader; make a new one")

    def _ended(self, loop: Loop, state: RunState) -> StopIteration:
        """End a loop in `state`; return what says so."""
        self.state = state
        if self.is_finished(state.step):
            self.fine.pause()
            self.fast.pause()
            self.swapping.leave()
        if loop.bar is not None:
            loop.bar.end()
        loop.over = True
        return StopIteration()

    def swap_now(self) -> None:
        """Swap at the next batch, or as soon as all ranks can; see `TwoPhaseLoader`."""
        self.check_usable()
        if self.files.full is None:
            raise UsageError("swap_now(): there is no full set to swap to; make the loader with full=")
        with self.lock:
            if self.state.swapped_at is None:
                self.swapping.request(self.state)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def snapshot(self, step: int | None = None) -> Snapshot:
        """Return where the run stands, or would at another step, with the swap decided so far."""
        state, swapping = self.state, self.swapping
        at = state.step if step is None else step
        callbacks = self.callbacks.returned if at == state.step == state.swapped_at else 0
        rest = callbacks, swapping.policy, renewal_state(state.renewal)
        return Snapshot(at, state.seconds, swapping.agreed_swap(state), *rest)

    def go_to(self, step: int) -> None:
        """Go on with the batch of another step, in whichever phase that is as far as is decided."""
        self.go_on_from(self.snapshot(step), resumed_at=None)

    def go_to_start(self) -> None:
        """Go back to the first step, as if no batch had been drawn."""
        self.check_usable()
        start = Snapshot(0, 0.0, None, 0, self.settings.new_policy(), renewal_state(self.files.first_renewal))
        self.go_on_from(start, resumed_at=None, costs=(Spent(), Spent()))

    def go_on_from(
        self, snapshot: Snapshot, *, resumed_at: int | None, costs: tuple[Spent, Spent] | None = None
    ) -> None:
        """Go on from where a snapshot was taken.

        Arguments:
            snapshot: where the run stood.
            resumed_at: its step, where it comes from a checkpoint.
            costs: of the two phases, in place of what they have cost so far.
        """
        with self.lock:
            if self.callbacks.running:
                raise UsageError("an on_swap callback called load_state_dict() or reset(); call it outside the loop")
            renewal = self.files.renewal_of(snapshot.rolling)
            self.fast.pause()
            self.fine.pause()
            policy = snapshot.policy
            fast, fine = (self.state.fast, self.state.fine) if costs is None else costs
            # At the step of the swap itself callbacks may have yet to be called.
            at = min((step for step in (policy.step, snapshot.swap) if step is not None), default=math.inf)
            swapped_at = int(at) if policy.starts_on_full or snapshot.step > at else None
            vars(self).update(  # at once: an interrupt comes before or after
                state=RunState(snapshot.step, swapped_at, snapshot.seconds, fast=fast, fine=fine, renewal=renewal),
                swapping=self.swapping.restarted(snapshot.step, policy, snapshot.swap),
                renewing=None if self.renewing is None else self.renewing.restarted(snapshot.step),
                callbacks=SwapCallbacks(self.callbacks, snapshot.callbacks),
                _pass=None,
                _resumed_at=resumed_at,
                _empty_loops=0,
            )
            self.reports.begin_again(costs is not None)

    def close(self) -> None:
        """Free every thread, buffer, pipeline and file. Safe to call twice, at any time and from any thread."""
        self._closed = True
        for name in ("fast", "fine", "files", "reports"):
            part = vars(self).get(name)
            if part is not None:
                part.close()
