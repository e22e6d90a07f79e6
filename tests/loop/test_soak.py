"""Ten thousand batches with breaks, resumes and swaps at random: each is the right one, and nothing grows.

FASTLOAD_SOAK=SECONDS makes it go on for longer.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from packs import write_pair

from fastload import Augment, Swap, TwoPhaseLoader
from fastload.order import FAST, FINE_TUNE, Order
from fastload.packed.file import PackedFile

BATCH, CROP, SEED = 8, 12, 11
BATCHES, SECONDS = 10_000, float(os.environ.get("FASTLOAD_SOAK", 0))


def anonymous_kilobytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Expected:
    """Ids of every batch, from the order's definition, and each batch's pixels as they came the first time."""

    def __init__(self, full, subset):
        self._files = (PackedFile(subset), PackedFile(full))
        self._orders = tuple(
            Order(len(file), SEED, phase) for file, phase in zip(self._files, (FAST, FINE_TUNE), strict=True)
        )
        self._pixels = {}

    def check(self, phase, index, batch):
        images, labels, ids = batch
        rows, _ = self._orders[phase].rows(index * BATCH, BATCH)
        assert np.array_equal(ids.numpy(), self._files[phase].ids[rows])
        assert np.array_equal(labels.numpy(), self._files[phase].labels[rows])
        found = zlib.crc32(np.ascontiguousarray(images.numpy()).tobytes())
        assert self._pixels.setdefault((phase, index), found) == found


@pytest.mark.timeout(600 + 2 * SECONDS)
def test_a_long_run_with_breaks_resumes_and_swaps(tmp_path):
    pair = write_pair(tmp_path, count=200, chosen=50, height=16, width=16)
    expected, rng = Expected(*pair), random.Random(3)
    began, delivered, runs = time.monotonic(), 0, 0
    memory = []
    while delivered < BATCHES or time.monotonic() - began < SECONDS:
        steps, swap = rng.randint(200, 1200), rng.choice(["step", "never", "plateau"])
        at = rng.randint(0, steps)
        policy = {"step": at, "never": Swap.never(), "plateau": Swap.on_plateau(patience=1, window=rng.randint(3, 60))}

        def make(steps=steps, swap=policy[swap]):
            return TwoPhaseLoader(
                *pair,
                batch_size=BATCH,
                steps=steps,
                swap=swap,
                augment=Augment.paper(CROP),
                device="cpu",
                seed=SEED,
                with_ids=True,
                prefetch=rng.choice([None, 1, 6]),
                resident_budget=rng.choice([0, None]),
                steps_per_epoch=rng.choice([None, 37]),
                keep_resident=rng.random() < 0.5,
            )

        loader, number = make(), 0
        while number < steps:
            stop = min(steps, number + rng.randint(1, 300))
            for batch in loader:
                swapped = loader.phase == "fine-tune"
                expected.check(int(swapped), number - loader.swap_step if swapped else number, batch)
                number += 1
                delivered += 1
                loader.report_loss(1.0)
                if swap == "never" and number == at:
                    loader.swap_now()
                if number == stop:
                    break
            assert loader.step == number
            if number < steps and rng.random() < 0.4:
                state = json.loads(json.dumps(loader.state_dict()))
                if rng.random() < 0.7:
                    loader.close()
                del loader
                loader = make()
                loader.load_state_dict(state)
        loader.close()
        runs += 1
        memory.append(anonymous_kilobytes())
    assert delivered >= BATCHES and runs >= 5
    deadline = time.monotonic() + 2
    while any(thread.name.startswith("fastload") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name.startswith("fastload") for thread in threading.enumerate())
    half = len(memory) // 2
    assert max(memory[half:]) - max(memory[:half]) < 16_000, memory  # kilobytes; what allocators keep is bounded


def test_ten_thousand_batches_of_one_run_grow_neither_memory_nor_threads(tmp_path):
    pair = write_pair(tmp_path, count=200, chosen=50, height=16, width=16)
    with TwoPhaseLoader(
        *pair, batch_size=BATCH, steps=BATCHES, swap=0.5, augment=Augment.paper(CROP), device="cpu", resident_budget=0
    ) as loader:
        seen = []
        for _ in loader:
            if loader.step % 500 == 0:
                seen.append((anonymous_kilobytes(), threading.active_count()))
    memory, threads = zip(*seen, strict=True)
    assert max(memory) - memory[0] < 8_000, memory
    assert max(threads[1:9]) == min(threads[1:8]) and max(threads[11:-1]) == min(threads[11:-1]), threads
