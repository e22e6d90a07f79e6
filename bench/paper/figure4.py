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
    compare,
    seconds_text,
)
from fastload.bench.paper.scale import SIZE, SWAPS, split_name
from fastload.bench.paper.subsets import Subset, choose
from fastload.bench.paper.training import Run, Trained, train
from fastload.bench.paper.workplace import Workplace

SUGGESTIONS = ("combinations", "kmeans", "pca", "penalized")
COLUMNS = ("samples", "split", "runs", "test accuracy", "the paper", "distinct samples seen", "selection", "training")
FULL, FITTED, RS2 = "full only", "full only, decaying rate", "RS2"
_NEAR = 0.02

PAPER = {
    (FULL, 0.0): "83.3 %",
    ("top-activations", 1.0): "63.9 %",
    ("random", 1.0): "57.6 %",
    **{("top-activations", share): "nearly as full only" for share in (0.25, 0.5, 0.75)},
}
"""What the paper reports, means of two runs, for a sample's name and split."""


@dataclass
class Row:
    """Runs that differ by their seed only."""

    name: str
    share: float | None
    results: list[Trained] = field(default_factory=list)
    selection: float = 0.0

    @property
    def accuracies(self) -> Accuracies:
        return Accuracies.of(self.results)

    def texts(self) -> tuple[str, ...]:
        """Return the table's row."""
        split = "–" if self.share is None else split_name(self.share)
        paper = PAPER.get((self.name, self.share if self.share is not None else -1.0), "–")
        if not self.results:
            return (self.name, split, "0", "not yet", paper, *["not yet"] * 3)
        return (
            self.name,
            split,
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
            "selection_seconds": self.selection,
            "runs": [vars(one) for one in self.results],
        }


def full_only(place: Workplace, seeds: Sequence[int], schedule: str = "constant") -> Row:
    """Train on the full set only."""
    row = Row(FULL if schedule == "constant" else FITTED, 0.0)
    for seed in seeds:
        result = place.attempt(row.name, partial(train, place, Run(seed, schedule=schedule)))
        if result is not None:
            row.results.append(result)
    return row


def fresh(place: Workplace, seeds: Sequence[int], schedule: str = "constant") -> Row:
    """Train on a fresh random subset every epoch."""
    row = Row(RS2 if schedule == "constant" else f"{RS2}, decaying rate", None)
    for seed in seeds:
        result = place.attempt(row.name, partial(train, place, Run(seed, schedule=schedule, fresh=True)))
        if result is not None:
            row.results.append(result)
    return row


def splits(
    place: Workplace,
    strategy: str,
    shares: Sequence[float],
    seeds: Sequence[int],
    *,
    size: str = SIZE,
    schedule: str = "constant",
    length: str | None = None,
    name: str | None = None,
) -> list[Row]:
    """Train in two phases at several splits; a random subset is drawn anew for each seed.

    The run with the longest fast phase comes first, and the others go on from its states.
    """
    rows = {share: Row(name or strategy, share) for share in shares}
    keep = tuple(place.scale.swap(share) for share in shares)

    def run(seed: int, share: float) -> tuple[Trained, Subset]:
        drawn = seed if strategy == "random" else 0
        subset = choose(place, strategy, size=size, seed=drawn, length=length)
        return train(place, Run(seed, subset, place.scale.swap(share), schedule), keep), subset

    for seed in seeds:
        for share in sorted(shares, reverse=True):
            what = f"{name or strategy}, {split_name(share)}"
            found = place.attempt(what, partial(run, seed, share))
            if found is not None:
                rows[share].results.append(found[0])
                rows[share].selection = found[1].seconds
    return list(rows.values())


def figure4(place: Workplace) -> Findings:
    """Train at every split, and the rivals."""
    shares = SWAPS[1:]
    full, fitted = full_only(place, place.seeds), full_only(place, place.seeds, "decaying")
    chosen = splits(place, "top-activations", shares, place.seeds)
    drawn = splits(place, "random", shares, place.seeds)
    rs2 = fresh(place, place.seeds)
    suggested = [row for name in SUGGESTIONS for row in splits(place, name, (0.5, 1.0), place.few)]
    rows = [full, *chosen, *drawn, rs2, fitted, *suggested]
    noise = measure_noise(place, rows, main=True)
    found = Findings("figure4", "Figure 4: accuracy over splits", COLUMNS, [row.texts() for row in rows])
    found.data = {"rows": [row.data() for row in rows], "spread_between_runs": noise.spread}
    found.verdicts = [
        _full(place, full),
        _subset_only(chosen[-1], drawn[-1], noise),
        _nearly_equal(full, chosen, noise),
        *(
            better(
                f"the suggestion {row.name} chooses better than top activations (100/0)",
                "suggested, without figures",
                row.accuracies,
                chosen[-1].accuracies,
                noise,
                own=True,
            )
            for row in suggested
            if row.share == 1.0
        ),
    ]
    found.notes = [
        "Selection: seconds of everything that choosing the subset took, the autoencoder's training included.",
        "Every split has the same number of steps. RS2 draws a fresh random subset of the same size every epoch.",
        f"The decaying rate falls in a straight line to 0; all else is at the paper's constant 0.1. Rule: {RULE}.",
    ]
    return found


def measure_noise(place: Workplace, rows: Sequence[Row], main: bool = False) -> Noise:
    """Return the noise to judge rows by: their own spread between runs, or the main table's where that is larger.

    Side tables have few runs, often one, and could not tell their own. `main`: keep this spread for them.
    """
    settings = {**place.identity, "scale": place.scale.value, "seeds": len(place.seeds)}
    own = Noise.of((row.accuracies for row in rows), len(place.test))
    if main:
        place.state.record("spread", settings, {"spread": own.spread})
        return own
    known = place.state.find("spread", settings)
    return own if known is None else Noise(max(own.spread, known["spread"]), own.test)


def _full(place: Workplace, full: Row) -> Verdict:
    claim, paper, rule = "training on the full set only", "83.3 %", "within 2 points of the paper's, at scale 1 only"
    if not full.results or place.scale.value < 1:
        return Verdict(claim, paper, full.accuracies.text(), UNTESTED, rule)
    near = abs(full.accuracies.mean - 0.833) <= _NEAR
    return Verdict(claim, paper, full.accuracies.text(), REPEATED if near else NOT_REPEATED, rule)


def _subset_only(chosen: Row, drawn: Row, noise: Noise) -> Verdict:
    return better(
        "trained on the subset alone (100/0), embeddings choose better than at random",
        "63.9 % against 57.6 %",
        chosen.accuracies,
        drawn.accuracies,
        noise,
    )


def _nearly_equal(full: Row, chosen: Sequence[Row], noise: Noise) -> Verdict:
    """Whether splits up to 75/25 are no worse than the full set only."""
    claim = "splits up to 75/25 are nearly equal to the full set only"
    rule = f"no split up to 75/25 is worse than full only by 2 points and more than chance ({RULE})"
    early = [row for row in chosen if row.share is not None and row.share <= 0.75]
    if not full.results or not all(row.results for row in early):
        return Verdict(claim, "nearly equal", "not yet", UNTESTED, rule)
    ours = ", ".join(f"{split_name(row.share or 0)}: {row.accuracies.text()}" for row in [full, *early])
    worse = [
        row
        for row in early
        if full.accuracies.mean - row.accuracies.mean > _NEAR and compare(full.accuracies, row.accuracies, noise) > 0
    ]
    return Verdict(claim, "nearly equal", ours, NOT_REPEATED if worse else REPEATED, rule)
