"""Train cells in several processes: first to choose each one's rate on what is held out, then with its seeds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch

from fastload.bench.evidence.choices import prepare, seconds_known
from fastload.bench.evidence.scale import PAPERS_POOL, Scale
from fastload.bench.evidence.sets import ImageSet
from fastload.bench.evidence.training import Cell, Run, Trained, is_planned, known, train, training_key
from fastload.bench.evidence.workplace import SetPlace
from fastload.bench.measure import Deadline
from fastload.common.processors import processors

_TUNING_SEED = 1000
"""Added to the seeds on which rates are chosen: no training that counts has one of them."""


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
        self.scale, self.device, self._deadline, self._say = scale, device, deadline, say
        self._places = _Places(sets, scale, device, folder)
        threads = max(1, processors() // workers)
        self._pool = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, _begin, (self._places, threads))
        self._at_once, self.unfinished = 2 * workers - 1, False

    def place(self, name: str) -> SetPlace:
        """Return this process's own view of a set."""
        return self._places.of(name)

    def cells(self, works: Sequence[Work]) -> list[Found]:
        """Return what came of cells, in their order: of all seeds, or of the first of them where the time was up.

        A cell of which nothing is known is left out, and so `unfinished` is True from then on.
        """
        tuned = [
            (work, held_out, max(held_out, key=held_out.__getitem__))
            for work, held_out in zip(works, self._held_out(works), strict=True)
            if held_out
        ]
        finals = [Run(work.cell, rate, seed) for work, _, rate in tuned for seed in range(work.seeds)]
        results = iter(self._trained(finals))
        found = [
            Found(work.cell, rate, held_out, _first_known([next(results) for _ in range(work.seeds)]))
            for work, held_out, rate in tuned
        ]
        return [one for one in found if one.runs]

    def _held_out(self, works: Sequence[Work]) -> list[dict[float, float]]:
        """Return each cell's accuracy on what is held out, by rate; nothing where the time was up."""
        rates, seeds = self.scale.rates, self.scale.tuning_seeds
        runs = [
            Run(work.cell, rate, _TUNING_SEED + seed, tuning=True)
            for work in works
            for rate in rates
            for seed in range(seeds)
        ]
        results = iter(self._trained(runs))
        found = []
        for _ in works:
            by_rate = {rate: _first_known([next(results) for _ in range(seeds)]) for rate in rates}
            whole = all(len(some) == seeds for some in by_rate.values())
            means = {rate: sum(one.accuracy for one in some) / seeds for rate, some in by_rate.items()}
            found.append(means if whole else {})
        return found

    def _trained(self, runs: Sequence[Run]) -> list[Trained | None]:
        """Return what came of trainings, in their order; None for those that the time was not enough for."""
        results: list[Trained | None] = [None] * len(runs)
        running: dict[Future[Trained], int] = {}
        submitted: set[str] = set()
        began, new = time.monotonic(), 0

        def collect() -> None:
            nonlocal new
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                results[running.pop(future)] = future.result()
                new += 1
                if new % 50 == 0:
                    self._say(f"  {new} new of {len(runs)} trainings, {time.monotonic() - began:,.0f} s")

        for number, run in enumerate(runs):
            place = self.place(run.cell.set)
            if not is_planned(place, run):
                if self._deadline.left == 0:
                    self.unfinished = True
                    continue
                prepare(place, run.cell.chooser or "")  # once, for all processes
            results[number] = known(place, run)
            key = training_key(place, run)
            if results[number] is not None or key in submitted:
                continue
            if self._deadline.left == 0:
                self.unfinished = True
            elif self._pool is None:
                results[number] = train(place, run)
            else:
                submitted.add(key)
                running[self._pool.submit(_train_here, run)] = number
                while len(running) > self._at_once:  # one waits for each process that is at work, and no more
                    collect()
        while running:
            collect()
        # What another cell shows as well was trained once, for the first of them.
        return [
            known(self.place(run.cell.set), run) if one is None and is_planned(self.place(run.cell.set), run) else one
            for run, one in zip(runs, results, strict=True)
        ]

    def seconds_of_selection(self, strategies: Sequence[str]) -> dict[tuple[str, str], float]:
        """Return the seconds that choosing a pool of the paper's size took, by set and strategy, where it is known."""
        found = {
            (name, strategy): seconds_known(self.place(name), strategy, PAPERS_POOL)
            for name in self._places.names
            for strategy in strategies
        }
        return {which: seconds for which, seconds in found.items() if seconds is not None}

    def close(self) -> None:
        """Let the processes go, after the trainings that they are at."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            if multiprocessing.active_children():
                self._say("waiting for the trainings that are under way: what they find is kept")
            self._pool.shutdown()
        self._places.close()


def _first_known(runs: Sequence[Trained | None]) -> tuple[Trained, ...]:
    """Return the results before the first that is lacking."""
    return tuple(run for run in takewhile(lambda run: run is not None, runs) if run is not None)


class _Places:
    """Views of sets, opened when they are first asked for; what is pickled is how to open them."""

    def __init__(self, sets: dict[str, ImageSet], scale: Scale, device: torch.device, folder: Path) -> None:
        self._sets, self._scale, self._device, self._folder = sets, scale, device, folder
        self._open: dict[str, SetPlace] = {}

    @property
    def names(self) -> list[str]:
        """Names of the sets."""
        return list(self._sets)

    def of(self, name: str) -> SetPlace:
        if name not in self._open:
            self._open[name] = SetPlace(self._sets[name], self._scale, self._device, self._folder)
        return self._open[name]

    def close(self) -> None:
        for place in self._open.values():
            place.close()
        self._open.clear()

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_open": {}}


_here: _Places | None = None
"""Of a process that trains."""


def _begin(places: _Places, threads: int) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    torch.set_num_threads(threads)
    _here = places


def _end_with_the_first() -> None:
    """End this process when the one that began it is killed: it would wait for work for ever."""
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    os._exit(1)


def _train_here(run: Run) -> Trained:
    assert _here is not None
    return train(_here.of(run.cell.set), run)
