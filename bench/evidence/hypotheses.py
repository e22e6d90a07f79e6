"""What was said before the runs, in docs/evidence.md: which arm is better than which others, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fastload.bench.evidence import arms
from fastload.bench.evidence.scale import PAPERS_POOL, Scale
from fastload.bench.evidence.statistics import LEVEL, Difference, holm
from fastload.bench.evidence.training import Cell, Trained

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"

NEAR = 0.015
"""How far below the ceiling rolling may stay."""


@dataclass(frozen=True)
class Hypothesis:
    """That an arm is better than another by `margin` (negative: worse by no more than that).

    Arguments:
        name: H1, H2 ….
        text: what is said.
        first: the cell that is said to be better.
        second: than which.
        margin: as a share of the test set.
        scale: that it is said of; at any other its test is a repetition.
        value: of a training, what is compared.
    """

    name: str
    text: str
    first: Cell
    second: Cell
    margin: float = 0.0
    scale: str = "reduced"
    value: Callable[[Trained], float] = lambda run: run.accuracy


@dataclass(frozen=True)
class Verdict:
    """On a hypothesis: the difference, its p value adjusted within its family, and whether it holds."""

    hypothesis: Hypothesis
    difference: Difference | None
    adjusted: float
    verdict: str


def family(
    hypotheses: Sequence[Hypothesis], runs: Callable[[Cell], Sequence[Trained]], seeds: int = 3
) -> list[Verdict]:
    """Test hypotheses together, once all seeds are trained: not after each, until one holds.

    Arguments:
        hypotheses: of one family.
        runs: returns a cell's trainings by seed, none where it was not trained.
        seeds: that were registered.
    """
    differences = []
    for one in hypotheses:
        first, second = ([one.value(run) for run in runs(cell)] for cell in (one.first, one.second))
        shifted = [value - one.margin for value in first]
        differences.append((Difference.of(shifted, second), Difference.of(first, second)) if first and second else None)
    adjusted = holm([math.nan if found is None else found[0].p for found in differences])
    return [
        Verdict(
            one,
            None if found is None else found[1],
            p,
            UNTESTED
            if found is None or found[0].seeds < seeds or math.isnan(found[0].p)
            else HOLDS
            if p < LEVEL
            else FAILS,
        )
        for one, found, p in zip(hypotheses, differences, adjusted, strict=True)
    ]


SHARE, POOL = 1 / 4, PAPERS_POOL
"""Where the registered comparisons are made."""

REGISTERED_STRATEGIES = ("stratified", "scores", "top-activations")
"""Those that are said to choose better than at random where a set has near-copies."""


def main_arms(name: str) -> dict[str, Cell]:
    """Return every arm's cell of a set, at a quarter of the rate and the paper's pool."""
    return {arm: Cell(name, arm, SHARE, POOL).canonical() for arm in arms.ARMS}


def of_rolling(name: str, number: int) -> list[list[Hypothesis]]:
    """Return what is said of rolling on a set: that it is better than three rivals, a family, and near the ceiling."""
    cells = main_arms(name)
    rolling = cells[arms.ROLLING]
    rivals = (arms.RANDOM_TWO_PHASE, arms.SHORTENED, arms.ECHOED)
    better = [
        Hypothesis(f"H{number + place}", f"{name}: rolling is better than {rival}", rolling, cells[rival])
        for place, rival in enumerate(rivals)
    ]
    words = f"{name}: rolling stays within {100 * NEAR:g} points of {arms.UNTHROTTLED}, the ceiling"
    return [better, [Hypothesis(f"H{number + 3}", words, rolling, cells[arms.UNTHROTTLED], -NEAR)]]


def of_selection() -> list[Hypothesis]:
    """Return what is said of selections: of near-copies, a chosen fixed pool is better than a random one."""
    return [
        Hypothesis(
            f"H{number}",
            f"near-copies: a fixed pool that {strategy} chooses is better than a random one",
            Cell("near-copies", arms.FIXED, pool=POOL, strategy=strategy).canonical(),
            Cell("near-copies", arms.FIXED, pool=POOL).canonical(),
        )
        for number, strategy in enumerate(REGISTERED_STRATEGIES, 9)
    ]


def _memorized(run: Trained) -> float:
    return math.nan if run.memorized is None else run.memorized


def of_memory() -> list[Hypothesis]:
    """Return what is said of wrong labels: echoing, and a fixed pool, have more of them memorized than rolling."""
    cells = main_arms("wrong-labels")
    words = "of the wrong labels that were shown, more are memorized by"
    return [
        Hypothesis(f"H{number}", f"{words} {arm} than by rolling", cells[arm], cells[arms.ROLLING], value=_memorized)
        for number, arm in ((12, arms.ECHOED), (13, arms.FIXED))
    ]


def of_longer_runs() -> list[Hypothesis]:
    """Return what is said of runs in which samples come again: that a pool must be renewed."""
    cells = main_arms("cifar10")
    words = f"cifar10, several epochs: {arms.ROLLING} is better than a {arms.FIXED}"
    return [Hypothesis("H14", words, cells[arms.ROLLING], cells[arms.FIXED], scale="longer")]


def registered(sets: Collection[str], scale: Scale) -> list[list[Hypothesis]]:
    """Return the families of all hypotheses on sets that are at hand, as far as they are said of a scale."""
    families = []
    for name, number in (("cifar10", 1), ("fashion-mnist", 5)):
        if name in sets:
            families += of_rolling(name, number)
    if "near-copies" in sets:
        families.append(of_selection())
    if "wrong-labels" in sets:
        families.append(of_memory())
    if "cifar10" in sets and scale.several_epochs:
        families.append(of_longer_runs())
    return families
