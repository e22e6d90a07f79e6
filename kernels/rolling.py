"""Which samples a rolling pool gives to a step: a keyed permutation of each lane's slots in each sweep over them."""

import numpy as np

from .compiling import njit
from .permute import STREAM_ROWS, WALKERS, half_bits, permute, permute_run, round_keys
from .philox import MASK32


@njit(nogil=True)
def rolling_draws(
    first_lane, lanes, share, fresh, before, arrived, pool, drawn, runs, shuffled, seed, phase, rounds, sweeps
):
    """Fill int64 `rounds` and `sweeps` [L · share] with what L lanes draw for one step from a rolling pool.

    See `fastload.feeds.rolling_order`, whose rule this is.

    Arguments:
        first_lane: the first of the lanes.
        lanes: how many there are in all, V.
        share: what each lane draws for a step, m.
        fresh: the rounds that go into the batch of their step first.
        before: rounds that had arrived one step before.
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
    keys = np.zeros(8, np.uint64)
    left, right, place = np.empty(WALKERS, np.uint32), np.empty(WALKERS, np.uint32), np.empty(WALKERS, np.int64)
    stream = phase * np.uint64(16) + np.uint64(STREAM_ROWS)
    begin = np.int64(0)
    while begin + 1 < runs.shape[0] and runs[begin + 1, 0] <= drawn:
        begin += 1
    for number in range(rounds.size // share):
        at = number * share
        for i in range(fresh):
            rounds[at + i], sweeps[at + i] = before + i, -1
        done, run, draw = fresh, begin, drawn
        while done < share:
            while run + 1 < runs.shape[0] and runs[run + 1, 0] <= draw:
                run += 1
            size = runs[run, 2]
            sweep = runs[run, 1] + (draw - runs[run, 0]) // size
            offset = (draw - runs[run, 0]) % size
            count = min(share - done, size - offset)
            part = rounds[at + done : at + done + count]
            epoch = np.uint64(sweep * lanes + first_lane + number)
            n, half = np.uint64(size), half_bits(np.uint64(size))
            round_keys(seed, np.uint64(0), epoch & MASK32, stream, keys)
            if not shuffled:
                for i in range(count):
                    part[i] = offset + i
            elif half <= np.uint64(16):
                permute_run(np.uint64(offset), n, half, keys, part, left, right, place)
            else:
                for i in range(count):
                    part[i] = np.int64(permute(np.uint64(offset + i), n, half, keys))
            for i in range(count):
                part[i] = arrived - 1 - (arrived - 1 - part[i]) % pool
                sweeps[at + done + i] = sweep
            done += count
            draw += count
