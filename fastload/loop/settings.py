"""The settings of a loader, checked: what `TwoPhaseLoader` is called with."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fastload.augment import Mix
from fastload.augment.schedule import augments_state, checked_augments
from fastload.common.arguments import flag, integer, real, seed64
from fastload.common.device import resolve_device
from fastload.common.launcher import ranks_of
from fastload.common.processors import default_threads
from fastload.errors import UsageError
from fastload.feeds.batch import Output
from fastload.feeds.rolling_order import FINEST
from fastload.loop.bar import bar_kind
from fastload.loop.loops import run_length, steps_of_epochs
from fastload.loop.policies import SwapPolicy, policy_of
from fastload.loop.swap import Swap, planned_swap
from fastload.order import Shuffle, shuffle_of
from fastload.packed.set import PathsLike

MOST_VIEWS = 64
"""Of a sample: each has random words of its own."""


def checked_refill(refill: Any, pool: int | str | None, feed: Any) -> float | str:
    """Return `refill=` as a share of the batch, or "auto": where it was not given, for a pool= or feed="auto".

    Raises UsageError for anything else.
    """
    if feed is not None and feed != "auto":
        raise UsageError(f'feed={feed!r}; it is "auto", or left out')
    if refill is None:
        return 0.0 if pool is None and feed is None else "auto"
    if isinstance(refill, str):
        if refill != "auto":
            raise UsageError(f'refill={refill!r}; it is a share of the batch (0 to 1), or "auto"')
        return refill
    share = real("refill", refill)
    if not 0 <= share <= 1:
        raise UsageError(f"refill={share:g}; it is a share of the batch, from 0 to 1")
    if 0 < share < 1 / FINEST:
        raise UsageError(f"refill={share:g}; it is 0, for a pool that stays as it is, or at least {1 / FINEST:.3g}")
    return share


@dataclass(frozen=True, eq=False)
class LoaderSettings:
    """The arguments of `TwoPhaseLoader`, which documents them, as plain numbers, whatever NumPy gave.

    Where the run's length is given in epochs, `planned` must be asked for the steps first: they depend on the files.

    Attributes:
        output: how batches come out.
        prefetch_depth: batches made ahead by threads.
        bar: the progress bar that this rank shows: "rich", "tqdm" or None.
        found_alone: this is the only rank, and nobody has said so.

    Raises UsageError for what is out of range, quoting it.
    """

    full: PathsLike | None
    subset: PathsLike | None
    batch_size: int
    augment: Any
    mix: Mix | None
    views: int
    transform: Any
    pool: int | str | None
    refill: Any
    feed: str | None
    steps: int | None
    seconds: float | None
    epochs: float | None
    swap: float | int | Swap | None
    steps_per_epoch: int | None
    seed: int
    shuffle: Shuffle
    device: str | torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    with_ids: bool
    engine: str
    scaled_decoding: bool
    prefetch: int | None
    keep_resident: bool
    resident_budget: int | None
    rank: Any
    world_size: Any
    store: Any
    images: str | None
    labels: str | None
    progress: bool | str

    output: Output = field(init=False)
    prefetch_depth: int = field(init=False)
    bar: str | None = field(init=False)
    found_alone: bool = field(init=False)

    def __post_init__(self) -> None:
        self._set(refill=checked_refill(self.refill, self.pool, self.feed))
        if self.swap is None:
            self._set(swap=1.0 if self.is_rolling else 0.5)
        steps, seconds, epochs = run_length(self.steps, self.seconds, self.epochs)
        self._set(steps=steps, seconds=seconds, epochs=epochs)
        if epochs is None:
            self._set(swap=planned_swap(self.swap, steps, seconds))  # type: ignore[arg-type]  # it is set by now
        self._set(
            steps_per_epoch=None
            if self.steps_per_epoch is None
            else integer("steps_per_epoch", self.steps_per_epoch, 1),
            prefetch=None if self.prefetch is None else integer("prefetch", self.prefetch, 1),
            resident_budget=None
            if self.resident_budget is None
            else integer("resident_budget", self.resident_budget, 0),
            augment=checked_augments(self.augment),
            views=integer("views", self.views, 1),
            shuffle=shuffle_of(self.shuffle),
            seed=seed64(self.seed),
            with_ids=flag("with_ids", self.with_ids),
            scaled_decoding=flag("scaled_decoding", self.scaled_decoding),
            keep_resident=flag("keep_resident", self.keep_resident),
        )
        rank, world_size = ranks_of(self.rank, self.world_size)
        self._set(found_alone=self.rank is None and world_size == 1, rank=rank, world_size=world_size)
        bar = bar_kind(self.progress)
        depth = self.prefetch if self.prefetch is not None else max(2, default_threads())
        device = resolve_device(self.device)
        output = Output(self.batch_size, device, self.dtype, self.memory_format, keep=depth + 3)
        self._check_mix(output)
        self._set(bar=bar if rank == 0 else None, prefetch_depth=depth, output=output, batch_size=output.batch_size)

    def _check_mix(self, output: Output) -> None:
        if self.views > MOST_VIEWS:
            raise UsageError(f"views={self.views}; it must be at most {MOST_VIEWS}")
        if self.mix is None:
            return
        if not isinstance(self.mix, Mix):
            raise UsageError(f"mix={self.mix!r}; it must be a Mix, such as Mix(mixup=0.2), or None")
        if output.batch_size % 2:
            raise UsageError(f"batch_size={output.batch_size} is odd, and mix= blends pairs; give an even one")
        if output.dtype == torch.uint8:
            raise UsageError("dtype=torch.uint8 holds whole levels, which mix= would blend; give a type of floats")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def planned(self, samples: int) -> LoaderSettings:
        """Return the settings with the steps, and the step of the swap, that `epochs` of so many samples come to."""
        if self.epochs is None:
            return self
        steps = steps_of_epochs(self.epochs, samples, self.global_batch_size)
        settings = copy.copy(self)
        settings._set(steps=steps, swap=planned_swap(self.swap, steps))  # type: ignore[arg-type]  # as above
        return settings

    @property
    def is_rolling(self) -> bool:
        """Whether the first phase draws from a pool that is not just the subset."""
        return self.refill != 0 or self.pool is not None or self.feed is not None

    @property
    def global_batch_size(self) -> int:
        """Images a batch on all ranks together."""
        return self.batch_size * self.world_size

    def new_policy(self) -> SwapPolicy:
        """Return what decides the swap, at the beginning of a run."""
        return policy_of(self.swap)  # type: ignore[arg-type]  # __post_init__ made a step of a share

    def identity(self, fingerprints: dict[str, str | None]) -> dict[str, Any]:
        """Return what a checkpoint must have in common with a loader, as JSON-able plain values.

        Arguments:
            fingerprints: of the files "full" and "subset".
        """
        return {
            **fingerprints,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            **self.new_policy().identity(),
            "shuffle": self.shuffle,
            "augment": augments_state(self.augment),
            "views": self.views,
            "mix": None if self.mix is None else asdict(self.mix),
            "scaled_decoding": self.scaled_decoding,
            "refill": self.refill,
            # A transform sees a rank's own batch, so what it draws hangs on that batch's size.
            "transform": None if self.transform is None else f"of {self.output.batch_size} images",
        }
