"""What trainings of a set share: its files, what is held out, and the images that they are tested on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastload.bench.evidence.arms import Chosen, Plan
from fastload.bench.evidence.recipes import RECIPES
from fastload.bench.evidence.scale import Scale
from fastload.bench.evidence.sets import ImageSet, wrong_rows
from fastload.bench.state import State
from fastload.feeds.batch import Batch, Output
from fastload.feeds.feed import open_feed, run_feed
from fastload.feeds.rolling_feed import pool_images
from fastload.order import FINE_TUNE, Order, permutation
from fastload.packed.file import PackedFile

EDITION = 1
"""Raised when the same settings come to mean another training; earlier results then do not count."""

_HELD_OUT_SEED = 20_260
_EVALUATION_BATCH = 500


class SetPlace:
    """A set of images, and all that trainings of it share. It keeps two files open until `close`.

    Arguments:
        images: the set.
        scale: of the evidence.
        device: to train on.
        folder: where results and what was made for them are kept.
    """

    def __init__(self, images: ImageSet, scale: Scale, device: torch.device, folder: Path) -> None:
        self.images, self.scale, self.device, self.state = images, scale, device, State(folder)
        self.recipe = RECIPES[scale.recipe]
        self.full, self.test = PackedFile(images.full), PackedFile(images.test)
        assert self.full.labels is not None and self.test.labels is not None
        self.labels = np.asarray(self.full.labels, np.int64)
        self.classes = len(self.full.classes) or int(self.labels.max()) + 1
        self.channels = self.full.channels
        assert self.full.shape is not None
        self.augment = self.recipe.augment_for(min(self.full.shape[:2]), self.channels)
        self.pool_images = pool_images([self.full])
        self.identity: dict[str, Any] = {
            "edition": EDITION,
            "full": self.full.fingerprint,
            "test": self.test.fingerprint,
            "recipe": scale.recipe,
            "batch": scale.batch,
            "device": device.type,
        }

    @cached_property
    def held_out(self) -> np.ndarray:
        """Rows that rates are chosen on, int64, rising: all copies of an image, or none."""
        pictures = self.full.ids // self.images.copies
        names, of = np.unique(pictures, return_inverse=True)
        count = min(self.scale.held_out, len(self.full) // 10) // self.images.copies
        return np.flatnonzero(np.isin(of, permutation(len(names), _HELD_OUT_SEED)[:count]))

    @cached_property
    def remaining(self) -> np.ndarray:
        """All other rows."""
        return np.setdiff1d(np.arange(len(self.full)), self.held_out)

    @cached_property
    def wrong_rows(self) -> np.ndarray:
        """Rows whose labels were made wrong, int64, rising; empty in other sets."""
        return np.sort(wrong_rows(len(self.full))) if self.images.name == "wrong-labels" else np.empty(0, np.int64)

    def rows(self, tuning: bool) -> np.ndarray:
        """Return the rows that are trained on."""
        return self.remaining if tuning else np.arange(len(self.full))

    def pool_size(self, share: float, tuning: bool) -> int:
        """Return the samples of a pool, whole batches."""
        batch = self.scale.batch
        return -(-round(share * len(self.rows(tuning))) // batch) * batch

    @cached_property
    def test_images(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The test set in batches, on the device."""
        return self.batches(self.test, np.arange(len(self.test)))

    @cached_property
    def held_out_images(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What is held out, likewise."""
        return self.batches(self.full, self.held_out)

    def batches(self, file: PackedFile, rows: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return rows of a file as evaluation shows them, images and labels on the device."""
        output = Output(_EVALUATION_BATCH, self.device, memory_format=torch.channels_last)
        order = Chosen(Order(len(rows), phase=FINE_TUNE, shuffle=False), rows, len(file))
        feed = open_feed(file, self.augment.evaluation(), order, output)
        try:
            found = []
            for start in range(0, len(rows), _EVALUATION_BATCH):
                batch = feed.make(start, min(_EVALUATION_BATCH, len(rows) - start))
                assert isinstance(batch.images, torch.Tensor) and batch.labels is not None
                found.append((batch.images.clone(), batch.labels.clone()))
            return found
        finally:
            feed.close()

    def shown(self, plan: Plan) -> Iterator[Batch]:
        """Yield what a plan shows, each piece by a stream feed over its order."""
        output = Output(plan.batch, self.device, memory_format=torch.channels_last)
        for order, steps in plan.pieces:
            if steps:
                feed = open_feed(self.full, self.augment, order, output)
                yield from run_feed(feed, lambda step: (step * plan.batch, plan.batch), 0, steps, self.device)

    def close(self) -> None:
        """Close the files."""
        self.full.close()
        self.test.close()
