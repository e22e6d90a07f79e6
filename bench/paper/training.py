"""Trainings of a number of steps, each done once; splits of one subset share their common beginning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastload.bench.measure import synchronize
from fastload.bench.paper.fresh_subsets import FreshFeed, FreshSubsets
from fastload.bench.paper.scale import SIZE
from fastload.bench.paper.subsets import Subset
from fastload.bench.paper.trainee import Trainee, learning_rate, rehearse
from fastload.bench.paper.workplace import AUGMENT, OutOfTime, Workplace
from fastload.bench.state import key_of
from fastload.feeds.batch import Output, as_tuple
from fastload.feeds.feed import run_feed
from fastload.loop.loader import TwoPhaseLoader
from fastload.order import FAST, FINE_TUNE, Order
from fastload.packed.file import PackedFile
from fastload.subset.size import parse_size

_SAVE_SECONDS = 60.0
_LAST = 0.05
"""The share of the steps whose mean loss is reported."""


@dataclass(frozen=True)
class Run:
    """One training: `swap` steps on a subset, the rest on the full set; or, `fresh`, a fresh random subset an epoch."""

    seed: int
    subset: Subset | None = None
    swap: int = 0
    schedule: str = "constant"
    fresh: bool = False

    def settings(self, place: Workplace) -> dict[str, Any]:
        """Return all that decides the result."""
        return {
            **place.identity,
            "steps": place.scale.steps,
            "batch": place.scale.batch,
            "seed": self.seed,
            "subset": self.subset.fingerprint if self.subset is not None and self.swap else None,
            "swap": self.swap,
            "schedule": self.schedule,
            "fresh": self.fresh,
        }

    def beginning(self, place: Workplace, step: int) -> str:
        """Return the key of the state after so many steps on the subset, which all later swaps share."""
        return key_of({**self.settings(place), "swap": None, "after": step})


@dataclass(frozen=True)
class Trained:
    """A training's result: test accuracy, mean loss at the end, seconds, and how many distinct samples it saw."""

    accuracy: float
    loss: float
    seconds: float
    distinct: int


def train(place: Workplace, run: Run, keep: tuple[int, ...] = ()) -> Trained:
    """Return the result of a run, trained now where it is not known yet.

    Arguments:
        keep: steps at which other runs will leave this one's beginning, to go on from.

    Raises OutOfTime, with the state kept.
    """
    settings = run.settings(place)
    found = place.state.find("training", settings)
    if found is not None:
        return Trained(**found)
    place.check_time()
    result = _train(place, run, keep)
    place.state.record("training", settings, vars(result))
    return result


def _train(place: Workplace, run: Run, keep: tuple[int, ...]) -> Trained:
    steps, batch, own = place.scale.steps, place.scale.batch, key_of(run.settings(place))
    rehearse(place)
    trainee = Trainee(place, run.seed)
    losses = torch.full((steps,), torch.nan, device=place.device)
    first, seconds = _resume(place, run, keep, trainee, losses, own)

    def save(key: str, step: int, seconds: float) -> None:
        done = {"step": step, "seconds": seconds, "losses": losses[:step].cpu()}
        place.state.save(key, trainee.state() | done)

    with _batches(place, run, first) as batches:
        synchronize(place.device)
        began = saved = time.perf_counter()
        for step, (images, labels) in enumerate(batches, first):
            each = trainee.step(images, labels, learning_rate(run.schedule, step / steps))
            losses[step] = each.mean()
            done, now = step + 1, time.perf_counter()
            branch = done in keep and done <= run.swap
            stop = place.deadline.left == 0 and done < steps
            if branch or stop or now - saved > _SAVE_SECONDS:
                synchronize(place.device)
                now = time.perf_counter()
                save(run.beginning(place, done) if branch else own, done, seconds + now - began)
                if stop:
                    if branch:
                        save(own, done, seconds + now - began)
                    raise OutOfTime
                saved = time.perf_counter()
                began += saved - now  # what saving took is not training
        synchronize(place.device)
        seconds += time.perf_counter() - began
    result = Trained(trainee.accuracy(), _end(losses), seconds, _distinct(place, run, steps * batch))
    place.state.forget(own)
    return result


def _resume(
    place: Workplace, run: Run, keep: tuple[int, ...], trainee: Trainee, losses: torch.Tensor, own: str
) -> tuple[int, float]:
    """Take over the furthest state that this run can go on from; return its step and seconds, (0, 0) for none."""
    shared = [run.beginning(place, step) for step in sorted(keep, reverse=True) if 0 < step <= run.swap]
    for key in (own, *shared):
        state = place.state.load(key)
        if state is not None:
            step = state["step"]
            trainee.restore(state)
            losses[:step] = state["losses"].to(losses.device)
            return step, state["seconds"]
    return 0, 0.0


@contextmanager
def _batches(place: Workplace, run: Run, first: int) -> Iterator[Iterator[tuple[torch.Tensor, ...]]]:
    """Give the batches from step `first` on; all is compiled and uploaded before."""
    steps, batch, last = place.scale.steps, place.scale.batch, torch.channels_last
    if run.fresh:
        subsets = FreshSubsets(len(place.full), parse_size(SIZE, len(place.full)), run.seed)
        feed = FreshFeed(place.full, AUGMENT, subsets, Output(batch, place.device, memory_format=last))
        stream = run_feed(feed, lambda step: (step * batch, batch), first, steps, place.device)
        try:
            yield (as_tuple(batch, with_ids=False) for batch in stream)
        finally:
            stream.close()
        return
    with TwoPhaseLoader(
        place.full.path,
        run.subset.path if run.subset is not None and run.swap else None,
        batch_size=batch,
        steps=steps,
        swap=run.swap,
        augment=AUGMENT,
        device=place.device,
        memory_format=last,
        seed=run.seed,
    ) as loader:
        loader.load_state_dict(loader.state_dict() | {"step": first})
        yield iter(loader)


def _end(losses: torch.Tensor) -> float:
    """Return the mean loss of the last steps."""
    return float(losses[-max(1, round(_LAST * len(losses))) :].mean())


def _distinct(place: Workplace, run: Run, images: int) -> int:
    """Return how many distinct samples so many images of a run are."""
    seen = np.zeros(len(place.full), bool)
    order: Order | FreshSubsets
    if run.fresh:
        order, fine = FreshSubsets(len(seen), parse_size(SIZE, len(seen)), run.seed), images
    else:
        fast = run.swap * place.scale.batch
        order, fine = Order(len(seen), run.seed, FINE_TUNE), min(images - fast, len(seen))
        if fast and run.subset is not None:
            with PackedFile(run.subset.path) as file:
                rows = Order(len(file), run.seed, FAST).rows(0, min(fast, len(file)))[0]
                by_id = np.argsort(place.full.ids, kind="stable")
                seen[by_id[np.searchsorted(place.full.ids, file.ids[rows], sorter=by_id)]] = True
    if fine:
        seen[order.rows(0, fine)[0]] = True
    return int(seen.sum())
