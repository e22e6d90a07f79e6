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


def run_length(steps: Any, seconds: Any, epochs: Any) -> tuple[int | None, float | None, float | None]:
    """Return (steps, seconds, epochs) as plain numbers, two of them None: how long a run is.

    Raises UsageError unless exactly one of the three is given, and is positive.
    """
    if sum(given is not None for given in (steps, seconds, epochs)) != 1:
        raise UsageError(
            f"steps={steps}, seconds={seconds} and epochs={epochs}: give one of the three, the length of the run"
        )
    if steps is not None:
        return integer("steps", steps, 1), None, None
    return None, _length("seconds", seconds), _length("epochs", epochs)


def _length(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number = real(name, value)
    if not 0 < number < math.inf:
        raise UsageError(f"{name}={number}; it must be positive")
    return number


def steps_of_epochs(epochs: float, samples: int, global_batch_size: int) -> int:
    """Return how many steps a run of `epochs` has, each of all the full global batches that a set's samples give.

    Raises UsageError unless that is at least one step.
    """
    steps_per_epoch = samples // global_batch_size
    steps = epochs * steps_per_epoch
    if not math.isfinite(steps) or round(steps) < 1:
        raise UsageError(
            f"epochs={epochs:g} of {samples:,} samples are {steps:g} steps: an epoch has {steps_per_epoch:,} global "
            f"batches of {global_batch_size:,}; give another epochs= or batch_size=, or steps="
        )
    return round(steps)


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
