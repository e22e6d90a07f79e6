"""Real processes under torchrun, over gloo: every rank gets its slice, all swap and end at one step, runs move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist
from packs import write_pair
from places import ROOT, TESTS
from programs import run_programs

from fastload import Augment, FastloadError, Swap, TwoPhaseLoader, UsageError
from fastload.loop.agreement import AHEAD

PROGRAM = TESTS / "ranks_program.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
STEPS, GLOBAL = 40, 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def torchrun(folder, pair, world, name, swap, *options, steps=STEPS):
    """Run the program on `world` ranks; return each rank's report."""
    run_programs([command(folder, pair, world, name, swap, *options, steps=steps)], ENVIRONMENT, timeout=120)
    return reports_of(folder, name)


def command(folder, pair, world, name, swap, *options, steps=STEPS):
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world),
        str(PROGRAM),
        str(folder),
        name,
        str(pair[0]),
        str(pair[1]),
        str(swap),
        str(steps),
        str(GLOBAL),
        *options,
    ]


def reports_of(folder, name):
    """Return what each rank of a run has written."""
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
        *pair, batch_size=GLOBAL, steps=steps, swap=swap, augment=Augment.paper(24), device="cpu", seed=5, with_ids=True
    ) as loader:
        return [(loader.step - 1, loader.phase, ids.tolist()) for _, _, ids in loader]


def test_two_ranks_stop_and_one_two_and_three_go_on(pair, tmp_path):
    whole = alone(pair, 20)
    first = torchrun(tmp_path, pair, 2, "first", 20, "stop=17")
    assert joined(first) == whole[:17]
    state = tmp_path / "state.json"
    state.write_text(json.dumps(first[0]["state"]))
    assert first[0]["state"] | {"seconds": 0} == first[1]["state"] | {"seconds": 0}
    runs = {f"on{world}": command(tmp_path, pair, world, f"on{world}", 20, f"load={state}") for world in (1, 2, 3)}
    run_programs(list(runs.values()), ENVIRONMENT, timeout=120)
    for name in runs:
        assert joined(reports_of(tmp_path, name)) == whole[17:]


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
    settings = {"batch_size": 8, "steps": 100, "augment": Augment.paper(24), "device": "cpu", "world_size": 2}
    loaders = [TwoPhaseLoader(*pair, rank=rank, store=store, swap=Swap.never(), **settings) for rank in range(2)]
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
        *pair,
        rank=1,
        world_size=2,
        store=store,
        batch_size=8,
        steps=100,
        swap=Swap.never(),
        augment=Augment.paper(24),
        device="cpu",
    )
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
    settings = {"batch_size": 8, "steps": 10, "augment": Augment.paper(24), "device": "cpu", "rank": 1, "world_size": 2}
    for changes in ({"swap": Swap.never()}, {"swap": 0.5, "steps": None, "seconds": 5}):
        with pytest.raises(UsageError, match="store="):
            TwoPhaseLoader(*pair, **(settings | changes))
    with TwoPhaseLoader(*pair, **settings) as loader, pytest.raises(UsageError, match="store="):
        loader.swap_now()


# -- ranks in threads ----------------------------------------------------------------------------------------------


