"""Rolling runs of random settings, cut at random steps: whatever goes on gives the batches of the uncut run.

50 cuts; FASTLOAD_SOAK=SECONDS, which makes other soaks longer, makes them 1,000.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import feed_threads
from packs import write_pair
from places import ROOT

from fastload import Augment, Mix, Swap, TwoPhaseLoader
from fastload.augment.schedule import Schedule

CUTS = 1_000 if os.environ.get("FASTLOAD_SOAK") else 50
BATCH, SEED = 16, 11


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=203, chosen=50, height=16, width=16)


def crc_of(batch) -> int:
    """Of all that a batch holds: images of each view, labels, ids."""
    found = 0
    for part in batch:
        for tensor in part if isinstance(part, tuple) else (part,):
            found = zlib.crc32(np.ascontiguousarray(tensor.contiguous().view(torch.uint8).numpy()), found)
    return found


class Plan:
    """The settings of a run, drawn at random, and what its training loop does at which step."""

    def __init__(self, rng: random.Random) -> None:
        self.steps = rng.randint(40, 90)
        self.subset = rng.random() < 0.4
        swap = rng.choice([1.0, rng.randint(1, self.steps), Swap.never(), Swap.on_plateau(patience=1, window=9)])
        self.swap_at = rng.randint(1, self.steps) if isinstance(swap, Swap) and swap.kind == "never" else None
        pools = [96, 128, "90KB"] + ([None] if self.subset else [64, 1000])
        self.refill = rng.choice([0.0, 1 / 7, 0.25, 0.6, 1.0, "auto"])
        first = self.steps // 2
        augment = Augment.paper(12)
        if not isinstance(swap, Swap) and rng.random() < 0.4:
            augment = Schedule({0: Augment.paper(12), first: Augment.paper(8)})
        self.settings = {
            "batch_size": BATCH,
            "steps": self.steps,
            "swap": swap,
            "pool": rng.choice(pools),
            "refill": self.refill,
            "augment": augment,
            "device": "cpu",
            "seed": SEED,
            "shuffle": rng.choice([True, True, "block", False]),
            "views": rng.choice([1, 1, 2]),
            "mix": rng.choice([None, None, Mix(mixup=0.3)]),
            "dtype": rng.choice([torch.float32, torch.bfloat16]),
            "steps_per_epoch": rng.choice([None, 13]),
            "keep_resident": rng.random() < 0.5,
            "resident_budget": rng.choice([0, None]),
            "with_ids": True,
        }
        # The rates that "auto" comes to hang on the clock: here they are given, as a state holds them.
        self.rates = [[0, 2, 1], [rng.randint(1, self.steps), rng.choice([1, 5, 16]), rng.choice([1, 3])]]

    def loader(self, pair, rng: random.Random) -> TwoPhaseLoader:
        """Another loader of the run, at its first step."""
        full, subset = pair
        loader = TwoPhaseLoader(
            full, subset if self.subset else None, prefetch=rng.choice([None, 1, 5]), **self.settings
        )
        if self.refill == "auto":
            loader.load_state_dict(self.at_start(loader))
        return loader

    def at_start(self, loader) -> dict:
        loader.reset()
        state = loader.state_dict()
        return state if self.refill != "auto" else state | {"rolling": state["rolling"] | {"rates": self.rates}}

    def train(self, loader, until: int, found: dict[int, int]) -> None:
        """Train up to a step, and note each batch."""
        while loader.step < until:
            for batch in loader:
                step = loader.step - 1
                assert found.setdefault(step, crc_of(batch)) == crc_of(batch), step
                loader.report_loss(1.0)
                if loader.step == self.swap_at:
                    loader.swap_now()
                if loader.step == until:
                    break


def cut(plan, loader, pair, rng, kept):
    """Cut a run in one of the ways in which runs are cut; return the loader that goes on."""
    state = json.loads(json.dumps(loader.state_dict()))
    kept.append(state)
    how = rng.choice(["close", "close", "drop", "drop", "elsewhere", "reset", "error", "break"])
    if how in ("close", "drop"):
        if how == "close":
            loader.close()
        del loader
        loader = plan.loader(pair, rng)
        loader.load_state_dict(state)
    elif how == "elsewhere":
        loader.load_state_dict(rng.choice(kept))
    elif how == "reset":
        loader.reset()
        if plan.refill == "auto":
            loader.load_state_dict(plan.at_start(loader))
    elif how == "error" and loader.step < plan.steps:
        at = loader.step
        with pytest.raises(ZeroDivisionError):
            for _ in loader:
                raise ZeroDivisionError
        loader.load_state_dict(state)
        assert loader.step == at
    return loader


@pytest.mark.timeout(200 + 4 * CUTS)
@pytest.mark.filterwarnings("ignore:pool=", "ignore:refill=", "ignore:the pool holds", "ignore:all .* steps")
def test_runs_cut_at_random_give_the_batches_of_the_uncut_run(pair):
    rng, cuts = random.Random(5), 0
    while cuts < CUTS:
        plan = Plan(rng)
        whole: dict[int, int] = {}
        with plan.loader(pair, rng) as loader:
            plan.train(loader, plan.steps, whole)
        assert sorted(whole) == list(range(plan.steps))
        loader, kept = plan.loader(pair, rng), []
        for _ in range(5):
            if loader.step < plan.steps:
                plan.train(loader, rng.randint(loader.step + 1, plan.steps), whole)
            loader = cut(plan, loader, pair, rng, kept)
            cuts += 1
        plan.train(loader, plan.steps, whole)
        loader.close()
        del loader
    deadline = time.monotonic() + 5
    while feed_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not feed_threads()


PROGRAM = """
import json, os, sys
from pathlib import Path
from fastload import Augment, TwoPhaseLoader

full, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
loader = TwoPhaseLoader(
    full, pool=96, refill=0.3, swap=0.8, batch_size=16, steps=steps, augment=Augment.paper(12), device="cpu",
    with_ids=True,
)
state, log = folder / "state.json", folder / "ids.jsonl"
if state.exists():
    loader.load_state_dict(json.loads(state.read_text()))
with log.open("a") as out:
    for _, _, ids in loader:
        print(json.dumps([loader.step - 1, ids.tolist()]), file=out, flush=True)
        if loader.step % 7 == 0:
            whole = folder / "state.tmp"
            whole.write_text(json.dumps(loader.state_dict()))
            os.replace(whole, state)
loader.close()
"""


def test_killed_processes_go_on_exactly(pair, tmp_path):
    steps, rng = 4_000, random.Random(2)
    with TwoPhaseLoader(
        pair[0],
        pool=96,
        refill=0.3,
        swap=0.8,
        batch_size=16,
        steps=steps,
        augment=Augment.paper(12),
        device="cpu",
        with_ids=True,
    ) as loader:
        whole = [ids.tolist() for _, _, ids in loader]
    command = [sys.executable, "-c", PROGRAM, str(pair[0]), str(tmp_path), str(steps)]
    log, kills = tmp_path / "ids.jsonl", 0
    for _ in range(10):
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
        seen = size_of(log)
        while process.poll() is None and kills < 2:
            if size_of(log) > seen:  # it trains
                time.sleep(rng.uniform(0, 0.15))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            time.sleep(0.001)
        if process.wait() == 0:
            break
        with log.open("r+b") as file:  # the last line may be half written
            kept = file.read().rpartition(b"\n")[0]
            file.truncate(len(kept) + 1)
    assert process.returncode == 0 and kills > 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {step for step, _ in lines} == set(range(steps)) and len(lines) > steps
    assert all(ids == whole[step] for step, ids in lines)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
