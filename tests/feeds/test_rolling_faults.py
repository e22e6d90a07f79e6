"""What went wrong with rolling pools once, each made to happen: batches still come, and are those of the order."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from batches import same
from rolling import CPU, order_of, pool_files, streamed

from fastload.augment import Augment
from fastload.errors import ClosedError
from fastload.feeds.batch import Output
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.rolling_feed import open_rolling_feed
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
