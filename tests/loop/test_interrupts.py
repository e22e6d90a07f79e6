"""An interrupt anywhere leaves an exact loader: the next batch is the one after the last that `next()` returned.

By a tracer, which raises at each point of a `next()` in turn, and by real signals.
FASTLOAD_INTERRUPTS=all raises at every bytecode instruction, and sends ten times as many signals.
"""

from __future__ import annotations

import dis
import faulthandler
import functools
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from packs import write_pair

import fastload
from fastload import Augment, Swap, TwoPhaseLoader

OURS = str(Path(fastload.__file__).parent)
ALL = os.environ.get("FASTLOAD_INTERRUPTS") == "all"
STEPS, SWAP, BATCH = 12, 5, 4


class Interrupt(BaseException):
    """What a signal's handler raises, as KeyboardInterrupt is raised."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=60, chosen=12, height=12, width=12)


@pytest.fixture(autouse=True)
def no_hang():
    """A loader that hangs ends the tests, with all threads' tracebacks."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert sys.exc_info() == (None, None, None)


def make(pair, **changes):
    settings = {
        "batch_size": BATCH,
        "steps": STEPS,
        "swap": SWAP,
        "augment": Augment.paper(8),
        "device": "cpu",
        "seed": 5,
        "with_ids": True,
        "prefetch": 2,
        "resident_budget": 0,
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))


def ids_of(batches):
    return [batch[-1].tolist() for batch in batches]


@pytest.fixture(scope="module")
def run(pair):
    """The ids of the uninterrupted run, and how they go on beyond its end."""
    with make(pair, steps=STEPS * 20) as loader:
        return ids_of(loader)


@functools.cache
def _handlers_edges(code):
    """Where a handler has not noted its exception yet, or is to drop it next: Python would keep the wrong one.

    No signal comes there: Python looks for signals at calls, and where it jumps back, only.
    """
    names = {at: dis.opname[code.co_code[at]] for at in range(0, len(code.co_code), 2)}
    before_drop = {at for at, name in names.items() if name == "COPY" and names.get(at + 2) == "POP_EXCEPT"}
    return {at for at, name in names.items() if name in ("PUSH_EXC_INFO", "POP_EXCEPT")} | before_drop


class Tracer:
    """Raises `Interrupt` at the n-th point that this thread passes in our code, at the lines' or instructions' ends."""

    def __init__(self, number: int, instructions: bool) -> None:
        self.left, self.instructions, self.where = number, instructions, None

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = self.instructions
        if frame.f_lasti in _handlers_edges(frame.f_code):
            return self
        self.left -= 1
        if self.left == 0:
            self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno} {event}"
            raise Interrupt(self.where)
        return self


class Interrupter:
    """Makes calls that are interrupted at one point after the other, until they come through."""

    def __init__(self, instructions: bool, stride: int = 1) -> None:
        self.instructions, self.stride = instructions, stride
        self.interrupts = 0

    def __call__(self, call, check):
        """Return what `call()` returns at last; call `check(where)` after each interrupt."""
        number = random.Random(self.interrupts).randint(1, self.stride)
        while True:
            tracer = Tracer(number, self.instructions)
            before = sys.gettrace()
            sys.settrace(tracer)
            try:
                found = call()
            except Interrupt:
                found = tracer
            finally:
                sys.settrace(before)
            if found is not tracer:
                assert tracer.where is None, f"an interrupt at {tracer.where} was swallowed"
                return found
            self.interrupts += 1
            check(tracer.where)
            number += self.stride


def whole_run(loader, interrupter, run, until=STEPS):
    """Draw all batches through the interrupter; whatever it does, they must be the run's, in order."""
    got = []

    def check(where):
        assert loader.step == len(got), where
        assert loader.state_dict()["step"] == len(got), where

    while loader.step < until and not loader._run.is_finished(loader.step):
        batches = interrupter(lambda: iter(loader), check)
        while True:
            batch = interrupter(lambda: next(batches, None), check)  # noqa: B023
            if batch is None:
                break
            got.append(batch)
            assert loader.step == len(got) and ids_of(got[-1:]) == run[len(got) - 1 : len(got)]
    return got


def granularity():
    """Lines at each point; instructions by chance, or each of them."""
    return [("lines", 1), ("instructions", 1 if ALL else 29)]


SETTINGS = {
    "streamed": {},
    "one long loop, resident": {"resident_budget": 1 << 30, "keep_resident": True},
    "epochs": {"steps_per_epoch": 5},
    "told to swap": {"swap": Swap.never()},
    "from the full set": {"swap": 0},
    "one thread, one ahead": {"prefetch": 1},
}


@pytest.mark.parametrize("points", granularity(), ids=lambda points: points[0])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_after_an_interrupt_at_any_point_the_same_batch_comes_next(pair, run, settings, points):
    called = []
    with make(pair, **settings) as loader:
        loader.on_swap(lambda loader: called.append("a"))
        loader.on_swap(lambda loader: called.append("b"))
        if isinstance(settings.get("swap"), Swap):
            loader.on_swap(called.append)
            batches = iter(loader)
            for _ in range(SWAP):
                next(batches)
            loader.swap_now()
            state = loader.state_dict()
            loader.load_state_dict(state)
            interrupter = Interrupter(points[0] == "instructions", points[1])
            got = []
            batches = iter(loader)
            while len(got) < STEPS - SWAP:
                got.append(interrupter(lambda: next(batches), lambda where: None))
            assert ids_of(got) == run[SWAP:STEPS] and called == ["a", "b", loader]
            return
        interrupter = Interrupter(points[0] == "instructions", points[1])
        got = whole_run(loader, interrupter, run if settings.get("swap") != 0 else full_only(pair))
        assert len(got) == STEPS and interrupter.interrupts > 100
    assert called == ([] if settings.get("swap") == 0 else ["a", "b"])


