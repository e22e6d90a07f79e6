"""Ranks that share a rolling pool: one global batch on any number of them, at a rate that all agree on."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from packs import write_pair

from fastload import Augment, Swap, TwoPhaseLoader, UsageError
from fastload.loop.refilling import Refilling

GLOBAL, STEPS = 32, 60


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=300, chosen=50, height=16, width=16)


def loader_of(pair, rank=0, world=1, store=None, **changes):
    settings = {
        "batch_size": GLOBAL // world,
        "steps": STEPS,
        "pool": 160,
        "refill": 0.3,
        "swap": 45,
        "augment": Augment.paper(12),
        "device": "cpu",
        "seed": 5,
        "with_ids": True,
    } | changes
    full, subset = pair
    return TwoPhaseLoader(full, subset, rank=rank, world_size=world, store=store, **settings)


def run(pair, world, *, state=None, stop=None, ask=None, pace=(), **changes):
    """Train on some ranks; return the global batches, and of each rank the step of the swap and its state at the end.

    Arguments:
        state: to go on from.
        stop: the step to stop at; at the run's end by default.
        ask: (rank, step) of a swap_now().
        pace: seconds that each rank takes for a step.
    """
    store = dist.HashStore()
    loaders = [loader_of(pair, rank, world, store if world > 1 else None, **changes) for rank in range(world)]

    def train(rank):
        with loaders[rank] as loader:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            got = []
            for batch in loader:
                got.append(batch)
                time.sleep(pace[rank] if pace else 0)
                loader.report_loss(1.0)
                if ask == (rank, loader.step):
                    loader.swap_now()
                if loader.step == stop:
                    break
            return got, loader.swap_step, loader.state_dict()

    with ThreadPoolExecutor(world) as pool:
        parts, swaps, states = zip(*pool.map(train, range(world)), strict=True)
    batches = [tuple(map(torch.cat, zip(*of_ranks, strict=True))) for of_ranks in zip(*parts, strict=True)]
    return batches, swaps, states


def same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), step


@pytest.mark.parametrize("world", [2, 4, 32])
def test_any_number_of_ranks_draws_the_global_batches_of_one(pair, world):
    whole, _, _ = run(pair, 1)
    ours, swaps, _ = run(pair, world)
    same(ours, whole)
    assert set(swaps) == {45}


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
@pytest.mark.parametrize("at", [17, 50])
def test_a_run_goes_on_on_another_number_of_ranks(pair, before, after, at):
    whole, _, _ = run(pair, 1)
    first, _, states = run(pair, before, stop=at)
    rest, _, _ = run(pair, after, state=states[0])
    same([*first, *rest], whole)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("swap", ["plateau", "swap_now() of rank 0", "swap_now() of another rank"])
def test_ranks_swap_together(pair, world, swap):
    policy = Swap.on_plateau(patience=1, window=6) if swap == "plateau" else Swap.never()
    ask = {"swap_now() of rank 0": (0, 8), "swap_now() of another rank": (world - 1, 8)}.get(swap)
    ours, swaps, _ = run(pair, world, swap=policy, ask=ask, pace=[0.002] * world, steps=150)
    assert len(set(swaps)) == 1 and 8 < swaps[0] < 150
    whole, _, _ = run(pair, 1, swap=swaps[0], steps=150)
    same(ours, whole)


@pytest.fixture
def measured(monkeypatch):
    """The images/s that each rank measures, in place of the clock: that arrive, and that training takes."""
    rates = {rank: [100.0, 100.0] for rank in range(4)}
    monkeypatch.setattr(Refilling, "_measure", lambda self, state: rates[self._rank])
    return rates


@pytest.mark.parametrize("world", [2, 4])
def test_the_slowest_rank_decides_the_rate_and_all_change_it_at_one_step(pair, world, measured):
    measured[world - 1] = [50.0, 125.0]  # 0.9 · 0.4 of 32
    auto = {"refill": "auto", "swap": 190, "steps": 200}
    ours, _, states = run(pair, world, pace=[0.001 * (1 + rank % 2) for rank in range(world)], **auto)
    rates = states[0]["rolling"]["rates"]
    assert all(state["rolling"]["rates"] == rates for state in states)
    assert rates[0] == [0, 4, 1] and rates[1][1:] == [11, 1] and 32 < rates[1][0] < 190
    with loader_of(pair, **auto) as loader:
        start = loader.state_dict()
    start["rolling"]["rates"] = rates
    whole, _, _ = run(pair, 1, state=start, **auto)
    same(ours, whole)


def test_ranks_that_resume_keep_the_rate_or_agree_on_one_anew(pair, measured):
    measured[0] = [50.0, 125.0]
    auto = {"refill": "auto", "swap": 290, "steps": 300}
    _, _, states = run(pair, 2, stop=20, pace=[0.001] * 2, **auto)
    assert states[0]["rolling"]["rates"] == [[0, 4, 1]]
    _, _, states = run(pair, 4, state=states[0], stop=180, pace=[0.001] * 4, **auto)
    rates = states[0]["rolling"]["rates"]
    assert rates[1][1:] == [11, 1] and rates[1][0] > 52
    measured[0] = [10.0, 125.0]
    ours, _, others = run(pair, 2, state=states[0], pace=[0.001] * 2, **auto)
    assert [state["rolling"]["rates"] for state in others] == [rates] * 2
    whole, _, _ = run(pair, 1, state=states[0], **auto)
    same(ours, whole)


def test_ranks_without_means_to_agree_on_a_rate_are_told_so(pair):
    with pytest.raises(UsageError, match=r'refill="auto": 2 ranks cannot agree .*store=.*refill= as a number'):
        loader_of(pair, world=2, refill="auto")


def test_ranks_that_do_not_divide_the_lanes_are_told_what_to_do(pair):
    with pytest.raises(
        UsageError, match=r"of 24 has 8 lanes, which 3 ranks cannot share; give a batch_size= that"
    ) as told:
        loader_of(pair, world=3, batch_size=8)
    assert "a number of ranks that divides 8" in str(told.value)
    loader_of(pair, world=3, batch_size=8, pool=None, refill=0, swap=1.0).close()  # without a pool there are no lanes
