"""How long a run is, by steps, seconds or epochs, how much of it is over, and test sets beside it: real CIFAR-10."""

from __future__ import annotations

import itertools
import json
import shutil
import time

import numpy as np
import pytest
import reference
import torch
from batches import feed_threads, same
from recipes import paper_like

from fastload import Augment, PackedFile, Swap, TwoPhaseLoader, UsageError, build_subset
from fastload.loop.loops import steps_of_epochs

SAMPLES, BATCH, EPOCH = 400, 24, 16  # 16 batches of 24, and 16 samples are left over


@pytest.fixture(scope="module")
def pair(few_cifar, tmp_path_factory):
    """400 real images, and a random subset of 60 of them."""
    subset = tmp_path_factory.mktemp("subset") / "subset.h5"
    build_subset(few_cifar, subset, strategy="random", size=60, device="cpu")
    return few_cifar, subset


def make(pair, **changes):
    settings = {
        "batch_size": BATCH,
        "swap": 0.25,
        "augment": Augment.paper(24),
        "device": "cpu",
        "seed": 5,
        "with_ids": True,
        "resident_budget": 0,
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))


@pytest.fixture(scope="module")
def run(pair):
    """The run of two epochs, given in steps."""
    with make(pair, steps=2 * EPOCH) as loader:
        return list(loader)


# -- epochs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "steps"), [(2, 32), (1.0, 16), (0.25, 4), (1.5, 24), (np.float32(0.5), 8), (np.int64(3), 48), (1.97, 32)]
)
def test_an_epoch_has_the_full_set_s_full_global_batches_and_a_share_is_of_the_whole_run(pair, epochs, steps):
    with make(pair, epochs=epochs) as loader:
        assert len(loader) == steps and loader.swap_step == round(0.25 * steps)


def test_a_run_of_epochs_is_that_of_its_steps_and_their_states_are_the_same(pair, run):
    with make(pair, epochs=2) as by_epochs, make(pair, steps=2 * EPOCH) as by_steps:
        assert by_epochs.state_dict() == by_steps.state_dict()
        first = list(itertools.islice(by_epochs, 13))
        state = json.loads(json.dumps(by_epochs.state_dict()))
        by_steps.load_state_dict(state)
        assert same(first + list(by_steps), run)
        by_epochs.load_state_dict(state)
        assert same(first + list(by_epochs), run)


def test_without_a_subset_first_an_epoch_repeats_no_sample_and_what_is_left_over_comes_next(pair):
    with make((pair[0], None), swap=0, epochs=2) as loader:
        ids = torch.cat([batch[2] for batch in loader]).tolist()
    assert len(ids) == 2 * EPOCH * BATCH
    assert len(set(ids[: EPOCH * BATCH])) == EPOCH * BATCH
    assert set(ids[:SAMPLES]) == set(range(SAMPLES))


