"""Trainings that end after so many seconds, on data that is cheap or dear to feed: two phases and the rivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastload.bench.measure import synchronize
from fastload.bench.paper.chosen_rows_feed import ChosenRowsFeed
from fastload.bench.paper.fresh_subsets import FreshFeed, FreshSubsets
from fastload.bench.paper.infobatch import InfoBatch
from fastload.bench.paper.scale import SIZE
from fastload.bench.paper.subsets import Subset
from fastload.bench.paper.throttle import Throttle
from fastload.bench.paper.trainee import Trainee, learning_rate, rehearse
from fastload.bench.paper.workplace import AUGMENT, Workplace
from fastload.errors import UsageError
from fastload.feeds.batch import Batch, Output
from fastload.feeds.feed import run_feed
from fastload.loop.loader import TwoPhaseLoader
from fastload.subset.size import parse_size

FULL, RESIDENT, RS2, INFOBATCH = "full only", "everything resident", "RS2", "InfoBatch"
TWO_PHASE = "two-phase"
_ENDLESS = 2**40
_SYNC_STEPS = {"cpu": 1, "cuda": 8}
"""On a GPU steps are queued; the clock is read when they are done, and not at each, which would slow it down."""

_CURVE_POINTS = 200

_MARGIN_SECONDS = 15.0


@dataclass(frozen=True)
class TimedRun:
    """One training of `budget` seconds.

    `rival`: FULL, RESIDENT, RS2, INFOBATCH or TWO_PHASE, which trains `swap` steps on `subset` first. `rate`: images/s
    that the stream of the full set delivers at most, None where data is cheap. `marks`: seconds of training after
    which it is tested, rising, the last one the budget itself. `schedule`: of the rate; a decaying one is 0 when the
    budget ends, by the clock, so that a rival whose steps are slower ends at 0 too.
    """

    rival: str
    seed: int
    budget: float
    rate: float | None = None
    marks: tuple[float, ...] = ()
    subset: Subset | None = None
    swap: int = 0
    schedule: str = "constant"

    def settings(self, place: Workplace) -> dict[str, Any]:
        """Return all that decides the result."""
        return {
            **place.identity,
            "batch": place.scale.batch,
            "rival": self.rival,
            "seed": self.seed,
            "budget": self.budget,
            "rate": self.rate,
            "marks": list(self.marks),
            "subset": None if self.subset is None else self.subset.fingerprint,
            "swap": self.swap,
            "schedule": self.schedule,
        }


@dataclass(frozen=True)
class Timed:
    """What came of it: accuracy at each mark, steps, distinct samples, epochs, and the loss over time, [seconds, loss].

    `pruned`: the share of samples that InfoBatch left out, of all its epochs that were begun.
    """

    accuracies: Sequence[float]
    steps: int
    distinct: int
    curve: Sequence[Sequence[float]] = field(default_factory=list)
    pruned: float | None = None


class Delivered(NamedTuple):
    """A batch: images, labels, ids, the factors of its losses, whom to tell the losses, whether it was streamed."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor | None = None
    learn: Callable[[torch.Tensor], None] | None = None
    streamed: bool = False


def _delivered(
    batch: Batch, weights: torch.Tensor | None = None, learn: Callable[[torch.Tensor], None] | None = None
) -> Delivered:
    """Return a batch that was streamed."""
    assert batch.labels is not None  # Workplace takes labelled files only
    return Delivered(batch.images, batch.labels, batch.ids, weights, learn, streamed=True)


