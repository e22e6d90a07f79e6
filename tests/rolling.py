"""What the tests of rolling pools share: an order for given files, and the batches that plain streams make over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastload.feeds.batch import Batch, Output
from fastload.feeds.feed import open_feed
from fastload.feeds.pool_plan import planned_pool
from fastload.feeds.rolling_feed import PoolFiles, pool_images
from fastload.feeds.rolling_order import RollingOrder, rate_of
from fastload.order import ROLLING

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Given:
    """An order whose rows are given."""

    n: int
    seed: int
    chosen: tuple[np.ndarray, np.ndarray]
    phase: int = ROLLING

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        return tuple(part[start : start + count] for part in self.chosen)


def pool_files(full, subset=None) -> PoolFiles:
    labels = [file.labels for file in (subset, full) if file is not None]
    return PoolFiles(full, subset, None if full.labels is None else np.concatenate(labels))


def order_of(full, subset=None, *, pool=None, refill=0.25, batch=32, seed=7, shuffle=True, rates=None) -> RollingOrder:
    files = pool_files(full, subset)
    shape, _ = planned_pool(
        pool,
        refill,
        full=len(full),
        subset=0 if subset is None else len(subset),
        images=pool_images(files.files),
        batch_size=batch,
        world_size=1,
        shuffle=shuffle,
    )
    return RollingOrder(shape, seed, rates or [rate_of(refill, batch)], shuffle)


def streamed(files: PoolFiles, order: RollingOrder, augment, steps, *, dtype=torch.float32, **options) -> list[Batch]:
    """Return the batches of `order` as stream feeds of the subset and of the full set make them, each its samples."""
    batch, steps = order.shape.batch_size, list(steps)
    found = [order.rows(step * batch, batch) for step in steps]
    rows, epochs = (np.concatenate(parts) for parts in zip(*found, strict=True))
    first, images = 0, None
    labels = None if files.labels is None else torch.from_numpy(files.labels[rows].astype(np.int64))
    for file in files.files:
        mine = np.flatnonzero((rows >= first) & (rows < first + len(file)))
        if len(mine):
            given = Given(len(file), order.seed, (rows[mine] - first, epochs[mine]))
            feed = open_feed(file, augment, given, Output(len(mine), CPU, dtype), workers=1, **options)
            made = feed.make(0, len(mine))
            feed.close()
            views = made.images if isinstance(made.images, tuple) else (made.images,)
            if images is None:
                images = [torch.empty((len(rows), *one.shape[1:]), dtype=dtype) for one in views]
            for whole, one in zip(images, views, strict=True):
                whole[mine] = one
        first += len(file)
    ids = torch.from_numpy(files.ids[rows])
    parts = [slice(k * batch, (k + 1) * batch) for k in range(len(steps))]
    several = options.get("views", 1) > 1
    return [
        Batch(
            tuple(one[part] for one in images) if several else images[0][part],
            None if labels is None else labels[part],
            ids[part],
        )
        for part in parts
    ]
