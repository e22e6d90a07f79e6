"""A bar chart of results, written to a picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastload.bench.measure import Result
from fastload.common.install import install_command
from fastload.errors import UsageError


def require_matplotlib() -> None:
    """Raise UsageError where there is no matplotlib: to be asked before the measuring, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--plot needs matplotlib, which is not installed: {install_command('plot')}") from error


def plot(results: Sequence[Result], path: Path, title: str) -> None:
    """Write one panel a unit: a bar a result, on a logarithmic scale, with its speed, and a mark at its limit."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(one.unit for one in results))
    groups = [[one for one in results if one.unit == unit] for unit in units]
    figure = Figure(figsize=(10, 1.2 + sum(0.32 * len(group) + 0.9 for group in groups)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(group) + 1 for group in groups])[:, 0]
    figure.suptitle(title, fontsize=10)
    for axis, group, unit in zip(axes, groups, units, strict=True):
        _draw(axis, group, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw(axis, group: Sequence[Result], unit: str) -> None:
    places = range(len(group))
    speeds = [one.median for one in group]
    errors = [one.spread / 2 * one.median for one in group]
    colours = ["tab:grey" if one.ratio is not None else "tab:blue" for one in group]
    axis.barh(places, speeds, xerr=errors, color=colours, height=0.65)
    left = axis.get_yaxis_transform()
    for place, one in zip(places, group, strict=True):
        speed = f"{one.median:,.0f}" if one.median >= 1000 else f"{one.median:.3g}"
        axis.text(0.008, place, speed, transform=left, va="center", fontsize=7, color="white")
        if one.ratio is not None:
            end = (one.median * (1 + one.spread / 2), place)
            text = f"ours is {one.ratio:.3g}× as fast"
            axis.annotate(text, end, xytext=(5, 0), textcoords="offset points", va="center", fontsize=7)
        if one.limit is not None:
            axis.plot([one.limit] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.5)
    axis.set_yticks(list(places), [one.name for one in group], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    lowest = min(speeds)
    highest = max(max(speeds), *(one.limit or 0 for one in group), 2 * lowest)
    axis.set_xlim(lowest / 8, highest * 1.5)
    axis.set_xlabel(f"{unit}, logarithmic; black: the limit", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
