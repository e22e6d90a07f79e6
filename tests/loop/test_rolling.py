"""A loader whose first phase draws from a rolling pool: against the plain stream, and going on after a resume."""

from __future__ import annotations

import json

import pytest
import torch

from fastload import Augment, TwoPhaseLoader
from fastload.bench.data import write_subset
from fastload.errors import UsageError
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed
from fastload.feeds.rolling_order import PoolShape, RollingOrder, rate_of
from fastload.packed.set import open_packed


@pytest.fixture(scope="module")
def few_subset(few_cifar, tmp_path_factory):
    """70 of the 400 images."""
    return write_subset(tmp_path_factory.mktemp("rolling") / "subset.h5", few_cifar, 70)


PAPER = Augment.paper(24)
CPU = torch.device("cpu")
BATCH = 32


def loader_of(full, subset=None, **options):
    options = {"batch_size": BATCH, "steps": 40, "augment": PAPER, "device": "cpu", "with_ids": True} | options
    return TwoPhaseLoader(full, subset, **options)


def drawn(loader, count=None):
    found = []
    for batch in loader:
        found.append(batch)
        if count is not None and len(found) == count:
            break
    return found


def streamed(full, order, steps, augment=PAPER, batch=BATCH):
    with open_packed(full) as file:
        feed = open_feed(file, augment, order, Output(batch, CPU, keep=1), workers=1)
    found = [feed.make(step * batch, batch) for step in steps]
    feed.close()
    return found


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def order_of(loader):
    """The order of a loader's pool, made anew from its state."""
    state = loader.state_dict()["rolling"]
    shape = loader._run.state.renewal.pool
    assert state["pool"] == shape.samples
    return RollingOrder(shape, 0, loader._run.state.renewal.rates)


def test_one_file_rolls_and_its_batches_are_those_of_the_order(few_cifar):
    with loader_of(few_cifar, pool=128, refill=0.25) as loader:
        got = drawn(loader)
        same(got, streamed(few_cifar, RollingOrder(PoolShape(400, 0, 32, 4, 1), 0, [rate_of(0.25, 32)]), range(40)))
        stats = loader.stats()["fast"]
        assert (stats["feed"], stats["refill"], stats["uses"], stats["pool"]) == ("rolling", 0.25, 4.0, 128)
        assert stats["filled"] == 1.0 and stats["arrivals_per_second"] > 0
        assert loader.phase == "fast" and loader.swap_step == 40


@pytest.mark.parametrize("at", [0, 1, 13, 27, 39])
def test_a_run_resumes_anywhere(few_cifar, few_subset, at):
    options = {"pool": 160, "refill": 0.3, "swap": 30}
    with loader_of(few_cifar, few_subset, **options) as loader:
        whole = drawn(loader)
    with loader_of(few_cifar, few_subset, **options) as loader:
        if at:
            drawn(loader, at)
        state = json.loads(json.dumps(loader.state_dict()))
    with loader_of(few_cifar, few_subset, **options) as loader:
        loader.load_state_dict(state)
        same(drawn(loader), whole[at:])


def test_ranks_do_not_take_what_each_has_free_for_one_pool(few_cifar):
    with pytest.raises(UsageError, match=r'pool= is missing, and each rank.s device .* such as pool="4GB"'):
        loader_of(few_cifar, feed="auto", rank=0, world_size=2)
