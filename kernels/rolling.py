"""Which samples a rolling pool gives to a step: each lane sweeps over its slots, in an order that is permuted anew."""

import numpy as np

from .compiling import njit
from .permute import STREAM_ROWS, WALKERS, half_bits, permute, permute_all, round_keys
from .philox import MASK32


@njit(nogil=True)
def rolling_draws(first_lane, lanes, share, fresh, arrived, pool, drawn, runs, shuffled, seed, phase, rounds, sweeps):
    """Fill int64 `rounds` and `sweeps` [L · share] with what L lanes draw for one step from a rolling pool.

    See `fastload.feeds.rolling_order`, whose rule this is.

    Arguments:
        first_lane: the first of the lanes.
        lanes: how many there are in all, V.
        share: what each lane draws for a step, m.
        fresh: the rounds that go into the batch of their step first, those that have arrived last.
        arrived: rounds that have arrived.
        pool: rounds that the pool holds, P'.
        drawn: what each lane has drawn from the pool before this step.
        runs: int64 [r, 3], of sweeps of the same size, one after the other: the draw that the first of them begins
            with, its number, and their size in rounds.
        shuffled: whether sweeps are permuted; else they go from slot to slot.
        seed: uint64.
        phase: uint64.
        rounds: of the samples drawn, lane by lane.
        sweeps: of the draws; -1 of fresh samples.
    """
    count = rounds.size // share
    keys = np.zeros(8, np.uint64)
    stream = phase * np.uint64(16) + np.uint64(STREAM_ROWS)
    for number in range(count):
        for i in range(fresh):
            rounds[number * share + i], sweeps[number * share + i] = arrived - fresh + i, -1
    left, right, place = np.empty(WALKERS, np.uint32), np.empty(WALKERS, np.uint32), np.empty(WALKERS, np.int64)
    offsets, slots = np.empty(rounds.size, np.uint64), np.empty(rounds.size, np.int64)
    run, done, draw = np.int64(0), np.int64(fresh), drawn
    while done < share:
        while run + 1 < runs.shape[0] and runs[run + 1, 0] <= draw:
            run += 1
        size = runs[run, 2]
        sweep = runs[run, 1] + (draw - runs[run, 0]) // size
        offset = (draw - runs[run, 0]) % size
        some = min(share - done, size - offset)
        # Lanes are at other offsets of one permutation, so that what has arrived together is not drawn together.
        between = max(size // lanes, 1)
        for number in range(count):
            begin = (offset + (first_lane + number) * between) % size
            for i in range(some):
                offsets[number * some + i] = (begin + i) % size
        n, half = np.uint64(size), half_bits(np.uint64(size))
        if not shuffled:
            for k in range(count * some):
                slots[k] = np.int64(offsets[k])
        else:
            round_keys(seed, np.uint64(0), np.uint64(sweep) & MASK32, stream, keys)
            if half <= np.uint64(16):
                permute_all(offsets[: count * some], n, half, keys, slots, left, right, place)
            else:
                for k in range(count * some):
                    slots[k] = np.int64(permute(offsets[k], n, half, keys))
        for number in range(count):
            for i in range(some):
                slot = slots[number * some + i]
                rounds[number * share + done + i] = arrived - 1 - (arrived - 1 - slot) % pool
                sweeps[number * share + done + i] = sweep
        done += some
        draw += some
