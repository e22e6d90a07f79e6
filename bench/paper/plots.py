"""The experiments' plots, with matplotlib: one function draws each experiment's, from its plain data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastload.bench.paper.figure4 import SUGGESTIONS
from fastload.bench.paper.findings import Findings
from fastload.bench.paper.trainee import SCHEDULES

_COLOURS = {"top-activations": "tab:blue", "random": "tab:orange", "RS2": "tab:green"}
_CONTEST_COLOURS = {
    "two-phase, top-activations": "tab:blue",
    "two-phase, random": "tab:orange",
    "full only": "black",
    "everything resident": "tab:red",
    "RS2": "tab:green",
    "InfoBatch": "tab:purple",
}


def draw(found: Findings, path: Path, title: str) -> bool:
    """Write an experiment's plot; False where it has none, or nothing to show yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawer = _DRAWERS.get(found.name)
    if drawer is None or not _has_results(found):
        return False
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{found.title}\n{title}", fontsize=9)
    drawer(figure, found.data)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return True


def _has_results(found: Findings) -> bool:
    return any(one["runs"] for one in found.data.get("rows", found.data.get("contests", ())))


def _per_cent(row: dict[str, Any]) -> list[float]:
    return [100 * one["accuracy"] for one in row["runs"]]


def _figure4(figure: Any, data: dict[str, Any]) -> None:
    """Accuracy over the share of steps on the subset, a panel for each rate: points for runs, lines through means."""
    panels = figure.subplots(1, len(SCHEDULES), sharey=True)
    for schedule, axes in zip(SCHEDULES, panels, strict=True):
        _splits(axes, [row for row in data["rows"] if row["runs"] and row["schedule"] == schedule])
        axes.set_title(f"{schedule} rate", fontsize=9)
    panels[0].set_ylabel("test accuracy, %")


def _splits(axes: Any, rows: list[dict[str, Any]]) -> None:
    of_full = [row for row in rows if row["name"] == "full only"]
    for name in ("top-activations", "random"):
        line = of_full + [row for row in rows if row["name"] == name]
        axes.plot(*_means(line), color=_COLOURS[name], label=name)
        for row in line:
            axes.scatter([100 * row["share"]] * len(row["runs"]), _per_cent(row), s=9, color=_COLOURS[name])
    for row in rows:
        if row["name"] == "RS2":
            axes.axhline(statistics.mean(_per_cent(row)), linestyle=":", color=_COLOURS["RS2"], label="RS2")
    for name, marker in zip(SUGGESTIONS, "^sDv", strict=True):
        line = [row for row in rows if row["name"] == name]
        if line:
            style = {"facecolors": "none", "edgecolors": "tab:purple", "zorder": 3}
            axes.scatter(*_means(line), marker=marker, label=name, **style)
    axes.set_xlabel("share of the steps on the subset, %")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _means(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [100 * row["share"] for row in rows], [statistics.mean(_per_cent(row)) for row in rows]


def _budget(figure: Any, data: dict[str, Any]) -> None:
    """Training loss against time, a panel for each setting and rate; the legend says the accuracy at the end."""
    settings = list(data["budgets"])
    figure.set_size_inches(9, 8.4)
    panels = figure.subplots(len(SCHEDULES), len(settings), squeeze=False, sharex="col", sharey=True)
    for schedule, of_schedule in zip(SCHEDULES, panels, strict=True):
        for setting, axes in zip(settings, of_schedule, strict=True):
            for one in data["contests"]:
                if (one["setting"], one["schedule"]) == (setting, schedule) and one["runs"]:
                    _losses(axes, one)
            axes.set_title(f"{setting} data, {data['budgets'][setting]:.0f} s, {schedule} rate", fontsize=9)
            axes.set_ylabel("training loss", fontsize=8)
            axes.legend(fontsize=7)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("seconds of training (the selection not counted)", fontsize=8)


def _losses(axes: Any, one: dict[str, Any]) -> None:
    label: str | None = f"{one['name']}: {statistics.mean(one['accuracy_by_sharing']['free']):.1%}"
    for run in one["runs"]:
        times, losses = [point[0] for point in run["curve"]], _smooth([point[1] for point in run["curve"]])
        axes.plot(times, losses, color=_CONTEST_COLOURS[one["name"]], linewidth=1, label=label)
        label = None


def _smooth(values: Sequence[float]) -> list[float]:
    """Return means over the last few points: single batches hide the line."""
    reach = max(1, len(values) // 25)
    return [statistics.mean(values[max(0, end - reach) : end]) for end in range(1, len(values) + 1)]


def _rows(figure: Any, data: dict[str, Any]) -> None:
    """A line for each row, a colour for each rate: a point for each run, a mark at the mean."""
    axes = figure.subplots()
    rows = [row for row in data["rows"] if row["runs"]]
    names = list(dict.fromkeys((row["name"], row["share"]) for row in rows))
    for row in rows:
        number = SCHEDULES.index(row["schedule"])
        height, colour = names.index((row["name"], row["share"])) + 0.3 * number, ("tab:blue", "tab:orange")[number]
        label = f"{row['schedule']} rate" if (row["name"], row["share"]) == names[0] else None
        axes.scatter(_per_cent(row), [height] * len(row["runs"]), s=14, color=colour, label=label)
        axes.scatter(statistics.mean(_per_cent(row)), height, marker="|", s=120, color="black")
    texts = [name + ("" if not share else f", {100 * share:.0f} % on the subset") for name, share in names]
    axes.set_yticks([number + 0.15 for number in range(len(names))], texts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, %")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


_DRAWERS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "figure4": _figure4,
    "budget": _budget,
    "autoencoder": _rows,
    "smaller": _rows,
}
