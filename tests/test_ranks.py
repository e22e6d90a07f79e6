"""Real processes under torchrun, over gloo: every rank gets its slice, all swap and end at one step, runs move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import ROOT
from packs import write_pair

from fastload import Augment, Swap, TwoPhaseLoader, UsageError
from fastload.agreement import AHEAD

PROGRAM = Path(__file__).with_name("ranks_program.py")
STEPS, GLOBAL = 40, 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def torchrun(folder, pair, world, name, swap, *options, steps=STEPS):
    """Run the program on `world` ranks; return each rank's report."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), str(PROGRAM),
        str(folder), name, str(pair[0]), str(pair[1]), str(swap), str(steps), str(GLOBAL), *options,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{name}.json").read_text())


def joined(reports):
    """Return the global batches: step, phase, ids of all ranks in turn."""
    rows = zip(*(report["batches"] for report in reports), strict=True)
    found = []
    for parts in rows:
        assert len({(step, phase) for step, phase, *_ in parts}) == 1  # all ranks in the same phase at the same step
        found.append((parts[0][0], parts[0][1], [sample for _, _, ids, _ in parts for sample in ids]))
    return found


def alone(pair, swap, steps=STEPS):
    with TwoPhaseLoader(
        *pair, batch_size=GLOBAL, steps=steps, swap=swap, augment=Augment(crop=24), device="cpu", seed=5, with_ids=True
    ) as loader:
        return [(loader.step - 1, loader.phase, ids.tolist()) for _, _, ids in loader]


def test_two_ranks_stop_and_one_two_and_three_go_on(pair, tmp_path):
    whole = alone(pair, 20)
    first = torchrun(tmp_path, pair, 2, "first", 20, "stop=17")
    assert joined(first) == whole[:17]
    state = tmp_path / "state.json"
    state.write_text(json.dumps(first[0]["state"]))
    assert first[0]["state"] | {"seconds": 0} == first[1]["state"] | {"seconds": 0}
    for world in (1, 2, 3):
        assert joined(torchrun(tmp_path, pair, world, f"on{world}", 20, f"load={state}")) == whole[17:]


@pytest.mark.parametrize(
    ("swap", "options"),
    [
        ("never", ["ask_at=6", "ask_rank=1", "uneven=1"]),
        ("never", ["ask_at=6", "ask_rank=0", "uneven=1"]),
        ("plateau", ["uneven=1"]),
        ("after", []),
        ("500", ["ask_at=3", "ask_rank=1"]),
    ],
)
def test_all_ranks_swap_at_one_step(pair, tmp_path, swap, options):
    reports = torchrun(tmp_path, pair, 2, "run", swap, *options, steps=500 if swap == "500" else 220)
    at = reports[0]["swap_step"]
    assert at is not None and at == reports[1]["swap_step"] < 220
    assert joined(reports) == alone(pair, at, steps=len(reports[0]["batches"]))
    if swap != "after" and "ask_rank=1" not in options:  # without a collective, rank 0 may be anywhere by then
        assert at <= 10 + 2 * AHEAD + AHEAD // 2


def test_all_ranks_end_at_one_step(pair, tmp_path):
    reports = torchrun(tmp_path, pair, 2, "run", "20", "seconds=0.5", "uneven=1")
    lengths = [len(report["batches"]) for report in reports]
    assert lengths[0] == lengths[1] > 0


def test_ranks_by_hand_agree_through_a_store_of_the_user_s(pair, tmp_path):
    """Two ranks in threads, the second held back, so that it hears of everything late."""
    store = dist.FileStore(str(tmp_path / "store"), 2)
    settings = {"batch_size": 8, "steps": 100, "augment": Augment(crop=24), "device": "cpu", "world_size": 2}
    loaders = [TwoPhaseLoader(*pair, rank=rank, store=store, swap=Swap.never(), **settings) for rank in range(1)]
    import fastload.agreement as agreement

    agreement._loaders.clear()  # as in a process of its own
    loaders.append(TwoPhaseLoader(*pair, rank=1, store=store, swap=Swap.never(), **settings))
    phases = [[], []]
    may_go = threading.Event()

    def draw(rank):
        for _ in loaders[rank]:
            phases[rank].append(loaders[rank].phase)
            if rank == 0 and len(phases[0]) == 5:
                loaders[0].swap_now()
            if rank == 1 and len(phases[1]) == 3:
                may_go.wait(30)

    threads = [threading.Thread(target=draw, args=(rank,)) for rank in range(2)]
    threads[1].start()
    threads[0].start()
    threads[0].join(30)
    may_go.set()
    threads[1].join(30)
    assert phases[0] == phases[1] and len(phases[0]) == 100 and phases[0].index("fine-tune") <= 5 + 2 * AHEAD
    for loader in loaders:
        loader.close()


def test_a_rank_whose_rank_0_never_comes_stops_when_it_is_closed(pair, tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 2)
    loader = TwoPhaseLoader(
        *pair, rank=1, world_size=2, store=store, batch_size=8, steps=100, swap=Swap.never(), augment=Augment(crop=24),
        device="cpu",
    )  # fmt: skip
    failures = []

    def draw():
        try:
            list(loader)
        except UsageError as error:
            failures.append(str(error))

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()  # waits for rank 0's word
    loader.close()
    thread.join(5)
    assert not thread.is_alive() and "closed" in failures[0]


def test_ranks_without_means_to_agree_are_told_so(pair):
    settings = {"batch_size": 8, "steps": 10, "augment": Augment(crop=24), "device": "cpu", "rank": 1, "world_size": 2}
    for changes in ({"swap": Swap.never()}, {"swap": 0.5, "steps": None, "seconds": 5}):
        with pytest.raises(UsageError, match="store="):
            TwoPhaseLoader(*pair, **(settings | changes))
    with TwoPhaseLoader(*pair, **settings) as loader, pytest.raises(UsageError, match="store="):
        loader.swap_now()
