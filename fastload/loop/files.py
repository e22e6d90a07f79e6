"""The two packed files of a run: opened, checked, and with a feed each, resident or streamed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fastload.augment import Augment
from fastload.augment.schedule import PHASE_NAMES, Staged, of_phase
from fastload.common.memory import resident_room
from fastload.errors import UsageError
from fastload.feeds.batch import Feed
from fastload.feeds.feed import open_feed
from fastload.feeds.mixed_feed import MixedFeed, class_count
from fastload.feeds.rolling_order import Renewal
from fastload.loop.pairing import check_pair, class_names, numbered_labels
from fastload.loop.phase import Phase
from fastload.loop.rolling_run import RollingRun
from fastload.loop.settings import LoaderSettings
from fastload.loop.transform_hook import TransformHook
from fastload.order import FAST, FINE_TUNE, Order, RowOrder
from fastload.packed.set import Packed, open_packed

PHASES = PHASE_NAMES


class RunFiles:
    """The full set and the subset of a run; None where it has none.

    Attributes:
        settings: of the run, with the steps that its epochs come to.

    Raises UsageError for a file that is missing, and UsageError and DataError as `open_packed` and `check_pair` do.
    """

    def __init__(self, settings: LoaderSettings) -> None:
        self._opened = list[Packed]()
        try:
            self.full = self._open("full", settings.full, images=settings.images, labels=settings.labels)
            self.subset = self._open("subset", settings.subset)
            self.settings = settings = settings.planned(self.samples)
            policy = settings.new_policy()
            rolls = settings.is_rolling
            if rolls and policy.starts_on_full:
                raise UsageError(
                    "swap=0 begins with the full set, so nothing would be drawn from a pool; leave out pool=, refill= "
                    "and feed=, or swap="
                )
            self._check_given("full", self.full, rolls, "a pool that is renewed")
            self._check_given("full", self.full, policy.may_need_full(settings.steps))
            self._check_given("subset", self.subset, not (rolls or policy.starts_on_full))
            check_pair(self.full, self.subset, settings.shuffle)
            if settings.scaled_decoding and not any(file.storage == "encoded" for file in self._opened):
                raise UsageError("scaled_decoding=True is for encoded files, and there is none here; leave it out")
            self.rolling: RollingRun | None = None
            if rolls and self.full is not None:
                self.rolling = RollingRun(settings, self.full, self.subset)
            beside = self.subset.nbytes if self.subset is not None else 0
            beside = beside if self.rolling is None else self.rolling.nbytes
            self._transform = None
            if settings.transform is not None:
                self._transform = TransformHook(settings.transform, settings.seed, settings.output.device)
            self._room = resident_room(settings.output.device, settings.resident_budget, beside=beside)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, source: Any, **datasets: str | None) -> Packed | None:
        if source is None:
            return None
        file = open_packed(source, argument=name, **datasets)
        self._opened.append(file)
        return file

    def _check_given(self, name: str, file: Packed | None, needed: bool, by: str | None = None) -> None:
        if needed and file is None:
            raise UsageError(f"{name}= is missing, and {by or f'swap={self.settings.swap}'} needs it")

    @property
    def samples(self) -> int:
        """Samples of the full set; of the subset, where there is no full set."""
        file = self.subset if self.full is None else self.full
        if file is None:
            raise UsageError("full= and subset= are missing; give the files that batches are to come from")
        return len(file)

    @property
    def first_renewal(self) -> Renewal | None:
        """How the pool of a new run is renewed; None where it has none."""
        return None if self.rolling is None else self.rolling.start

    def renewal_of(self, state: Any) -> Renewal | None:
        """Return how the pool is renewed as a checkpoint says it; None where this run has none.

        Raises UsageError where the checkpoint's run had a pool and this one has none, or the other way about.
        """
        if self.rolling is not None:
            return self.rolling.renewal_of(state)
        if state is not None:
            raise UsageError(
                "the state was saved with a pool, and this loader has none; give pool= and refill= as they were"
            )
        return None

    @property
    def class_names(self) -> list[str]:
        """The names that labels are numbered by."""
        return class_names(self.full, self.subset)

    def fingerprints(self) -> dict[str, str | None]:
        """Return the fingerprints of the files, by "full" and "subset"; None where there is none."""
        files = {"full": self.full, "subset": self.subset}
        return {name: file.fingerprint if file else None for name, file in files.items()}

    def check_unchanged(self) -> None:
        """Raise DataError for a file that has changed since it was opened."""
        for file in self._opened:
            file.check_unchanged()

    def phase(self, number: int) -> Phase:
        """Return a phase of the run, FAST or FINE_TUNE, whose feed is opened when it is needed."""
        settings, rolling = self.settings, self.rolling if number == FAST else None
        file = self.subset if number == FAST and rolling is None else self.full
        batch_size, world_size, rank = settings.batch_size, settings.world_size, settings.rank
        # A resident subset has no disk to be kind to: "block" is a full shuffle there.
        shuffle = bool(settings.shuffle) if number == FAST else settings.shuffle
        resident = file is not None and self._is_resident(number, file)
        labels = self._labels(file)
        if rolling is not None and labels is not None and self.subset is not None:
            labels = np.concatenate([part for part in (self._labels(self.subset), labels) if part is not None])

        def locate(index: int) -> tuple[int, int]:
            return (index * world_size + rank) * batch_size, batch_size

        augments: Staged[Augment] | None = None
        classes = 0
        if file is not None:
            swap = settings.new_policy().step
            staged = of_phase(settings.augment, PHASES[number], steps=settings.steps, swap=swap)
            augments = staged.scaled(batch_size * world_size)
            if settings.mix is not None:
                found = file.labels if labels is None else labels
                classes = class_count(settings.mix, found, len(self.class_names), file.path)

        def opened() -> Feed:
            assert file is not None and augments is not None
            order: RowOrder
            if rolling is not None:
                order, ids, feed = rolling.order, rolling.ids, rolling.open_feed(augments, labels)
            else:
                order, ids = Order(len(file), settings.seed, number, shuffle), file.ids
                feed = open_feed(
                    file,
                    augments,
                    order,
                    settings.output,
                    engine=settings.engine,
                    resident=resident,
                    labels=labels,
                    views=settings.views,
                    scaled_decoding=settings.scaled_decoding and file.storage == "encoded",
                )
            return feed if settings.mix is None else MixedFeed(feed, settings.mix, order, ids, classes)

        return Phase(
            PHASES[number],
            opened,
            locate,
            finish=None if self._transform is None else partial(self._transform, number),
            depth=settings.prefetch_depth,
            device=settings.output.device,
            sample_bytes=0 if file is None else file.nbytes // len(file),
        )

    def _labels(self, file: Packed | None) -> np.ndarray | None:
        """Return a file's labels, numbered by the names of the classes."""
        target = "the other file" if self.full is None else self.full.path
        return None if file is None else numbered_labels(file, self.class_names, target)

    def _is_resident(self, number: int, file: Packed) -> bool:
        if number != FINE_TUNE:
            return True
        # Whoever asks for reads in sequence has a storage in mind; and no device has a kernel for that order.
        return file.storage != "encoded" and self.settings.shuffle != "block" and file.nbytes <= self._room

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        for file in self._opened:
            file.close()
