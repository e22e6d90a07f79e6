"""The parts of the evidence: which cells are trained, with how many seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fastload.bench.evidence import arms
from fastload.bench.evidence.hypotheses import POOL, REGISTERED_STRATEGIES, SHARE, main_arms
from fastload.bench.evidence.runner import Work
from fastload.bench.evidence.scale import SHARES, Scale
from fastload.bench.evidence.training import Cell

SUGGESTIONS = ("combinations", "kmeans", "pca", "penalized")
"""The paper's own, at its end."""

STRATEGIES = ("random", *REGISTERED_STRATEGIES, *SUGGESTIONS)


def registered(scale: Scale, sets: Collection[str]) -> list[Work]:
    """Return every arm at a quarter of the rate, on CIFAR-10 and on Fashion-MNIST, and some where labels are wrong."""
    cells = [cell for name in ("cifar10", "fashion-mnist") if name in sets for cell in main_arms(name).values()]
    if "wrong-labels" in sets:
        chosen = (arms.UNTHROTTLED, arms.ROLLING, arms.FIXED, arms.ECHOED, arms.SHORTENED)
        cells += [main_arms("wrong-labels")[arm] for arm in chosen]
    return [Work(cell, scale.seeds) for cell in cells]


def selection(scale: Scale, sets: Collection[str]) -> list[Work]:
    """Return fixed pools that each strategy chooses, on every set."""
    works = []
    for name in sets:
        for strategy in STRATEGIES:
            few = scale.side_seeds if strategy in SUGGESTIONS else scale.selection_seeds
            seeds = scale.seeds if name == "near-copies" and strategy not in SUGGESTIONS else few
            works.append(Work(Cell(name, arms.FIXED, pool=POOL, strategy=strategy).canonical(), seeds))
    return works


def beginnings(scale: Scale, sets: Collection[str]) -> list[Work]:
    """Return rolling runs whose first pool a strategy chooses, on every set."""
    strategies = ("random", *REGISTERED_STRATEGIES)
    return [
        Work(Cell(name, arms.ROLLING, SHARE, POOL, strategy).canonical(), scale.side_seeds)
        for name in sets
        for strategy in strategies
    ]


def grid(scale: Scale, sets: Collection[str]) -> list[Work]:
    """Return every arm at every rate and size of pool, on CIFAR-10."""
    if "cifar10" not in sets:
        return []
    cells = [
        Cell("cifar10", arm, share, pool).canonical() for arm in arms.ARMS for share in SHARES for pool in scale.pools
    ]
    return [Work(cell, scale.side_seeds) for cell in dict.fromkeys(cells)]


PARTS: dict[str, Callable[[Scale, Collection[str]], list[Work]]] = {
    "registered": registered,
    "selection": selection,
    "grid": grid,
    "beginnings": beginnings,
}
