"""What an experiment found: a table, verdicts by stated rules, and notes; and the statistics that they rest on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

REPEATED, NOT_REPEATED, DEPENDS, UNTESTED = "repeated", "not repeated", "depends", "not tested"
HOLDS, FAILS = "holds", "does not hold"
"""Verdicts on what the paper does not claim."""


@dataclass(frozen=True)
class Verdict:
    """On one of the paper's claims: what the paper says, what came out, and the verdict, by a rule that is said."""

    claim: str
    paper: str
    ours: str
    verdict: str
    rule: str


@dataclass
class Findings:
    """An experiment's title, table (columns, rows of text), verdicts, notes, and the plain data behind all of it."""

    name: str
    title: str
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies, 0 to 1, of runs that differ by their seed only."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, results: Iterable[Any]) -> Accuracies:
        """Take them from results, of which some may be missing (None)."""
        return cls(tuple(one.accuracy for one in results if one is not None))

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation between runs; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self) -> str:
        """Return mean ± standard deviation in per cent."""
        if not self.values:
            return "not yet"
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread} %"


@dataclass(frozen=True)
class Noise:
    """How far two means of runs may lie apart by chance.

    `spread`: the standard deviation between runs, pooled over all rows that have several. `test`: images in the test
    set.
    """

    spread: float
    test: int

    @classmethod
    def of(cls, rows: Iterable[Accuracies], test: int) -> Noise:
        """Pool the spreads of all rows that have more than one run."""
        several = [(len(row.values) - 1, row.spread**2) for row in rows if row.spread is not None]
        freedom = sum(count for count, _ in several)
        return cls(math.sqrt(sum(count * square for count, square in several) / freedom) if freedom else 0.0, test)

    def margin(self, first: Accuracies, second: Accuracies) -> float:
        """Return two standard errors of the means' difference: between runs, and of the test set's images."""
        mean = (first.mean + second.mean) / 2
        runs = self.spread**2 * (1 / len(first.values) + 1 / len(second.values))
        return 2 * math.sqrt(runs + 2 * mean * (1 - mean) / self.test)


RULE = "a difference counts when it is more than two standard errors (between runs, pooled, and of the test images)"


def compare(first: Accuracies, second: Accuracies, noise: Noise) -> int:
    """Return 1 where the first is better by more than chance, -1 where the second is, else 0."""
    difference = first.mean - second.mean
    return 0 if abs(difference) <= noise.margin(first, second) else 1 if difference > 0 else -1


def better(claim: str, paper: str, first: Accuracies, second: Accuracies, noise: Noise, own: bool = False) -> Verdict:
    """Return the verdict on a claim that the first is better than the second; `own`: the claim is not the paper's."""
    if not first or not second:
        return Verdict(claim, paper, "not yet", UNTESTED, RULE)
    found = compare(first, second, noise)
    said = ("no difference beyond chance", "better", "worse")[found]
    counts = f"a difference counts from {100 * noise.margin(first, second):.1f} points"
    ours = f"{first.text()} against {second.text()}: {said} ({counts})"
    yes, no = (HOLDS, FAILS) if own else (REPEATED, NOT_REPEATED)
    return Verdict(claim, paper, ours, yes if found > 0 else no, RULE)


def all_of(verdicts: Sequence[str]) -> str:
    """Return the verdict on what was tested in several settings: "depends" where they disagree."""
    tested = {one for one in verdicts if one != UNTESTED}
    return UNTESTED if not tested else tested.pop() if len(tested) == 1 else DEPENDS


def by_schedule(verdicts: Mapping[str, Sequence[Verdict]]) -> list[Verdict]:
    """Return one verdict for each claim, from those that were found with each schedule, claims in the same order."""
    found = []
    for one_claim in zip(*verdicts.values(), strict=True):
        each = zip(verdicts, one_claim, strict=True)
        ours = "; ".join(f"{schedule} rate: {one.ours}, {one.verdict}" for schedule, one in each)
        found.append(replace(one_claim[0], ours=ours, verdict=all_of([one.verdict for one in one_claim])))
    return found


def seconds_text(seconds: float) -> str:
    """Return a duration for a table."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
