"""Augmentations that change as a run goes on: by phase, or at steps, as progressive resizing wants it."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from fastload.augment.recipe import Augment, checked
from fastload.common.arguments import integer, real
from fastload.errors import UsageError

PHASE_NAMES = ("fast", "fine-tune")

Kept = TypeVar("Kept")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Staged(Generic[Kept]):
    """What holds from some place of a sequence on: `values[i]` from `firsts[i]` up to `firsts[i + 1]`.

    Arguments:
        firsts: where each begins, ascending, the first at 0.
        values: of each stage.
    """

    firsts: tuple[int, ...]
    values: tuple[Kept, ...]

    @classmethod
    def always(cls, value: Kept) -> Staged[Kept]:
        """Return what never changes."""
        return cls((0,), (value,))

    def at(self, place: int) -> Kept:
        """Return what holds at a place, from 0 on."""
        if len(self.values) == 1:
            return self.values[0]
        return self.values[bisect.bisect_right(self.firsts, place) - 1]

    def scaled(self, factor: int) -> Staged[Kept]:
        """Return the same where each place is `factor` places."""
        return Staged(tuple(first * factor for first in self.firsts), self.values)

    def map(self, make: Any) -> Staged[Any]:
        """Return the same with make(value) in place of each value; equal values are made once."""
        made: dict[Kept, Any] = {}
        for value in self.values:
            if value not in made:
                made[value] = make(value)
        return Staged(self.firsts, tuple(made[value] for value in self.values))


class Schedule:
    """Augmentations by the share of the run, or by the step, from which each holds.

        Schedule({0.0: Augment.imagenet(128), 0.4: Augment.imagenet(160), 0.8: Augment.imagenet(192)})

    Arguments:
        stages: from a share of the run (floats, 0.0 to below 1.0) or from a step (ints) on, an `Augment`; the first
            must be 0.0 or 0, and all are of one kind.

    Raises UsageError for anything else, quoting it.
    """

    def __init__(self, stages: Mapping[float, Augment] | Mapping[int, Augment]) -> None:
        if not isinstance(stages, Mapping) or not stages:
            raise UsageError(f"Schedule: {stages!r}; it takes a dict such as {{0.0: …, 0.5: …}} of Augments")
        stages = {first.item() if isinstance(first, np.generic) else first: one for first, one in stages.items()}
        self._by_share = all(isinstance(first, float) for first in stages)
        if not self._by_share and any(isinstance(first, float) for first in stages):
            raise UsageError(f"Schedule: {list(stages)} are shares and steps together; give floats, or ints, alone")
        firsts: list[float] = []
        for first in stages:
            number = real("Schedule: share", first) if self._by_share else integer("Schedule: step", first, 0)
            if self._by_share and not 0 <= number < 1:
                raise UsageError(f"Schedule: share={number}; it is a share of the run, from 0.0 to below 1.0")
            firsts.append(number)
        if firsts != sorted(set(firsts)) or firsts[0] != 0:
            raise UsageError(f"Schedule: {firsts}; stages begin at 0 and each after the one before it")
        self._firsts, self._augments = firsts, [checked(augment) for augment in stages.values()]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.state() == other.state()

    def __hash__(self) -> int:
        return hash((tuple(self._firsts), tuple(self._augments)))

    def __repr__(self) -> str:
        return f"Schedule({dict(zip(self._firsts, self._augments, strict=True))})"

    @property
    def last(self) -> Augment:
        """What holds at the end of the run."""
        return self._augments[-1]

    def state(self) -> dict[str, Any]:
        """Return it as JSON-able plain values, for checkpoints."""
        return {"schedule": [[first, one.state()] for first, one in zip(self._firsts, self._augments, strict=True)]}

    def steps(self, run: int | None) -> Staged[Augment]:
        """Return what holds from which step of a run of `run` steps on; None for a run that ends by the clock."""
        if run is None:
            raise UsageError("augment= is a Schedule, which needs a run of steps= or epochs=, not seconds=")
        firsts = [round(first * run) for first in self._firsts] if self._by_share else [int(k) for k in self._firsts]
        if len(set(firsts)) < len(firsts):
            raise UsageError(f"augment=: stages of the Schedule begin at the same step of a run of {run:,}: {firsts}")
        if firsts[-1] >= run:
            raise UsageError(
                f"augment=: the Schedule's last stage, {self._firsts[-1]}, would begin at step {firsts[-1]:,}, and the "
                f"run ends after {run:,}"
            )
        return Staged(tuple(firsts), tuple(self._augments))


Augments = Augment | Schedule | Mapping[str, Augment]


def checked_augments(given: Any) -> Augment | Schedule | dict[str, Augment]:
    """Return what callers gave as `augment=`; raise UsageError unless it is an Augment, a Schedule or one a phase."""
    if isinstance(given, Schedule):
        return given
    if isinstance(given, Mapping):
        if set(given) != set(PHASE_NAMES):
            raise UsageError(f'augment={given!r}; by phase it is {{"fast": …, "fine-tune": …}}')
        return {name: checked(given[name]) for name in PHASE_NAMES}
    return checked(given)


def augments_state(augments: Augment | Schedule | dict[str, Augment]) -> dict[str, Any]:
    """Return them as JSON-able plain values, for checkpoints."""
    if isinstance(augments, dict):
        return {name: one.state() for name, one in augments.items()}
    return augments.state()


def final_augment(augments: Augment | Schedule | dict[str, Augment]) -> Augment:
    """Return what holds at the end of the run: test data are given its sizes and normalizing."""
    if isinstance(augments, dict):
        return augments[PHASE_NAMES[-1]]
    return augments.last if isinstance(augments, Schedule) else augments


def of_phase(
    augments: Augment | Schedule | dict[str, Augment], phase: str, *, steps: int | None, swap: int | None
) -> Staged[Augment]:
    """Return what holds from which batch of a phase on.

    Arguments:
        augments: of the run.
        phase: "fast" or "fine-tune".
        steps: of the run; None where it ends by the clock.
        swap: the step of the swap; None where a policy decides it as the run goes on.

    Raises UsageError for a schedule of a run whose steps or swap are not known beforehand.
    """
    if isinstance(augments, dict):
        return Staged.always(augments[phase])
    if isinstance(augments, Augment):
        return Staged.always(augments)
    staged = augments.steps(steps)
    if phase == PHASE_NAMES[0]:
        return staged
    if swap is None:
        raise UsageError("augment= is a Schedule, which needs a swap at a known step: swap= as a share or a step")
    later = [(first - swap, one) for first, one in zip(staged.firsts, staged.values, strict=True) if first > swap]
    return Staged((0, *(first for first, _ in later)), (staged.at(swap), *(one for _, one in later)))
