"""The two phases as a trainer sees them: the gap at the swap, the share of time it waits, the first batch's time."""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastload.augment import Augment
from fastload.bench import data, parts
from fastload.bench.measure import result_of, synchronize, verdict
from fastload.bench.rivals import Outcome
from fastload.loop.loader import TwoPhaseLoader

ROOT = Path(__file__).resolve().parent.parent
STEP_SECONDS = 0.010
MOST_GAPS, MOST_WAITED, MOST_SECONDS = 2.0, 2.0, 1.0
"""What the project promises: a gap in stream phase's median gaps, a wait in percent, a first batch in seconds."""

COLD_SECONDS = 300.0


def swapping(setting: parts.Setting) -> Outcome:
    """Measure CIFAR-10's size: 50,000 images of 32×32×3, a subset of 4,320, batches of 1,024."""
    with tempfile.TemporaryDirectory() as folder:
        full = data.write_noise(Path(folder) / "full.h5", setting.pick(50_000, 64), 32)
        subset = data.write_subset(Path(folder) / "subset.h5", full, setting.pick(4320, 32))
        return _phases(setting, full, subset) + _first_batch(setting, full, subset)


def loader_settings(setting: parts.Setting, steps: int) -> dict[str, Any]:
    """Return TwoPhaseLoader's arguments; the second phase streams, though the full set would fit the device."""
    settings: dict[str, Any] = {
        "batch_size": setting.pick(1024, 8),
        "steps": steps,
        "swap": steps // 2,
        "augment": Augment.paper(24),
        "device": str(setting.device),
        "seed": 0,
    }
    if "resident_budget" in inspect.signature(TwoPhaseLoader).parameters:
        settings["resident_budget"] = 0
    return settings


# -- the swap, and waiting -----------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What a trainer saw in one run: seconds from batch to batch, those of them it waited, and its own step's."""

    gaps: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def _phases(setting: parts.Setting, full: Path, subset: Path) -> Outcome:
    steps = setting.pick(400, 12, 200)
    swap, warm = steps // 2, max(1, steps // 20)  # the first gaps hold the start
    outcome = Outcome()
    with _trainer(setting) as train:
        trainers: dict[str, Callable[[], Any]] = {"no trainer": lambda: None, "10 ms steps": train}
        runs: dict[str, list[_Run]] = {name: [] for name in trainers}
        for number in range(-1, setting.rounds):
            for name, step in trainers.items():
                found = _run(full, subset, loader_settings(setting, steps), step, setting.device)
                if number >= 0:
                    runs[name].append(found)
            if number >= 0 and setting.deadline.left == 0:
                break
    for name, rounds in runs.items():
        usual = [statistics.median(run.gaps[swap + 1 :]) for run in rounds]
        at_swap = [run.gaps[swap] for run in rounds]
        details = {
            "batch": setting.pick(1024, 8),
            "steps": steps,
            "swap": swap,
            "median_gap_fast_ms": _ms(statistics.median(statistics.median(run.gaps[warm:swap]) for run in rounds)),
            "median_gap_stream_ms": _ms(statistics.median(usual)),
            "longest_gap_stream_ms": _ms(statistics.median(max(run.gaps[swap + 1 :]) for run in rounds)),
            "waited_at_swap_ms": _ms(statistics.median(run.waits[swap] for run in rounds)),
            "step_ms": _ms(statistics.median(statistics.median(run.steps) for run in rounds)),
        }
        what = f"gap at the swap, {name}"
        limit = MOST_GAPS * 1e3 * statistics.median(usual)
        outcome.results.append(
            result_of(
                what,
                "ms",
                [1e3 * gap for gap in at_swap],
                limit=limit,
                limit_name="twice the stream's gap",
                details=details,
            )
        )
        ratio = statistics.median(gap / other for gap, other in zip(at_swap, usual, strict=True))
        outcome.notes.append(verdict(f"{what}, in median gaps of the stream phase", ratio, most=MOST_GAPS))
    for phase, part in (("fast", slice(warm, swap)), ("stream", slice(swap, None))):
        shares = [100 * sum(run.waits[part]) / sum(run.gaps[part]) for run in runs["10 ms steps"]]
        what = f"waited, 10 ms steps, {phase} phase"
        trained = {"step": "torch matrix products on one thread, calibrated alone", "steps": len(range(steps)[part])}
        waited = result_of(what, "%", shares, limit=MOST_WAITED, limit_name="target", details=trained)
        outcome.results.append(waited)
        outcome.notes.append(verdict(f"{what}, percent", statistics.median(shares), most=MOST_WAITED))
    return outcome


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _run(full: Path, subset: Path, settings: dict[str, Any], train: Callable[[], Any], device: torch.device) -> _Run:
    """Take all batches; gap `i` lies between batch i - 1 and batch i, and the first one begins with the loader."""
    found = _Run()
    before = time.perf_counter()
    with TwoPhaseLoader(full, subset, **settings) as loader:
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            if next(batches, None) is None:
                return found
            synchronize(device)
            now = time.perf_counter()
            found.waits.append(now - asked)
            found.gaps.append(now - before)
            before = now
            train()
            synchronize(device)
            found.steps.append(time.perf_counter() - now)


