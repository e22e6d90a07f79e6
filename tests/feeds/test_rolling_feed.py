"""Batches drawn from a rolling pool against plain streams over the same order: byte for byte, from any step."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from batches import same
from packs import noise_images, write_ragged
from rolling import CPU, order_of, pool_files, streamed

from fastload.augment import Augment, Jitter, RandomResizedCrop
from fastload.bench.data import write_subset
from fastload.errors import ClosedError, DataError, UsageError
from fastload.feeds.batch import Batch, Output
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.rolling_feed import open_rolling_feed, pool_images
from fastload.feeds.rolling_order import Rate
from fastload.kernels import turbojpeg
from fastload.packed.set import open_packed

PAPER = Augment.paper(24)
PARTS = Augment(48, crop=RandomResizedCrop(), flip=0.5, color=Jitter(0.4, 0.4, 0.4, 0.1))
BATCH = 32


@contextmanager
def rolling(files, order, augment=PAPER, *, rank=0, ranks=1, workers=2, **options):
    batch = order.shape.batch_size
    output = Output(batch // ranks, CPU)
    feed = open_rolling_feed(files, augment, order, output, rank=rank, world_size=ranks, workers=workers, **options)
    try:
        yield feed
    finally:
        feed.close()


def rolled(feed, steps, *, batch=BATCH, rank=0, ranks=1):
    own, steps = batch // ranks, list(steps)
    make = feed.begin((steps[0] * ranks + rank) * own)
    return [make((step * ranks + rank) * own, own) for step in steps]


@pytest.fixture(scope="module")
def subset(few_cifar, tmp_path_factory):
    """70 of the 400 images."""
    return write_subset(tmp_path_factory.mktemp("rolling") / "subset.h5", few_cifar, 70)


@pytest.fixture(scope="module")
def encoded(few_cifar_files, tmp_path_factory):
    """The 400 images as JPEG files, packed as `pack` does it: they can be cut."""
    import fastload

    files, labels, names = few_cifar_files
    folder = tmp_path_factory.mktemp("encoded")
    for number, (data, label) in enumerate(zip(files, labels, strict=True)):
        of_class = folder / "files" / names[label]
        of_class.mkdir(parents=True, exist_ok=True)
        (of_class / f"{number:03d}.jpg").write_bytes(data)
    fastload.pack(folder / "files", folder / "full.h5", encoded=True)
    return folder / "full.h5"


@pytest.mark.parametrize("refill", [0.0, 1 / 9, 0.25, 0.7, 1.0])
def test_batches_are_those_of_a_stream_from_any_step(few_cifar, refill):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=160, refill=refill)
        with rolling(files, order) as feed:
            assert feed.kind == "rolling"
            for first in (0, 1, 37, 38, 5, 211):
                steps = range(first, first + 25)
                same(rolled(feed, steps), streamed(files, order, PAPER, steps))


@pytest.mark.parametrize("pool", [None, 160])
def test_a_subset_arrives_first(few_cifar, subset, pool):
    with open_packed(few_cifar) as full, open_packed(subset) as first:
        files, order = pool_files(full, first), order_of(full, first, pool=pool)
        assert np.array_equal(order.arrivals(np.arange(70))[0], np.arange(70))
        with rolling(files, order) as feed:
            same(rolled(feed, range(30)), streamed(files, order, PAPER, range(30)))
            same(rolled(feed, range(11, 20)), streamed(files, order, PAPER, range(11, 20)))


@pytest.mark.parametrize("ranks", [2, 4, 32])
def test_ranks_share_the_same_global_batches(few_cifar, ranks):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=160, refill=0.6)
        parts = []
        for rank in range(ranks):
            with rolling(files, order, rank=rank, ranks=ranks) as feed:
                parts.append(rolled(feed, range(17), rank=rank, ranks=ranks))
        together = [
            Batch(*(torch.cat(field) for field in zip(*step, strict=True))) for step in zip(*parts, strict=True)
        ]
        same(together, streamed(files, order, PAPER, range(17)))


def test_a_rank_keeps_its_part_of_the_pool_only(few_cifar):
    with open_packed(few_cifar) as full:
        order = order_of(full, pool=160)
        sizes = []
        for ranks in (1, 4):
            with rolling(pool_files(full), order, ranks=ranks) as feed:
                sizes.append(feed._held.memory.data.numel())
        assert sizes[0] == 4 * sizes[1]


@pytest.mark.parametrize("engine", ["fused", "dali"])
@pytest.mark.parametrize("storage", ["raw", "ragged", "encoded"])
def test_every_storage_and_both_engines(few_cifar, encoded, imagenet_encoded, tmp_path, storage, engine):
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    elif storage == "encoded" and not turbojpeg.load():
        pytest.skip("libturbojpeg is not installed")
    rng = np.random.default_rng(1)
    if storage == "ragged":
        images = [noise_images(1, *rng.integers(8, 60, 2), seed=k)[0] for k in range(150)]
        path = write_ragged(tmp_path / "ragged.h5", images, np.arange(150) % 7)
    else:
        path = {"raw": few_cifar, "encoded": imagenet_encoded}[storage]
    augment = PAPER if storage == "raw" else PARTS
    with open_packed(path) as full:
        batch = 8
        files = pool_files(full)
        order = order_of(full, pool=48, refill=0.3, batch=batch)
        with rolling(files, order, augment, engine=engine) as feed:
            for first in (0, 57):
                steps = range(first, first + 16)
                same(rolled(feed, steps, batch=batch), streamed(files, order, augment, steps, engine=engine))


def test_a_decoded_subset_of_other_sizes_goes_with_encoded_files(encoded, tmp_path):
    if not turbojpeg.load():
        pytest.skip("libturbojpeg is not installed")
    rng = np.random.default_rng(1)
    images = [noise_images(1, *rng.integers(40, 60, 2), seed=k)[0] for k in range(30)]
    path = write_ragged(tmp_path / "subset.h5", images, np.arange(30) % 10)
    with open_packed(encoded) as full, open_packed(path) as first:
        files, order = pool_files(full, first), order_of(full, first, pool=96)
        with rolling(files, order, PARTS) as feed:
            same(rolled(feed, range(20)), streamed(files, order, PARTS, range(20)))


@pytest.mark.parametrize("shuffle", ["block", False])
def test_arrivals_follow_the_order_of_a_stream(few_cifar, shuffle):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=160, shuffle=shuffle)
        if shuffle is False:
            assert np.array_equal(order.arrivals(np.arange(800))[0], np.arange(800) % 400)
        with rolling(files, order) as feed:
            same(rolled(feed, range(30)), streamed(files, order, PAPER, range(30)))


def test_views_and_types(few_cifar):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=160)
        with rolling(files, order, views=2) as feed:
            ours = rolled(feed, range(12))
        for one, other in zip(ours, streamed(files, order, PAPER, range(12), views=2), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))


def test_several_threads_draw_from_one_pool(few_cifar):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=96, refill=0.9)
        with rolling(files, order) as feed, ThreadPoolExecutor(6) as pool:
            make = feed.begin(40 * BATCH)
            got = list(pool.map(lambda step: make(step * BATCH, BATCH), range(40, 140)))
        same(got, streamed(files, order, PAPER, range(40, 140)))


@pytest.mark.parametrize("rate", [Rate(30, 1, 3), Rate(30, 32, 1), Rate(30, 0, 1)])
def test_a_rate_that_changes_while_batches_are_made(few_cifar, rate):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=160, refill=0.3)
        with rolling(files, order) as feed:
            make = feed.begin(0)
            got = [make(step * BATCH, BATCH) for step in range(25)]
            order.rates = [*order.rates, rate]
            got += [make(step * BATCH, BATCH) for step in range(25, 70)]
        same(got, streamed(files, order, PAPER, range(70)))


# -- waiting, and what goes wrong -----------------------------------------------------------------------------------


class Gate:
    """Holds reads of arrivals back, counts them, or fails them."""

    def __init__(self, monkeypatch) -> None:
        self.open, self.fetched, self.failure, self.seconds = threading.Event(), 0, None, 0.0
        self.open.set()
        fetch = DecodedSource.fetch

        def held(source, rows, out, starts):
            self.open.wait()
            time.sleep(self.seconds * len(rows))
            if self.failure is not None:
                raise self.failure
            fetch(source, rows, out, starts)
            self.fetched += len(rows)

        monkeypatch.setattr(DecodedSource, "fetch", held)


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


def test_the_first_batch_waits_for_one_batch_of_arrivals_only(few_cifar, gate):
    with open_packed(few_cifar) as full:
        order = order_of(full, pool=320, refill=0.25)
        with rolling(pool_files(full), order, workers=1) as feed:
            gate.seconds = 0.002
            make = feed.begin(0)
            make(0, BATCH)
            assert gate.fetched <= 2 * BATCH


def test_each_arrival_is_fetched_once(few_cifar, gate):
    with open_packed(few_cifar) as full:
        order = order_of(full, pool=160, refill=0.25)
        with rolling(pool_files(full), order) as feed:
            rolled(feed, range(100))
            most = order.arrived(100 + order.shape.pool + 8) * order.shape.lanes
            assert order.arrived(99) * order.shape.lanes <= gate.fetched <= most


def test_what_is_there_is_kept_where_a_run_begins_anew(few_cifar, gate):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=160, refill=0.25)
        with rolling(files, order) as feed:
            rolled(feed, range(60))
            feed.end()
            time.sleep(0.05)
            before = gate.fetched
            same(rolled(feed, range(60, 64)), streamed(files, order, PAPER, range(60, 64)))
            assert gate.fetched - before < 80  # what arrives, and not the pool


def test_storage_that_stops_makes_batches_wait_and_loses_nothing(few_cifar, gate):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=96, refill=0.5)
        with rolling(files, order) as feed, ThreadPoolExecutor(2) as pool:
            make = feed.begin(0)
            got = [make(step * BATCH, BATCH) for step in range(20)]
            gate.open.clear()
            waiting = [pool.submit(make, step * BATCH, BATCH) for step in range(20, 60)]
            time.sleep(0.3)
            assert not waiting[-1].done()
            gate.open.set()
            got += [one.result() for one in waiting]
        same(got, streamed(files, order, PAPER, range(60)))


def test_closing_ends_whoever_waits(few_cifar, gate):
    with open_packed(few_cifar) as full:
        order = order_of(full, pool=96)
        with rolling(pool_files(full), order) as feed, ThreadPoolExecutor(1) as pool:
            gate.open.clear()
            make = feed.begin(0)
            waiting = pool.submit(make, 0, BATCH)
            time.sleep(0.1)
            feed.close()
            with pytest.raises(ClosedError):
                waiting.result(10)
            gate.open.set()


def test_a_read_that_fails_is_raised_and_may_be_tried_again(few_cifar, gate):
    with open_packed(few_cifar) as full:
        files, order = pool_files(full), order_of(full, pool=96)
        with rolling(files, order) as feed:
            rolled(feed, range(10))
            gate.failure = DataError("full.h5: sample 7 can no longer be read")
            with pytest.raises(DataError, match="sample 7"):
                rolled(feed, range(10, 60))
            gate.failure = None
            same(rolled(feed, range(10, 30)), streamed(files, order, PAPER, range(10, 30)))


def test_a_file_that_changes_is_an_error(few_cifar, tmp_path):
    path = tmp_path / "full.h5"
    path.write_bytes(few_cifar.read_bytes())
    with open_packed(path) as full:
        order = order_of(full, pool=96)
        with rolling(pool_files(full), order) as feed:
            make = feed.begin(0)
            make(0, BATCH)
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), b"\0" * 100, path.stat().st_size // 2)
                os.utime(path)
            with pytest.raises(DataError, match=r"full\.h5"):
                for step in range(1, 200):
                    make(step * BATCH, BATCH)


def test_memory_that_is_not_there_is_said_before_the_run(few_cifar, monkeypatch):
    monkeypatch.setattr("fastload.common.memory.free_memory", lambda device: 100_000)
    with open_packed(few_cifar) as full:
        order = order_of(full, pool=96)
        with pytest.raises(DataError, match=r"full\.h5: its pool needs .* MB more than the .*give a smaller pool="):
            open_rolling_feed(pool_files(full), PAPER, order, Output(BATCH, CPU))


def test_ranks_that_cannot_share_the_lanes_are_refused(few_cifar):
    with open_packed(few_cifar) as full:
        order = order_of(full, pool=96)
        with pytest.raises(UsageError, match="32 lanes, which 3 ranks cannot share"):
            open_rolling_feed(pool_files(full), PAPER, order, Output(BATCH, CPU), rank=0, world_size=3)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_ring_of_bytes_holds_any_window_of_arrivals(tmp_path):
    """A few images are a thousand times as large as the others, and come together sooner or later."""
    rng = np.random.default_rng(1)
    sides = np.where(rng.random(120) < 0.05, 300, 9)
    images = [noise_images(1, int(side), int(side), seed=k)[0] for k, side in enumerate(sides)]
    path = write_ragged(tmp_path / "ragged.h5", images, np.arange(120) % 7)
    augment = Augment(8, crop=RandomResizedCrop())
    with open_packed(path) as full:
        files, order = pool_files(full), order_of(full, pool=24, refill=0.9, batch=8)
        found = pool_images(files.files)
        assert found.bytes_for(50, at_random=True) < 50 * int(found.sizes.max())
        with rolling(files, order, augment) as feed:
            same(rolled(feed, range(150), batch=8), streamed(files, order, augment, range(150)))
