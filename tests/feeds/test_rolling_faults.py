"""What went wrong with rolling pools once, each made to happen: batches still come, and are those of the order."""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from batches import same
from packs import noise_images, write_ragged
from rolling import CPU, order_of, pool_files, streamed

from fastload import Augment, RandomResizedCrop, TwoPhaseLoader
from fastload.errors import ClosedError, UsageError
from fastload.feeds.batch import Output
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.pool_memory import PoolImages
from fastload.feeds.pool_plan import planned_pool
from fastload.feeds.rolling_feed import open_rolling_feed
from fastload.feeds.rolling_order import PoolShape, RollingOrder, rate_of
from fastload.packed.set import open_packed

PAPER = Augment.paper(24)
BATCH = 32
PATIENCE = 5  # seconds after which what waits is said to hang


@pytest.fixture
def gate(monkeypatch):
    """Reads of arrivals wait while it is closed."""
    found = threading.Event()
    found.set()
    fetch = DecodedSource.fetch

    def held(source, rows, out, starts):
        found.wait()
        fetch(source, rows, out, starts)

    monkeypatch.setattr(DecodedSource, "fetch", held)
    return found


@pytest.mark.parametrize("first", [60, 64, 68])
def test_what_had_a_place_but_was_not_fetched_yet_is_fetched_by_the_next_turn(few_cifar, gate, first):
    """A run that is reset, or given a state, ends the threads while rounds that were planned ahead wait for them."""
    with open_packed(few_cifar) as full, ThreadPoolExecutor(1) as thread:
        files, order = pool_files(full), order_of(full, pool=160, refill=0.25)
        feed = open_rolling_feed(files, PAPER, order, Output(BATCH, CPU), workers=1)
        try:
            make = feed.begin(first * BATCH)
            for step in range(first, first + 3):
                make(step * BATCH, BATCH)
            time.sleep(0.05)
            gate.clear()
            made = [first + 2]

            def draw_on():
                while True:
                    make((made[0] + 1) * BATCH, BATCH)
                    made[0] += 1

            drawing = thread.submit(draw_on)
            time.sleep(0.1)
            feed.end()
            with pytest.raises(ClosedError):
                drawing.result(PATIENCE)
            gate.set()
            steps = range(made[0] + 1, made[0] + 41)
            again = feed.begin(steps[0] * BATCH)
            got = thread.submit(lambda: [again(step * BATCH, BATCH) for step in steps])
            same(got.result(PATIENCE), streamed(files, order, PAPER, steps))
        finally:
            gate.set()
            feed.close()


def test_a_thread_that_draws_while_another_follows_the_growing_pool_waits_for_it(monkeypatch):
    shape, rates = PoolShape(1000, 0, 64, 8, 1), [rate_of(0.25, 64)]
    whole = RollingOrder(shape, 3, rates)
    order = RollingOrder(shape, 3, rates)
    course, found, may_go = order._course, threading.Event(), threading.Event()
    extend = course._extend

    def held():
        extend()
        found.set()
        may_go.wait(PATIENCE)

    monkeypatch.setattr(course, "_extend", held)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(order.rows, 5 * 64, 64)
        assert found.wait(PATIENCE)
        second = threads.submit(order.rows, 6 * 64, 64)
        time.sleep(0.1)
        may_go.set()
        for got, step in ((first, 5), (second, 6)):
            assert all(map(np.array_equal, got.result(PATIENCE), whole.rows(step * 64, 64)))


def test_many_threads_may_draw_at_once():
    order = RollingOrder(PoolShape(1000, 0, 64, 8, 1), 3, [rate_of(0.25, 64)])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda step: order.draws(step % 500, 0, 64), range(8000)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"rates": [[0, 4000, 1]]}, "a batch has 32 samples"), ({"pool": 0}, "damaged"), ({"rates": []}, "damaged")],
)
def test_a_state_with_rates_that_no_run_has_is_refused(few_cifar, changed, said):
    """A round too many in a batch would be written behind its end."""
    options = {"pool": "1MB", "refill": 0.25, "batch_size": BATCH, "steps": 40, "augment": PAPER, "device": "cpu"}
    with TwoPhaseLoader(few_cifar, **options) as loader:
        state = json.loads(json.dumps(loader.state_dict()))
        with pytest.raises(UsageError, match=said):
            loader.load_state_dict(state | {"rolling": state["rolling"] | changed})


def test_a_state_with_a_pool_that_holds_no_batch_is_refused(few_cifar):
    options = {"pool": "1.3MB", "refill": 0.25, "batch_size": 128, "steps": 40, "augment": PAPER, "device": "cpu"}
    with TwoPhaseLoader(few_cifar, **options) as loader:
        state = loader.state_dict()
        with pytest.raises(UsageError, match="a batch has 128 samples"):
            loader.load_state_dict(state | {"rolling": state["rolling"] | {"pool": 64}})


def test_a_subset_of_larger_images_than_the_full_sets_has_room(tmp_path):
    rng = np.random.default_rng(1)
    small = [noise_images(1, *rng.integers(20, 24, 2), seed=k)[0] for k in range(400)]
    large = [noise_images(1, 40, 40, seed=k)[0] for k in range(80)]
    full_path = write_ragged(tmp_path / "full.h5", small, np.arange(400) % 7)
    first_path = write_ragged(tmp_path / "first.h5", large, np.arange(80) % 7)
    augment = Augment(16, crop=RandomResizedCrop())
    with open_packed(full_path) as full, open_packed(first_path) as first:
        files, order = pool_files(full, first), order_of(full, first, refill=0.25, batch=16)
        feed = open_rolling_feed(files, augment, order, Output(16, CPU), workers=2)
        make = feed.begin(0)
        found = [make(step * 16, 16) for step in range(30)]
        feed.close()
        same(found, streamed(files, order, augment, range(30)))


@pytest.mark.parametrize("at_random", [True, False])
def test_a_ring_has_room_for_the_largest_of_two_passes_that_meet(at_random):
    sizes = np.array([1] * 90 + [1000] * 10)
    found = PoolImages(3, None, None, sizes, np.ones((100, 2), np.int32))
    assert found.bytes_for(20, at_random=at_random) >= 20_000  # ten at the end of one pass, ten as the next begins


@pytest.mark.parametrize(("full", "batch"), [(10_000, 256), (100, 256), (96, 32)])
def test_a_pool_of_as_many_samples_as_the_set_keeps_it(full, batch):
    images = PoolImages(3, (8, 8, 3), (192, 24, 3, 1), np.full(full, 192), None)
    settings = {"subset": 0, "images": images, "batch_size": batch, "world_size": 1, "shuffle": True}
    shape, notes = planned_pool(full, 0.25, full=full, **settings)
    assert shape.keeps_all and len(notes) == 1 and f"all {full:,} samples" in notes[0]


@pytest.mark.parametrize("options", [{"swap": 0, "pool": 64}, {"swap": 0.0, "refill": 0.3}, {"refill": 1e-6}])
def test_settings_of_a_pool_that_would_do_nothing_are_refused(few_cifar, options):
    with pytest.raises(UsageError, match=r"swap=0 begins with the full set|refill=1e-06; it is 0"):
        TwoPhaseLoader(few_cifar, batch_size=32, steps=10, augment=PAPER, device="cpu", **options)
