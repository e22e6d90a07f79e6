"""What trainings found, made into tables and verdicts: one function for each table of the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from fastload.bench.evidence import arms
from fastload.bench.evidence.arms import ARMS
from fastload.bench.evidence.hypotheses import POOL, SHARE, UNTESTED, Verdict, family, main_arms, registered
from fastload.bench.evidence.parts import STRATEGIES
from fastload.bench.evidence.runner import Found
from fastload.bench.evidence.scale import SHARES, Scale
from fastload.bench.evidence.sets import NAMES
from fastload.bench.evidence.statistics import LEVEL, Difference, holm, interval, recovered
from fastload.bench.evidence.training import Cell, Trained


@dataclass(frozen=True)
class Table:
    """A table of the report, with what is to be said of it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    name: str = ""


class Results:
    """All cells that were trained, and what choosing their pools took.

    Arguments:
        found: the cells.
        seconds: of selection, by set and strategy.
        scale: of all trainings.
    """

    def __init__(self, found: Sequence[Found], seconds: Mapping[tuple[str, str], float], scale: Scale) -> None:
        self.cells: dict[Cell, Found] = {}
        for one in found:  # a cell of several parts counts with the most seeds
            known = self.cells.get(one.cell)
            if known is None or len(known.runs) < len(one.runs):
                self.cells[one.cell] = one
        self.seconds, self.scale = seconds, scale

    @property
    def sets(self) -> list[str]:
        """Names of the sets that something was trained on."""
        return list(dict.fromkeys(cell.set for cell in self.cells))

    def runs(self, cell: Cell) -> tuple[Trained, ...]:
        """Return a cell's trainings by seed; none where it was not trained."""
        found = self.cells.get(cell.canonical())
        return () if found is None else found.runs

    def accuracies(self, cell: Cell) -> list[float]:
        """Return their accuracies."""
        return [run.accuracy for run in self.runs(cell)]

    def difference(self, first: Cell, second: Cell) -> Difference | None:
        """Return how much better the first is, None where one of them was not trained."""
        one, other = self.accuracies(first), self.accuracies(second)
        return Difference.of(one, other) if one and other else None

    def verdicts(self) -> list[Verdict]:
        """Return the verdict on every registered hypothesis."""
        families = registered(self.sets, self.scale)
        return [verdict for one in families for verdict in family(one, self.runs, self.scale.seeds)]


def points(value: float, sign: bool = False) -> str:
    """Return a share as percentage points."""
    return "–" if math.isnan(value) else f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def with_interval(values: Sequence[float]) -> str:
    """Return a mean and half of its 95 % interval, in percent, and of how many values."""
    if not values:
        return "–"
    half = interval(values)
    return f"{points(statistics.mean(values))}" + ("" if math.isnan(half) else f" ± {points(half)} ({len(values)})")


def difference_text(found: Difference | None) -> str:
    """Return a difference in points, with its interval, and of how many pairs."""
    if found is None:
        return "–"
    return points(found.mean, sign=True) + (
        "" if math.isnan(found.half) else f" ± {points(found.half)} ({found.seeds})"
    )


def share_text(share: float) -> str:
    """Return S/T as a fraction."""
    return str(Fraction(share).limit_denominator(1000))


def verdict_table(results: Results) -> Table:
    """Return the verdicts on what was registered."""
    rows = []
    for one in results.verdicts():
        found = one.difference
        seeds = "–" if found is None else str(found.seeds)
        p = "–" if one.verdict == UNTESTED else f"{one.adjusted:.2g}"
        told = one.hypothesis
        name = told.name if told.scale == results.scale.name else f"as {told.name}"
        rows.append((name, told.text, difference_text(found), seeds, p, f"**{one.verdict}**"))
    return Table("Verdicts", ("", "said", "difference, points", "seeds", "p, adjusted", "verdict"), rows)