class _Clock:
    """Seconds of training: what testing takes does not count."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        synchronize(device)
        self._began = time.perf_counter()

    def read(self) -> float:
        return time.perf_counter() - self._began

    def without(self, work: Callable[[], float]) -> float:
        """Do something while the clock stands still."""
        synchronize(self._device)
        began = time.perf_counter()
        result = work()
        self._began += time.perf_counter() - began
        return result


def train_for(place: Workplace, run: TimedRun) -> Timed:
    """Return the result of a timed run, trained now where it is not known yet. Raises OutOfTime."""
    settings = run.settings(place)
    found = place.state.find("timed", settings)
    if found is None:
        needed = run.budget + _MARGIN_SECONDS  # what is timed cannot be interrupted and go on
        if needed > place.options.seconds:
            raise UsageError(f"--minutes is too short: a run of a fixed budget takes {needed / 60:.1f} minutes at a go")
        place.check_time(needed)
        found = vars(_train_for(place, run))
        place.state.record("timed", settings, found)
    return Timed(**found)


def _train_for(place: Workplace, run: TimedRun) -> Timed:
    trainee, device = Trainee(place, run.seed), place.device
    rehearse(place)
    seen, by_id = np.zeros(len(place.full), bool), np.argsort(place.full.ids, kind="stable")
    accuracies: list[float] = []
    curve: list[tuple[float, float]] = []
    pending: list[tuple[torch.Tensor, torch.Tensor]] = []
    clock_of: list[_Clock] = []
    rival = _RivalBatches(place, run, lambda: clock_of[0].read() / run.budget if clock_of else 0.0)
    steps = 0
    try:
        batches = rival.batches()
        clock = _Clock(device)
        clock_of.append(clock)
        for batch in batches:
            if steps % _SYNC_STEPS[device.type] == 0:
                synchronize(device)
                now = clock.read()
                _flush(pending, curve, now, seen, place, by_id)
                while len(accuracies) < len(run.marks) and now >= run.marks[len(accuracies)]:
                    accuracies.append(clock.without(trainee.accuracy))
                if now >= run.budget:
                    break
            losses = trainee.step(
                batch.images, batch.labels, learning_rate(run.schedule, now / run.budget), batch.weights
            )
            pending.append((losses.mean(), batch.ids))
            steps += 1
            if batch.learn is not None:
                batch.learn(losses)
    finally:
        rival.close()
    return Timed(accuracies, steps, int(seen.sum()), _thinned(curve), rival.pruned)


def _thinned(curve: list[tuple[float, float]]) -> list[list[float]]:
    """Return a curve of no more points than a plot needs, each the mean of its neighbours."""
    parts = np.array_split(np.array(curve).reshape(-1, 2), max(1, min(_CURVE_POINTS, len(curve))))
    return [[round(float(part[-1, 0]), 4), float(part[:, 1].mean())] for part in parts if len(part)]


def _flush(
    pending: list[tuple[torch.Tensor, torch.Tensor]],
    curve: list[tuple[float, float]],
    now: float,
    seen: np.ndarray,
    place: Workplace,
    by_id: np.ndarray,
) -> None:
    """Note the losses and the samples of the steps that are done."""
    if not pending:
        return
    curve.append((round(now, 4), float(torch.stack([loss for loss, _ in pending]).mean())))
    ids = torch.cat([ids for _, ids in pending]).cpu().numpy()
    seen[by_id[np.searchsorted(place.full.ids, ids, sorter=by_id)]] = True
    pending.clear()


def _learn(rule: InfoBatch, rows: np.ndarray, losses: torch.Tensor) -> None:
    rule.learn(rows, losses.cpu().numpy())


class _RivalBatches:
    """A rival's batches without end; where data is dear, those of the full set's stream come late."""

    def __init__(self, place: Workplace, run: TimedRun, progress: Callable[[], float]) -> None:
        self._place, self._run, self._progress = place, run, progress
        self._output = Output(place.scale.batch, place.device, memory_format=torch.channels_last)
        self._closing: list[Callable[[], None]] = []
        self._kept = self._offered = 0

    @property
    def pruned(self) -> float | None:
        """The share of samples that were left out of the epochs begun; None where the rival leaves none out."""
        if self._run.rival != INFOBATCH:
            return None
        return 1 - self._kept / self._offered if self._offered else 0.0

    def batches(self) -> Iterator[Delivered]:
        """Open what is needed, and return the batches."""
        openers = {INFOBATCH: self._infobatch, RS2: self._fresh}
        return self._late(openers.get(self._run.rival, self._loaded)())

    def close(self) -> None:
        for close in reversed(self._closing):
            close()

    def _late(self, batches: Iterator[Delivered]) -> Iterator[Delivered]:
        # Begun with the training: by its swap a two-phase stream is warm, as TwoPhaseLoader's is.
        rate = self._run.rate
        throttle = None if rate is None else Throttle(rate, 2 * self._output.batch_size)
        for batch in batches:
            if throttle is not None and batch.streamed:
                throttle.wait(len(batch.labels))
            yield batch

    def _loaded(self) -> Iterator[Delivered]:
        """Full only, everything resident, two-phase: TwoPhaseLoader as it is."""
        run, place = self._run, self._place
        resident = run.rival == RESIDENT
        swap = _ENDLESS if resident else run.swap
        subset = place.full.path if resident else run.subset.path if run.subset is not None and swap else None
        loader = TwoPhaseLoader(
            None if resident else place.full.path,
            subset,
            batch_size=place.scale.batch,
            steps=_ENDLESS,
            swap=swap,
            augment=AUGMENT,
            device=place.device,
            memory_format=torch.channels_last,
            seed=run.seed,
            with_ids=True,
        )
        self._closing.append(loader.close)

        def batches() -> Iterator[Delivered]:
            for images, labels, ids in loader:
                # What is to be resident comes through the stream once: training goes on meanwhile.
                first_epoch = resident and loader.step * place.scale.batch <= len(place.full)
                yield Delivered(images, labels, ids, streamed=first_epoch or loader.phase == "fine-tune")

        return batches()

    def _fresh(self) -> Iterator[Delivered]:
        full, batch = self._place.full, self._place.scale.batch
        subsets = FreshSubsets(len(full), parse_size(SIZE, len(full)), self._run.seed)
        feed = FreshFeed(full, AUGMENT, subsets, self._output)
        stream = run_feed(feed, lambda step: (step * batch, batch), 0, _ENDLESS, self._place.device)
        self._closing.append(stream.close)
        return (_delivered(batch) for batch in stream)

    def _infobatch(self) -> Iterator[Delivered]:
        feed = ChosenRowsFeed(self._place.full, AUGMENT, self._output, self._run.seed)
        self._closing.append(feed.close)
        rule = InfoBatch(len(self._place.full), self._run.seed)

        def batches() -> Generator[Delivered, None, None]:
            while True:
                rows, weights = rule.next_epoch(self._progress())
                self._offered += len(rule.losses)
                self._kept += len(rows)
                factors = torch.from_numpy(weights).to(self._place.device)
                for batch, which in feed.epoch(rows):
                    learn = partial(_learn, rule, rows[which])
                    yield _delivered(batch, factors[which], learn)

        generator = batches()
        self._closing.append(generator.close)
        return generator
