"""The experiments' plots, with matplotlib: one function draws each experiment's, from its plain data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastload.bench.paper.findings import Findings

_COLOURS = {"top-activations": "tab:blue", "random": "tab:orange", "RS2": "tab:green", "full only": "black"}
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
    """Accuracy over the share of steps on the subset: points for runs, lines through means."""
    axes = figure.subplots()
    rows = [row for row in data["rows"] if row["runs"]]
    for name in ("top-activations", "random"):
        of_full = [row for row in rows if row["name"] == "full only"]
        line = of_full + [row for row in rows if row["name"] == name]
        axes.plot(
            [100 * row["share"] for row in line],
            [statistics.mean(_per_cent(row)) for row in line],
            color=_COLOURS[name],
            label=name,
        )
        for row in line:
            axes.scatter([100 * row["share"]] * len(row["runs"]), _per_cent(row), s=9, color=_COLOURS[name])
    for row in rows:
        if row["name"] in ("RS2", "full only, decaying rate"):
            style = ":" if row["name"] == "RS2" else "--"
            axes.axhline(statistics.mean(_per_cent(row)), linestyle=style, color="grey", label=row["name"])
    markers = dict(zip(("combinations", "kmeans", "pca", "penalized"), "^sDv", strict=True))
    for name, marker in markers.items():
        line = [row for row in rows if row["name"] == name]
        if line:
            axes.scatter(
                [100 * row["share"] for row in line],
                [statistics.mean(_per_cent(row)) for row in line],
                marker=marker,
                facecolors="none",
                edgecolors="tab:purple",
                label=name,
                zorder=3,
            )
    axes.set_xlabel("share of the steps on the subset, %")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _budget(figure: Any, data: dict[str, Any]) -> None:
    """Training loss against time, a panel for each setting; the legend says the accuracy at the end."""
    settings = list(data["budgets"])
    for setting, axes in zip(settings, figure.subplots(1, len(settings), squeeze=False, sharey=True)[0], strict=True):
        for one in data["contests"]:
            if one["setting"] != setting or not one["runs"]:
                continue
            accuracy = statistics.mean(one["accuracy_by_sharing"]["free"])
            label: str | None = f"{one['name']}: {accuracy:.1%}"
            for run in one["runs"]:
                times, losses = [point[0] for point in run["curve"]], _smooth([point[1] for point in run["curve"]])
                axes.plot(times, losses, color=_CONTEST_COLOURS[one["name"]], linewidth=1, label=label)
                label = None
        axes.set_title(f"{setting} data, {data['budgets'][setting]:.0f} s", fontsize=9)
        axes.set_xlabel("seconds of training (the selection not counted)", fontsize=8)
        axes.set_ylabel("training loss", fontsize=8)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return means over the last few points: single batches hide the line."""
    reach = max(1, len(values) // 25)
    return [statistics.mean(values[max(0, end - reach) : end]) for end in range(1, len(values) + 1)]


def _rows(figure: Any, data: dict[str, Any]) -> None:
    """A line for each row: a point for each run, a mark at the mean."""
    axes = figure.subplots()
    rows = [row for row in data["rows"] if row["runs"]]
    for place, row in enumerate(rows):
        axes.scatter(_per_cent(row), [place] * len(row["runs"]), s=14, color="tab:blue")
        axes.scatter(statistics.mean(_per_cent(row)), place, marker="|", s=180, color="black")
    names = [
        row["name"] + ("" if row["share"] in (None, 0.0) else f", {100 * row['share']:.0f} % on the subset")
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, %")
    axes.grid(alpha=0.3)


_DRAWERS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "figure4": _figure4,
    "budget": _budget,
    "autoencoder": _rows,
    "recipe": _rows,
    "smaller": _rows,
}
