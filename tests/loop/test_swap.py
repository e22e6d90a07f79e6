"""When a run swaps and ends: the policies, what a resumed run remembers of them, and what is warm by then."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from batches import same
from hypothesis import given
from hypothesis import strategies as st
from packs import write_pair

from fastload import Augment, Swap, TwoPhaseLoader, UsageError
from fastload.feeds import read_ahead
from fastload.feeds.read_ahead import ReadAhead
from fastload.loop.swap import Plateau, planned_swap

BATCH = 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def make(pair, **changes):
    settings = {
        "batch_size": BATCH,
        "steps": 60,
        "augment": Augment.paper(24),
        "device": "cpu",
        "with_ids": True,
        "seed": 5,
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))


def phases(loader, until=math.inf, on_batch=lambda loader: None):
    seen = []
    for _ in loader:
        seen.append(loader.phase)
        on_batch(loader)
        if len(seen) >= until:
            break
    return seen


def test_after_seconds_swaps_by_the_clock_and_the_time_between_loops_does_not_count(pair):
    swapped = []
    with make(pair, steps=10_000, swap=Swap.after(seconds=0.3)) as loader:
        loader.on_swap(lambda loader: swapped.append(time.perf_counter()))
        began = time.perf_counter()
        for _ in loader:
            time.sleep(0.01)
            if loader.step == 5:
                break
        time.sleep(0.5)  # between loops
        paused = 0.5
        for _ in loader:
            time.sleep(0.01)
            if swapped:
                break
        assert 0.25 <= swapped[0] - began - paused <= 1.0
        assert loader.swap_step == loader.step - 1 > 5


@pytest.mark.parametrize("broken_off", [False, True], ids=["loops of one step", "loops left after one batch"])
def test_the_last_step_of_each_loop_counts_for_the_swap_and_for_the_end(pair, broken_off):
    settings = {"steps": None, "seconds": 0.3, "swap": Swap.after(seconds=0.15)}
    phases_seen = []
    with make(pair, **settings, steps_per_epoch=None if broken_off else 1) as loader:
        for _ in range(100):
            batch = next(iter(loader), None)
            if batch is None:
                break
            phases_seen.append(loader.phase)
            time.sleep(0.03)
        else:
            pytest.fail("100 steps of 0.03 s did not end a run of 0.3 s")
        assert set(phases_seen) == {"fast", "fine-tune"}


def test_never_swaps_only_when_told_and_at_the_next_batch(pair):
    with make(pair, swap=Swap.never()) as loader:
        assert loader.swap_step is None
        seen = phases(loader, on_batch=lambda loader: loader.swap_now() if loader.step == 7 else None)
        assert seen == ["fast"] * 7 + ["fine-tune"] * 53 and loader.swap_step == 7
        loader.swap_now()  # again: nothing happens
    with make(pair, swap=Swap.never()) as loader:
        assert set(phases(loader)) == {"fast"}


def test_swap_now_comes_before_a_planned_swap(pair):
    with make(pair, swap=50) as loader:
        seen = phases(loader, on_batch=lambda loader: loader.swap_now() if loader.step == 20 else None)
    assert seen.index("fine-tune") == 20 and len(seen) == 60


def test_batches_after_a_dynamic_swap_are_those_of_a_planned_one(pair):
    with make(pair, swap=7) as loader:
        planned = list(loader)
    with make(pair, swap=Swap.never()) as loader:
        got = []
        for batch in loader:
            got.append(batch)
            if loader.step == 7:
                loader.swap_now()
    assert same(got, planned)


def test_without_a_full_set_there_is_nothing_to_swap_to(pair):
    settings = {"batch_size": 8, "steps": 5, "augment": Augment.paper(24), "device": "cpu"}
    with TwoPhaseLoader(None, pair[1], swap=Swap.never(), **settings) as loader:
        with pytest.raises(UsageError, match="full="):
            loader.swap_now()
        assert len(list(loader)) == 5
    with pytest.raises(UsageError, match="full= is missing"):
        TwoPhaseLoader(None, pair[1], swap=Swap.on_plateau(), **settings)


def test_a_plateau_of_the_loss_swaps(pair):
    with make(pair, swap=Swap.on_plateau(patience=2, window=5, min_delta=0.01)) as loader:
        losses = [1.0 - 0.1 * min(step // 5, 3) for step in range(60)]  # falls for four windows, then stays
        seen = phases(loader, on_batch=lambda loader: loader.report_loss(torch.tensor(losses[loader.step - 1])))
    # The windows that end at 25 and 30 are no better than the one that ends at 20.
    assert seen.index("fine-tune") == 30


@given(
    losses=st.lists(st.floats(-10, 10) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=60),
    patience=st.integers(1, 4),
    window=st.integers(1, 5),
    min_delta=st.floats(0, 1),
    cut=st.integers(0, 60),
)
def test_plateau_equals_a_plain_reading_of_its_definition_also_across_a_restart(
    losses, patience, window, min_delta, cut
):
    policy = Swap.on_plateau(patience=patience, window=window, min_delta=min_delta)
    plateau = Plateau(policy)
    for number, loss in enumerate(losses):
        if number == cut:
            restored = Plateau(policy)
            restored.restore(json.loads(json.dumps(plateau.state(), allow_nan=False)))
            plateau = restored
        plateau.report(loss)
    best, stale = math.inf, 0
    for first in range(0, len(losses) - window + 1, window):
        mean = sum(losses[first : first + window]) / window
        stale = 0 if mean < best - min_delta else stale + 1
        best = mean if stale == 0 else best
    assert plateau.reached == (stale >= patience)


def test_nan_is_no_falling_loss_and_what_is_no_number_is_refused():
    plateau = Plateau(Swap.on_plateau(patience=2, window=1))
    for loss in (1.0, math.nan, torch.tensor([math.nan])):
        plateau.report(loss)
    assert plateau.reached
    with pytest.raises(UsageError, match="report_loss"):
        plateau.report(torch.zeros(3))
    with pytest.raises(UsageError, match="loss="):
        plateau.report("0.5")
    with pytest.raises(UsageError, match="complex"):
        plateau.report(torch.tensor(1j))


@pytest.mark.parametrize(
    "swap", [Swap.never(), Swap.after(seconds=1000), Swap.on_plateau(patience=1, window=4)], ids=lambda swap: swap.kind
)
@pytest.mark.parametrize("stop", [0, 3, 8, 9, 13])
def test_resume_remembers_the_policy_s_history_and_the_swap(pair, swap, stop):
    def run(loader, until=60):
        got = []
        for batch in loader:
            got.append(batch)
            loader.report_loss(1.0)
            if loader.step == 8 and swap.kind != "plateau":
                loader.swap_now()
            if loader.step == until:
                break
        return got

    with make(pair, swap=swap) as loader:
        whole = run(loader)
        assert loader.swap_step == 8  # the plateau: two windows of four
    with make(pair, swap=swap) as loader:
        before = run(loader, stop) if stop else []
        state = json.loads(json.dumps(loader.state_dict()))
    with make(pair, swap=swap, prefetch=4) as loader:
        loader.load_state_dict(state)
        assert same(before + run(loader), whole)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("losses", [1, 4, 6])
def test_the_state_of_a_run_whose_loss_is_no_number_is_strict_json_and_resumes(pair, loss, losses):
    swap = Swap.on_plateau(patience=2, window=4)

    def run(loader, at):
        for _ in loader:
            loader.report_loss(loss if loader.step <= losses else 1.0)
            if loader.step == at:
                return loader.state_dict()
        return loader.swap_step

    with make(pair, swap=swap) as loader:
        expected = run(loader, None)
    with make(pair, swap=swap) as loader:
        state = json.loads(json.dumps(run(loader, losses), allow_nan=False))
    with make(pair, swap=swap) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state and run(loader, None) == expected


@pytest.mark.parametrize(
    "history",
    [
        *(None, 3, [], {}, torch.zeros(2)),
        {"best": 1.0, "stale": -1, "sum": 0, "count": 0},
        {"best": "low", "stale": 0, "sum": 0, "count": 0},
        {"best": None, "stale": 0, "sum": "1.0", "count": 0},
        {"best": None, "stale": 0, "sum": [math.nan], "count": 0},
    ],
)
def test_a_state_whose_history_of_losses_is_damaged_is_a_usage_error(pair, history):
    with make(pair, swap=Swap.on_plateau()) as loader:
        with pytest.raises(UsageError, match="the state is damaged"):
            loader.load_state_dict(loader.state_dict() | {"plateau": history})
        assert loader.step == 0


def test_a_state_of_another_policy_is_refused(pair):
    with make(pair, swap=Swap.after(seconds=5)) as loader:
        state = loader.state_dict()
    for other in (Swap.after(seconds=6), Swap.never(), 0.5):
        with make(pair, swap=other) as loader, pytest.raises(UsageError, match="swap"):
            loader.load_state_dict(state)


def test_a_run_ends_after_its_seconds_and_has_no_length(pair):
    with make(pair, steps=None, seconds=0.4, swap=0.5) as loader:
        with pytest.raises(TypeError, match="no length"):
            len(loader)
        began = time.perf_counter()
        seen = phases(loader, on_batch=lambda loader: time.sleep(0.005))
        taken = time.perf_counter() - began
        assert 0.35 <= taken <= 1.5 and set(seen) == {"fast", "fine-tune"}
        with pytest.warns(UserWarning, match="delivered"):
            assert not list(loader)
        state = loader.state_dict()
    with make(pair, steps=None, seconds=0.4, swap=0.5) as loader:
        loader.load_state_dict(state)
        assert not list(loader)  # its time is over
    for wrong in ({"steps": 5, "seconds": 1.0}, {"steps": None}, {"steps": None, "seconds": -1.0}):
        with pytest.raises(UsageError, match="seconds="):
            make(pair, **wrong)


def test_a_share_of_seconds_is_a_policy_and_of_steps_a_step():
    assert planned_swap(0.5, None, 600.0) == Swap.after(seconds=300)
    assert planned_swap(0.0, None, 600.0) == 0 and planned_swap(1.0, None, 600.0) == Swap.never()
    assert planned_swap(7, None, 600.0) == 7


@pytest.mark.parametrize(
    "call",
    [
        lambda: Swap.after(seconds=-1),
        lambda: Swap.after(seconds=math.nan),
        lambda: Swap.on_plateau(patience=0),
        lambda: Swap("sometimes"),
        lambda: Swap.after(seconds=True),
        lambda: Swap.on_plateau(window=0),
        lambda: Swap.on_plateau(min_delta=-0.1),
        lambda: Swap.after(seconds="5"),
    ],
)
def test_policies_out_of_range_are_usage_errors(call):
    with pytest.raises(UsageError):
        call()


def test_the_learning_rate_can_be_changed_at_the_swap_before_the_first_full_batch(pair):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    rates = []
    with make(pair, swap=4, steps=8) as loader:
        loader.on_swap(lambda loader: optimizer.param_groups[0].update(lr=0.01))
        for _ in loader:
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.1] * 4 + [0.01] * 4


class Planted(Exception):
    pass


def with_callbacks(loader, called, failures=()):
    """Three callbacks; each notes its name and step, and raises while `failures` holds its name."""
    failures = list(failures)

    def make_callback(name):
        def callback(loader):
            called.append((name, loader.step, loader.phase))
            if name in failures:
                failures.remove(name)
                raise Planted(name)

        return callback

    for name in "abc":
        loader.on_swap(make_callback(name))
    return loader


ONCE = [(name, 10, "fine-tune") for name in "abc"]


@pytest.mark.parametrize("swap", [10, Swap.never()], ids=["planned", "told"])
@pytest.mark.parametrize("failing", ["a", "b", "c", "bbc"])
def test_after_a_callback_that_raised_the_loop_goes_on_and_nothing_is_lost_or_called_twice(pair, swap, failing):
    with make(pair, swap=10) as loader:
        whole = list(loader)
    called, got, raised = [], [], []
    with with_callbacks(make(pair, swap=swap), called, failing) as loader:
        while loader.step < 60:
            try:
                for batch in loader:
                    got.append(batch)
                    if loader.step == 10:
                        loader.swap_now()
            except Planted as error:
                raised.append(str(error))
                assert (loader.step, loader.phase, loader.swap_step, len(loader)) == (10, "fine-tune", 10, 50)
    assert same(got, whole) and raised == list(failing)
    returned = [call for number, call in enumerate(called) if call not in called[number + 1 :]]
    assert returned == ONCE and len(called) == 3 + len(failing)
    assert [call for call in called if call[0] not in failing] == [call for call in ONCE if call[0] not in failing]


@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_a_state_taken_after_a_callback_raised_or_within_it_resumes_at_that_callback(pair, failing):
    with make(pair, swap=10) as loader:
        whole = list(loader)
    called, states, got = [], [], []
    with make(pair, swap=10) as loader:
        with_callbacks(loader, called, failing)
        place = "abc".index(failing)
        saving, loader._run.callbacks[place] = (
            loader._run.callbacks[place],
            lambda loader: (states.append(loader.state_dict()), saving(loader)),
        )
        with pytest.raises(Planted):
            got.extend(loader)  # what came before the exception is kept
        states.append(loader.state_dict())
    assert len(got) == 10 and [name for name, *_ in called] == list("abc"[: place + 1])
    for state in states:
        again = []
        with with_callbacks(make(pair, swap=10), again) as loader:
            loader.load_state_dict(json.loads(json.dumps(state)))
            assert loader.phase == "fast" and same(got + list(loader), whole)
        assert [name for name, *_ in again] == list("abc"[place:])


def test_a_state_of_before_the_swap_and_one_without_a_count_call_all_callbacks(pair):
    with make(pair, swap=10) as loader:
        for _ in loader:
            if loader.step == 10:
                break
        state = loader.state_dict()
    older = {name: value for name, value in state.items() if name != "swap_callbacks"}
    for saved in (state, older):
        called = []
        with with_callbacks(make(pair, swap=10), called) as loader:
            loader.load_state_dict(saved)
            list(loader)
        assert called == ONCE
    with make(pair, swap=10) as loader, pytest.raises(UsageError, match="swap_callbacks='2'"):
        loader.load_state_dict(state | {"swap_callbacks": "2"})


def test_a_callback_may_draw_batches_but_not_load_a_state(pair):
    with make(pair, swap=10) as loader:
        whole = list(loader)
    got = []
    with make(pair, swap=10) as loader:
        loader.on_swap(lambda loader: got.append(next(iter(loader))))
        for batch in loader:
            got.append(batch)
    assert same(got, whole)
    with make(pair, swap=10) as loader:
        loader.on_swap(lambda loader: loader.load_state_dict(loader.state_dict()))
        with pytest.raises(UsageError, match="on_swap callback"):
            list(loader)


@pytest.mark.parametrize("engine", ["fused", "dali"])
def test_only_a_feed_that_reads_its_file_has_it_read_ahead(pair, monkeypatch, engine):
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    made = []
    monkeypatch.setattr(read_ahead, "ReadAhead", lambda *arguments: made.append(arguments) or ReadAhead(*arguments))
    with make(pair, swap=5, steps=10, engine=engine) as loader:  # both are resident
        assert len(list(loader)) == 10 and not made
    with make(pair, swap=5, steps=10, engine=engine, resident_budget=0) as loader:
        assert len(list(loader)) == 10 and len(made) == 1


def test_the_full_set_s_batches_stand_ready_before_the_swap_and_no_more_than_the_ring(pair):
    with make(pair, swap=40, prefetch=3, resident_budget=0) as loader:
        made = loader._run.fine.prepare().make
        positions = []
        loader._run.fine.prepare().make = lambda start, count: (positions.append(start), made(start, count))[1]
        for _ in loader:
            time.sleep(0.01)
            if loader.step == 40:
                break
        # Of a run of 60 steps of 10 ms the swap was near all the time: the ring was filled, and waited.
        assert 3 <= len(positions) <= 5


@pytest.mark.parametrize("keep", [False, True])
def test_the_subset_leaves_the_device_at_the_swap_unless_it_is_kept(pair, keep):
    with make(pair, swap=5, keep_resident=keep) as loader:
        phases(loader, until=10)
        assert (loader._run.fast._feed is not None) == keep


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_full_set_that_fits_is_resident_too_with_the_same_batches(pair, shuffle):
    runs = {}
    for budget, kind in ((0, "stream"), (None, "resident"), (10**9, "resident"), (10**5, "stream")):
        with make(pair, shuffle=shuffle, resident_budget=budget) as loader:
            runs[budget] = list(loader)
            stats = loader.stats()
            assert stats["fine-tune"]["feed"] == kind and stats["fast"]["feed"] == "resident"
            assert (stats["fine-tune"]["read_bytes_per_second"] > 0) == (kind == "stream")
    assert all(same(run, runs[0]) for run in runs.values())


def test_an_order_kind_to_storage_is_streamed_whatever_the_budget(tmp_path):
    import numpy as np
    from packs import noise_images, write_raw

    labels = np.random.default_rng(0).integers(0, 10, 300)
    full = write_raw(tmp_path / "full.h5", noise_images(300), labels)
    settings = {"batch_size": 8, "steps": 4, "swap": 0, "augment": Augment.paper(24), "device": "cpu"}
    with TwoPhaseLoader(full, shuffle="block", resident_budget=10**9, **settings) as loader:
        list(loader)
        assert loader.stats()["fine-tune"]["feed"] == "stream"