@contextmanager
def _trainer(setting: parts.Setting) -> Iterator[Callable[[], float]]:
    """A trainer that computes, not one that sleeps: on a CPU it takes one processor from those that feed it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    side = setting.pick(2048, 32, 192)
    left, right = (torch.rand(side, side, device=setting.device) for _ in range(2))

    def multiply(times: int) -> float:
        synchronize(setting.device)
        began = time.perf_counter()
        for _ in range(times):
            left @ right
        synchronize(setting.device)
        return time.perf_counter() - began

    try:
        multiply(10)
        seconds = STEP_SECONDS if not setting.quick else STEP_SECONDS / 10
        times = max(1, round(20 * seconds / min(multiply(20) for _ in range(5))))
        yield partial(multiply, times)
    finally:
        torch.set_num_threads(threads)


# -- the first batch -----------------------------------------------------------------------------------------------

_SCRIPT = """
import json, sys, time
import torch
from fastload import Augment, TwoPhaseLoader
import fastload.feeds.fused_engine
full, subset, settings = json.loads(sys.argv[1])
settings["augment"] = Augment.paper(settings["augment"])
if settings["device"] != "cpu":
    torch.zeros(1, device=settings["device"])
began = time.perf_counter()
with TwoPhaseLoader(full, subset, **settings) as loader:
    opened = time.perf_counter()
    images, labels = next(iter(loader))
    float(images.sum())
    print(json.dumps([time.perf_counter() - began, opened - began]))
"""


def _first_batch(setting: parts.Setting, full: Path, subset: Path) -> Outcome:
    """Time, in fresh processes, from the imports' end to the first batch, kernels compiled before and not."""
    settings = loader_settings(setting, 200) | {"augment": 24}
    argument = json.dumps([str(full), str(subset), settings])
    with tempfile.TemporaryDirectory() as cache:
        # A rehearsal takes the kernels that are there: compiling takes half a minute.
        variables = {} if setting.quick else {"NUMBA_CACHE_DIR": cache}
        without, _ = _fresh(argument, variables)
        found = [_fresh(argument, variables) for _ in range(setting.rounds)]
    details = {"constructing_s": round(statistics.median(opened for _, opened in found), 3)}
    if not setting.quick:
        details["empty_cache_s"] = round(without, 2)
    what = "first batch after the imports, fresh process"
    one = result_of(what, "s", [first for first, _ in found], limit=MOST_SECONDS, limit_name="target", details=details)
    notes = [verdict(f"{what}, seconds", one.median, most=MOST_SECONDS)]
    if not setting.quick:
        notes.append(f"{what}, with no kernel in Numba's disk cache: {without:.3g} s")
    return Outcome([one], notes)


def _fresh(argument: str, variables: dict[str, str]) -> tuple[float, float]:
    environment = os.environ | variables
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, argument],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COLD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process that times its first batch failed: {done.stderr.strip().splitlines()[-1]}")
    first, opened = json.loads(done.stdout)
    return first, opened