def full_only(pair):
    with make(pair, swap=0) as loader:
        return ids_of(loader)


@pytest.mark.parametrize("points", granularity(), ids=lambda points: points[0])
def test_a_loader_that_tells_of_itself_is_as_exact(pair, run, points, capsys):
    written = []
    with make(pair, progress=True, steps_per_epoch=6) as loader:
        loader.log_to(lambda scalars, step: written.append(step), every=4)
        got = whole_run(loader, Interrupter(points[0] == "instructions", points[1]), run)
    assert len(got) == STEPS and set(written) <= {4, 8, 12} and len(written) == len(set(written))
    assert f"{STEPS}/{STEPS}" in capsys.readouterr().err


@pytest.mark.parametrize("points", granularity(), ids=lambda points: points[0])
def test_a_rolling_pool_is_as_exact(pair, points):
    with make(pair, pool=24, refill=0.4) as loader:
        whole = ids_of(loader)
    with make(pair, pool=24, refill=0.4) as loader:
        interrupter = Interrupter(points[0] == "instructions", points[1])
        got = whole_run(loader, interrupter, whole)
        assert len(got) == STEPS and interrupter.interrupts > 50


def test_a_run_by_the_clock_is_as_exact(pair, run):
    with make(pair, steps=None, seconds=2.0, swap=Swap.after(seconds=0.6)) as loader:
        with make(pair, steps=None, seconds=3600, swap=Swap.never()) as other:
            fast = ids_of(itertools.islice(other, 3000))
        interrupter = Interrupter(False, 7)
        got, batches = [], iter(loader)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            batch = interrupter(lambda: next(batches, None), lambda where: None)
            if batch is None:
                break
            got.append(batch)
        at = loader.swap_step
        assert batch is None and 0 < at < len(got) == loader.step
    assert ids_of(got[:at]) == fast[:at] and ids_of(got[at:]) == full_only_from(pair, len(got) - at)


def full_only_from(pair, count):
    with make(pair, swap=0, steps=max(1, count)) as loader:
        return ids_of(loader)


@pytest.mark.parametrize("step", [0, 1, SWAP - 1, SWAP, SWAP + 1, STEPS - 1])
def test_an_interrupt_of_a_fresh_loader_s_batch_leaves_a_state_that_resumes_exactly(pair, run, step):
    with make(pair) as loader:
        for _ in itertools.islice(loader, step):
            pass
        start = loader.state_dict()
    points = itertools.count(1) if ALL else itertools.count(1, 9)
    for number in points:
        with make(pair) as loader:
            loader.load_state_dict(start)
            batches, tracer = iter(loader), Tracer(number, False)
            sys.settrace(tracer)
            try:
                next(batches)
            except Interrupt:
                pass
            finally:
                sys.settrace(None)
            if tracer.where is None:
                break
            state = json.loads(json.dumps(loader.state_dict()))
            assert state == start | {"seconds": state["seconds"], "agreed_swap": state["agreed_swap"]}
            rest = ids_of(batches)
            assert rest == run[step:STEPS], tracer.where
        with make(pair, prefetch=4) as other:
            other.load_state_dict(state)
            assert ids_of(itertools.islice(other, 2)) == run[step : min(step + 2, STEPS)], tracer.where
    assert number > 9


# -- signals -------------------------------------------------------------------------------------------------------


_armed = False


def _alarm(number, frame):
    if _armed:  # or it came late: another thread may be the one that the system gives it to
        raise Interrupt


@pytest.fixture
def alarms():
    """Have SIGALRM raise Interrupt in a call that `interrupted_by_a_signal` makes, and do nothing out of it."""
    before = signal.signal(signal.SIGALRM, _alarm)
    yield
    time.sleep(0.1)
    signal.signal(signal.SIGALRM, before)


def interrupted_by_a_signal(seconds, call):
    """Make a call, with a signal whose handler raises that many seconds after its beginning; return whether it did."""
    global _armed
    try:
        _armed = True
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _armed = False
    except Interrupt:
        return True
    finally:
        _armed = False
    return False


@pytest.mark.parametrize("settings", [{}, {"resident_budget": 1 << 30}, {"engine": "dali"}], ids=str)
def test_real_signals_lose_no_batch_and_repeat_none(pair, settings, capfd, alarms):
    if "engine" in settings:
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    wanted, random_ = 700 if ALL else 70, random.Random(5)
    steps = 10 * wanted
    with make(pair, steps=steps, swap=0.5, **settings) as loader:
        whole = ids_of(loader)
    got, interrupts, longest = [], 0, 2e-4
    with make(pair, steps=steps, swap=0.5, **settings) as loader:
        batches = iter(loader)
        while len(got) < steps:
            if interrupts >= wanted:
                got.extend(batches)
                break
            # `extend` takes what comes in C: a batch that `next()` has returned is not lost by the test itself.
            after = random_.uniform(2e-6, longest)
            interrupts += interrupted_by_a_signal(after, lambda: got.extend(itertools.islice(batches, 1)))
            assert loader.step == len(got)
    assert ids_of(got) == whole and interrupts >= wanted / 4
    assert "ignored" not in capfd.readouterr().err


def test_signals_while_evaluating_are_heard_and_the_next_pass_is_whole(pair, capfd, alarms):
    with make(pair) as loader, loader.evaluation(pair[0], batch_size=7) as test:
        whole = ids_of(test)
        heard = 0
        for number in range(30):
            heard += interrupted_by_a_signal(1e-3 + 2e-4 * number, lambda: [list(test) for _ in range(50)])
            assert ids_of(test) == whole
        assert heard == 30
    assert "ignored" not in capfd.readouterr().err
