"""How large a rolling run's pool is: what the caller asked for, in samples or bytes, made to fit lanes and batches."""

from __future__ import annotations

from typing import Any

from fastload.common.arguments import integer
from fastload.common.byte_sizes import size_in_bytes
from fastload.errors import UsageError
from fastload.feeds.pool_memory import PoolImages
from fastload.feeds.rolling_order import PoolShape, lanes_of
from fastload.order import Shuffle


def ring_rounds(pool: int, share: int) -> int:
    """Return how many rounds a pool's ring holds: its own, and slack for what arrives while batches are in the making.

    Arguments:
        pool: rounds of the pool.
        share: what each lane gives to a step.
    """
    return pool + max(-(-pool // 8), 2 * share)


def pool_bytes(images: PoolImages, pool: int, batch_size: int, world_size: int, shuffle: Shuffle) -> int:
    """Return the bytes that a pool of so many rounds takes on each rank, its slack included."""
    lanes = lanes_of(batch_size)
    slots = ring_rounds(pool, batch_size // lanes) * (lanes // world_size)
    return images.bytes_for(slots, at_random=shuffle is True)


def check_ranks(batch_size: int, world_size: int) -> None:
    """Raise UsageError unless ranks can share the lanes of a pool."""
    lanes = lanes_of(batch_size)
    if lanes % world_size:
        raise UsageError(
            f"a rolling pool of global batches of {batch_size:,} has {lanes} lanes, which {world_size} ranks cannot "
            f"share; give a batch_size= that a larger power of two divides, or a number of ranks that divides {lanes}"
        )


def pool_size(value: Any) -> tuple[int, bool] | None:
    """Return `pool=` as (number, whether it is one of bytes); None where it was not given. Raises UsageError."""
    if value is None:
        return None
    found = size_in_bytes(value) if isinstance(value, str) else (integer("pool", value, 1), False)
    if found is None or found[0] < 1:
        raise UsageError(
            f'pool={value!r}; it is the memory of each rank\'s pool, such as "16GB", or a number of samples in all'
        )
    return found


def planned_pool(
    pool: Any,
    refill: float | str,
    *,
    full: int,
    subset: int,
    images: PoolImages,
    batch_size: int,
    world_size: int,
    shuffle: Shuffle,
) -> tuple[PoolShape, list[str]]:
    """Return a rolling run's pool, and what is to be said of it: that its size was rounded, or that all fits.

    Arguments:
        pool: as the loader was given it.
        refill: likewise.
        full: samples of the full set.
        subset: samples of the subset; 0 without one.
        images: what the images are like.
        batch_size: images in a global batch.
        world_size: how many ranks there are.
        shuffle: of the arrivals.

    Raises UsageError for a pool that holds no batch, or less than the subset.
    """
    check_ranks(batch_size, world_size)
    lanes, found, notes = lanes_of(batch_size), pool_size(pool), list[str]()
    share = batch_size // lanes
    whole = PoolShape(full, subset, batch_size, 0, 0).whole
    if found is None:
        rounds = -(-subset // batch_size) * share
    else:
        number, in_bytes = found
        if in_bytes:
            rounds = _rounds_within(number, images, batch_size, world_size, shuffle, pool, most=whole)
        else:
            rounds = number // batch_size * share if number < full else whole
            if not rounds:
                raise UsageError(f"pool={number:,}; it must hold a global batch, which has {batch_size:,} samples")
            if rounds * lanes != number and rounds < whole:
                notes.append(f"pool={number:,} is {rounds * lanes:,}: whole global batches of {batch_size:,}")
        if rounds * lanes < subset:
            raise UsageError(
                f"pool={pool!r} holds {rounds * lanes:,} samples, and the subset, which it begins with, has "
                f"{subset:,}; give a larger pool=, or leave it out"
            )
    if rounds >= whole:
        rounds = max(share, whole)
        notes.append(f"the pool holds all {full:,} samples of the full set: each is read once, and kept")
    if refill == 0 and rounds >= whole:
        first = -(-(subset + full) // lanes)  # all is there before the first step
    elif found is None or refill == 0:
        first = rounds
    else:
        first = min(rounds, max(share, -(-subset // lanes)))
    return PoolShape(full, subset, batch_size, rounds, first), notes


def _rounds_within(
    size: int, images: PoolImages, batch_size: int, world_size: int, shuffle: Shuffle, given: Any, *, most: int
) -> int:
    """Return the rounds of the largest pool, in whole global batches, that fits into `size` bytes on each rank."""
    share = batch_size // lanes_of(batch_size)

    def taken(batches: int) -> int:
        return pool_bytes(images, batches * share, batch_size, world_size, shuffle)

    if taken(1) > size:
        raise UsageError(
            f"pool={given!r}; a pool of one global batch takes {taken(1) / 1e6:,.1f} MB on each rank with its slack; "
            "give at least that"
        )
    low, high = 1, -(-most // share) + 1  # `low` fits; nothing beyond `high` is of use
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) <= size else (low, middle)
    return low * share
