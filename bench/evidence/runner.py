"""Train cells in several processes: first to choose each one's rate on what is held out, then with its seeds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from fastload.bench.evidence.choices import choose
from fastload.bench.evidence.scale import Scale
from fastload.bench.evidence.sets import ImageSet
from fastload.bench.evidence.training import Cell, Run, Trained, train
from fastload.bench.evidence.workplace import SetPlace
from fastload.bench.measure import Deadline
from fastload.common.processors import processors

_TUNING_SEED = 1000
"""Added to the seeds on which rates are chosen: no training that counts has one of them."""


class OutOfTime(Exception):
    """The time was up; what is done is kept, and the same command goes on."""


@dataclass(frozen=True)
class Found:
    """What came of a cell.

    Arguments:
        cell: the cell.
        rate: that was chosen.
        held_out: mean accuracy on what was held out, by rate.
        runs: by seed, in their order.
    """

    cell: Cell
    rate: float
    held_out: dict[float, float]
    runs: tuple[Trained, ...]


@dataclass(frozen=True)
class Work:
    """A cell that is to be trained with so many seeds."""

    cell: Cell
    seeds: int


class Runner:
    """Processes that train, each on its share of the processors; in this process where there is one of them.

    Arguments:
        sets: the sets of images by name.
        scale: of the evidence.
        device: to train on.
        folder: where results are kept.
        workers: processes.
        deadline: after which nothing more begins.
        say: prints a line.
    """

    def __init__(
        self,
        sets: dict[str, ImageSet],
        scale: Scale,
        device: torch.device,
        folder: Path,
        workers: int,
        deadline: Deadline,
        say: Callable[[str], None],
    ) -> None:
        self.scale, self._deadline, self._say = scale, deadline, say
        self._places = _Places(sets, scale, device, folder)
        threads = max(1, processors() // workers)
        self._pool = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, _begin, (self._places, threads))
        self._done = self._new = 0

    def place(self, name: str) -> SetPlace:
        """Return this process's own view of a set."""
        return self._places.of(name)

    def cells(self, works: Iterable[Work]) -> list[Found]:
        """Return what came of cells, in their order. Raises OutOfTime."""
        works = list(works)
        rates, tuning = self.scale.rates, self.scale.tuning_seeds
        for cell in sorted({(work.cell.set, work.cell.chooser or "random", work.cell.pool) for work in works}):
            self._choose(*cell)
        tunings = [
            Run(work.cell, rate, _TUNING_SEED + seed, tuning=True)
            for work in works
            for rate in rates
            for seed in range(tuning)
        ]
        results = iter(self._trained(tunings))
        found = [{rate: _mean([next(results) for _ in range(tuning)]) for rate in rates} for _ in works]
        best = [max(rates, key=held_out.__getitem__) for held_out in found]
        finals = [
            Run(work.cell, rate, seed) for work, rate in zip(works, best, strict=True) for seed in range(work.seeds)
        ]
        results = iter(self._trained(finals))
        return [
            Found(work.cell, rate, held_out, tuple(next(results) for _ in range(work.seeds)))
            for work, rate, held_out in zip(works, best, found, strict=True)
        ]

    def _choose(self, name: str, strategy: str, pool: float) -> None:
        """Have a strategy choose before processes ask for it, each by itself."""
        for tuning in (True, False) if strategy != "random" else ():
            if self._deadline.left == 0:
                raise OutOfTime
            choose(self.place(name), strategy, pool, tuning, 0)

    def _trained(self, runs: Sequence[Run]) -> list[Trained]:
        """Return what came of trainings, in their order."""
        results: dict[int, Trained] = {}
        began = time.monotonic()
        if self._pool is None:
            for number, run in enumerate(runs):
                if self._deadline.left == 0:
                    raise OutOfTime
                results[number] = train(self.place(run.cell.set), run)
            return list(results.values())
        waiting = iter(enumerate(runs))
        running: dict[Future[Trained], int] = {}
        ended = False
        while True:
            while not ended and len(running) < 2 * self._pool._max_workers:
                if self._deadline.left == 0:
                    ended = True
                    break
                following = next(waiting, None)
                if following is None:
                    ended = True
                    break
                running[self._pool.submit(_train_here, following[1])] = following[0]
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                results[running.pop(future)] = future.result()
                if len(results) % 50 == 0:
                    self._say(f"  {len(results)} of {len(runs)} trainings, {time.monotonic() - began:,.0f} s")
        if len(results) < len(runs):
            raise OutOfTime
        return [results[number] for number in range(len(runs))]

    def close(self) -> None:
        """Let the processes go, after what they are at."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._places.close()


def _mean(runs: Sequence[Trained]) -> float:
    return sum(run.accuracy for run in runs) / len(runs)


class _Places:
    """Views of sets, opened when they are first asked for; what is pickled is how to open them."""

    def __init__(self, sets: dict[str, ImageSet], scale: Scale, device: torch.device, folder: Path) -> None:
        self._how = sets, scale, device, folder
        self._open: dict[str, SetPlace] = {}

    def of(self, name: str) -> SetPlace:
        sets, *rest = self._how
        if name not in self._open:
            self._open[name] = SetPlace(sets[name], *rest)
        return self._open[name]

    def close(self) -> None:
        for place in self._open.values():
            place.close()
        self._open.clear()

    def __getstate__(self) -> dict[str, object]:
        return {"_how": self._how, "_open": {}}


_here: _Places | None = None
"""Of a process that trains."""


def _begin(places: _Places, threads: int) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    os.environ["NUMBA_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    _here = places


def _train_here(run: Run) -> Trained:
    assert _here is not None
    return train(_here.of(run.cell.set), run)
