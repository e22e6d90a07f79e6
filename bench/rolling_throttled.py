"""Rolling pools whose full set arrives slowly: a trainer that must not wait.

The rate is throttled where samples are read and decoded, `DecodedSource.fetch`, whatever the files are.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastload.augment import Augment
from fastload.bench import data, parts
from fastload.bench.measure import result_of, verdict
from fastload.bench.paper.throttle import Throttle
from fastload.bench.rivals import Outcome
from fastload.classifier import SIDE
from fastload.feeds.decoded_source import DecodedSource
from fastload.loop.advice import MARGIN
from fastload.loop.loader import TwoPhaseLoader

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""The stream's rate as a share of the trainer's."""

STEP_SECONDS = 0.100
MOST_WAITED = 2.0
"""What the project promises, in percent."""

FIRST_STEPS = 10
"""Steps whose waiting does not count: the first batch must arrive before there is any."""


@dataclass
class Meter:
    """How many samples were read."""

    samples: int = 0


@contextmanager
def throttled(rate: float) -> Iterator[Meter]:
    """Have samples arrive in rolling pools at no more than so many a second, over all threads, while this lasts."""
    turn, fetch, pauses, meter = threading.Lock(), DecodedSource.fetch, list[float](), Meter()
    throttle = Throttle(rate, 0, sleep=pauses.append)

    def slow(source: DecodedSource, rows: np.ndarray, out: np.ndarray, starts: np.ndarray) -> None:
        with turn:  # they sleep outside of it: who waits for a lock can be overtaken
            throttle.wait(len(rows))
            meter.samples += len(rows)
            pause = sum(pauses)
            pauses.clear()
        time.sleep(pause)
        fetch(source, rows, out, starts)

    DecodedSource.fetch = slow  # type: ignore[method-assign, assignment]
    try:
        yield meter
    finally:
        DecodedSource.fetch = fetch  # type: ignore[method-assign]


def stalls(setting: parts.Setting) -> Outcome:
    """The share of time that a trainer waits which sleeps in each step, with a stream at a share of its rate."""
    batch, steps = setting.pick(128, 8), setting.pick(100, 15)
    trainer = batch / STEP_SECONDS
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        full = data.write_noise(Path(folder) / "full.h5", setting.pick(50_000, 256), 32)
        loading: dict[str, Any] = {"pool": setting.pick(4096, 64), "batch_size": batch, "steps": steps}
        loading |= {"augment": Augment.paper(SIDE), "device": setting.device}
        with TwoPhaseLoader(full, refill=1 / 8, **loading) as loader:
            next(iter(loader))  # compiles what there is to compile
        subset = data.write_subset(Path(folder) / "subset.h5", full, loading["pool"])
        with TwoPhaseLoader(full, subset, swap=1.0, **{**loading, "pool": None}) as loader:
            _, waits, gaps = _sleeping(loader)
        still = 100 * sum(waits[FIRST_STEPS:]) / sum(gaps[FIRST_STEPS:])
        outcome.results.append(result_of("waited, a set that stays as it is", "%", [still]))
        for share in SHARES:
            with throttled(share * trainer), TwoPhaseLoader(full, refill=MARGIN * share, **loading) as loader:
                first, waits, gaps = _sleeping(loader)
                stats = loader.stats()["fast"]
            waited = 100 * sum(waits[FIRST_STEPS:]) / sum(gaps[FIRST_STEPS:])
            name = f"waited, stream at 1/{round(1 / share)} of the trainer's rate"
            details = {
                "batch": batch,
                "steps": steps,
                "step_ms": 1e3 * STEP_SECONDS,
                "refill": round(MARGIN * share, 5),
                "first_batch_s": round(first, 3),
                "first_batch_arrives_s": round(batch / (share * trainer), 3),
                "longest_wait_ms": round(1e3 * max(waits[FIRST_STEPS:]), 2),
                "stats": {key: value for key, value in stats.items() if isinstance(value, int | float)},
            }
            outcome.results.append(
                result_of(name, "%", [waited], limit=MOST_WAITED, limit_name="target", details=details)
            )
            outcome.notes.append(verdict(f"{name}, percent", waited, most=MOST_WAITED))
            outcome.notes.append(
                f"{name}: first batch after {first:.3g} s, of which {batch / (share * trainer):.3g} s for its arrival"
            )
    return outcome


def _sleeping(loader: Iterable[Any]) -> tuple[float, list[float], list[float]]:
    """Return the seconds to the first batch, those that each batch was waited for, and those from batch to batch."""
    waits, gaps = list[float](), list[float]()
    before = asked = time.perf_counter()
    for _ in loader:
        now = time.perf_counter()
        waits.append(now - asked)
        gaps.append(now - before)
        before = now
        time.sleep(STEP_SECONDS)
        asked = time.perf_counter()
    return waits[0], waits, gaps
