"""A loader whose first phase draws from a rolling pool: against the plain stream, and going on after a resume."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
import weakref

import pytest
import torch
from batches import feed_threads

from fastload import Augment, DataError, TwoPhaseLoader, UsageError
from fastload.bench.data import write_subset
from fastload.errors import ClosedError
from fastload.feeds.batch import Output
from fastload.feeds.decoded_source import DecodedSource
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


# -- refill="auto" ---------------------------------------------------------------------------------------------------


class Storage:
    """Gives a number of samples a second at most, whatever the number of threads, or nothing at all."""

    def __init__(self, monkeypatch) -> None:
        self.open, self.seconds, self.fetched = threading.Event(), 0.0, 0
        self.open.set()
        fetch, one_at_a_time = DecodedSource.fetch, threading.Lock()

        def slow(source, rows, out, starts):
            assert self.open.wait(30)
            if self.seconds:
                with one_at_a_time:
                    time.sleep(self.seconds * len(rows))
            fetch(source, rows, out, starts)
            self.fetched += len(rows)

        monkeypatch.setattr(DecodedSource, "fetch", slow)


@pytest.fixture
def storage(monkeypatch):
    return Storage(monkeypatch)


AUTO = {"pool": 128, "refill": "auto", "steps": 400, "prefetch": 2}


def trained(loader, until, seconds=0.0):
    """Train up to a step; return the ids of each batch."""
    got = []
    for _, _, ids in loader:
        time.sleep(seconds)
        got.append(ids.tolist())
        if loader.step == until:
            break
    return got


def rates_of(loader):
    return loader.state_dict()["rolling"]["rates"]


def test_auto_takes_nine_tenths_of_what_the_stream_gives(few_cifar, storage):
    storage.seconds = 0.001
    with loader_of(few_cifar, **AUTO) as loader:
        trained(loader, 60, 0.016)  # 2,000 images/s are trained, 1,000 arrive
        (step, first, steps), (change, arrivals, each) = rates_of(loader)
        assert (step, first, steps, each) == (0, 4, 1, 1) and 32 < change < 50
        assert arrivals == pytest.approx(0.9 * 0.5 * BATCH, rel=0.25)
        stats = loader.stats()["fast"]
        assert stats["refill"] == arrivals / BATCH and stats["uses"] == BATCH / arrivals
        assert f"{arrivals} of the batch's 32 arrive each step" in stats["choice"]
        state, rates = json.loads(json.dumps(loader.state_dict())), rates_of(loader)
    storage.seconds = 0.0
    with loader_of(few_cifar, **AUTO) as loader:
        loader.load_state_dict(state)
        trained(loader, 120, 0.001)
        assert rates_of(loader) == rates  # kept, however fast the storage is now


def test_auto_takes_all_of_a_stream_that_keeps_up(few_cifar, storage):
    with loader_of(few_cifar, **AUTO) as loader:
        trained(loader, 60, 0.01)
        assert rates_of(loader)[1][1:] == [BATCH, 1] and loader.stats()["fast"]["refill"] == 1.0


def test_auto_measures_anew_where_a_run_is_resumed_before_the_change(few_cifar, storage):
    storage.seconds = 0.001
    with loader_of(few_cifar, **AUTO) as loader:
        trained(loader, 20, 0.016)
        state = loader.state_dict()
        assert rates_of(loader) == [[0, 4, 1]]
    storage.seconds = 0.0
    with loader_of(few_cifar, **AUTO) as loader:
        loader.load_state_dict(state)
        trained(loader, 80, 0.01)
        assert rates_of(loader)[1][0] > 20 + 32 and rates_of(loader)[1][1:] == [BATCH, 1]
        loader.load_state_dict(state)  # the same loader, back before the change
        assert rates_of(loader) == [[0, 4, 1]]
        storage.seconds = 0.001
        trained(loader, 80, 0.016)
        assert rates_of(loader)[1][1] < BATCH


def test_auto_warns_above_eight_uses(few_cifar, storage):
    storage.seconds = 0.005
    with loader_of(few_cifar, **AUTO) as loader:
        with pytest.warns(UserWarning, match=r'refill="auto" is 0\.0.*each sample serves .* steps, and above 8'):
            trained(loader, 60, 0.012)
        assert rates_of(loader)[1][1] <= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seconds", [0.0, 0.003])
def test_a_set_that_fits_is_kept_and_auto_says_so_without_a_warning(few_cifar, storage, seconds):
    storage.seconds = seconds
    with loader_of(few_cifar, feed="auto", steps=160) as loader:
        trained(loader, 50, 0.005)
        stats = loader.stats()["fast"]
        assert stats["choice"] == "the pool holds all 400 samples of the full set: each is read once, and kept"
        assert stats["pool"] == 13 * 32 and loader.swap_step == 160  # whole rounds of 32 lanes


# -- storage that stops ----------------------------------------------------------------------------------------------


def test_storage_that_stops_makes_training_wait_and_stats_say_so(few_cifar, storage):
    options = {"pool": 96, "refill": 0.5, "steps": 120}
    with loader_of(few_cifar, **options) as loader:
        whole = drawn(loader)
    with loader_of(few_cifar, **options) as loader:
        got = drawn(loader, 20)
        storage.open.clear()
        timer = threading.Timer(1.0, storage.open.set)
        timer.start()
        got += drawn(loader)
        timer.join()
        same(got, whole)
        stats = loader.stats()["fast"]
        assert stats["waited"] * stats["seconds"] > 0.5
        assert "its pool is renewed at refill=0.5" in stats["advice"] and "give a smaller refill=" in stats["advice"]


def waits(loader):
    """Train until storage has stopped, and the loop waits; return the thread and what it was told."""
    told = []

    def train():
        try:
            for _ in loader:
                pass
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    step = -1
    while step != loader.step:
        step = loader.step
        time.sleep(0.2)
    return thread, told


def test_closing_ends_a_loop_that_waits_for_storage(few_cifar, storage):
    loader = loader_of(few_cifar, pool=96, refill=0.5, steps=100_000)
    drawn(loader, 5)
    storage.open.clear()
    thread, told = waits(loader)
    began = time.monotonic()
    loader.close()
    thread.join(5)
    assert not thread.is_alive() and isinstance(told[0], ClosedError) and time.monotonic() - began < 3
    storage.open.set()
    assert not left()


def test_ctrl_c_ends_a_loop_that_waits_for_storage_and_it_can_go_on(few_cifar, storage):
    options = {"pool": 96, "refill": 0.5, "steps": 100}
    with loader_of(few_cifar, **options) as loader:
        whole = drawn(loader)
    with loader_of(few_cifar, **options) as loader:
        got = drawn(loader, 5)
        storage.open.clear()
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                for batch in loader:
                    got.append(batch)
            timer.join()
        finally:
            signal.signal(signal.SIGINT, before)
        assert len(got) == loader.step < 100
        storage.open.set()
        same(got + drawn(loader), whole)
    assert not left()


def left():
    """Threads that do not end."""
    deadline = time.monotonic() + 3
    while feed_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return feed_threads()


@pytest.mark.parametrize("ending", ["close", "drop", "break", "error"])
def test_nothing_is_left_of_a_loader_neither_threads_nor_the_pool(few_cifar, storage, ending):
    gc.collect()
    gc.disable()  # what holds itself would wait for the collector, and so would a pool of gigabytes
    try:
        loader = loader_of(few_cifar, pool=96, refill=0.5, steps=1000)
        pool = weakref.ref(loader._run.fast.prepare()._held)
        for _ in loader:
            if loader.step == 20:
                break
        if ending == "error":
            with pytest.raises(ZeroDivisionError):
                for _ in loader:
                    raise ZeroDivisionError
        if ending != "drop":
            loader.close()
        del loader, _
        assert not left()
        deadline = time.monotonic() + 2
        while pool() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool() is None
    finally:
        gc.enable()


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pool": "nonsense"}, r"pool='nonsense'; it is the memory of each rank's pool, such as \"16GB\", or a number"),
        ({"pool": 0}, r"pool=0; it must be at least 1"),
        ({"pool": 16}, r"pool=16; it must hold a global batch, which has 32 samples"),
        ({"pool": "10KB"}, r"a pool of one global batch takes .* MB on each rank with its slack; give at least that"),
        ({"refill": 1.5}, r"refill=1\.5; it is a share of the batch, from 0 to 1"),
        ({"refill": "often"}, r"refill='often'; it is a share of the batch \(0 to 1\), or \"auto\""),
        ({"feed": "x"}, r"feed='x'; it is \"auto\", or left out"),
    ],
)
def test_what_is_no_pool_is_refused_and_what_to_give_is_said(few_cifar, options, told):
    with pytest.raises(UsageError, match=told):
        loader_of(few_cifar, **({"pool": 96, "refill": 0.5} | options))


def test_a_pool_needs_the_full_set_and_room_for_the_subset(few_cifar, few_subset):
    with pytest.raises(UsageError, match="full= is missing, and a pool that is renewed needs it"):
        loader_of(None, few_subset, refill=0.5)
    with pytest.raises(UsageError, match=r"pool=64 holds 64 samples, and the subset, .*, has 70; give a larger pool="):
        loader_of(few_cifar, few_subset, pool=64, refill=0.5)


def test_a_pool_that_the_device_has_no_room_for_is_refused_before_the_run(few_cifar, monkeypatch):
    monkeypatch.setattr("fastload.common.memory.free_memory", lambda device: 200_000)
    with pytest.raises(DataError, match=r"its pool needs .* MB more than the .* MB that are free; .* a smaller pool="):
        loader_of(few_cifar, pool=96, refill=0.5)
    assert not left()


def test_a_pool_of_no_whole_batches_is_rounded_and_it_is_said(few_cifar):
    with pytest.warns(UserWarning, match="pool=100 is 96: whole global batches of 32"):
        loader = loader_of(few_cifar, pool=100, refill=0.5)
    with loader:
        drawn(loader, 2)
        assert loader.stats()["fast"]["pool"] == 96


@pytest.mark.parametrize("refill", [0.0, 0.5])
@pytest.mark.parametrize("with_subset", [False, True])
def test_a_pool_as_large_as_the_set_keeps_each_sample_and_reads_none_twice(
    few_cifar, few_subset, storage, with_subset, refill
):
    subset = few_subset if with_subset else None
    with pytest.warns(UserWarning, match="the pool holds all 400 samples of the full set: each is read once, and kept"):
        loader = loader_of(few_cifar, subset, pool=1000, refill=refill, steps=130)
    with loader:
        ids = [ids.tolist() for _, _, ids in loader]
        samples = loader.stats()["fast"]["pool"]
        assert 400 <= samples <= 448
        # Any two sweeps' length of draws holds a whole sweep.
        later = [one for batch in ids[-2 * samples // BATCH :] for one in batch]
        assert set(later) == set(range(400))
        assert storage.fetched <= 400 + (70 if with_subset else 0) + 2 * BATCH


def test_a_file_that_changes_in_mid_run_is_an_error(few_cifar, tmp_path):
    path = tmp_path / "full.h5"
    path.write_bytes(few_cifar.read_bytes())
    with loader_of(path, pool=96, refill=0.5, steps=2000) as loader:
        drawn(loader, 5)
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), b"\0" * 100, path.stat().st_size // 2)
            os.utime(path)
        with pytest.raises(DataError, match=r"full\.h5"):
            drawn(loader)
        with pytest.raises(DataError, match=r"full\.h5"):
            drawn(loader)
    assert not left()


# -- states of other pools -------------------------------------------------------------------------------------------


def saved(loader, at=20):
    with loader:
        drawn(loader, at)
        return json.loads(json.dumps(loader.state_dict()))


@pytest.mark.filterwarnings("ignore:the pool holds")
@pytest.mark.parametrize("options", [{"pool": "500KB"}, {"pool": "1GB"}, {"pool": None, "feed": "auto"}])
def test_a_state_s_pool_is_taken_where_memory_was_given(few_cifar, options):
    with loader_of(few_cifar, pool=128, refill=0.5) as loader:
        whole = drawn(loader)
    state = saved(loader_of(few_cifar, pool=128, refill=0.5))
    with loader_of(few_cifar, **({"refill": 0.5} | options)) as loader:
        drawn(loader, 3)
        loader.load_state_dict(state)
        same(drawn(loader), whole[20:])
        assert loader.stats()["fast"]["pool"] == 128


def test_a_state_of_a_pool_of_other_samples_is_refused(few_cifar):
    state = saved(loader_of(few_cifar, pool=128, refill=0.5))
    with loader_of(few_cifar, pool=96, refill=0.5) as loader:
        with pytest.raises(UsageError, match=r"pool of 128 samples, this loader has 96; give pool=128"):
            loader.load_state_dict(state)
        assert loader.step == 0


def test_states_with_and_without_a_pool_do_not_go_together(few_cifar, few_subset):
    fixed = saved(loader_of(few_cifar, few_subset, swap=1.0))
    rolling = saved(loader_of(few_cifar, few_subset, swap=1.0, pool=128, refill=0))
    with (
        loader_of(few_cifar, few_subset, swap=1.0, pool=128, refill=0) as loader,
        pytest.raises(UsageError, match="saved without a pool, this loader has one of 128 samples; leave out pool="),
    ):
        loader.load_state_dict(fixed)
    with (
        loader_of(few_cifar, few_subset, swap=1.0) as loader,
        pytest.raises(UsageError, match="saved with a pool, and this loader has none; give pool="),
    ):
        loader.load_state_dict(rolling)


def test_states_from_before_there_were_pools_load_where_there_is_none(few_cifar, few_subset):
    with loader_of(few_cifar, few_subset) as loader:
        whole = drawn(loader)
    state = saved(loader_of(few_cifar, few_subset))
    assert state.pop("rolling") is None and state.pop("refill") == 0
    with loader_of(few_cifar, few_subset) as loader:
        loader.load_state_dict(state)
        same(drawn(loader), whole[20:])
