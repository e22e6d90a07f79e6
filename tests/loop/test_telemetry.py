"""What a loader says of itself: stats that add up, advice, scalars that a writer gets, and the progress bar."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time

import pytest
from packs import write_pair
from places import ROOT

from fastload import Augment, TwoPhaseLoader, UsageError
from fastload.loop.telemetry import WAITS, ScalarLog, advice

STEPS, SWAP, BATCH = 30, 12, 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def make(pair, **changes):
    settings = {
        "batch_size": BATCH,
        "steps": STEPS,
        "swap": SWAP,
        "augment": Augment.paper(24),
        "device": "cpu",
        "seed": 5,
        "resident_budget": 0,
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))


# -- stats ---------------------------------------------------------------------------------------------------------

TYPES = {
    "feed": str,
    "batches": int,
    "images": int,
    "seconds": float,
    "images_per_second": float,
    "waited": float,
    "read_bytes_per_second": float,
    "ring_fill": float,
    "advice": str,
}


def test_stats_have_the_same_keys_and_types_before_during_and_after_a_run(pair):
    with make(pair) as loader:
        moments = [loader.stats()]
        for step, _ in enumerate(loader):
            if step in (0, SWAP):
                moments.append(loader.stats())
        moments.append(loader.stats())
        loader.close()
        moments.append(loader.stats())
    for stats in moments:
        assert list(stats) == ["fast", "fine-tune"]
        assert all({key: type(value) for key, value in phase.items()} == TYPES for phase in stats.values())


def test_stats_add_up_to_the_run(pair):
    began = time.perf_counter()
    with make(pair) as loader:
        for _ in loader:
            time.sleep(0.002)
        lasted = time.perf_counter() - began
        fast, fine = loader.stats().values()
    assert (fast["feed"], fine["feed"]) == ("resident", "stream")
    assert (fast["batches"], fine["batches"]) == (SWAP, STEPS - SWAP)
    for phase in (fast, fine):
        assert phase["images"] == phase["batches"] * BATCH
        assert phase["images_per_second"] == pytest.approx(phase["images"] / phase["seconds"])
        assert 0 <= phase["waited"] <= 1 and 0 <= phase["ring_fill"] <= 1
    assert 0.002 * (STEPS - 1) <= fast["seconds"] + fine["seconds"] <= lasted
    assert fast["read_bytes_per_second"] == 0  # nothing is read once it is resident
    assert fine["read_bytes_per_second"] == pytest.approx(fine["images_per_second"] * 32 * 32 * 3)


def test_time_between_two_loops_is_not_the_run_s(pair):
    with make(pair, steps_per_epoch=10) as loader:
        list(loader)
        before = sum(phase["seconds"] for phase in loader.stats().values())
        time.sleep(0.5)
        list(loader)
        assert sum(phase["seconds"] for phase in loader.stats().values()) - before < 0.4


# -- advice --------------------------------------------------------------------------------------------------------


def of_phase(**changes):
    return {"feed": "stream", "batches": 100, "waited": 0.5, "ring_fill": 0.1} | changes


@pytest.mark.parametrize(
    ("stats", "settings", "text"),
    [
        (of_phase(), {}, "resident_budget=1000000"),
        (of_phase(), {"free": 999_999, "shuffle": True}, 'shuffle="block"'),
        (of_phase(), {"free": None, "shuffle": True}, 'shuffle="block"'),
        (of_phase(), {"shuffle": "block"}, "more processors"),
        (of_phase(), {"free": 0, "shuffle": False}, "more processors"),
        (of_phase(), {"encoded": True, "engine": "dali"}, "resized once (resize=S)"),
        (of_phase(feed="resident"), {"engine": "dali"}, 'engine="fused"'),
        (of_phase(), {"engine": "dali", "free": 0}, 'engine="fused"'),
        (of_phase(ring_fill=0.6), {"free": 0}, "prefetch="),
        (of_phase(feed="resident"), {}, "set_num_threads"),
    ],
)
def test_each_cause_of_waiting_has_its_advice(stats, settings, text):
    given = {"encoded": False, "engine": "fused", "shuffle": True, "size": 1_000_000, "free": 10**9} | settings
    said = advice(stats, **given)
    assert said.startswith("training waits for data 50% of the time: ") and text in said


@pytest.mark.parametrize("stats", [of_phase(waited=WAITS), of_phase(waited=0.0), of_phase(batches=0, waited=1.0)])
def test_waits_below_a_tenth_and_a_phase_not_begun_have_none(stats):
    assert advice(stats, encoded=True, engine="dali", shuffle=True, size=1, free=2) == ""


def test_a_slow_feed_gives_advice_and_a_slow_trainer_none(pair):
    with make(pair, prefetch=1) as loader:
        feed = loader._run.fine.prepare()
        made = feed.make

        def slow(first, count):
            time.sleep(0.02)
            return made(first, count)

        feed.make = slow
        for _ in loader:
            if loader.phase == "fast":
                time.sleep(0.05)
        fast, fine = loader.stats().values()
    assert fast["waited"] < WAITS and fast["advice"] == ""
    assert fine["waited"] > WAITS
    assert f"{fine['waited']:.0%} of the time" in fine["advice"]
    assert f"resident_budget={300 * 32 * 32 * 3}" in fine["advice"]


# -- scalars -------------------------------------------------------------------------------------------------------

TAGS = {"phase", "images_per_second", "waited", "ring_fill", "read_mb_per_second"}


class Recorder:
    """What log_to needs of a writer, and no more."""

    def __init__(self):
        self.rows = []

    def add_scalar(self, tag, scalar_value, global_step):
        self.rows.append((tag, scalar_value, global_step))


def test_scalars_come_back_from_the_event_file(pair, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed: no event files")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with make(pair) as loader, tensorboard.SummaryWriter(tmp_path) as writer:
        loader.log_to(writer, every=10)
        for _ in loader:
            time.sleep(0.001)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {f"fastload/{tag}" for tag in TAGS}
    found = {tag: events.Scalars(f"fastload/{tag}") for tag in TAGS}
    assert all([event.step for event in of_tag] == [10, 20, 30] for of_tag in found.values())
    assert [event.value for event in found["phase"]] == [0, 1, 1]
    assert all(0 <= event.value <= 1 for tag in ("waited", "ring_fill") for event in found[tag])
    assert all(0 < event.value <= BATCH / 0.001 for event in found["images_per_second"])
    assert [event.value > 0 for event in found["read_mb_per_second"]] == [False, True, True]


def test_a_bare_object_with_add_scalar_will_do_under_any_prefix(pair):
    recorder = Recorder()
    with make(pair) as loader:
        loader.log_to(recorder, every=7, prefix="train/data")
        list(loader)
    assert {tag for tag, _, _ in recorder.rows} == {f"train/data/{tag}" for tag in TAGS}
    assert sorted({step for _, _, step in recorder.rows}) == [7, 14, 21, 28]
    assert all(type(value) in (int, float) for _, value, _ in recorder.rows)


def test_scalars_are_of_the_time_since_the_last_ones():
    recorder = Recorder()
    log = ScalarLog(recorder, 50, "f")

    def stats(images, seconds, waited):
        rate = images / seconds
        phase = {"images": images, "seconds": seconds, "waited": waited, "ring_fill": 0.5, "images_per_second": rate}
        return {"fast": phase | {"read_bytes_per_second": rate * 2e6}, "fine-tune": phase}

    log.step(50, 0, stats(100, 10.0, 0.1))  # 1 s waited
    log.step(100, 0, stats(300, 20.0, 0.3))  # 6 s waited in all
    first, second = ({tag: value for tag, value, step in recorder.rows if step == at} for at in (50, 100))
    assert first == pytest.approx(
        {"f/phase": 0, "f/images_per_second": 10, "f/waited": 0.1, "f/ring_fill": 0.5, "f/read_mb_per_second": 20}
    )
    assert second == pytest.approx(
        {"f/phase": 0, "f/images_per_second": 20, "f/waited": 0.5, "f/ring_fill": 0.5, "f/read_mb_per_second": 40}
    )


@pytest.mark.parametrize("writer", [None, "runs/1", object(), type("Wrong", (), {"add_scalar": 1})()])
def test_what_is_no_writer_is_refused(pair, writer):
    with make(pair) as loader, pytest.raises(UsageError, match="add_scalar"):
        loader.log_to(writer)


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_scalars_come_every_whole_number_of_steps(pair, every):
    with make(pair) as loader, pytest.raises(UsageError, match="every"):
        loader.log_to(Recorder(), every=every)


# -- the progress bar ----------------------------------------------------------------------------------------------

SHOWN = """
import sys, time
from fastload import Augment, TwoPhaseLoader

