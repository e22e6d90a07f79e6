"""What goes wrong in mid-run is an error with its cause at the next batch, or a clean stop: no signal, no hang."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from batches import feed_threads
from packs import write_pair
from places import ROOT

from fastload import Augment, DataError, TwoPhaseLoader, UsageError

STOP = 2.0
"""Seconds within which a loader stops."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=2000, chosen=200)


def make(pair, **changes):
    settings = {
        "batch_size": 16,
        "steps": 400,
        "swap": 100,
        "augment": Augment.paper(24),
        "device": "cpu",
        "with_ids": True,
        "seed": 5,
        "resident_budget": 0,
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))


def same(one, other):
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


PROGRAM = """
import os, sys, threading, time
from fastload import Augment, FastloadError, TwoPhaseLoader

full, subset, fault = sys.argv[1:4]
loader = TwoPhaseLoader(
    full, subset, batch_size=64, steps=100_000, swap=20, augment=Augment.paper(24), device="cpu", resident_budget=0,
)
try:
    for images, labels in loader:
        if loader.step == 40:
            print("running", flush=True)
            if fault == "truncate":
                os.truncate(full, 8192)
            elif fault == "vanish":
                os.unlink(full)
            elif fault == "empty":
                open(full, "wb").close()
        if fault == "vanish" and loader.step == 4000:
            break
        if fault == "slow":
            time.sleep(0.05)
except FastloadError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
loader.close()
print(sum(thread.name.startswith("fastload") for thread in threading.enumerate()), "threads left")
"""


def start(pair, fault):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pair[0]), str(pair[1]), fault],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("fault", ["truncate", "empty"])
def test_a_file_that_shrinks_in_mid_run_ends_the_program_with_an_error(tmp_path, fault):
    process = start(write_pair(tmp_path, count=2000), fault)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, (process.returncode, said)
    assert "Traceback" not in said and "full.h5: " in said
    assert "can no longer be read" in said or "was changed while it was in use" in said


def test_a_file_that_vanishes_is_read_on(tmp_path):
    process = start(write_pair(tmp_path, count=2000), "vanish")
    out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "") and "0 threads left" in out  # the open file is still there


@pytest.mark.parametrize("fault", ["slow", "none"])
def test_ctrl_c_stops_the_program_at_once(pair, fault):
    process = start(pair, fault)
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < STOP + 3  # the interpreter's own end included
    assert process.returncode == -signal.SIGINT and said.strip().endswith("KeyboardInterrupt")


def test_ctrl_c_while_the_loop_waits_for_a_batch_is_heard_and_the_run_can_go_on(pair):
    with make(pair, swap=0) as loader:
        whole = [next(batches) for batches in [iter(loader)] for _ in range(6)]
    with make(pair, swap=0, prefetch=1) as loader:
        feed = loader._run.fine.prepare()
        made, slow = feed.make, threading.Event()

        def waiting(start, count):
            if start >= 3 * 16:
                slow.wait(20)
            return made(start, count)

        feed.make = waiting
        got, batches = [], iter(loader)
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                got.extend(iter(lambda: next(batches), None))
        finally:
            signal.signal(signal.SIGINT, before)
        assert len(got) == loader.step == 3
        slow.set()
        for batch in loader:
            got.append(batch)
            if len(got) == 6:
                break
        assert all(same(one, other) for one, other in zip(got, whole, strict=True))


def test_a_reader_that_hangs_keeps_nobody_from_closing(pair):
    loader = make(pair, swap=0)
    feed = loader._run.fine.prepare()
    made, released = feed.make, threading.Event()

    def hanging(start, count):
        if start >= 2 * 16:
            released.wait(30)
        return made(start, count)

    feed.make = hanging
    batches = iter(loader)
    next(batches)
    time.sleep(0.2)
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < STOP + 1
    released.set()
    deadline = time.monotonic() + STOP
    while feed_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not feed_threads()


def test_closing_wakes_who_waits_for_a_batch(pair):
    loader = make(pair, swap=0)
    feed = loader._run.fine.prepare()
    released = threading.Event()
    feed.make = lambda start, count: released.wait(30)
    failures = []

    def draw():
        try:
            next(iter(loader))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    time.sleep(0.2)
    loader._run.fine.pause()  # what close() does first; close() itself waits for whoever is in the loader
    thread.join(STOP)
    released.set()
    assert not thread.is_alive() and "closed" in str(failures[0])
    loader.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_out_of_memory_in_a_feed_says_what_to_make_smaller(pair, error):
    with make(pair, swap=0) as loader:
        feed = loader._run.fine.prepare()
        made = feed.make

        def failing(start, count):
            if start >= 5 * 16:
                raise error
            return made(start, count)

        feed.make = failing
        with pytest.raises(UsageError, match=r"out of memory .*batch_size=, prefetch= or resident_budget=") as found:
            list(loader)
        assert found.value.__cause__ is error and loader.step <= 5
    assert not feed_threads()


def test_a_subset_that_does_not_fit_says_by_how_much_and_what_fits(pair, monkeypatch):
    monkeypatch.setattr("fastload.common.memory.available_memory", lambda: 400_000)
    with pytest.raises(DataError, match=r"subset\.h5: needs 1 MB .*0 MB more than the 0 MB.*about 65% of it fits"):
        make(pair)
    assert not feed_threads()


def test_two_loaders_at_once_do_not_disturb_each_other(pair):
    alone = {}
    for seed in (1, 2):
        with make(pair, seed=seed, steps=60, swap=20) as loader:
            alone[seed] = list(loader)
    with make(pair, seed=1, steps=60, swap=20) as one, make(pair, seed=2, steps=60, swap=20, prefetch=1) as two:
        for a, b, first, second in zip(one, two, alone[1], alone[2], strict=True):
            assert same(a, first) and same(b, second)


def test_nothing_is_left_of_a_loader_no_thread_descriptor_or_mapping(pair):
    def held():
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("full.h5") + maps.count("subset.h5"), len(feed_threads())

    with make(pair) as loader:  # what is loaded once and stays
        next(iter(loader))
    before = held()
    for ending in ("close", "twice", "drop", "break", "error"):
        loader = make(pair, swap=1 if ending != "drop" else 100)
        if ending == "error":
            loader._run.fine.prepare().make = lambda start, count: 1 / 0
            with pytest.raises(RuntimeError, match="division"):
                list(loader)
            loader.close()
        for _ in loader if ending != "error" else ():
            if loader.step == 3:
                break
        if ending in ("close", "twice", "break"):
            loader.close()
        if ending == "twice":
            loader.close()
        del loader
        deadline = time.monotonic() + STOP
        while held() != before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held() == before, ending


FORK = """
import os, signal, sys
from fastload import Augment, TwoPhaseLoader
loader = TwoPhaseLoader(
    sys.argv[1], sys.argv[2], batch_size=16, steps=100, swap=2, augment=Augment.paper(24), device="cpu",
    engine=sys.argv[3], resident_budget=0,
)
batches = iter(loader)
for _ in range(5):
    next(batches)
child = os.fork()
if not child:
    signal.alarm(20)
    for use in (lambda: next(batches), lambda: iter(loader), loader.swap_now):
        try:
            use()
            os._exit(9)
        except ValueError as error:
            if "fork" not in str(error):
                os._exit(8)
    loader.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
next(batches)
loader.close()
"""


@pytest.mark.parametrize("engine", ["fused", "dali"])
def test_a_fork_s_child_is_told_and_the_parent_goes_on(pair, engine):
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(pair[0]), str(pair[1]), engine],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
