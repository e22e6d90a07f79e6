"""The evidence's plots, with matplotlib: accuracy over the stream's rate, arms beside the ceiling, and selections."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from fastload.bench.evidence import arms
from fastload.bench.evidence.findings import Results, together
from fastload.bench.evidence.hypotheses import POOL, SHARE, main_arms
from fastload.bench.evidence.parts import STRATEGIES
from fastload.bench.evidence.scale import SHARES
from fastload.bench.evidence.statistics import Difference, interval
from fastload.bench.evidence.training import Cell

_COLOURS = {
    arms.UNTHROTTLED: "black",
    arms.ROLLING: "tab:blue",
    arms.GROWING: "tab:cyan",
    arms.FIXED: "tab:green",
    arms.RANDOM_TWO_PHASE: "tab:orange",
    arms.PAPERS_TWO_PHASE: "tab:red",
    arms.ECHOED: "tab:purple",
    arms.CACHED: "tab:brown",
    arms.SHORTENED: "tab:grey",
}


def draw(results: Results, folder: Path, title: str) -> dict[str, Path]:
    """Write the plots for which something was trained; return them by name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, drawer in (("rates", _rates), ("arms", _arms), ("strategies", _strategies)):
        figure = Figure(figsize=(9, 5), layout="constrained")
        FigureCanvasAgg(figure)
        if drawer(figure, results):
            figure.suptitle(title, fontsize=9)
            path = written[name] = folder / f"evidence-{name}.png"
            figure.savefig(path, dpi=130)
    return written


def _rates(figure: Any, results: Results) -> bool:
    """Accuracy over S/T, an arm a line, with 95 % intervals."""
    axes = figure.subplots()
    drawn = False
    for arm, colour in _COLOURS.items():
        found = [(share, results.accuracies(Cell("cifar10", arm, share, POOL))) for share in SHARES]
        found = [(share, values) for share, values in found if values]
        if len(found) < 2:
            continue
        drawn = True
        means = [100 * statistics.mean(values) for _, values in found]
        halves = [100 * half if not math.isnan(half := interval(values)) else 0.0 for _, values in found]
        style = "--" if arm in (arms.UNTHROTTLED, arms.FIXED) else "-"
        axes.errorbar([share for share, _ in found], means, halves, fmt=style, marker="o", color=colour, label=arm)
        axes.lines[-1].set_markersize(3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SHARES, ["1", "1/2", "1/4", "1/8", "1/16"])
    axes.invert_xaxis()
    axes.set_xlabel("S/T: the stream's rate, of the trainer's (ever slower to the right)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"CIFAR-10, equal time, a pool of {100 * POOL:g} %", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn


def _arms(figure: Any, results: Results) -> bool:
    """How far each arm lies below the ceiling, set beside set."""
    sets = [name for name in results.sets if results.runs(main_arms(name)[arms.ROLLING])]
    sets = [name for name in sets if results.runs(main_arms(name)[arms.UNTHROTTLED])]
    if not sets:
        return False
    for axes, name in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, strict=True):
        cells = main_arms(name)
        names = [arm for arm in _COLOURS if arm != arms.UNTHROTTLED]
        for place, arm in enumerate(names):
            found = results.difference(cells[arm], cells[arms.UNTHROTTLED])
            if found is not None:
                half = 0.0 if math.isnan(found.half) else 100 * found.half
                axes.barh(place, 100 * found.mean, xerr=half, color=_COLOURS[arm], height=0.7)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_title(f"{name}, S/T = 1/{round(1 / SHARE)}", fontsize=9)
        axes.set_xlabel("points from the ceiling", fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    return True


def _strategies(figure: Any, results: Results) -> bool:
    """How much better than random each strategy chooses a fixed pool, on each set and over all."""
    sets = [name for name in results.sets if results.runs(_fixed(name, "stratified"))]
    if not sets:
        return False
    axes = figure.subplots()
    strategies = STRATEGIES[1:]
    colours = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "black")
    for number, name in enumerate([*sets, "together"]):
        for place, strategy in enumerate(strategies):
            if name == "together":
                found = next(iter(together(results, arms.FIXED, strategy, sets)), None)
            else:
                found = results.difference(_fixed(name, strategy), _fixed(name, "random"))
            if found is not None:
                _point(axes, place + 0.12 * (number - len(sets) / 2), found, colours[number], name, label=place == 0)
    axes.set_xticks(range(len(strategies)), strategies, fontsize=8)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_ylabel("points better than a random pool")
    axes.set_title(f"A fixed pool of {100 * POOL:g} %, by who chose it", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    return True


def _fixed(name: str, strategy: str) -> Cell:
    return Cell(name, arms.FIXED, pool=POOL, strategy=strategy)


def _point(axes: Any, place: float, found: Difference, colour: str, name: str, label: bool) -> None:
    half = 0.0 if math.isnan(found.half) else 100 * found.half
    axes.errorbar(place, 100 * found.mean, half, fmt="o", color=colour, markersize=4, label=name if label else None)