def arms_table(results: Results, name: str) -> Table | None:
    """Return all arms on a set, at the registered rate and pool; None where rolling, their measure, was not trained."""
    cells = {arm: cell for arm, cell in main_arms(name).items() if results.runs(cell)}
    if arms.ROLLING not in cells:
        return None
    of = {arm: statistics.mean(results.accuracies(cell)) for arm, cell in cells.items()}
    ceiling, stalled = of.get(arms.UNTHROTTLED, math.nan), of.get(arms.SHORTENED, math.nan)
    memorizing = any(run.memorized is not None for cell in cells.values() for run in results.runs(cell))
    rows: list[tuple[str, ...]] = []
    for arm, cell in sorted(cells.items(), key=lambda item: -of[item[0]]):
        found, runs = results.cells[cell], results.runs(cell)
        share = recovered(of[arm], stalled, ceiling)
        memorized = [run.memorized for run in runs if run.memorized is not None]
        chooser = cell.chooser or ""
        rows.append(
            (
                arm,
                with_interval(results.accuracies(cell)),
                difference_text(results.difference(cells[arms.ROLLING], cell)) if arm != arms.ROLLING else "–",
                "–" if math.isnan(share) else f"{share:.0%}",
                f"{runs[0].steps:,}",
                f"{statistics.mean(run.read for run in runs):,.0f}",
                f"{statistics.mean(run.distinct for run in runs):,.0f}",
                f"{found.rate:g}",
                f"{results.seconds.get((name, chooser), 0.0):,.0f} s" if chooser else "–",
                *([with_interval(memorized)] if memorizing else []),
            )
        )
    columns = (
        "arm",
        "test accuracy, %",
        "rolling is better by, points",
        "recovered",
        "steps",
        "read",
        "distinct samples seen",
        "rate",
        "selection",
        *(["wrong labels memorized, points"] if memorizing else []),
    )
    seeds = len(results.runs(cells[arms.ROLLING]))
    title = f"{name}: S/T = {share_text(SHARE)}, a pool of {100 * POOL:g} %, {seeds} seeds"
    return Table(title, columns, rows, _same_trainings(results, cells), f"arms-{name}")


def _same_trainings(results: Results, cells: Mapping[str, Cell]) -> list[str]:
    """Say where a cache is of no use: in the time no sample comes twice."""
    if not {arms.CACHED, arms.SHORTENED} <= cells.keys():
        return []
    if results.accuracies(cells[arms.CACHED]) != results.accuracies(cells[arms.SHORTENED]):
        return []
    return [f"In this time no sample comes twice, so the {arms.CACHED} shows what the {arms.SHORTENED} does."]


def grid_table(results: Results, pool: float) -> Table | None:
    """Return all arms over the stream's rate, on CIFAR-10; None where nothing was trained."""
    shares = [share for share in SHARES if results.runs(Cell("cifar10", arms.ROLLING, share, pool))]
    if not shares:
        return None
    rows = [
        (arm, *(with_interval(results.accuracies(Cell("cifar10", arm, share, pool))) for share in shares))
        for arm in arms.ARMS
    ]
    columns = ("arm: test accuracy, %", *(f"S/T = {share_text(share)}" for share in shares))
    title = f"cifar10: every rate, a pool of {100 * pool:g} %"
    return Table(title, columns, rows, _without_gain(results, pool), f"grid-{100 * pool:g}")


def _without_gain(results: Results, pool: float) -> list[str]:
    """Say whether an arm is better than the ceiling where the stream keeps up: none may be."""
    ceiling = Cell("cifar10", arms.UNTHROTTLED)
    cells = {arm: Cell("cifar10", arm, 1.0, pool) for arm in arms.ARMS if ARMS[arm].by_share}
    if not all(map(results.runs, cells.values())):
        return []
    # Those that show what the ceiling shows are it, and there is nothing to test.
    others = {arm: cell for arm, cell in cells.items() if results.accuracies(cell) != results.accuracies(ceiling)}
    tested = {arm: found for arm, cell in others.items() if (found := results.difference(cell, ceiling)) is not None}
    adjusted = holm([one.p for one in tested.values()])
    beyond = [arm for arm, p in zip(tested, adjusted, strict=True) if p < LEVEL]
    told = "; ".join(f"{arm} {difference_text(one)}" for arm, one in tested.items())
    names = ", ".join(beyond) or "none"
    return [
        f"At S/T = 1 no arm may be better than {arms.UNTHROTTLED}. Beyond chance (Holm): {names}. "
        f"Points better: {told}; the others show the same batches."
    ]