def test_on_several_ranks_an_epoch_is_of_their_global_batches(pair, run):
    loaders = [make(pair, epochs=2, batch_size=BATCH // 2, rank=rank, world_size=2) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [2 * EPOCH] * 2
    for parts, whole in zip(zip(*loaders, strict=True), run, strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    for loader in loaders:
        loader.close()


def test_without_a_full_set_epochs_are_of_the_subset(pair):
    with make((None, pair[1]), swap=1.0, epochs=3) as loader:
        assert len(list(loader)) == 3 * (60 // BATCH) and loader.phase == "fast" and loader.progress == 1


def test_a_set_of_several_files_counts_the_samples_of_all(pair, tmp_path):
    more = shutil.copy(pair[0], tmp_path / "more.h5")
    with make(([pair[0], more], None), swap=0, epochs=1) as loader:
        assert len(loader) == 2 * SAMPLES // BATCH and len(loader.dataset) == 2 * SAMPLES


def test_loops_of_a_run_of_epochs_may_be_one_epoch_each(pair, run):
    with make(pair, epochs=2, steps_per_epoch=EPOCH) as loader:
        assert [len(loader), *(len(list(loader)) for _ in range(2)), len(loader)] == [EPOCH, EPOCH, EPOCH, 0]


def test_a_step_of_the_swap_is_a_step_and_lies_within_the_run(pair):
    with make(pair, epochs=1, swap=EPOCH) as loader:
        assert loader.swap_step == EPOCH
    with pytest.raises(UsageError, match=r"swap=17 .*from 0 to steps=16"):
        make(pair, epochs=1, swap=EPOCH + 1)
    with make(pair, epochs=1, swap=Swap.never()) as loader:
        assert loader.swap_step is None and len(loader) == EPOCH


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "steps=None, seconds=None and epochs=None: give one of the three"),
        ({"epochs": 1, "steps": 16}, "steps=16, seconds=None and epochs=1: give one of the three"),
        ({"epochs": 1, "seconds": 5}, "seconds=5 and epochs=1: give one of the three"),
        ({"epochs": 0}, "epochs=0.0; it must be positive"),
        ({"epochs": -1.5}, "epochs=-1.5; it must be positive"),
        ({"epochs": float("nan")}, "epochs=nan"),
        ({"epochs": float("inf")}, "epochs=inf"),
        ({"epochs": True}, "epochs=True"),
        ({"epochs": "2"}, "epochs='2'"),
        ({"epochs": 0.01}, r"epochs=0.01 of 400 samples are 0.16 steps: an epoch has 16 global batches of 24"),
        ({"epochs": 9, "batch_size": 401}, "are 0 steps: an epoch has 0 global batches of 401"),
        ({"epochs": 1e308}, "are inf steps"),
        ({"epochs": 1, "swap": "half"}, "swap='half'"),
        ({"epochs": 1, "swap": 1.5}, "swap=1.5"),
    ],
)
def test_lengths_that_cannot_be_served_are_named(pair, changes, text):
    with pytest.raises(UsageError, match=text):
        make(pair, **changes)
    assert not feed_threads()


def test_missing_files_are_named(pair):
    for length in ({"epochs": 1}, {"steps": 4}):
        with pytest.raises(UsageError, match="full= and subset= are missing"):
            make((None, None), **length)
    with pytest.raises(UsageError, match="subset= is missing, and swap=4 needs it"):
        make((pair[0], None), epochs=1)


def test_a_state_beyond_the_run_s_end_says_what_to_raise(pair):
    with make(pair, steps=2 * EPOCH, swap=4) as loader:
        list(loader)
        state = loader.state_dict()
    with (
        make(pair, epochs=1, swap=4) as loader,
        pytest.raises(UsageError, match=r"at step 32, .*ends at 16; raise epochs="),
    ):
        loader.load_state_dict(state)


@pytest.mark.parametrize("samples", [1, 7, 24, 1_281_167])
@pytest.mark.parametrize("batch", [1, 5, 24])
def test_whole_epochs_are_exactly_so_many_passes_without_the_rest(samples, batch):
    for epochs in (1, 16, 90):
        if samples >= batch:
            assert steps_of_epochs(float(epochs), samples, batch) == epochs * (samples // batch)


# -- progress ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 2 * EPOCH}, {"steps": 2 * EPOCH, "steps_per_epoch": 5}])
def test_progress_is_the_share_of_the_batches_delivered(pair, length):
    at_swap = []
    with make(pair, **length) as loader:
        loader.on_swap(lambda loader: at_swap.append(loader.progress))
        assert loader.progress == 0
        while loader.step < 2 * EPOCH:
            for _ in loader:
                assert loader.progress == loader.step / (2 * EPOCH)
        assert loader.progress == 1 and at_swap == [0.25]
        state = loader.state_dict()
        loader.reset()
        assert loader.progress == 0
        loader.load_state_dict(state | {"step": 20})
        assert loader.progress == 20 / 32
    assert loader.progress == 20 / 32  # also once it is closed


def test_progress_by_the_clock_rises_to_one_and_goes_on_after_a_resume(pair):
    seen = []
    with make(pair, seconds=0.4) as loader:
        assert loader.progress == 0
        for _ in loader:
            time.sleep(0.01)
            seen.append((loader.progress, loader.state_dict()))
        assert loader.progress == 1
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.9 and shares[-1] <= 1
    share, state = seen[len(seen) // 2]
    assert share == min(1, state["seconds"] / 0.4)
    with make(pair, seconds=0.4) as loader:
        loader.load_state_dict(json.loads(json.dumps(state)))
        assert loader.progress == share
        next(iter(loader))
        assert share < loader.progress <= 1


# -- back to the beginning -----------------------------------------------------------------------------------------


def test_after_a_reset_stats_and_scalars_are_those_of_the_run_alone(pair, run):
    logged = []
    with make(pair, epochs=2) as loader:
        loader.log_to(lambda scalars, step: logged.append(step), every=10)
        list(itertools.islice(loader, 10))
        loader.reset()
        assert {phase["batches"] for phase in loader.stats().values()} == {0}
        assert same(list(loader), run)
        assert [phase["batches"] for phase in loader.stats().values()] == [8, 24]
    assert logged == [10, 10, 20, 30]


# -- test sets -----------------------------------------------------------------------------------------------------


def test_a_test_set_may_have_sizes_and_a_standardization_of_its_own(pair):
    other = paper_like(crop=28, standardize=None)
    with make(pair, epochs=1) as loader, loader.evaluation(pair[0], batch_size=150, augment=other) as test:
        batches = list(test)
        assert [tuple(batch[0].shape) for batch in batches] == [(150, 3, 28, 28)] * 2 + [(100, 3, 28, 28)]
        assert same(list(test), batches)  # nothing is random, though the settings were those of training
    with PackedFile(pair[0]) as file:
        middle = file.image(399)[2:30, 2:30].astype(np.float64)
    got = batches[-1][0][-1].permute(1, 2, 0).double().numpy()
    reference.assert_close(got, middle, 1.0)


def test_by_default_a_test_set_is_served_as_the_training_set_s_settings_say(pair):
    with make(pair, epochs=1) as loader:
        with loader.evaluation(pair[0]) as one, loader.evaluation(pair[0], augment=Augment.paper(24)) as other:
            assert same(list(one), list(other))
        with pytest.raises(UsageError, match="augment=24"):
            loader.evaluation(pair[0], augment=24)
        with pytest.raises(UsageError, match="too small for size=33×33"):
            iter(loader.evaluation(pair[0], augment=Augment.paper(33)))


def test_a_rank_s_part_of_a_test_set_tells_of_the_whole_set_s_samples(pair):
    with make(pair, epochs=1, rank=1, world_size=3) as loader, loader.evaluation(pair[0], shard=True) as test:
        assert len(test.dataset) == len(loader.dataset) == SAMPLES
        assert len(test) == len(list(test)) == 6  # of 17 batches, the second, the fifth, …
