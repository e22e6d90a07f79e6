"""What a run's phases cost, also as scalars for a writer, and what to change where training waits for data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from fastload.errors import UsageError
from fastload.loop.run_state import Spent

WAITS = 0.1
"""The share of time spent waiting above which `stats()` says what to change."""


def phase_stats(spent: Spent, *, feed: str, fill: float, batch_size: int, sample_bytes: float) -> dict[str, Any]:
    """Return what a phase has cost so far; see `TwoPhaseLoader.stats`.

    Arguments:
        spent: what the phase has cost.
        feed: "resident", "rolling", "stream", or "" where it has not been opened.
        fill: how full the batches made ahead were, 0 to 1.
        batch_size: images a batch.
        sample_bytes: what is read of files for each sample that is served, on average.
    """
    images = spent.batches * batch_size
    rate = images / spent.seconds if spent.seconds else 0.0
    return {
        "feed": feed,
        "batches": spent.batches,
        "images": images,
        "seconds": spent.seconds,
        "images_per_second": rate,
        "waited": spent.waited / spent.seconds if spent.seconds else 0.0,
        "read_bytes_per_second": rate * sample_bytes,
        "ring_fill": fill,
    }


def advice(stats: dict[str, Any], *, encoded: bool, engine: str, shuffle: object, size: int, free: int | None) -> str:
    """Return in a sentence what to change where training waits for data, or "".

    Arguments:
        stats: of one phase.
        encoded: whether its file holds encoded images.
        engine: "fused" or "dali".
        shuffle: the loader's.
        size: of the file's images, in bytes.
        free: memory that the device has to spare, in bytes; None where unknown.
    """
    if stats["waited"] <= WAITS or not stats["batches"]:
        return ""
    waits = f"training waits for data {stats['waited']:.0%} of the time: "
    if stats["feed"] == "rolling":
        return (
            f"{waits}its pool is renewed at refill={stats['refill']:.3g} of a batch a step, and samples arrive at "
            f'{stats["arrivals_per_second"]:,.0f} a second at most; give a smaller refill=, or "auto"'
        )
    if stats["feed"] == "stream" and not encoded and shuffle != "block" and free is not None and size < free:
        return f"{waits}the set takes {size / 1e6:,.0f} MB and would fit the device; give resident_budget={size}"
    if encoded:
        return f"{waits}decoding sets the pace; pack the images raw, resized once (resize=S)"
    if engine == "dali":
        return f'{waits}engine="fused" is faster for raw files'
    if stats["ring_fill"] > 0.5:
        return f"{waits}batches stand ready half of the time but not when they are needed; give a larger prefetch="
    if stats["feed"] == "stream" and shuffle is True:
        return (
            f'{waits}if the file is larger than memory, shuffle="block" reads nearly in sequence (pack it with '
            'order="shuffled"); if it is not, more processors help, or fewer torch threads'
        )
    return f"{waits}more processors help, or fewer torch threads (torch.set_num_threads), or a smaller crop"


Write = Callable[[Mapping[str, float], int], Any]
"""Takes the scalars of a step, by tag, and the step."""


class ScalarLog:
    """Writes what changed since the last time, each `every` steps. What the writer raises is a warning, once."""

    def __init__(self, writer: Any, every: int, prefix: str) -> None:
        self._write, self._every, self._prefix = _write_to(writer, prefix), every, prefix
        self._before: dict[str, dict[str, Any]] = {}
        self._logged: int | None = None
        self._failed = False

    def step(self, step: int, phase: int, stats: dict[str, dict[str, Any]]) -> None:
        """Write the scalars at `step`; `stats` is the loader's, `phase` 0 for fast and 1 for fine-tune."""
        if step == self._logged:  # logged before an interrupt, after which the same batch is asked for again
            return
        self._logged, name = step, list(stats)[phase]
        now, before = stats[name], self._before.get(name, {"images": 0, "seconds": 0.0, "waited_seconds": 0.0})
        waited = now["waited"] * now["seconds"]
        seconds = now["seconds"] - before["seconds"]
        self._before[name] = {"images": now["images"], "seconds": now["seconds"], "waited_seconds": waited}
        if seconds <= 0:
            return
        rate = (now["images"] - before["images"]) / seconds
        values = {
            "phase": phase,
            "images_per_second": rate,
            "waited": (waited - before["waited_seconds"]) / seconds,
            "ring_fill": now["ring_fill"],
        }
        if now["images_per_second"]:
            values["read_mb_per_second"] = now["read_bytes_per_second"] / now["images_per_second"] * rate / 1e6
        try:
            self._write({f"{self._prefix}/{tag}": value for tag, value in values.items()}, step)
        except Exception as error:
            if not self._failed:
                self._failed = True
                warnings.warn(
                    f"log_to(): the writer has failed at step {step:,} ({type(error).__name__}: {error}), and the run "
                    "goes on without what it should have written",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def begin_again(self, from_nothing: bool) -> None:
        """Write the scalars of a step again that have been written: the run has gone to another place.

        `from_nothing`: and its costs count from 0 again.
        """
        self._logged = None
        if from_nothing:
            self._before = {}

    def due(self, step: int) -> bool:
        return step % self._every == 0


def _write_to(writer: Any, prefix: str) -> Write:
    """Return how scalars are given to a writer of any of the kinds that `TwoPhaseLoader.log_to` names."""
    add_scalar, log = getattr(writer, "add_scalar", None), getattr(writer, "log", None)
    define_metric = getattr(writer, "define_metric", None)
    if callable(add_scalar):

        def add(values: Mapping[str, float], step: int) -> None:
            for tag, value in values.items():
                add_scalar(tag, value, step)

        return add
    if callable(log) and callable(define_metric):
        # W&B counts steps of its own, and drops what is logged for an earlier one: ours is a scalar, and the axis.
        define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
        return lambda values, step: log({**values, f"{prefix}/step": step})
    if callable(log) and not isinstance(writer, logging.Logger):
        return lambda values, step: log(dict(values), step=step)
    if callable(writer):
        return lambda values, step: writer(dict(values), step)
    raise UsageError(
        f"log_to({writer!r}): it takes a SummaryWriter or another object with add_scalar(), a run of W&B or another "
        "object with log(scalars, step=…), or a function of (scalars, step)"
    )
