"""Figure 4: accuracy over splits, for top activations and random subsets, beside RS2 and the paper's suggestions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from fastload.bench.paper.findings import (
    NOT_REPEATED,
    REPEATED,
    RULE,
    UNTESTED,
    Accuracies,
    Findings,
    Noise,
    Verdict,
    better,
    by_schedule,
    compare,
    seconds_text,
)
from fastload.bench.paper.scale import SIZE, SWAPS, split_name
from fastload.bench.paper.subsets import Subset, choose
from fastload.bench.paper.trainee import SCHEDULES
from fastload.bench.paper.training import Run, Trained, train
from fastload.bench.paper.workplace import Workplace

SUGGESTIONS = ("combinations", "kmeans", "pca", "penalized")
COLUMNS = (
    "samples",
    "split",
    "rate",
    "runs",
    "test accuracy",
    "the paper",
    "distinct samples seen",
    "selection",
    "training",
)
FULL, RS2 = "full only", "RS2"
_NEAR = 0.02

PAPER: dict[tuple[str, float | None], str] = {
    (FULL, 0.0): "83.3 %",
    ("top-activations", 1.0): "63.9 %",
    ("random", 1.0): "57.6 %",
    **{("top-activations", share): "nearly as full only" for share in (0.25, 0.5, 0.75)},
}
"""What the paper reports, means of two runs at its constant rate, for a sample's name and split."""


