"""Measuring, in one place: interleaved rounds of contestants beside their limits, and what machine it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fastload import __version__
from fastload.common.device import driver_version
from fastload.common.processors import processors

PACKAGES = (
    "torch",
    "numba",
    "numba-cuda",
    "llvmlite",
    "cuda-core",
    "cuda-bindings",
    "cuda-pathfinder",
    "nvidia-nvvm",
    "nvidia-cuda-nvrtc",
    "nvidia-nvjitlink",
    "numpy",
    "h5py",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
)
_REST = 0.1
"""Seconds for threads that work ahead to come to rest, or they would slow down the limit's measurement."""


class Deadline:
    """A moment after which no new round begins."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, 0 or more."""
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True)
class Contestant:
    """Something whose speed is asked for.

    `run` does `work` units of it (and leaves the device to be synchronized by the caller); `limit`, named `limit_name`,
    does what no implementation can do without, for as many units. `before` comes untimed before each `run`: it takes
    the batches that were made ahead while others ran, which would count as made in no time. Where `inside`, `run`
    and `limit` return the seconds that count, by a clock of their own, such as another process's. A `run` that cannot
    go on raises Withdrawn.
    """

    name: str
    unit: str
    work: float
    run: Callable[[], Any]
    limit: Callable[[], Any] | None = None
    limit_name: str = ""
    before: Callable[[], Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    inside: bool = False


class Withdrawn(Exception):
    """A contestant cannot go on; the race goes on without it and without a result of it."""


@dataclass
class Result:
    """Median speed over rounds, with the spread (quartile distance over the median) and the share of the limit.

    `ratio`: how many times as fast the contestant named `against` was, the median of the rounds' ratios.
    """

    name: str
    unit: str
    median: float
    spread: float
    rounds: list[float]
    limit_name: str = ""
    limit: float | None = None
    of_limit: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    against: str = ""
    ratio: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def synchronize(device: torch.device) -> None:
    """Wait for all that the device has queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Time one call, the device's queue empty before and after."""
    synchronize(device)
    began = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - began


def with_cpu_time(one: Contestant) -> Contestant:
    """Return it so that its details say how many ms of this process's CPU time, of all threads, an image took.

    The median of the runs so far. Of a contestant in this process, while the others in it rest, and not `inside`.
    """
    spent: list[float] = []

    def run() -> None:
        began = time.process_time()
        one.run()
        spent.append((time.process_time() - began) / one.work)
        one.details["cpu_ms_per_image"] = round(1e3 * statistics.median(spent), 4)

    return replace(one, run=run)


def race(
    contestants: Sequence[Contestant], device: torch.device, *, rounds: int = 5, deadline: Deadline | None = None
) -> list[Result]:
    """Time the contestants and their limits in turn, `rounds` times after one that does not count.

    Interleaved, so that what disturbs the machine disturbs all alike. Past the deadline the rounds so far count.
    """
    times: dict[str, list[float]] = {one.name: [] for one in contestants}
    limits: dict[str, list[float]] = {one.name: [] for one in contestants}
    running = list(contestants)
    for number in range(-1, rounds):
        for one in tuple(running):
            time.sleep(_REST)
            bound = _timed(one, one.limit, device) if one.limit is not None else None
            if one.before is not None:
                one.before()
            try:
                taken = _timed(one, one.run, device)
            except Withdrawn:
                running.remove(one)
                continue
            if number >= 0:
                times[one.name].append(taken)
                if bound is not None:
                    limits[one.name].append(bound)
        if number >= 0 and deadline is not None and deadline.left == 0:
            break
    return [_result(one, times[one.name], limits[one.name]) for one in running]


def _timed(one: Contestant, function: Callable[[], Any], device: torch.device) -> float:
    return function() if one.inside else seconds_of(function, device)


def compare(results: Sequence[Result], name: str) -> None:
    """Set each other result's `ratio` to the one of that name, round by round: what disturbs a round disturbs both."""
    reference = next((one for one in results if one.name == name), None)
    for one in results:
        if reference is not None and one is not reference:
            one.against, one.ratio = name, ratio_of(reference, one)


def ratio_of(one: Result, other: Result) -> float:
    """Return how many times as fast `one` was as `other`, the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(one.rounds, other.rounds, strict=True))


def result_of(name: str, unit: str, rounds: list[float], **settings: Any) -> Result:
    """Return the result of measured rounds; a `limit` among the settings gives the share of it."""
    median = statistics.median(rounds)
    quartiles = statistics.quantiles(rounds, n=4) if len(rounds) > 1 else [median] * 3
    found = Result(name, unit, median, (quartiles[2] - quartiles[0]) / median, rounds, **settings)
    found.of_limit = median / found.limit if found.limit else None
    return found


def verdict(what: str, found: float, *, least: float | None = None, most: float | None = None) -> str:
    """Return a target, what was found, and whether the one was met: at least `least`, or at most `most`."""
    met = (least is None or found >= least) and (most is None or found <= most)
    target = f"at least {least:g}" if least is not None else f"at most {most:g}"
    return f"target: {what}: {found:.3g}, {target} was wanted: {'met' if met else 'NOT met'}"


def _result(one: Contestant, times: list[float], limits: list[float]) -> Result:
    speeds = [one.work / taken for taken in times]
    if not limits:
        return result_of(one.name, one.unit, speeds, details=one.details)
    limit = one.work / statistics.median(limits)
    return result_of(one.name, one.unit, speeds, details=one.details, limit_name=one.limit_name, limit=limit)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured on, as plain values."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": processors(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
        }
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of what the figures depend on."""
    found = {"python": sys.version.split()[0], "fastload": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def print_table(results: Sequence[Result], title: str) -> None:
    """Print results as a table that a person can read."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("what")
    compared = any(one.ratio is not None for one in results)
    for name in ("speed", "spread", "limit", "of limit", *(["ours is"] if compared else [])):
        table.add_column(name, justify="right")
    for one in results:
        limit = f"{_number(one.limit)} ({one.limit_name})" if one.limit is not None else "–"
        share = f"{one.of_limit:.1%}" if one.of_limit is not None else "–"
        ratio = [f"{one.ratio:.3g}× as fast" if one.ratio is not None else ""] if compared else []
        table.add_row(one.name, f"{_number(one.median)} {one.unit}", f"±{one.spread / 2:.0%}", limit, share, *ratio)
    console = Console()
    # A log has no width: the table must not be cut there.
    console = console if console.is_terminal else Console(width=140)
    console.print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def describe(found: dict[str, Any]) -> str:
    """Return the machine in one line."""
    gpu = f"{found['gpu']} (driver {found['driver']}), " if "gpu" in found else ""
    return f"{gpu}{found['cpu']}, {found['cores']} cores, {found['memory_gb']:.0f} GB"