class Store:
    """A store of torch.distributed, in memory, as two processes would share it."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value if isinstance(value, bytes) else value.encode()

    def get(self, key):
        return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)


def ranked(pair, store, rank, world=2, **changes):
    settings = {
        "batch_size": 8,
        "steps": 100,
        "swap": Swap.never(),
        "augment": Augment.paper(8),
        "device": "cpu",
        "seed": 5,
        "with_ids": True,
    }
    return TwoPhaseLoader(*pair, rank=rank, world_size=world, store=store, **(settings | changes))


def run_together(*works):
    """Do each rank's work in a thread of its own; return what they returned, and raise what one raised."""
    found, errors = [None] * len(works), []

    def do(number):
        try:
            found[number] = works[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=do, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a rank waits for ever"
    if errors:
        raise errors[0]
    return found


def swapped_at(loader, ask_at=None):
    """Draw all batches, asking for the swap at a step; return the step of the swap."""
    for _ in loader:
        if loader.step == ask_at:
            loader.swap_now()
    loader.close()
    return loader.swap_step


def test_a_planned_swap_needs_no_word_from_another_rank(pair):
    for store in (Store(), None):
        for rank in (0, 1):  # each on its own, to its end
            assert swapped_at(ranked(pair, store, rank, swap=30)) == 30


@pytest.mark.parametrize("asks", [0, 1, 2])
def test_swap_now_comes_before_a_planned_swap_and_nobody_waits_for_it(pair, asks):
    store = Store()
    loaders = [ranked(pair, store, rank, 3, swap=900, steps=1000) for rank in range(3)]
    ats = run_together(*(lambda rank=rank: swapped_at(loaders[rank], 5 if rank == asks else None) for rank in range(3)))
    assert len(set(ats)) == 1 and 5 < ats[0] <= 900


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("swap", ["now", "plateau", "after"])
def test_a_loader_more_on_one_rank_to_look_at_a_batch_holds_nobody_up(pair, who, count, swap):
    store = Store()
    policy = {"now": Swap.never(), "plateau": Swap.on_plateau(patience=1, window=4), "after": Swap.after(seconds=0.05)}

    def work(rank):
        if rank == who:
            for _ in range(count):
                with ranked(pair, store, rank, swap=policy[swap]) as preview:
                    next(iter(preview))
        loader = ranked(pair, store, rank, swap=policy[swap], steps=400)
        kept = ranked(pair, store, rank, swap=policy[swap]) if rank == who else None  # one that is not even closed
        if kept is not None:
            next(iter(kept))
        for _ in loader:
            time.sleep(0.0005)
            loader.report_loss(1.0)
            if loader.step == 20 and swap == "now" and rank == 1:
                loader.swap_now()
        return loader.swap_step

    ats = run_together(lambda: work(0), lambda: work(1))
    assert ats[0] == ats[1] is not None


def test_one_run_after_the_other_in_one_store_never_takes_the_other_s_word(pair):
    """The second rank begins its second run while the first rank is still in the first."""
    store = Store()
    went_on = threading.Event()

    def first():
        one = swapped_at(ranked(pair, store, 0), 10)
        assert went_on.wait(30)
        return one, swapped_at(ranked(pair, store, 0), 60)

    def second():
        one = swapped_at(ranked(pair, store, 1))
        loader = ranked(pair, store, 1)
        batches = iter(loader)
        for _ in range(AHEAD):
            next(batches)
        threading.Timer(0.3, went_on.set).start()
        return one, swapped_at(loader)

    found = run_together(first, second)
    assert found[0] == found[1] and found[0][1] > 60


def test_a_store_s_file_of_an_earlier_run_that_was_killed_is_not_believed(pair, tmp_path):
    """As another process left it: with all that was said in it, up to a swap."""
    path = str(tmp_path / "store")
    program = """
import sys, threading
from fastload import Augment, Swap, TwoPhaseLoader
import torch.distributed as dist, os
store = dist.FileStore(sys.argv[3], 2)
loaders = [
    TwoPhaseLoader(*sys.argv[1:3], rank=rank, world_size=2, store=store, batch_size=8, steps=100, swap=Swap.never(),
                   augment=Augment.paper(8), device="cpu", seed=5, with_ids=True)
    for rank in range(2)
]
def draw(rank):
    for _ in loaders[rank]:
        if rank == 0 and loaders[0].step == 3:
            loaders[0].swap_now()
threads = [threading.Thread(target=draw, args=(rank,)) for rank in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(loaders[1].swap_step, flush=True)
os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, pair), path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    before = int(done.stdout)
    stores = [dist.FileStore(path, 2) for _ in range(2)]
    # The second rank begins first, and finds only what the killed run has left.
    late = threading.Event()

    def first():
        late.wait(30)
        loader = ranked(pair, stores[0], 0)
        return swapped_at(loader, 50)

    def second():
        loader = ranked(pair, stores[1], 1)
        batches = iter(loader)
        for _ in range(AHEAD):
            next(batches)
        threading.Timer(0.3, late.set).start()
        return swapped_at(loader)

    ats = run_together(first, second)
    assert ats[0] == ats[1] and ats[0] > 50 > before


@pytest.mark.parametrize("asks", [None, 0])
def test_a_rank_that_comes_when_rank_0_has_all_its_batches_hears_of_the_run_all_the_same(pair, asks):
    store, far = Store(), threading.Event()

    def first():
        loader = ranked(pair, store, 0)
        for _ in loader:
            if loader.step == 5 and asks == 0:
                loader.swap_now()
            if loader.step == loader._run.settings.steps:
                threading.Timer(0.2, far.set).start()
        return loader.swap_step

    def second():
        assert far.wait(30)
        return swapped_at(ranked(pair, store, 1))

    ats = run_together(first, second)
    assert ats[0] == ats[1] and (ats[0] is None) == (asks is None)


def test_rank_0_of_a_run_resumed_after_its_swap_waits_for_nobody_at_its_end(pair, monkeypatch):
    monkeypatch.setattr("fastload.loop.agreement.FAREWELL", 600.0)
    with ranked(pair, Store(), 0) as loader:
        for _ in loader:
            if loader.step == 5:
                loader.swap_now()
            if loader.phase == "fine-tune":
                break
        state, swap_step = loader.state_dict(), loader.swap_step

    def resumed(rank, store):
        with ranked(pair, store, rank) as loader:
            loader.load_state_dict(state)
            return swapped_at(loader)

    store = Store()
    assert run_together(lambda: resumed(0, store), lambda: resumed(1, store)) == [swap_step] * 2


def test_rank_0_ends_though_another_rank_never_comes(pair, monkeypatch):
    monkeypatch.setattr("fastload.loop.agreement.FAREWELL", 0.3)
    began = time.monotonic()
    assert swapped_at(ranked(pair, Store(), 0)) is None and time.monotonic() - began < 20
    monkeypatch.setattr("fastload.loop.agreement.FAREWELL", 600.0)
    assert swapped_at(ranked(pair, Store(), 0, steps=4)) is None  # too short for anybody to need its word


def test_a_rank_that_waits_in_vain_is_told_what_may_be_wrong(pair, monkeypatch):
    monkeypatch.setattr("fastload.loop.agreement.PATIENCE", 0.2)
    loader = ranked(pair, Store(), 1)
    with pytest.raises(FastloadError, match=r"rank 1 waited .* at step 16 .*different numbers of loaders"):
        list(loader)
    assert loader.step == AHEAD
    loader.close()


def test_ranks_that_resume_agree_on_the_rest_of_the_run(pair):
    store = Store()
    states = run_together(*(lambda rank=rank: stopped(ranked(pair, store, rank), 12) for rank in range(2)))
    assert states[0]["step"] == states[1]["step"] == 12

    def resumed(rank):
        loader = ranked(pair, store, rank)
        loader.load_state_dict(states[0])
        return swapped_at(loader, 40 if rank == 1 else None)

    ats = run_together(lambda: resumed(0), lambda: resumed(1))
    assert ats[0] == ats[1] > 40


def stopped(loader, step):
    for _ in loader:
        if loader.step == step:
            break
    state = loader.state_dict()
    loader.close()
    return state


# -- ranks that nobody has named -----------------------------------------------------------------------------------

LAUNCHED = [
    {"RANK": "1", "WORLD_SIZE": "2"},
    {"WORLD_SIZE": "4", "LOCAL_RANK": "3"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "ENVIRONMENT": "BATCH", "SLURM_STEP_ID": "1"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    {"PMI_SIZE": "8", "PMI_RANK": "7"},
]
ALONE = [
    {},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"},  # a shell of salloc
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "ENVIRONMENT": "BATCH"},  # a batch script, without srun
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"WORLD_SIZE": "many"},
]


@pytest.fixture
def no_launcher(monkeypatch):
    for name in {name for variables in LAUNCHED + ALONE for name in variables}:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def plain(pair, **changes):
    settings = {"batch_size": 8, "steps": 4, "augment": Augment.paper(8), "device": "cpu"}
    return TwoPhaseLoader(*pair, **(settings | changes))


@pytest.mark.parametrize("variables", LAUNCHED, ids=str)
def test_ranks_that_a_launcher_started_and_nobody_named_are_an_error(pair, no_launcher, variables):
    early = plain(pair)  # before the variables are there, as under a framework that sets them
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    with pytest.raises(UsageError, match=r"several ranks .*init_process_group.*rank=0, world_size=1"):
        plain(pair)
    with pytest.raises(UsageError, match="several ranks"):
        iter(early)
    early.close()
    with plain(pair, rank=0, world_size=1) as loader:
        assert len(list(loader)) == 4


@pytest.mark.parametrize("variables", ALONE, ids=str)
def test_a_process_on_its_own_is_taken_for_one(pair, no_launcher, variables):
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    with plain(pair) as loader:
        assert len(list(loader)) == 4


def test_a_loader_made_before_the_process_group_is_refused_when_it_is_used(pair, no_launcher, monkeypatch):
    with plain(pair) as early, plain(pair, rank=0, world_size=1) as named:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        with pytest.raises(UsageError, match=r"rank 1 of 2.*after init_process_group"):
            iter(early)
        assert len(list(named)) == 4
