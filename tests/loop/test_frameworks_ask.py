"""What frameworks ask of a DataLoader beside its batches, and the ways back in a run."""

from __future__ import annotations

import copy
import json
import pickle

import framework_run
import numpy as np
import pytest
import torch
from batches import same
from framework_run import BATCH, EPOCH, STEPS, SWAP
from packs import noise_images, write_encoded, write_pair, write_raw
from samples import encode

from fastload import Augment, Swap, TwoPhaseLoader, UsageError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.packed.file import PackedWriter


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=90, chosen=24, height=12, width=12)


def make(pair, **changes):
    """The run that frameworks are tried on, as one loop unless a test wants epochs."""
    return framework_run.make(pair, **({"steps_per_epoch": None} | changes))


@pytest.fixture(scope="module")
def run(pair):
    with make(pair) as loader:
        return list(loader)


# -- back to the beginning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [0, 1, SWAP, SWAP + 3, STEPS])
def test_reset_goes_back_to_the_first_step_from_anywhere(pair, run, drawn):
    swaps = []
    with make(pair) as loader:
        loader.on_swap(lambda loader: swaps.append(loader.step))
        fresh = loader.state_dict()
        for number, _ in enumerate(loader, 1):
            if number == drawn:
                break
        if drawn == 0:
            loader.reset()
        loader.reset()
        assert loader.state_dict() == fresh and loader.phase == "fast" and len(loader) == STEPS
        swaps.clear()
        assert same(list(loader), run) and swaps == [SWAP]


def test_reset_forgets_what_a_policy_has_seen_and_the_time(pair):
    with make(pair, swap=Swap.on_plateau(patience=1, window=2)) as loader:
        for _ in loader:
            loader.report_loss(1.0)
        assert loader.swap_step is not None
        loader.reset()
        assert loader.swap_step is None and loader.step == 0
        assert loader.state_dict()["plateau"] == {"best": None, "stale": 0, "sum": 0.0, "count": 0}
    with make(pair, steps=None, seconds=0.05, swap=0) as loader:
        assert list(loader)
        loader.reset()
        assert list(loader)


def test_reset_is_refused_where_it_cannot_be_done(pair):
    with make(pair) as loader:
        loader.on_swap(lambda loader: loader.reset())
        with pytest.raises(UsageError, match="on_swap callback"):
            list(loader)
    with pytest.raises(UsageError, match="is closed"):
        loader.reset()


# -- as a DataLoader -----------------------------------------------------------------------------------------------


def test_samples_and_batch_size_are_told(pair):
    with make(pair) as loader, loader.evaluation(pair[0], batch_size=40) as test:
        assert (len(loader.dataset), loader.batch_size, loader.drop_last, loader.sampler) == (90, BATCH, True, None)
        assert (len(test.dataset), test.batch_size, test.drop_last, test.sampler) == (90, 40, False, None)
        assert len(loader.batch_sampler) == STEPS
    with TwoPhaseLoader(
        None, pair[1], batch_size=4, steps=3, swap=1.0, augment=Augment.paper(8), device="cpu"
    ) as loader:
        assert len(loader.dataset) == 24


@pytest.mark.parametrize("begun", [0, 3])
@pytest.mark.parametrize("skipped", [0, 2, 3])
def test_accelerate_skips_the_first_batches_of_an_epoch_and_no_more(pair, run, begun, skipped):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: it skips nothing")
    with make(pair, steps_per_epoch=EPOCH) as loader:
        for number, _ in enumerate(loader, 1) if begun else ():
            if number == begun:
                break
        rest = accelerate.skip_first_batches(loader, skipped)
        assert len(rest) == EPOCH - begun - skipped
        got = list(rest)
        assert same(got, run[begun + skipped : EPOCH]) and loader.step == EPOCH
        while loader.step < STEPS:
            got += list(loader)
        assert same(got, run[begun + skipped :])


def test_a_skip_over_the_swap_and_one_in_a_run_by_the_clock(pair, run):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: it skips nothing")
    with make(pair) as loader:
        assert same(list(accelerate.skip_first_batches(loader, SWAP + 3)), run[SWAP + 3 :])
        assert loader.phase == "fine-tune" and loader.swap_step == SWAP
    with make(pair, steps=None, seconds=0.1, swap=0) as loader:
        got = list(accelerate.skip_first_batches(loader, 2))
        assert len(got) == loader.step - 2 > 0


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_set_epoch_goes_to_an_epoch_s_first_step_unless_it_is_the_one_that_runs(pair, run, epoch):
    with make(pair, steps_per_epoch=EPOCH) as loader:
        loader.set_epoch(epoch)
        assert loader.step == epoch * EPOCH
        batches = iter(loader)
        got = [next(batches)]
        loader.set_epoch(epoch)  # as it is: in mid-epoch nothing moves
        got += list(batches)
        assert same(got, run[epoch * EPOCH : min(STEPS, (epoch + 1) * EPOCH)])
        with pytest.raises(UsageError, match="epoch="):
            loader.set_epoch(-1)
    with make(pair) as loader:  # no epochs
        loader.set_epoch(7)
        assert loader.step == 0


# -- a test set under ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [4, 13, 90, 200])
def test_ranks_share_a_test_set_without_a_gap_or_an_overlap(pair, world, size):
    parts, lengths = [], []
    for rank in range(world):
        with make(pair, rank=rank, world_size=world) as loader:
            with loader.evaluation(pair[0], batch_size=size, shard=True) as test:
                batches = [ids.tolist() for _, _, ids in test]
                assert len(batches) == len(test)
            with loader.evaluation(pair[0], batch_size=size) as test:
                assert [one for _, _, ids in test for one in ids.tolist()] == list(range(90))
        parts += [one for ids in batches for one in ids]
        lengths.append(len(batches))
    assert sorted(parts) == list(range(90)) and max(lengths) - min(lengths) <= 1


