"""Reading ahead: which bytes of a streamed set the system is asked for, and when."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from packs import noise_images, write_encoded, write_raw
from samples import encode

from fastload import Augment, TwoPhaseLoader
from fastload.feeds.read_ahead import ReadAhead
from fastload.kernels.file_ranges import advise_ranges
from fastload.order import Order
from fastload.packed.reader import SampleReader, is_cached
from fastload.packed.set import open_packed


@pytest.fixture(scope="module")
def images():
    return noise_images(200, seed=3)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(3).integers(0, 10, 200)


def _bytes(starts, sizes):
    return np.concatenate([np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])


@pytest.mark.parametrize("kind", ["raw", "encoded"])
@pytest.mark.parametrize("shuffle", [True, "block", False])
def test_every_sample_is_asked_for_before_it_is_wanted_and_blocks_in_runs(
    images, labels, tmp_path, monkeypatch, kind, shuffle
):
    """The advice itself is not seen from outside, so the kernel that gives it is replaced by one that notes it."""
    for number, (first, last) in enumerate(((0, 96), (96, 200))):
        path = tmp_path / f"{number}.h5"
        if kind == "raw":
            write_raw(path, images[first:last], labels[first:last])
        else:
            write_encoded(path, [encode(image) for image in images[first:last]], labels[first:last])
    asked = []
    monkeypatch.setattr("fastload.kernels.file_ranges.advise_ranges", lambda *arguments: asked.append(arguments[3:]))
    monkeypatch.setattr(SampleReader, "cached", lambda self, starts: np.zeros(len(starts), bool))
    with open_packed(f"{tmp_path}/*.h5") as found:
        order = Order(200, 3, shuffle=shuffle, block_rows=16, window_blocks=4)
        reader = SampleReader(found)
        mean = found.nbytes // 200
        ahead = ReadAhead(reader, order, mean, window=128 * mean)
        covered = set()
        for start in range(0, 600, 10):  # three epochs
            ahead.want(start, 10)
            for one in asked:
                covered.update(_bytes(*one).tolist())
            starts, sizes = reader.ranges(order.rows(start, 10)[0])
            assert covered.issuperset(_bytes(starts, sizes).tolist())
        runs = [len(starts) for starts, _ in asked]
        if shuffle == "block":
            # At once the first window of four blocks, and four more; then as many as have been taken.
            assert runs[0] <= 9 and max(runs[1:]) <= 2 and sum(runs) <= 3 * 13 + 9
            wanted, _ = reader.ranges(np.arange(0, 200, 16))
            assert {int(start) for starts, _ in asked for start in starts} == set(wanted.tolist())
        if shuffle is False:
            assert max(runs) <= 1
        reader.close()


def test_blocks_are_asked_for_one_window_ahead_of_what_is_taken(images, labels, tmp_path, monkeypatch):
    """Or the disk would stand still while a window's last batches are made, and a window's first would wait for it."""
    write_raw(tmp_path / "x.h5", images, labels)
    asked = []
    monkeypatch.setattr("fastload.kernels.file_ranges.advise_ranges", lambda *arguments: asked.extend(arguments[3]))
    monkeypatch.setattr(SampleReader, "cached", lambda self, starts: np.zeros(len(starts), bool))
    with open_packed(tmp_path / "x.h5") as found:
        order = Order(200, 3, shuffle="block", block_rows=8, window_blocks=5)  # 25 blocks, none of them short
        reader = SampleReader(found)
        ahead = ReadAhead(reader, order, reader.sample_bytes, window=1)
        for start in range(0, 160, 8):
            ahead.want(start, 8)
            window_end = (start // 40 + 1) * 40
            seen = order.rows(0, window_end)[0] // 8
            assert {row * 8 * reader.sample_bytes for row in seen} <= set(asked)
            assert len(asked) == start // 8 + 1 + 10
        reader.close()


def test_a_range_that_goes_on_in_the_next_file_is_asked_for_in_both(tmp_path):
    """Seen by the page cache itself, where the system says what is in it."""
    for number in range(2):
        (tmp_path / f"{number}").write_bytes(bytes(1 << 20))
    files = [os.open(tmp_path / f"{number}", os.O_RDONLY) for number in range(2)]
    sizes = np.full(2, 1 << 20)
    firsts = np.array([0, 1 << 20, 2 << 20])
    for descriptor in files:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    place = np.array(files, np.int32), np.zeros(2, np.int64), firsts
    if all(is_cached(descriptor, size - 1) for descriptor, size in zip(files, sizes, strict=True)):
        pytest.skip("this file system does not let go of its pages, or does not say so")
    advise_ranges(*place, np.array([1 << 19]), np.array([1 << 20]))
    deadline = time.monotonic() + 10
    while not (is_cached(files[0], (1 << 20) - 1) and is_cached(files[1], 0)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_cached(files[0], (1 << 20) - 1) and is_cached(files[1], 0)
    for descriptor in files:
        os.close(descriptor)


def test_what_lies_in_the_page_cache_is_not_asked_for(images, labels, tmp_path, monkeypatch):
    path = write_raw(tmp_path / "x.h5", images, labels)
    path.read_bytes()
    asked = []
    monkeypatch.setattr("fastload.kernels.file_ranges.advise_ranges", lambda *arguments: asked.append(arguments))
    settings = {"batch_size": 32, "steps": 15, "swap": 0, "augment": Augment.paper(24), "device": "cpu"}
    with TwoPhaseLoader(path, **settings, resident_budget=0) as loader:
        assert len(list(loader)) == 15
    assert not asked
