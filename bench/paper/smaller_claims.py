"""The paper's smaller claims: a subset ten times as large, and the variance between runs."""

from __future__ import annotations

import math

from fastload.bench.paper.figure4 import COLUMNS, Row, full_only, measure_noise, splits
from fastload.bench.paper.findings import DEPENDS, NOT_REPEATED, REPEATED, UNTESTED, Findings, Noise, Verdict, compare
from fastload.bench.paper.scale import LARGE, split_name
from fastload.bench.paper.workplace import Workplace

_SHARES = (0.5, 1.0)
_ALIKE = 0.02


def smaller_claims(place: Workplace) -> Findings:
    """Train on subsets of 86.4 %, and on those of 8.64 % with more seeds."""
    full = full_only(place, place.few)
    large = [
        row
        for strategy in ("top-activations", "random")
        for row in splits(place, strategy, _SHARES, place.few, size=LARGE, name=f"{strategy}, {LARGE}")
    ]
    (chosen,) = splits(place, "top-activations", (1.0,), place.many)
    (drawn,) = splits(place, "random", (1.0,), place.many)
    rows = [full, *large, chosen, drawn]
    noise = measure_noise(place, rows)
    found = Findings("smaller", "Smaller claims", COLUMNS, [row.texts() for row in rows])
    found.data = {"rows": [row.data() for row in rows]}
    found.verdicts = [_alike(full, large, noise), _variance(chosen, drawn)]
    found.notes = [
        "With top activations the subset is the same for all runs, and only weights, order and augmentation differ; "
        "a random subset is drawn anew for each run, as it would be."
    ]
    return found


def _alike(full: Row, large: list[Row], noise: Noise) -> Verdict:
    claim = f"a subset ten times as large ({LARGE}) behaves alike"
    rule = "at 50/50 and 100/0 neither subset is worse than the full set only by 2 points and more than chance"
    if not full.results or not all(row.results for row in large):
        return Verdict(claim, "alike", "not yet", UNTESTED, rule)
    worse = [
        row
        for row in large
        if full.accuracies.mean - row.accuracies.mean > _ALIKE and compare(full.accuracies, row.accuracies, noise) > 0
    ]
    ours = ", ".join(f"{row.name} {split_name(row.share or 0)}: {row.accuracies.text()}" for row in [full, *large])
    return Verdict(claim, "alike", ours, NOT_REPEATED if worse else REPEATED, rule)


def _variance(chosen: Row, drawn: Row) -> Verdict:
    claim = "runs vary less with embeddings than at random"
    first, second = chosen.accuracies.spread, drawn.accuracies.spread
    # Two standard errors of the logarithm of a ratio of standard deviations of n normal values each.
    runs = min(len(chosen.results), len(drawn.results))
    if first is None or second is None or runs < 2:
        return Verdict(claim, "smaller", "not yet", UNTESTED, "at least two runs of each are needed")
    factor = math.exp(2 * math.sqrt(1 / (runs - 1)))
    rule = f"of {runs} runs each, a ratio of standard deviations counts from {factor:.1f}"
    ours = f"standard deviations {100 * first:.2f} and {100 * second:.2f} points"
    if first * factor < second:
        return Verdict(claim, "smaller", ours, REPEATED, rule)
    if second * factor < first:
        return Verdict(claim, "smaller", ours, NOT_REPEATED, rule)
    return Verdict(claim, "smaller", ours, DEPENDS, rule + ": too few runs to tell")
