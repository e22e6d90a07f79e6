"""One training of an arm in a setting, done once: what came of it is remembered by all that decides it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fastload.bench.evidence.arms import ARMS, Plan, Setting
from fastload.bench.evidence.choices import choose, is_chosen
from fastload.bench.evidence.recipes import Trainee
from fastload.bench.evidence.workplace import SetPlace
from fastload.bench.measure import synchronize
from fastload.bench.state import key_of
from fastload.feeds.batch import Batch
from fastload.order import permutation

_MOST_LOOKED_AT = 4000
"""Samples with wrong labels that are tested, of either kind."""


@dataclass(frozen=True)
class Cell:
    """An arm in a setting: what is compared.

    Arguments:
        set: the images' name.
        arm: a name in ARMS.
        share: S/T.
        pool: as a share of the set.
        strategy: who chooses the pool; None for the arm's own.
    """

    set: str
    arm: str
    share: float = 1.0
    pool: float = 0.0
    strategy: str | None = None

    @property
    def chooser(self) -> str | None:
        """The strategy that chooses the pool; None where there is no pool."""
        return ARMS[self.arm].pool and (self.strategy or ARMS[self.arm].pool)

    def canonical(self) -> Cell:
        """Return the cell without what makes no difference to its arm."""
        arm = ARMS[self.arm]
        share = self.share if arm.by_share else 1.0
        return Cell(self.set, self.arm, share, self.pool if arm.pool else 0.0, self.chooser)


@dataclass(frozen=True)
class Run:
    """A training of a cell.

    Arguments:
        cell: what is trained.
        rate: the highest learning rate.
        seed: of the weights, the orders and, of a random one, the pool.
        tuning: on what is not held out, tested on what is; otherwise on all, tested on the test set.
    """

    cell: Cell
    rate: float
    seed: int
    tuning: bool = False


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Arguments:
        accuracy: share of the test set, or of what was held out, that is classified rightly.
        loss: mean of the last twentieth of the steps.
        steps: that were taken.
        read: samples that came by the stream.
        distinct: samples that were shown.
        seconds: that the training took, on the machine that it ran on beside whatever else.
        memorized: of samples with a wrong label that were shown, the share that is classified as it, less the share of
            those that were not shown; None where labels are right, or all were shown.
    """

    accuracy: float
    loss: float
    steps: int
    read: int
    distinct: int
    seconds: float
    memorized: float | None = None


def plan_of(place: SetPlace, cell: Cell, seed: int, tuning: bool) -> Plan:
    """Return what a cell shows at a seed."""
    rows = place.rows(tuning)
    pool = np.empty(0, np.int64)
    if cell.chooser is not None:
        pool = choose(place, cell.chooser, cell.pool, tuning, seed).rows
    share = Fraction(cell.share).limit_denominator(1 << 16)
    scale = place.scale
    return ARMS[cell.arm].plan(
        Setting(len(place.full), rows, pool, place.pool_images, share, scale.steps, scale.batch, seed)
    )


def training_key(place: SetPlace, run: Run) -> str:
    """Return what two runs share that are the same training."""
    return key_of(_settings(place, run))


def is_planned(place: SetPlace, run: Run) -> bool:
    """Whether what a run shows can be told without choosing samples first."""
    cell = run.cell
    return cell.chooser is None or is_chosen(place, cell.chooser, cell.pool, run.tuning, run.seed)


def known(place: SetPlace, run: Run) -> Trained | None:
    """Return the result of a training that was done before; None for another."""
    found = place.state.find("training", _settings(place, run))
    if found is None:
        return None
    read, _ = _shown(place, run.cell.canonical(), run.seed, run.tuning)
    return dataclasses.replace(Trained(**found), read=read)


def train(place: SetPlace, run: Run) -> Trained:
    """Return the result of a training, trained now where it is not known yet."""
    found = known(place, run)
    if found is None:
        cell = run.cell.canonical()
        found = _train(place, run, plan_of(place, cell, run.seed, run.tuning))
        place.state.record("training", _settings(place, run), dataclasses.asdict(found))
    return found


@lru_cache(maxsize=4096)
def _shown(place: SetPlace, cell: Cell, seed: int, tuning: bool) -> tuple[int, str]:
    """Return how many samples a cell reads, and what two cells share that show the same."""
    plan = plan_of(place, cell, seed, tuning)
    return plan.read, plan.digest()


def _settings(place: SetPlace, run: Run) -> dict[str, Any]:
    """Return all that decides a training's result: two cells that show the same are one training."""
    _, shown = _shown(place, run.cell.canonical(), run.seed, run.tuning)
    tested = "held out" if run.tuning else "test"
    settings = {**place.identity, "shown": shown, "rate": run.rate, "seed": run.seed, "tested on": tested}
    if len(place.wrong_rows) and not run.tuning:
        settings["memorized"] = "more than of those not shown"
    return settings


def train_on(place: SetPlace, batches: Iterator[Batch], steps: int, rate: float, seed: int) -> tuple[Trainee, float]:
    """Return a trainee that was shown `steps` batches, and the mean loss of the last twentieth of them."""
    trainee = place.recipe.begin(place.classes, place.channels, place.device, rate, seed)
    losses = torch.full((steps,), torch.nan, device=place.device)
    for step, batch in enumerate(batches):
        assert isinstance(batch.images, torch.Tensor) and batch.labels is not None
        losses[step] = trainee.step(batch.images, batch.labels, step / steps)[1].mean()
    return trainee, float(losses[-max(1, steps // 20) :].mean())


def _train(place: SetPlace, run: Run, plan: Plan) -> Trained:
    synchronize(place.device)
    began = time.perf_counter()
    trainee, loss = train_on(place, place.shown(plan), plan.steps, run.rate, run.seed)
    synchronize(place.device)
    seconds = time.perf_counter() - began
    tested = place.held_out_images if run.tuning else place.test_images
    shown = plan.samples()
    memorized = None if run.tuning else _memorized(place, trainee, shown)
    return Trained(accuracy(trainee, tested), loss, plan.steps, plan.read, len(shown), seconds, memorized)


def _memorized(place: SetPlace, trainee: Trainee, shown: np.ndarray) -> float | None:
    """Return how much more often wrong labels are given to the samples that were shown with them than to others.

    A net that learnt none by heart gives some all the same, where it mistakes a picture for that class.
    """
    rows = [np.intersect1d(place.wrong_rows, shown), np.setdiff1d(place.wrong_rows, shown)]
    if not all(map(len, rows)):
        return None
    # Drawn, not the first of them: rows may stand class by class.
    drawn = [some[permutation(len(some), 0)[:_MOST_LOOKED_AT]] for some in rows]
    seen, others = (accuracy(trainee, place.batches(place.full, some)) for some in drawn)
    return seen - others


@torch.inference_mode()
def accuracy(trainee: Trainee, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the share of batches' images that a trainee classifies as their labels say."""
    right = sum(int((trainee.logits(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / sum(len(labels) for _, labels in batches)
