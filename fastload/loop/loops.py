"""The loops over a loader: how long a run is, where each loop begins and ends, and so how many batches it gets."""

from __future__ import annotations

import math
import weakref
from typing import Any

from fastload.common.arguments import integer, real
from fastload.errors import UsageError
from fastload.loop.bar import Bar


class Loop:
    """One `iter()` of a loader, which goes when its iterator goes.

    Arguments:
        start: the step of its first batch.
        end: the step that it ends before, None where that is open.
    """

    def __init__(self, start: int, end: int | None) -> None:
        self.start, self.end = start, end
        self.over = False
        self.bar: Bar | None = None


class Pass:
    """The steps that `len()` counts while a loop runs.

    Arguments:
        first: the first step; before the loop's own where it goes on with an epoch.
        loop: the loop, which is not kept alive by this.
    """

    def __init__(self, first: int, loop: Loop) -> None:
        self.first, self.end = first, loop.end
        self._loop = weakref.ref(loop)

    def is_of(self, loop: Loop) -> bool:
        return self._loop() is loop

    @property
    def runs(self) -> bool:
        loop = self._loop()
        return loop is not None and not loop.over


def run_length(steps: Any, seconds: Any) -> tuple[int | None, float | None]:
    """Return (steps, None) or (None, seconds): how long a run is. Raises UsageError unless one of the two is given."""
    if (steps is None) == (seconds is None):
        raise UsageError(f"steps={steps} and seconds={seconds}: give one of the two, the length of the run")
    if steps is not None:
        return integer("steps", steps, 1), None
    seconds = real("seconds", seconds)
    if not 0 < seconds < math.inf:
        raise UsageError(f"seconds={seconds}; it must be positive")
    return None, seconds


def next_pass(step: int, steps: int | None, steps_per_epoch: int | None, *, resumed: bool) -> tuple[int, int | None]:
    """Return (first step, end) of the loop that begins at `step`.

    Arguments:
        step: batches delivered so far.
        steps: of the whole run, None where that is open.
        steps_per_epoch: of each loop, None where loops go on to the end.
        resumed: whether the run goes on from a checkpoint just here; then the first step is that of the epoch, which
            frameworks count as a whole.
    """
    ends, first = [] if steps is None else [steps], step
    if steps_per_epoch is not None:
        begun = step // steps_per_epoch * steps_per_epoch
        ends.append(begun + steps_per_epoch)
        if resumed and (steps is None or step < steps):
            first = begun
    return first, min(ends, default=None)
