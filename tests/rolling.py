"""What the tests of rolling pools share: the order by a pool that is kept step by step, and plain streams over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastload.feeds.batch import Batch, Output
from fastload.feeds.feed import open_feed
from fastload.feeds.pool_plan import planned_pool
from fastload.feeds.rolling_feed import PoolFiles
from fastload.feeds.rolling_order import FRESH, PoolShape, RollingOrder, rate_of
from fastload.order import ARRIVALS, ROLLING, Order

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
    return PoolFiles(full, subset)


def order_of(full, subset=None, *, pool=None, refill=0.25, batch=32, seed=7, shuffle=True, rates=None) -> RollingOrder:
    files = pool_files(full, subset)
    shape, _ = planned_pool(
        pool,
        refill,
        full=len(full),
        subset=0 if subset is None else len(subset),
        images=files.images,
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


def simulated(shape: PoolShape, rates, seed: int, steps: int):
    """Yield (rows, epochs) of each step's global batch, from lanes that are lists, renewed round by round."""
    lanes, share = shape.lanes, shape.share
    arrival_order = Order(shape.full, seed, ARRIVALS)
    slots = [dict() for _ in range(lanes)]  # slot -> arrival, by lane
    came = 0
    sweeping = [dict(left=[], number=-1) for _ in range(lanes)]

    def arrive(rounds):
        nonlocal came
        new = []
        for _ in range(rounds):
            if shape.most_rounds is not None and came >= max(shape.most_rounds, shape.first):
                break
            for lane in range(lanes):
                slots[lane][came % shape.pool] = came * lanes + lane
            new.append(came)
            came += 1
        return new

    def row(arrival):
        if arrival < shape.subset:
            return arrival, 0
        rows, passes = arrival_order.rows(arrival - shape.subset, 1)
        return shape.subset + int(rows[0]), int(passes[0])

    arrive(shape.first)
    for step in range(steps):
        rate = [one for one in rates if one.step <= step][-1]
        new = []
        if step:
            before = [one for one in rates if one.step <= step - 1][-1]

            parts = [(at - before.step) * before.arrivals // (before.steps * lanes) for at in (step - 1, step)]
            new = arrive(parts[1] - parts[0])
        fresh = new if step and 2 * rate.arrivals > rate.steps * shape.batch_size else []
        batch = []
        for lane in range(lanes):
            for one in fresh:
                found, passed = row(one * lanes + lane)
                batch.append((found, FRESH + passed))
            for _ in range(share - len(fresh)):
                sweep = sweeping[lane]
                if not sweep["left"]:
                    sweep["number"] += 1
                    size = min(shape.pool, came)
                    slots_in_turn = Order(size, seed, ROLLING).rows(sweep["number"] * size, size)[0].tolist()
                    begin = lane * max(size // lanes, 1) % size
                    sweep["left"] = (slots_in_turn[begin:] + slots_in_turn[:begin])[::-1]
                slot = sweep["left"].pop()
                batch.append((row(slots[lane][slot])[0], sweep["number"]))
        yield np.array(batch)