def test_a_part_is_asked_for_by_a_truth_value(pair):
    with make(pair) as loader, pytest.raises(UsageError, match="shard='no'"):
        loader.evaluation(pair[0], shard="no")


def test_what_holds_threads_and_files_is_not_copied_and_says_what_to_do(pair):
    with make(pair) as loader, loader.evaluation(pair[0]) as test:
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"an EvaluationLoader holds threads .*make another one"):
                copied(test)
            with pytest.raises(TypeError, match=r"a TwoPhaseLoader holds threads .*state_dict"):
                copied(loader)


# -- another number of ranks ---------------------------------------------------------------------------------------


def test_a_state_of_another_number_of_ranks_says_which_batch_size_it_wants(pair, run):
    with make(pair) as loader:
        next(iter(loader))
        state = json.loads(json.dumps(loader.state_dict()))
    mend = "batch_size times the ranks, so give batch_size=2 on these 2 ranks"
    with make(pair, rank=0, world_size=2) as loader, pytest.raises(UsageError, match=mend):
        loader.load_state_dict(state)
    with make(pair, rank=0, world_size=3) as loader, pytest.raises(UsageError, match="3 ranks do not divide 4"):
        loader.load_state_dict(state)
    with make(pair, rank=0, world_size=2, batch_size=2) as loader:
        loader.load_state_dict(state)
        assert torch.equal(next(iter(loader))[2], run[1][2][:2])
        state = loader.state_dict()
    with make(pair, batch_size=2) as loader, pytest.raises(UsageError, match="give batch_size=4 on this one rank"):
        loader.load_state_dict(state)


# -- sets without labels -------------------------------------------------------------------------------------------


def unlabelled(folder):
    """The files of `write_pair`, without their labels."""
    labelled = write_pair(folder, count=60, chosen=20, height=12, width=12)
    found = []
    for path in labelled:
        from fastload import PackedFile

        with PackedFile(path) as file:
            out = folder / f"no-labels-{path.name}"
            selection = file.selection
            with PackedWriter(
                out, shape=(len(file), *file.shape), labels=None, ids=file.ids, source={"kind": "test"}
            ) as writer:
                for row in range(len(file)):
                    writer.write(row, file.read_image(row))
            assert selection is None or found
            found.append(out)
    return labelled, found


@pytest.mark.parametrize("engine", ["fused", "dali"])
@pytest.mark.parametrize("budget", [0, None], ids=["streamed", "resident"])
def test_sets_without_labels_give_images_alone_and_the_same_ones(tmp_path, engine, budget):
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    labelled, files = unlabelled(tmp_path)
    with make(labelled, engine=engine, resident_budget=budget) as loader:
        whole = list(loader)
    for with_ids in (True, False):
        with make(files, engine=engine, resident_budget=budget, with_ids=with_ids) as loader:
            got = list(loader)
            assert all(type(batch) is tuple and len(batch) == 1 + with_ids for batch in got)
            assert all(torch.equal(one[0], other[0]) for one, other in zip(got, whole, strict=True))
            if with_ids:
                assert all(torch.equal(one[1], other[2]) for one, other in zip(got, whole, strict=True))
            with loader.evaluation(files[0], batch_size=25) as test:
                assert [len(batch[0]) for batch in test] == [25, 25, 10]
                assert {len(batch) for batch in test} == {1 + with_ids}


def test_a_labelled_and_an_unlabelled_file_do_not_go_together(tmp_path):
    labelled, files = unlabelled(tmp_path)
    with pytest.raises(ValueError, match="no labels"):
        TwoPhaseLoader(labelled[0], files[1], batch_size=4, steps=4, augment=Augment.paper(8), device="cpu")


def test_encoded_images_without_labels(tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = [encode(image, "PNG") for image in noise_images(12, 12, 12)]
    labelled = write_encoded(tmp_path / "labelled.h5", files, np.arange(12))
    sizes = np.array([len(file) for file in files])
    with PackedWriter(tmp_path / "full.h5", sizes=sizes, labels=None, source={"kind": "test"}) as out:
        for row, file in enumerate(files):
            out.write(row, file, shape=(12, 12))
    with make((tmp_path / "full.h5", None), swap=0) as loader, make((labelled, None), swap=0) as other:
        for (images, ids), (wanted, _, wanted_ids) in zip(loader, other, strict=True):
            assert torch.equal(images, wanted) and torch.equal(ids, wanted_ids)


def test_unlabelled_blocks_are_no_sorted_labels(tmp_path):
    with PackedWriter(tmp_path / "full.h5", shape=(40, 12, 12, 3), labels=None, source={"kind": "test"}) as out:
        for row, image in enumerate(noise_images(40, 12, 12)):
            out.write(row, image)
    with make((tmp_path / "full.h5", None), swap=0, shuffle="block") as loader:
        assert len(list(loader)) == STEPS
    with EvaluationLoader(tmp_path / "full.h5", Augment.paper(8), batch_size=40, classes=["a"]) as test:
        assert len(next(iter(test))) == 1


def test_labels_of_several_kinds_are_still_labels(tmp_path):
    full = write_raw(tmp_path / "full.h5", noise_images(8, 12, 12), np.zeros((8, 2), np.float32))
    with make((full, None), swap=0) as loader:
        assert next(iter(loader))[1].shape == (BATCH, 2)