@dataclass
class Row:
    """Runs that differ by their seed only; `share`: of the steps on the subset, None where there is no split."""

    name: str
    share: float | None
    schedule: str
    results: list[Trained] = field(default_factory=list)
    selection: float = 0.0

    @property
    def accuracies(self) -> Accuracies:
        return Accuracies.of(self.results)

    def texts(self) -> tuple[str, ...]:
        """Return the table's row."""
        split = "–" if self.share is None else split_name(self.share)
        paper = PAPER.get((self.name, self.share), "–") if self.schedule == "constant" else "–"
        if not self.results:
            return (self.name, split, self.schedule, "0", "not yet", paper, *["not yet"] * 3)
        return (
            self.name,
            split,
            self.schedule,
            str(len(self.results)),
            self.accuracies.text(),
            paper,
            f"{statistics.mean(one.distinct for one in self.results):,.0f}",
            seconds_text(self.selection) if self.selection else "–",
            seconds_text(statistics.mean(one.seconds for one in self.results)),
        )

    def data(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {
            "name": self.name,
            "share": self.share,
            "schedule": self.schedule,
            "selection_seconds": self.selection,
            "runs": [vars(one) for one in self.results],
        }


def without_subset(place: Workplace, name: str, schedule: str) -> Row:
    """Train on the full set only, or (RS2) on a fresh random subset every epoch."""
    row = Row(name, 0.0 if name == FULL else None, schedule)
    for seed in place.seeds:
        run = Run(seed, schedule=schedule, fresh=name == RS2)
        result = place.attempt(f"{name}, {schedule} rate", partial(train, place, run))
        if result is not None:
            row.results.append(result)
    return row


def splits(
    place: Workplace,
    strategy: str,
    shares: Sequence[float],
    schedule: str,
    *,
    seeds: Sequence[int] | None = None,
    size: str = SIZE,
    length: str | None = None,
    name: str | None = None,
) -> list[Row]:
    """Train in two phases at several splits; a random subset is drawn anew for each seed.

    The run with the longest fast phase comes first, and the others go on from its states.
    """
    rows = {share: Row(name or strategy, share, schedule) for share in shares}
    keep = tuple(place.scale.swap(share) for share in shares)

    def run(seed: int, share: float) -> tuple[Trained, Subset]:
        drawn = seed if strategy == "random" else 0
        subset = choose(place, strategy, size=size, seed=drawn, length=length)
        return train(place, Run(seed, subset, place.scale.swap(share), schedule), keep), subset

    for seed in place.seeds if seeds is None else seeds:
        for share in sorted(shares, reverse=True):
            what = f"{name or strategy}, {split_name(share)}, {schedule} rate"
            found = place.attempt(what, partial(run, seed, share))
            if found is not None:
                rows[share].results.append(found[0])
                rows[share].selection = found[1].seconds
    return list(rows.values())


def tell_rows(found: Findings, tables: dict[str, list[Row]]) -> None:
    """Enter the same rows of each schedule into the table and the data, side by side."""
    rows = [row for side_by_side in zip(*tables.values(), strict=True) for row in side_by_side]
    found.rows = [row.texts() for row in rows]
    found.data["rows"] = [row.data() for row in rows]


def noise_of(place: Workplace, rows: Sequence[Row]) -> Noise:
    """Return the noise to judge rows by: of one schedule, since another may spread more or less."""
    return Noise.of((row.accuracies for row in rows), len(place.test))


def figure4(place: Workplace) -> Findings:
    """Train at every split, and the rivals, with each schedule."""
    tables = {schedule: _rows(place, schedule) for schedule in SCHEDULES}
    found = Findings("figure4", "Figure 4: accuracy over splits", COLUMNS)
    tell_rows(found, tables)
    found.verdicts = [
        _full(place, tables["constant"][0]),
        *by_schedule({schedule: _verdicts(rows, noise_of(place, rows)) for schedule, rows in tables.items()}),
    ]
    found.notes = [
        "Selection: seconds of everything that choosing the subset took, the autoencoder's training included.",
        "Every split has the same number of steps. RS2 draws a fresh random subset of the same size every epoch.",
        "The constant rate is the paper's 0.1; the decaying one falls from there in a straight line to 0 at the last "
        f"step. Rule: {RULE}; runs of each rate have their own spread, and “depends” is where the two rates disagree.",
    ]
    return found


def _rows(place: Workplace, schedule: str) -> list[Row]:
    """Return the full set only, both subsets at every split, RS2, and the suggestions at two splits."""
    return [
        without_subset(place, FULL, schedule),
        *splits(place, "top-activations", SWAPS[1:], schedule),
        *splits(place, "random", SWAPS[1:], schedule),
        without_subset(place, RS2, schedule),
        *(row for name in SUGGESTIONS for row in splits(place, name, (0.5, 1.0), schedule)),
    ]


def _full(place: Workplace, full: Row) -> Verdict:
    claim, paper, rule = "training on the full set only", "83.3 %", "within 2 points of the paper's, at scale 1 only"
    if not full.results or place.scale.value < 1:
        return Verdict(claim, paper, full.accuracies.text(), UNTESTED, rule)
    near = abs(full.accuracies.mean - 0.833) <= _NEAR
    return Verdict(claim, paper, full.accuracies.text(), REPEATED if near else NOT_REPEATED, rule)


def _verdicts(rows: Sequence[Row], noise: Noise) -> list[Verdict]:
    by_name = {(row.name, row.share): row for row in rows}
    chosen = by_name["top-activations", 1.0].accuracies
    return [
        better(
            "trained on the subset alone (100/0), embeddings choose better than at random",
            "63.9 % against 57.6 %",
            chosen,
            by_name["random", 1.0].accuracies,
            noise,
        ),
        _nearly_equal(by_name[FULL, 0.0], [by_name["top-activations", share] for share in (0.25, 0.5, 0.75)], noise),
        *(
            better(
                f"the suggestion {name} chooses better than top activations (100/0)",
                "suggested, without figures",
                by_name[name, 1.0].accuracies,
                chosen,
                noise,
                own=True,
            )
            for name in SUGGESTIONS
        ),
    ]


def _nearly_equal(full: Row, early: Sequence[Row], noise: Noise) -> Verdict:
    """Whether splits up to 75/25 are no worse than the full set only."""
    rule = f"no split up to 75/25 is worse than full only by 2 points and more than chance ({RULE})"
    return no_worse(
        "splits up to 75/25 are nearly equal to the full set only", "nearly equal", full, early, noise, rule
    )


def no_worse(claim: str, paper: str, full: Row, rows: Sequence[Row], noise: Noise, rule: str) -> Verdict:
    """Return the verdict on a claim that no row is worse than the full set only by 2 points and more than chance."""
    if not full.results or not all(row.results for row in rows):
        return Verdict(claim, paper, "not yet", UNTESTED, rule)
    worse = [
        row
        for row in rows
        if full.accuracies.mean - row.accuracies.mean > _NEAR and compare(full.accuracies, row.accuracies, noise) > 0
    ]
    ours = ", ".join(f"{row.name} {split_name(row.share or 0)}: {row.accuracies.text()}" for row in [full, *rows])
    return Verdict(claim, paper, ours, NOT_REPEATED if worse else REPEATED, rule)