with TwoPhaseLoader(sys.argv[1], sys.argv[2], batch_size=4, steps=30, swap=15, augment=Augment.paper(8), device="cpu",
                    progress=sys.argv[3]) as loader:
    for _ in loader:
        time.sleep(0.03)
"""


@pytest.mark.parametrize("kind", ["rich", "tqdm"])
def test_a_terminal_shows_phase_count_and_rate_as_the_run_goes_on(pair, kind):
    skip_without(kind)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-c", SHOWN, str(pair[0]), str(pair[1]), kind]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass  # how Linux says that the other end is closed
    os.close(ours)
    assert process.communicate(timeout=60)[0] == b"" and process.returncode == 0  # all of it went to stderr
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "30/30" in text and "images/s" in text
    counts = [int(count) for count in re.findall(r"(\d+)/30", text)]
    assert counts == sorted(counts) and len(set(counts)) > 4
    lines = [line for line in re.split(r"[\r\n]", text) if "/30" in line]
    for line in lines:
        count = int(re.search(r"(\d+)/30", line)[1])
        if count:
            assert line.lstrip().startswith("fast" if count <= 15 else "fine-tune"), line
    assert any(line.lstrip().startswith("fast") for line in lines)


def skip_without(kind):
    if kind == "tqdm":
        pytest.importorskip("tqdm", reason="tqdm is not installed: its bar is not tested")


def open_bars():
    """Count bars that are still alive: rich's refresh threads and tqdm's instances."""
    found = sum(type(thread).__name__ == "_RefreshThread" for thread in threading.enumerate())
    return found + (len(sys.modules["tqdm"].tqdm._instances) if "tqdm" in sys.modules else 0)


@pytest.mark.parametrize("ending", ["end", "break", "exception", "dropped", "close"])
@pytest.mark.parametrize("kind", ["rich", "tqdm"])
def test_a_bar_ends_with_its_loop(pair, capsys, kind, ending):
    skip_without(kind)
    before = open_bars()
    loader = make(pair, progress=kind)
    if ending == "end":
        list(loader)
    elif ending == "break":
        for step, _ in enumerate(loader):
            if step == 20:
                break
    elif ending == "exception":
        with pytest.raises(KeyError):
            for step, _ in enumerate(loader):
                if step == 20:
                    raise KeyError
    else:
        batches = iter(loader)
        for _ in range(21):
            next(batches)
        assert open_bars() == before + 1
        if ending == "close":
            loader.close()
        else:
            del batches
    until = time.monotonic() + 2
    while open_bars() > before and time.monotonic() < until:  # rich tells its thread to end, and does not wait
        time.sleep(0.01)
    assert open_bars() == before
    loader.close()
    written = capsys.readouterr()
    assert written.out == ""
    assert "fine-tune" in written.err and ("30/30" if ending == "end" else "21/30") in written.err


def test_two_bars_at_once_do_not_disturb_each_other(pair, capsys):
    with make(pair, progress=True) as one, make(pair, progress=True) as other:
        for _ in zip(one, other, strict=True):
            pass
    assert capsys.readouterr().err.count("30/30") == 2


def test_a_bar_goes_on_where_a_resumed_run_does_and_knows_no_end_by_the_clock(pair, capsys):
    with make(pair) as loader:
        for _ in loader:
            if loader.step == 14:
                break
        state = loader.state_dict()
    with make(pair, progress="rich", steps_per_epoch=10) as loader:
        loader.load_state_dict(state)
        list(loader)
    assert "20/30" in capsys.readouterr().err
    with make(pair, steps=None, seconds=0.2, progress="rich") as loader:
        count = len(list(loader))
    assert f"{count}/?" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"progress": False}, {"progress": True, "rank": 1, "world_size": 2}])
def test_nothing_is_shown_by_default_nor_on_another_rank_than_the_first(pair, capfd, changes):
    with make(pair, **changes) as loader:
        list(loader)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progress", ["bar", 2, 0.5, ["rich"]])
def test_other_bars_are_usage_errors(pair, progress):
    with pytest.raises(UsageError, match=r'it is True, False, "rich" or "tqdm"'):
        make(pair, progress=progress)


def test_without_tqdm_the_error_says_what_to_install(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(UsageError, match="pip install tqdm"):
        make(pair, progress="tqdm")


# -- other writers, and what fails ---------------------------------------------------------------------------------


class Run:
    """What a run of W&B has: steps of its own, so that ours must be a scalar."""

    def __init__(self):
        self.rows, self.axes = [], {}

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values):
        self.rows.append(values)


class Accelerator:
    def __init__(self):
        self.rows = []

    def log(self, values, step=None):
        self.rows.append((values, step))


def test_a_run_of_wandb_an_accelerator_and_a_function_get_the_scalars(pair):
    run, accelerator, rows = Run(), Accelerator(), []
    for writer in (run, accelerator, lambda values, step: rows.append((values, step))):
        with make(pair) as loader:
            loader.log_to(writer, every=10)
            list(loader)
    tags = {f"fastload/{tag}" for tag in TAGS}
    assert run.axes == {"fastload/*": "fastload/step"}
    assert [row["fastload/step"] for row in run.rows] == [10, 20, 30]
    assert all(row.keys() == tags | {"fastload/step"} for row in run.rows)
    for found in (accelerator.rows, rows):
        assert [step for _, step in found] == [10, 20, 30] and all(values.keys() == tags for values, _ in found)


def test_a_logger_of_the_standard_library_is_no_writer(pair):
    import logging

    with make(pair) as loader, pytest.raises(UsageError, match="log_to"):
        loader.log_to(logging.getLogger("x"))


@pytest.mark.parametrize("strict", [False, True])
def test_a_writer_that_fails_costs_no_batch_and_is_told_of_once(pair, strict):
    import warnings

    with make(pair, with_ids=True) as loader:
        whole = [ids.tolist() for _, _, ids in loader]
    calls = []

    def failing(values, step):
        calls.append(step)
        raise OSError("no space left")

    got, told = [], []
    with make(pair, with_ids=True) as loader, warnings.catch_warnings(record=not strict) as caught:
        warnings.simplefilter("error" if strict else "always")
        loader.log_to(failing, every=3)
        batches = iter(loader)
        while loader.step < STEPS:
            try:
                for _, _, ids in batches:
                    got.append(ids.tolist())
            except RuntimeWarning as error:
                told.append(str(error))
            assert len(got) == loader.step
    told += [str(one.message) for one in caught or ()]
    assert got == whole and calls == list(range(3, STEPS + 1, 3))
    assert len(told) == 1 and "no space left" in told[0] and "step 3" in told[0]


@pytest.mark.parametrize("when", ["made", "shown", "closed"])
@pytest.mark.filterwarnings("ignore:the progress bar has failed")
def test_a_bar_that_fails_costs_no_batch(pair, monkeypatch, when):
    import fastload.loop.bar

    def failing(*arguments):
        raise RuntimeError("no terminal")

    name = {"made": "__init__", "shown": "show", "closed": "close"}[when]
    monkeypatch.setattr(fastload.loop.bar._Rich, name, failing)
    with make(pair, progress=True) as loader:
        assert len(list(loader)) == STEPS == loader.step
    assert not any(thread.name == "fastload-bar" for thread in threading.enumerate())