def _chosen(arm: str, name: str, strategy: str) -> Cell:
    return Cell(name, arm, SHARE, POOL, strategy).canonical()


def strategies_table(results: Results, arm: str, title: str) -> Table | None:
    """Return each strategy against random pools of an arm, set by set; None where nothing was trained."""
    sets = [name for name in results.sets if len(results.runs(_chosen(arm, name, "stratified")))]
    if not sets:
        return None
    rows: list[tuple[str, ...]] = [
        ("random", *(with_interval(results.accuracies(_chosen(arm, name, "random"))) + " %" for name in sets), "–", "–")
    ]
    for strategy in STRATEGIES[1:]:
        differences = [results.difference(_chosen(arm, name, strategy), _chosen(arm, name, "random")) for name in sets]
        if not any(differences):
            continue
        seconds = [results.seconds[name, strategy] for name in sets if (name, strategy) in results.seconds]
        over_all = together(results, arm, strategy, sets)
        rows.append(
            (
                strategy,
                *map(difference_text, differences),
                difference_text(over_all[0] if over_all else None),
                f"{max(seconds):,.0f} s" if seconds else "–",
            )
        )
    columns = ("strategy", *sets, "together", "selection, the longest")
    notes = default_note(results) if arm == arms.FIXED else []
    return Table(title, columns, rows, notes, f"strategies-{arm}")


def together(results: Results, arm: str, strategy: str, sets: Sequence[str]) -> list[Difference]:
    """Return how much better a strategy is than random over sets, each with as many seeds: by pairs, and by set.

    Pairs of one set share their test images, and their embeddings: of the sets' means there are fewer, and these are
    independent of that. Nothing where a set is not trained.
    """
    both = [[results.accuracies(_chosen(arm, name, which)) for which in (strategy, "random")] for name in sets]
    count = min((min(map(len, pair)) for pair in both), default=0)
    if not count:
        return []
    first, second = ([pair[which][:count] for pair in both] for which in (0, 1))
    by_pair = Difference.of([x for some in first for x in some], [x for some in second for x in some])
    return [by_pair, Difference.of(list(map(statistics.mean, first)), list(map(statistics.mean, second)))]


def best_default(results: Results) -> tuple[str, list[str]]:
    """Return the strategy that the registered rule makes the default, and what it rests on.

    Nothing ("", []) before all strategies were trained on all sets.
    """
    names = [name for name in STRATEGIES if name not in ("random", "scores")]
    found = {name: together(results, arms.FIXED, name, NAMES) for name in names}
    if not all(found.values()):
        return "", []
    adjusted = dict(zip(names, holm([found[name][0].p for name in names]), strict=True))
    better = [name for name in names if adjusted[name] < LEVEL]
    lines = [
        f"{name}: {difference_text(by_pair)} points over {by_pair.seeds} pairs, adjusted p {adjusted[name]:.2g}; "
        f"{difference_text(by_set)} over the means of {by_set.seeds} sets"
        for name, (by_pair, by_set) in found.items()
    ]
    return max(better, key=lambda name: found[name][0].mean, default="random"), lines


def default_note(results: Results) -> list[str]:
    """Return what the registered rule makes the default strategy, and by which figures."""
    best, lines = best_default(results)
    return [f"By the registered rule the default strategy is **{best}**.", *lines] if lines else []


def tables(results: Results, pools: Sequence[float]) -> list[Table]:
    """Return all tables for which something was trained."""
    makers: list[Callable[[], Table | None]] = [
        lambda: verdict_table(results),
        *(lambda name=name: arms_table(results, name) for name in results.sets),
        *(lambda pool=pool: grid_table(results, pool) for pool in pools),
        lambda: strategies_table(results, arms.FIXED, "Fixed pools by who chose them, points better than random"),
        lambda: strategies_table(
            results, arms.ROLLING, f"Rolling at S/T = {share_text(SHARE)} by who chose its first pool, likewise"
        ),
    ]
    return [found for make in makers if (found := make()) is not None and found.rows]
