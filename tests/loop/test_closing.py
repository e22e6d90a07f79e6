"""A loader may be closed at any time, by anybody: who draws from it gets an error, never a signal or a hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from packs import noise_images, write_encoded, write_pair, write_raw
from places import ROOT, TESTS
from samples import encode

from fastload import Augment, PackedFile, TwoPhaseLoader, UsageError
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed
from fastload.order import Order
from fastload.packed.reader import SampleReader

PROGRAM = TESTS / "closing_program.py"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=400, chosen=40)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    files = [encode(image, "JPEG") for image in noise_images(40)]
    return write_encoded(tmp_path_factory.mktemp("encoded") / "full.h5", files, np.arange(40) % 10)


def test_closing_in_mid_use_is_an_error_in_every_one_of_many_trials(pair, encoded):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    trials = 300 if os.environ.get("FASTLOAD_INTERRUPTS") == "all" else 12
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(PROGRAM), str(pair[0]), str(pair[1]), str(encoded), str(trials)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300 * trials // 12,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == 17
    for case, (made, closed) in found.items():
        assert closed > made / 2, case  # a loop may just have ended, or a batch been the last


def feeds_of(pair, encoded):
    """Every kind of feed that the CPU has: (name, file, settings of open_feed)."""
    for engine in ("fused", "dali"):
        for resident in (True, False):
            yield f"{engine} {resident}", pair[0], {"engine": engine, "resident": resident}
    yield "encoded", encoded, {"engine": "dali"}


def test_a_closed_feed_says_so_and_makes_nothing(pair, encoded):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    for name, path, settings in feeds_of(pair, encoded):
        with PackedFile(path) as file:
            feed = open_feed(file, Augment.paper(24), Order(len(file)), Output(8, torch.device("cpu")), **settings)
        batch = feed.make(0, 8)  # the file is closed, and its descriptor is the feed's
        feed.close()
        feed.close()
        for _ in range(3):
            with pytest.raises(UsageError, match="is closed"):
                feed.make(8, 8)
        assert torch.isfinite(batch.images).all(), name


def test_what_reads_a_file_keeps_it_open_and_nothing_else_does(pair):
    def open_files():
        return sum(os.path.realpath(f"/proc/self/fd/{one}") == str(pair[0]) for one in os.listdir("/proc/self/fd"))

    before = open_files()
    file = PackedFile(pair[0])
    reader = SampleReader(file)
    held = reader.place
    file.close()
    assert open_files() == before + 1
    first = np.empty(reader.sample_bytes, np.uint8)
    reader.read(np.array([0]), first)
    reader.close()
    assert open_files() == before + 1 and os.fstat(int(held[0][0])).st_size > 0  # as a kernel would hold it
    with pytest.raises(UsageError, match="is closed"):
        reader.read(np.array([0]), first)
    del held
    assert open_files() == before


def test_a_closed_file_gives_no_image_of_memory_that_is_not_its_own(pair):
    file = PackedFile(pair[0])
    file.close()
    for use in (lambda: file.image(3), lambda: file.stored(3), lambda: file.read(3), lambda: file.descriptor):
        with pytest.raises(UsageError, match="is closed"):
            use()


def test_a_thread_that_fails_before_its_first_batch_is_heard_of_at_the_next(pair, monkeypatch):
    def failing(shared, device):
        raise OSError("no stream can be made")

    monkeypatch.setattr("fastload.feeds.prefetch._work", failing)
    with TwoPhaseLoader(
        *pair, batch_size=8, steps=10, augment=Augment.paper(8), device="cpu", resident_budget=0
    ) as loader:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no stream can be made"):
                next(iter(loader))
        monkeypatch.undo()
        assert len(list(loader)) == 10


def test_a_batch_that_could_not_be_made_can_be_asked_for_again(pair):
    with TwoPhaseLoader(
        pair[0], batch_size=8, steps=20, swap=0, augment=Augment.paper(8), device="cpu", with_ids=True
    ) as loader:
        whole = [batch[2].tolist() for batch in loader]
    broken = {40}
    with TwoPhaseLoader(
        pair[0], batch_size=8, steps=20, swap=0, augment=Augment.paper(8), device="cpu", with_ids=True
    ) as loader:
        made = loader._run.fine.prepare().make

        def make(start, count):
            if start in broken:
                raise OSError("the disk is away")
            return made(start, count)

        loader._run.fine.prepare().make = make
        got, batches = [], iter(loader)
        with pytest.raises(RuntimeError, match="the disk is away"):
            got.extend(batch[2].tolist() for batch in batches)
        assert len(got) == loader.step == 5  # those before it were delivered
        broken.clear()
        got.extend(batch[2].tolist() for batch in batches)
    assert got == whole


def test_a_set_without_a_file_that_changed_hands_is_not_read_from_another(tmp_path):
    """A descriptor's number is given to the next file that is opened: a feed must not read from that."""
    one = write_raw(tmp_path / "one.h5", noise_images(50, seed=1), np.arange(50))
    with PackedFile(one) as file:
        feed = open_feed(file, Augment.paper(8), Order(50), Output(8, torch.device("cpu")), engine="fused")
    others = [open(tmp_path / f"{number}", "wb+") for number in range(8)]  # noqa: SIM115
    with PackedFile(one) as file:
        again = open_feed(file, Augment.paper(8), Order(50), Output(8, torch.device("cpu")), engine="fused")
    assert torch.equal(feed.make(0, 8).images, again.make(0, 8).images)
    for other in others:
        other.close()
