"""The paper's smaller claims: a subset ten times as large, and the variance between runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastload.bench.paper.figure4 import COLUMNS, FULL, Row, no_worse, noise_of, splits, tell_rows, without_subset
from fastload.bench.paper.findings import DEPENDS, NOT_REPEATED, REPEATED, UNTESTED, Findings, Verdict, by_schedule
from fastload.bench.paper.scale import LARGE
from fastload.bench.paper.trainee import SCHEDULES
from fastload.bench.paper.workplace import Workplace

_STRATEGIES = ("top-activations", "random")


def smaller_claims(place: Workplace) -> Findings:
    """Train on subsets of 86.4 %, and on those of 8.64 % with more seeds."""
    tables = {schedule: _rows(place, schedule) for schedule in SCHEDULES}
    found = Findings("smaller", "Smaller claims", COLUMNS)
    tell_rows(found, tables)
    found.verdicts = by_schedule({schedule: _verdicts(place, rows) for schedule, rows in tables.items()})
    found.notes = [
        "With top activations the subset is the same for all runs, and only weights, order and augmentation differ; "
        "a random subset is drawn anew for each run, as it would be."
    ]
    return found


def _rows(place: Workplace, schedule: str) -> list[Row]:
    """Return the full set only, four rows of large subsets, and top activations and random ones with more seeds."""
    return [
        without_subset(place, FULL, schedule),
        *(
            row
            for strategy in _STRATEGIES
            for row in splits(place, strategy, (0.5, 1.0), schedule, size=LARGE, name=f"{strategy}, {LARGE}")
        ),
        *(row for strategy in _STRATEGIES for row in splits(place, strategy, (1.0,), schedule, seeds=place.many)),
    ]


def _verdicts(place: Workplace, rows: Sequence[Row]) -> list[Verdict]:
    full, *large, chosen, drawn = rows
    claim = f"a subset ten times as large ({LARGE}) behaves alike"
    rule = "at 50/50 and 100/0 neither subset is worse than the full set only by 2 points and more than chance"
    return [no_worse(claim, "alike", full, large, noise_of(place, rows), rule), _variance(chosen, drawn)]


def _variance(chosen: Row, drawn: Row) -> Verdict:
    claim = "runs vary less with embeddings than at random"
    rule = "a ratio of standard deviations counts when it is more than chance, two standard errors of its logarithm"
    first, second = chosen.accuracies.spread, drawn.accuracies.spread
    runs = min(len(chosen.results), len(drawn.results))
    if first is None or second is None:
        return Verdict(claim, "smaller", "not yet: at least two runs of each are needed", UNTESTED, rule)
    # The standard error of the logarithm of a ratio of standard deviations, of n normal values each.
    factor = math.exp(2 * math.sqrt(1 / (runs - 1)))
    ours = f"standard deviations {100 * first:.2f} and {100 * second:.2f} points of {runs} runs each"
    if max(first, second) <= factor * min(first, second):
        return Verdict(claim, "smaller", f"{ours}: too few to tell (from a ratio of {factor:.1f})", DEPENDS, rule)
    return Verdict(claim, "smaller", ours, REPEATED if first < second else NOT_REPEATED, rule)
