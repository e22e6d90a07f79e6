"""The order of a rolling run against a pool that is kept and renewed step by step, and what it promises of samples."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rolling import simulated

from fastload.feeds.rolling_order import PoolShape, Rate, RollingOrder, lanes_of, rate_of


@st.composite
def pools(draw):
    batch_size = draw(st.sampled_from([1, 3, 8, 24, 64, 96, 128]))
    lanes = lanes_of(batch_size)
    share = batch_size // lanes
    pool = share * draw(st.integers(1, 6))
    full = draw(st.integers(1, 3 * pool * lanes))
    subset = draw(st.sampled_from([0, draw(st.integers(1, pool * lanes))]))
    first = max(share, -(-subset // lanes)) if draw(st.booleans()) else pool
    shape = PoolShape(full, subset, batch_size, pool, max(share, min(pool, first)))
    rates, step = [], 0
    for _ in range(draw(st.integers(1, 3))):
        steps = draw(st.integers(1, 7))
        rates.append(Rate(step, draw(st.integers(0, batch_size * steps)), steps))
        step += draw(st.integers(1, 12))
    return shape, rates


@given(pools(), st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_the_order_is_what_a_pool_kept_step_by_step_gives(pool, seed):
    shape, rates = pool
    order, steps = RollingOrder(shape, seed, rates), 30
    expected = np.concatenate(list(simulated(shape, rates, seed, steps)))
    rows, epochs = order.rows(0, steps * shape.batch_size)
    assert np.array_equal(rows, expected[:, 0])
    assert np.array_equal(epochs, expected[:, 1])


@given(pools(), st.integers(0, 400), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_any_part_of_it_is_had_alone(pool, start, count):
    shape, rates = pool
    whole = np.stack(RollingOrder(shape, 5, rates).rows(0, start + count))
    part = np.stack(RollingOrder(shape, 5, rates).rows(start, count))
    assert np.array_equal(part, whole[:, start:])


@pytest.mark.parametrize("uses", [1.0, 1.3, 2.0, 4.0, 8.0, 30.0])
@pytest.mark.parametrize("first", [8, 40])
def test_every_sample_is_seen_and_no_more_often_than_it_should(uses, first):
    shape = PoolShape(full=100_000, subset=0, batch_size=64 * 8, pool=40, first=first)
    order = RollingOrder(shape, 3, [rate_of(1 / uses, shape.batch_size)])
    steps = round(100 * uses)
    seen: Counter = Counter()
    for step in range(steps):
        drawn = order.draws(step, 0, shape.lanes)
        seen.update((drawn.rounds * shape.lanes + drawn.lanes).tolist())
    left = (order.arrived(steps) - shape.pool) * shape.lanes
    # Of a pool that is full from the start, the first to leave may not have been drawn by then.
    counts = np.array([seen[arrival] for arrival in range(0 if first < shape.pool else shape.samples, left)])
    assert counts.min() >= 1
    # What comes first, while the pool is small, is drawn more often: e · ln(P / B) times until the pool is full.
    assert counts.max() <= uses * (1 + math.log(shape.pool / first)) + 2.5
    counts = counts[shape.samples if first < shape.pool else 0 :]
    assert abs(counts.mean() - uses) < 0.15 * uses + 0.3
    assert counts.max() <= uses + 2.5


def test_a_pool_that_holds_the_set_reads_it_once_and_keeps_it():
    shape = PoolShape(full=1_000, subset=0, batch_size=128, pool=16, first=2)
    assert shape.keeps_all and shape.samples == 1_024
    order = RollingOrder(shape, 3, [rate_of(0.5, 128)])
    assert order.arrived(10**9) == 16
    rows = np.concatenate([order.rows(step * 128, 128)[0] for step in range(1_000, 1_016)])
    assert set(rows.tolist()) == set(range(1_000))


def test_a_rate_that_changes_leaves_what_came_before_it():
    shape = PoolShape(full=5_000, subset=0, batch_size=96, pool=15, first=3)
    order = RollingOrder(shape, 3, [rate_of(1 / 8, 96)])
    before = np.stack(order.rows(0, 40 * 96))
    order.rows(0, 90 * 96)
    order.rates = [*order.rates, Rate(40, 96, 4)]
    assert np.array_equal(np.stack(order.rows(0, 40 * 96)), before)
    assert math.isclose(order.arrived(4_040) - order.arrived(40), 4_000 * 24 / shape.lanes, abs_tol=1)
