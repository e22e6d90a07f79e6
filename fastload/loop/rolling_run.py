"""What a rolling run has beside its files: how large its pool is, its order, and the rates at which samples arrive."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from fastload.augment import Augment
from fastload.augment.schedule import Staged
from fastload.common.arguments import integer
from fastload.common.memory import free_memory
from fastload.errors import UsageError
from fastload.feeds.arrival_meter import ArrivalMeter
from fastload.feeds.batch import Feed
from fastload.feeds.pool_plan import planned_pool, pool_bytes
from fastload.feeds.rolling_feed import PoolFiles, open_rolling_feed
from fastload.feeds.rolling_order import Rate, Renewal, RollingOrder, rate_of
from fastload.loop.advice import too_many_uses
from fastload.loop.phase import Phase
from fastload.loop.settings import LoaderSettings
from fastload.packed.set import Packed

FIRST_REFILL = 1 / 8
"""Of a run with refill="auto", until both rates have been measured."""

_OF_FREE = 2
"""A pool whose size nobody gave takes one part in so many of the memory that the device has free."""


class RollingRun:
    """The rolling pool of a run.

    Arguments:
        settings: of the run.
        full: the full set.
        subset: what the pool begins with, or None.

    Attributes:
        order: that the feed follows; made anew where a checkpoint brings a pool of another size.
        meter: of what arrives.
        choice: what was chosen in the place of whoever left it open, in a sentence.
    """

    def __init__(self, settings: LoaderSettings, full: Packed, subset: Packed | None) -> None:
        self._settings, self._files = settings, PoolFiles(full, subset)
        self.meter = ArrivalMeter()
        pool: Any = settings.pool
        if pool is None and (subset is None or settings.feed == "auto"):
            pool = _pool_of_free_memory(settings)
        shape, notes = planned_pool(
            pool,
            settings.refill,
            full=len(full),
            subset=0 if subset is None else len(subset),
            images=self._files.images,
            batch_size=settings.global_batch_size,
            world_size=settings.world_size,
            shuffle=settings.shuffle,
        )
        refill = self.first_refill
        if refill and not shape.keeps_all and settings.refill != "auto" and too_many_uses(refill):
            notes.append(f"refill={settings.refill:g}: {too_many_uses(refill)}")
        self.choice = ""
        if settings.feed == "auto" and shape.keeps_all:
            self.choice, notes = notes.pop(), []
        for note in notes if settings.rank == 0 else []:
            warnings.warn(note, stacklevel=6)  # where the loader is made
        self.order = self._order(Renewal(shape, (rate_of(refill, settings.global_batch_size),)))

    def _order(self, renewal: Renewal) -> RollingOrder:
        return RollingOrder(renewal.pool, self._settings.seed, renewal.rates, self._settings.shuffle)

    @property
    def first_refill(self) -> float:
        """The share of a batch that arrives at each step from the first on."""
        refill = self._settings.refill
        return FIRST_REFILL if isinstance(refill, str) else refill

    @property
    def ids(self) -> np.ndarray:
        """Of the subset's samples and then the full set's, int64 [N]."""
        return self._files.ids

    @property
    def nbytes(self) -> int:
        """What the pool takes of a device's memory."""
        shape, settings = self.order.shape, self._settings
        images = self._files.images
        return pool_bytes(images, shape.pool, shape.batch_size, settings.world_size, settings.shuffle)

    def follow(self, renewal: Renewal, phase: Phase, step: int) -> None:
        """Have the pool renewed so, from the batch of `step` on; what was made ahead otherwise is dropped.

        Arguments:
            renewal: how.
            phase: that draws from the pool.
            step: the next.
        """
        order = self.order
        if order.shape != renewal.pool:
            phase.release()
            self.order = self._order(renewal)
        elif order.rates != renewal.rates:
            same = [one for one, other in zip(order.rates, renewal.rates, strict=False) if one == other]
            changes = [rates[len(same)].step for rates in (order.rates, renewal.rates) if len(rates) > len(same)]
            if min(changes) <= step + phase.depth + 2:
                phase.pause()
            order.rates = renewal.rates

    def stats(self, renewal: Renewal, step: int) -> dict[str, Any]:
        """Return what is said of the pool at a step; see `TwoPhaseLoader.stats`."""
        shape, refill = renewal.pool, refill_at(renewal, step)
        return {
            "refill": refill,
            "uses": 1 / refill if refill else math.inf,
            "pool": shape.samples,
            "filled": min(1.0, self.order.arrived(step) / shape.pool),
            "arrivals_per_second": self.meter.rate,
            "choice": self.choice,
        }

    def open_feed(self, augments: Staged[Augment], labels: np.ndarray | None) -> Feed:
        """Return the feed of this rank.

        Arguments:
            augments: from which position on.
            labels: of the subset's samples and then the full set's.
        """
        settings = self._settings
        return open_rolling_feed(
            self._files,
            augments,
            self.order,
            settings.output,
            rank=settings.rank,
            world_size=settings.world_size,
            engine=settings.engine,
            labels=labels,
            views=settings.views,
            meter=self.meter,
        )

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def start(self) -> Renewal:
        """How a new run's pool is renewed."""
        return Renewal(self.order.shape, (rate_of(self.first_refill, self.order.shape.batch_size),))

    def renewal_of(self, state: Any) -> Renewal:
        """Return what `renewal_state` gave. Raises UsageError for what is none, and for a pool of another size."""
        shape = self.order.shape
        if state is None:
            raise UsageError(
                f"the state was saved without a pool, this loader has one of {shape.samples:,} samples; leave out "
                "pool=, refill= and feed="
            )
        try:
            samples, first = integer("pool", state["pool"], 1), integer("first", state["first"], 1)
            rates = tuple(
                Rate(integer("step", a, 0), integer("arrivals", b, 0), integer("steps", c, 1))
                for a, b, c in state["rates"]
            )
            if not rates or rates[0].step or any(a.step >= b.step for a, b in pairwise(rates)):
                raise UsageError(f"rates={state['rates']!r}")
            if any(one.arrivals > one.steps * shape.batch_size for one in rates):  # draws have no room for more
                raise UsageError(f"rates={state['rates']!r}, and a batch has {shape.batch_size:,} samples")
            if samples < shape.batch_size:
                raise UsageError(f"pool={samples:,}, and a batch has {shape.batch_size:,} samples")
        except (LookupError, TypeError, ValueError, UsageError) as error:
            raise UsageError(f"the state is damaged ({error}); load an earlier one") from error
        if samples != shape.samples and (isinstance(self._settings.pool, int) or samples % shape.lanes):
            raise UsageError(
                f"the state was saved with a pool of {samples:,} samples, this loader has {shape.samples:,}; give "
                f"pool={samples}"
            )
        return Renewal(replace(shape, pool=samples // shape.lanes, first=first), rates)


def _pool_of_free_memory(settings: LoaderSettings) -> str:
    """Return the size of a pool that nobody gave. Raises UsageError where it cannot be known, or not by all ranks."""
    free = free_memory(settings.output.device)
    if settings.world_size > 1 or free is None:
        why = (
            "each rank's device has other memory free" if free else f"what {settings.output.device} has free is unknown"
        )
        raise UsageError(f'pool= is missing, and {why}; give the memory of each rank\'s pool, such as pool="4GB"')
    return f"{free // _OF_FREE // 1000}KB"


def refill_at(renewal: Renewal, step: int) -> float:
    """Return the share of a batch that arrives at a step."""
    rate = [one for one in renewal.rates if one.step <= step][-1]
    return rate.arrivals / rate.steps / renewal.pool.batch_size


def renewal_state(renewal: Renewal | None) -> dict[str, Any] | None:
    """Return what a checkpoint keeps of a pool, as JSON-able plain values; None where there is none."""
    if renewal is None:
        return None
    shape = renewal.pool
    return {"pool": shape.samples, "first": shape.first, "rates": [list(rate) for rate in renewal.rates]}
