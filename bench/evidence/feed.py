"""The other half of the claim: the real loader, on a file that is throttled, delivers the order that was counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from fastload.bench.evidence.arms import GROWING
from fastload.bench.evidence.scale import SHARES
from fastload.bench.evidence.training import Cell, accuracy, plan_of, train_on
from fastload.bench.evidence.workplace import SetPlace
from fastload.bench.measure import Deadline, synchronize
from fastload.bench.rolling_throttled import throttled
from fastload.common.processors import processors
from fastload.feeds.batch import Batch
from fastload.loop.advice import MARGIN
from fastload.loop.loader import TwoPhaseLoader

_TRIED_STEPS = 12


@dataclass(frozen=True)
class Delivered:
    """What a throttled loader delivered, beside the counted order.

    Arguments:
        share: S/T.
        steps: batches.
        same: batches that hold the ids of the counted order, in its order.
        accuracy: of the training on them.
        counted: of the training on the counted order.
        waited: share of the time that the trainer waited, the first batch's arrival left out.
        read: samples that were read.
        bytes: that were read for them.
        rate: samples a second that were let through.
        step_seconds: of a trainer's step with its batch at hand.
    """

    share: float
    steps: int
    same: int
    accuracy: float
    counted: float
    waited: float
    read: int
    bytes: int
    rate: float
    step_seconds: float


def deliver_all(place: SetPlace, deadline: Deadline) -> list[Delivered]:
    """Return what was delivered at each rate of the stream, now where it is not known yet; fewer where time is up."""
    scale = place.scale
    pool, rate = scale.pools[-1], scale.rates[len(scale.rates) // 2]
    found = []
    threads = torch.get_num_threads()
    if place.device.type == "cpu":
        torch.set_num_threads(max(1, processors() - 1))  # the feed has the other one
    try:
        for share in SHARES[1:]:
            settings = {**place.identity, "share": share, "pool": pool, "rate": rate, "steps": scale.steps}
            known = place.state.find("delivered", settings)
            if known is None:
                if deadline.left == 0:
                    break
                known = asdict(deliver(place, share, pool, rate, seed=0))
                place.state.record("delivered", settings, known)
            found.append(Delivered(**known))
    finally:
        torch.set_num_threads(threads)
    return found


def deliver(place: SetPlace, share: float, pool: float, rate: float, seed: int) -> Delivered:
    """Train on a throttled file by the clock, with a pool that grows, and on the counted order without one.

    Arguments:
        place: the set.
        share: S/T: the file gives that share of the samples that the trainer could take.
        pool: as a share of the set.
        rate: the highest learning rate.
        seed: of both trainings.
    """
    scale, steps = place.scale, place.scale.steps
    plan = plan_of(place, Cell(place.images.name, GROWING, share, pool), seed, tuning=False)
    seconds = _step_seconds(place, rate)
    delivered: list[np.ndarray] = []
    waits = list[float]()
    with (
        throttled(share * scale.batch / seconds) as meter,
        TwoPhaseLoader(
            place.images.full,
            pool=place.pool_size(pool, tuning=False),
            refill=MARGIN * share,
            batch_size=scale.batch,
            steps=steps,
            augment=place.augment,
            device=place.device,
            memory_format=torch.channels_last,
            seed=seed,
            with_ids=True,
        ) as loader,
    ):

        def batches() -> Iterator[Batch]:
            asked = time.perf_counter()
            for images, labels, ids in loader:
                waits.append(time.perf_counter() - asked)
                delivered.append(ids.cpu().numpy())
                yield Batch(images, labels, ids)
                asked = time.perf_counter()

        began = time.perf_counter()
        trainee, _ = train_on(place, batches(), steps, rate, seed)
        synchronize(place.device)
        taken = time.perf_counter() - began - waits[0]
    counted, _ = train_on(place, place.shown(plan), steps, rate, seed)
    ids = place.full.ids
    same = sum(np.array_equal(ids[rows], found) for (rows, _), found in zip(plan.rows(), delivered, strict=True))
    tested = place.test_images
    assert place.full.strides is not None
    return Delivered(
        share,
        steps,
        same,
        accuracy(trainee, tested),
        accuracy(counted, tested),
        sum(waits[1:]) / taken,
        meter.samples,
        meter.samples * place.full.strides[0],
        share * scale.batch / seconds,
        seconds,
    )


def _step_seconds(place: SetPlace, rate: float) -> float:
    """Return the seconds of a step with its batch at hand."""
    images, labels = place.test_images[0]
    shown, which = images[: place.scale.batch], labels[: place.scale.batch]
    trainee, taken = place.recipe.begin(place.classes, place.channels, place.device, rate, 0), list[float]()
    for _ in range(_TRIED_STEPS):
        synchronize(place.device)
        began = time.perf_counter()
        trainee.step(shown, which, 0.5)
        synchronize(place.device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
