"""TwoPhaseLoader's contracts: which batches come, intact; resume, swap, ranks, errors; no thread is left."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reference
import torch
from batches import feed_threads, same
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import noise_images, write_pair, write_raw
from recipes import paper_like

from fastload import Augment, DataError, TwoPhaseLoader, UsageError
from fastload.loop.swap import planned_swap
from fastload.order import FAST, FINE_TUNE
from fastload.packed.file import PackedFile

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
        "with_ids": True,
        "seed": 5,
        "resident_budget": 0,  # streamed, small as it is
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))


@pytest.fixture(scope="module")
def run(pair):
    """The uninterrupted run that others are compared with."""
    with make(pair) as loader:
        return list(loader)


def test_every_batch_holds_what_order_parameters_and_files_say(pair, run):
    full, subset = PackedFile(pair[0]), PackedFile(pair[1])
    assert len(run) == STEPS
    for step, (images, labels, ids) in enumerate(run):
        fast = step < SWAP
        file, phase = (subset, FAST) if fast else (full, FINE_TUNE)
        first = (step if fast else step - SWAP) * BATCH
        for i in range(0, BATCH, 5):
            row, epoch = reference.row_at(first + i, len(file), 5, phase)
            assert ids[i] == file.ids[row] and labels[i] == file.labels[row]
            drawn = reference.parameters(int(file.ids[row]), epoch, 5, phase)
            want, divisor = reference.pixels(file.image(row), drawn, (24, 24))
            reference.assert_close(images[i].double().permute(1, 2, 0).numpy(), want, divisor)


def test_types_shapes_and_default_yield(pair):
    with make(pair, with_ids=False, dtype=torch.bfloat16, memory_format=torch.channels_last) as loader:
        images, labels = next(iter(loader))
    assert images.shape == (BATCH, 3, 24, 24) and images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (BATCH,) and labels.dtype == torch.int64


def test_a_list_of_batches_is_distinct_and_intact(pair, run):
    assert len({batch[0].data_ptr() for batch in run}) == STEPS
    with make(pair, prefetch=1) as loader:
        for step, batch in enumerate(loader):  # buffers go back to the ring as each batch is dropped
            assert same([batch], [run[step]])


def test_a_slice_that_is_held_keeps_its_batch_from_being_overwritten(pair, run):
    held = []
    with make(pair) as loader:
        for images, _, _ in loader:
            held.append(images[3, 1:2])
    assert all(torch.equal(piece, batch[0][3, 1:2]) for piece, batch in zip(held, run, strict=True))


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_resume_at_any_batch_equals_the_uninterrupted_run(pair, run, step):
    with make(pair) as loader:
        batches = iter(loader)
        for _ in range(step):
            next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
    with make(pair, prefetch=5) as loader:
        loader.load_state_dict(state)
        assert loader.step == step
        if step < STEPS:
            assert len(loader) == STEPS - step
            assert same(list(loader), run[step:])


def test_resume_within_one_loader_goes_back_and_forth(pair, run):
    with make(pair) as loader:
        batches = iter(loader)
        early = None
        for step in range(20):
            if step == 4:
                early = loader.state_dict()
            next(batches)
        late = loader.state_dict()
        loader.load_state_dict(early)
        assert loader.phase == "fast" and same([next(iter(loader))], run[4:5])
        loader.load_state_dict(late)
        assert loader.phase == "fine-tune" and same(list(loader), run[20:])


def test_a_state_goes_through_torch_save_with_weights_only(pair):
    with make(pair) as loader:
        next(iter(loader))
        state = loader.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == state
    assert state["step"] == 1


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_global_batch(pair, run, world):
    loaders = [make(pair, batch_size=BATCH // world, rank=rank, world_size=world) for rank in range(world)]
    for parts, whole in zip(zip(*loaders, strict=True), run, strict=True):
        joined = tuple(torch.cat([part[i] for part in parts]) for i in range(3))
        assert same([joined], [whole])
    for loader in loaders:
        loader.close()


def test_a_state_moves_to_another_number_of_ranks(pair, run):
    with make(pair, batch_size=BATCH // 2, rank=1, world_size=2) as loader:
        batches = iter(loader)
        for _ in range(15):
            next(batches)
        state = loader.state_dict()
    with make(pair) as loader:
        loader.load_state_dict(state)
        assert same(list(loader), run[15:])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 6}, "seed"),
        ({"batch_size": 8}, "global_batch_size"),
        ({"swap": 13}, "swap_step"),
        ({"shuffle": False}, "shuffle"),
        ({"augment": paper_like(crop=24, flip=0.0)}, "augment"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name(pair, change, name):
    with make(pair) as loader:
        state = loader.state_dict()
    with make(pair, **change) as loader, pytest.raises(UsageError, match=name):
        loader.load_state_dict(state)


def test_a_state_of_other_data_is_refused(pair, tmp_path):
    with make(pair) as loader:
        state = loader.state_dict()
    other = write_pair(tmp_path, count=301)
    with make(other) as loader, pytest.raises(UsageError, match="full="):
        loader.load_state_dict(state)
    with make(pair) as loader, pytest.raises(UsageError, match="no state"):
        loader.load_state_dict({"epoch": 3})


def test_swap_phase_callback_and_stats(pair):
    seen = []
    with make(pair) as loader:

        @loader.on_swap
        def swapped(who):
            seen.append((who.step, who.phase))

        phases = []
        for _ in loader:
            phases.append(loader.phase)
        assert phases == ["fast"] * SWAP + ["fine-tune"] * (STEPS - SWAP)
        assert seen == [(SWAP, "fine-tune")]
        stats = loader.stats()
        assert stats["fast"]["images"] == SWAP * BATCH and stats["fine-tune"]["batches"] == STEPS - SWAP
        for phase in stats.values():
            assert 0 <= phase["waited"] <= 1 and phase["images_per_second"] > 0


def test_a_resumed_run_swaps_once_only(pair):
    for step, calls in ((SWAP - 1, 1), (SWAP, 1), (SWAP + 1, 0)):
        seen = []
        with make(pair) as loader:
            loader.on_swap(seen.append)
            loader.load_state_dict(loader.state_dict() | {"step": step})
            list(loader)
        assert len(seen) == calls


@pytest.mark.parametrize(
    ("swap", "expected"), [(0.5, 50), (0.0, 0), (1.0, 100), (0, 0), (1, 1), (100, 100), (0.333, 33)]
)
def test_a_float_is_a_share_and_an_int_a_step(swap, expected):
    assert planned_swap(swap, 100) == expected


@pytest.mark.parametrize("swap", [-0.1, 1.5, -1, 101, True, "0.5", float("nan")])
def test_other_swaps_are_usage_errors(swap):
    with pytest.raises(UsageError, match="swap="):
        planned_swap(swap, 100)


def test_one_phase_needs_one_file(pair):
    with TwoPhaseLoader(pair[0], batch_size=8, steps=3, swap=0, augment=Augment.paper(24), device="cpu") as loader:
        calls = []
        loader.on_swap(calls.append)
        assert loader.phase == "fine-tune" and len(list(loader)) == 3 and not calls
    with TwoPhaseLoader(
        None, pair[1], batch_size=8, steps=3, swap=1.0, augment=Augment.paper(24), device="cpu"
    ) as loader:
        assert len(list(loader)) == 3 and loader.phase == "fast"
    with pytest.raises(UsageError, match="subset="):
        TwoPhaseLoader(pair[0], batch_size=8, steps=3, augment=Augment.paper(24), device="cpu")


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 40), stop=st.integers(0, STEPS - 1))
def test_epochs_of_any_length_are_exactly_as_long_as_len_says(pair, run, length, stop):
    with make(pair, steps_per_epoch=length) as loader:
        got = []
        while loader.step < STEPS:
            expected = len(loader)
            batches = iter(loader)
            promised = len(loader)
            epoch = list(batches)
            assert len(epoch) == promised == expected and 0 < promised <= length
            assert len(loader) == min(
                length, STEPS - loader.step
            )  # of the next loop, also of a last one that is shorter
            got += epoch
        assert len(loader) == 0 and loader
        assert same(got, run)


def test_break_and_iterate_again_loses_no_batch(pair, run):
    with make(pair) as loader:
        got = []
        while loader.step < STEPS:
            for batch in loader:
                got.append(batch)
                if len(got) % 7 == 0:
                    break
        assert same(got, run)


def test_len_after_a_break_is_that_of_the_next_loop(pair):
    with make(pair) as loader:
        for step, _ in enumerate(loader):
            assert len(loader) == STEPS
            if step == 6:
                break
        assert len(loader) == STEPS - 7 == len(list(loader))


def test_a_finished_loader_says_so(pair):
    with make(pair, steps=2, swap=1) as loader:
        assert len(list(loader)) == 2
        with pytest.warns(UserWarning, match="all 2 steps"):
            assert list(loader) == []


def test_a_batch_larger_than_the_set_spans_epochs(tmp_path):
    full, subset = write_pair(tmp_path, count=7, chosen=3)
    with make((full, subset), batch_size=20, steps=4, swap=2) as loader:
        for step, (_, _, ids) in enumerate(loader):
            n = 3 if step < 2 else 7
            expected = [reference.row_at((step % 2) * 20 + i, n, 5, int(step >= 2))[0] for i in range(20)]
            file = PackedFile(subset if step < 2 else full)
            assert ids.tolist() == file.ids[expected].tolist()


def test_one_image_is_enough(tmp_path):
    full, subset = write_pair(tmp_path, count=1, chosen=1)
    with make((full, subset), batch_size=2, steps=2, swap=1) as loader:
        assert [batch[2].tolist() for batch in loader] == [[0, 0], [0, 0]]


def test_labels_of_other_kinds_come_as_they_are(tmp_path):
    images = noise_images(20)
    targets = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    full = write_raw(tmp_path / "full.h5", images, targets)
    with make((full, None), swap=0, batch_size=5, steps=4, shuffle=False) as loader:
        labels = torch.cat([batch[1] for batch in loader])
    assert labels.dtype == torch.float32 and np.array_equal(labels.numpy(), targets)


def test_file_order_and_block_order(pair, tmp_path):
    with make(pair, shuffle=False) as loader:
        ids = torch.cat([batch[2] for batch in loader][SWAP:])
    assert ids.tolist() == [i % 300 for i in range((STEPS - SWAP) * BATCH)]
    with make(pair, shuffle="block") as loader:
        ids = torch.cat([batch[2] for batch in loader][SWAP:])
    assert ids.tolist() != sorted(ids.tolist()) and len(set(ids.tolist())) == len(ids)
    by_label = write_raw(tmp_path / "sorted.h5", noise_images(20), np.repeat([0, 1], 10))
    with pytest.raises(UsageError, match='pack it with order="shuffled"'):
        make((by_label, None), swap=0, shuffle="block")


def test_evaluation_serves_all_in_file_order_with_a_partial_last_batch(pair):
    with make(pair) as loader, loader.evaluation(pair[0], batch_size=64) as test:
        for _ in range(2):
            batches = list(test)
            assert [len(batch[0]) for batch in batches] == [64, 64, 64, 64, 44] and len(test) == 5
            assert torch.cat([batch[2] for batch in batches]).tolist() == list(range(300))
        image = PackedFile(pair[0]).image(299)
        want, divisor = reference.pixels(image, (0, 0, False, 0.0, 1.0), (24, 24), centre=True)
        reference.assert_close(batches[-1][0][-1].double().permute(1, 2, 0).numpy(), want, divisor)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"augment": Augment.paper(33)}, "32×32 pixels, too small for size=33×33"),
        ({"device": "cuda"}, "CPU build|no CUDA"),
        ({"device": "gpu"}, "no device"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"engine": "fast"}, "engine='fast'"),
        ({"dtype": torch.float64}, "float64"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": 0}, "give both"),
        ({"seed": -1}, "seed=-1"),
        ({"images": "x"}, "give both"),
        ({"batch_size": 16.0}, "batch_size=16.0"),
        ({"steps": "30"}, "steps='30'"),
        ({"steps": float("nan")}, "steps=nan"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch=2.5"),
        ({"prefetch": "2"}, "prefetch='2'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"rank": "0", "world_size": "2"}, "rank='0'"),
        ({"device": None}, "device=None"),
        ({"augment": 24}, "augment=24"),
        ({"shuffle": np.zeros(3)}, "shuffle=array"),
        ({"shuffle": "blocks"}, "shuffle='blocks'"),
        ({"shuffle": 1}, 'shuffle=1; it is True, False or "block"'),
        ({"batch_size": 2**31}, "batch_size=2147483648; it must be at most 2147483647"),
        ({"batch_size": 2**63}, f"batch_size={2**63}"),
        ({"with_ids": "no"}, "with_ids='no'"),
        ({"keep_resident": 1}, "keep_resident=1"),
        ({"steps": None, "seconds": True}, "seconds=True"),
        ({"rank": 0, "world_size": 2, "store": "tcp://"}, "store='tcp://'"),
        ({"images": 3, "labels": 4}, "images=3"),
    ],
)
def test_settings_that_cannot_be_served_are_named(pair, change, text):
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UsageError, match=text):
        make(pair, **change)
    assert not feed_threads()


def test_numbers_of_numpy_give_a_state_of_plain_ones(pair, run):
    changes = {"batch_size": np.int64(BATCH), "steps": np.int32(STEPS), "swap": np.int64(SWAP), "seed": np.uint64(5)}
    augment = paper_like(crop=np.int64(24), flip=np.float32(0.5), brightness=np.float32(63))
    with make(pair, augment=augment, shuffle=np.bool_(True), **changes) as loader:
        assert same(list(loader), run)
        state = json.loads(json.dumps(loader.state_dict()))
    with make(pair) as loader:
        loader.load_state_dict(state)


def test_a_share_of_numpy_is_a_share():
    assert planned_swap(np.float32(0.5), 100) == planned_swap(np.float64(0.5), 100) == 50


@pytest.mark.parametrize(
    "change",
    [
        {"step": "4"},
        {"step": 4.5},
        {"step": -1},
        {"seconds": "x"},
        {"step": None},
        {"seconds": float("nan")},
        {"seconds": -5.0},
    ],
)
def test_a_damaged_state_is_a_usage_error(pair, change):
    with make(pair) as loader:
        with pytest.raises(UsageError, match="damaged"):
            loader.load_state_dict(loader.state_dict() | change)
        state = loader.state_dict()
        del state[next(iter(change))]
        with pytest.raises(UsageError, match="damaged"):
            loader.load_state_dict(state)


@pytest.mark.parametrize("found", [torch.tensor([1, 2]), np.array([1, 2]), None, "5"])
def test_a_state_with_a_setting_of_another_type_is_refused_by_name(pair, found):
    with make(pair) as loader, pytest.raises(UsageError, match="seed="):
        loader.load_state_dict(loader.state_dict() | {"seed": found})


@pytest.mark.parametrize(
    ("changes", "name", "found"),
    [
        ({}, "shuffle", 1),
        ({}, "shuffle", 1.0),
        ({"shuffle": False}, "shuffle", 0),
        ({"shuffle": "block"}, "shuffle", True),
        ({"seed": 1}, "seed", True),
        ({"swap": 1}, "swap_step", True),
        ({"swap": 0}, "swap_step", False),
    ],
)
def test_a_flag_in_a_state_is_no_number_and_a_number_no_flag(pair, changes, name, found):
    with make(pair, **changes) as loader:
        state = loader.state_dict()
        with pytest.raises(UsageError, match=f"saved with {name}="):
            loader.load_state_dict(state | {name: found})
        loader.load_state_dict(state)


def test_flags_of_the_augmentation_are_none_other_and_one_of_numpy_is_a_flag(pair):
    def as_numbers(value):
        if isinstance(value, dict):
            return {name: as_numbers(one) for name, one in value.items()}
        return int(value) if isinstance(value, bool) else value

    with make(pair) as loader:
        state = loader.state_dict()
        assert state["augment"] == as_numbers(state["augment"])  # as Python compares them
        with pytest.raises(UsageError, match="saved with augment="):
            loader.load_state_dict(state | {"augment": as_numbers(state["augment"])})
        loader.load_state_dict(state | {"shuffle": np.bool_(True)})


def test_scaled_decoding_of_files_that_hold_pixels_is_refused_at_once(pair):
    with pytest.raises(UsageError, match="scaled_decoding=True is for encoded files, and there is none here"):
        make(pair, scaled_decoding=True)


@pytest.mark.parametrize("state", [None, [1], {}, {"fastload_state": 3}])
def test_what_is_no_state_is_told_what_was_found_and_what_to_give(pair, state):
    found = repr(state.get("fastload_state")) if isinstance(state, dict) else type(state).__name__
    with make(pair) as loader, pytest.raises(UsageError, match=rf"no state .*found '?{found}.*state_dict\(\) returned"):
        loader.load_state_dict(state)


def test_paths_that_can_lead_nowhere_are_errors_that_name_the_argument(pair, tmp_path):
    for wrong, error, text in (
        ("", UsageError, "subset='': an empty path"),
        (3, UsageError, "subset=3"),
        ([], UsageError, r"subset=\[\]"),
        ("x" * 300, DataError, "cannot be opened .File name too long"),
        ("a\0b", DataError, "embedded null"),
    ):
        with pytest.raises(error, match=text):
            make((pair[0], wrong))
    with make(pair) as loader, pytest.raises(UsageError, match="path=3"):
        loader.evaluation(3)
    with pytest.raises(UsageError, match=r"full=.*subset\.h5 is the subset, as subset= is; give the full set"):
        make((pair[1], pair[1]))


def test_a_folder_with_any_name_a_link_and_another_working_directory_make_no_difference(tmp_path, run, monkeypatch):
    folder = tmp_path / 'a "ü" [1] *'
    folder.mkdir()
    write_pair(folder)
    (tmp_path / "link.h5").symlink_to(folder / "full.h5")
    monkeypatch.chdir(folder)
    with make(("../link.h5", "subset.h5")) as loader, loader.evaluation("full.h5") as test:
        monkeypatch.chdir("/")
        assert same(list(loader), run) and sum(len(batch[0]) for batch in test) == 300


def test_the_two_files_the_wrong_way_round_are_refused(pair):
    with PackedFile(pair[0]) as full, PackedFile(pair[1]) as subset:
        if subset.selection.attributes.get("full_fingerprint") != full.fingerprint:
            pytest.fail("the pair does not belong together, so that this shows nothing")
    with pytest.raises(UsageError, match="swap the two"):
        make((pair[1], pair[0]))


def test_threads_that_share_a_loader_get_each_batch_once(pair, run):
    got = []
    with make(pair, steps=400) as loader:
        threads = [threading.Thread(target=lambda: got.extend(batch[2] for batch in loader)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads) and loader.step == 400
    with make(pair, steps=400) as loader:
        assert sorted(ids.tolist() for ids in got) == sorted(ids.tolist() for _, _, ids in loader)


def test_what_is_closed_says_so(pair):
    loader = make(pair)
    loader.on_swap(lambda loader: loader.close())
    with pytest.raises(UsageError, match="closed this loader"):
        list(loader)
    with pytest.raises(UsageError, match="is closed"):
        loader.load_state_dict(loader.state_dict())
    with make(pair) as other:
        evaluation = other.evaluation(pair[0])
        evaluation.close()
        with pytest.raises(UsageError, match="is closed"):
            list(evaluation)
        with pytest.raises(UsageError, match="batch_size=0"):
            other.evaluation(pair[0], batch_size=0)
    file = PackedFile(pair[0])
    file.close()
    with pytest.raises(UsageError, match="is closed"):
        file.read(0)  # the descriptor's number may be another file's by now


def test_a_callback_that_cannot_be_called_and_a_copy_are_refused(pair):
    with make(pair) as loader:
        with pytest.raises(UsageError, match="on_swap"):
            loader.on_swap(3)
        for wrong in (lambda: None, lambda loader, more: None):  # told now, not at the swap
            with pytest.raises(UsageError, match="a function of one argument"):
                loader.on_swap(wrong)
        loader.on_swap([].append)
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="state_dict"):
                copied(loader)


_AT_EXIT = """
import os, signal, sys
from fastload import Augment, TwoPhaseLoader
loader = TwoPhaseLoader(sys.argv[1], sys.argv[2], batch_size=64, steps=100_000, augment=Augment.paper(24), device="cpu")
batches = iter(loader)
next(batches)
if sys.argv[3] == "fork":
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            next(batches)
        except ValueError as error:
            os._exit(7 if "fork" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    next(batches)
sys.exit(0)
"""


@pytest.mark.parametrize("mode", ["exit", "exit", "exit", "fork"])
def test_a_program_that_ends_or_forks_without_closing_does_so_in_peace(pair, mode):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _AT_EXIT, *map(str, pair), mode],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_subset_of_another_full_set_is_refused(pair, tmp_path):
    other = write_pair(tmp_path, count=200)
    with pytest.raises(DataError, match="another full set"):
        make((pair[0], other[1]))


def test_close_break_and_dropping_leave_no_thread(pair):
    loader = make(pair)
    for _ in loader:
        break
    assert feed_threads()
    loader.close()
    loader.close()
    assert not feed_threads()
    with pytest.raises(UsageError, match="closed"):
        iter(loader)
    dropped = make(pair)
    next(iter(dropped))
    assert feed_threads()
    del dropped
    gc.collect()
    deadline = time.monotonic() + 2
    while feed_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not feed_threads()


def test_an_exception_inside_a_feed_reaches_the_loop_with_its_cause(pair, monkeypatch):
    with make(pair) as loader:
        batches = iter(loader)
        next(batches)
        made = loader._run.fine.prepare().make

        def failing(start, count):
            if start >= 4 * BATCH:
                raise ZeroDivisionError("planted")
            return made(start, count)

        monkeypatch.setattr(loader._run.fine.prepare(), "make", failing)
        with pytest.raises(RuntimeError, match="planted") as error:
            list(batches)
        assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert not feed_threads()


def test_a_file_truncated_in_mid_run_is_an_error_not_a_signal(tmp_path):
    pair = write_pair(tmp_path, count=2000)
    with make(pair, swap=0, steps=500) as loader:
        batches = iter(loader)
        next(batches)
        with open(pair[0], "r+b") as file:
            file.truncate(8192)
        with pytest.raises(DataError, match=r"full\.h5: (row .* can no longer be read|was changed)"):
            list(batches)


def test_the_real_images_come_out_standardized(cifar_full):
    with TwoPhaseLoader(
        cifar_full, batch_size=256, steps=4, swap=0, augment=Augment.paper(24), device="cpu", with_ids=True
    ) as loader:
        for images, labels, ids in loader:
            assert torch.allclose(images.mean(dim=(1, 2, 3)), torch.zeros(256), atol=1e-5)
            assert torch.allclose(images.std(dim=(1, 2, 3), unbiased=False), torch.ones(256), atol=1e-4)
            assert np.array_equal(PackedFile(cifar_full).labels[ids.numpy()], labels.numpy())
