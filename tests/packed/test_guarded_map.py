"""The guarded map: the same bits as from reads, an error where pages are lost, and nobody else's SIGBUS touched."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from packs import noise_images, write_raw
from places import TESTS
from recipes import paper_like

from fastload import Augment, PackedFile
from fastload.errors import DataError
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed
from fastload.feeds.fused_engine import FusedEngine
from fastload.kernels import bus_guard
from fastload.kernels.image_layout import uniform_layout
from fastload.order import Order
from fastload.packed import guarded_map
from fastload.packed.guarded_map import GuardedMap
from fastload.packed.reader import SampleReader
from fastload.packed.set import open_packed

pytestmark = pytest.mark.skipif(not bus_guard.supported(), reason="needs 64-bit Linux on x86 or ARM")

COUNT, BATCH = 500, 64
PROGRAM = TESTS / "bus_program.py"


@pytest.fixture
def full(tmp_path):
    return write_raw(tmp_path / "full.h5", noise_images(COUNT), np.arange(COUNT) % 10)


def planar_file(path, images):
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = images.transpose(0, 3, 1, 2), np.arange(len(images))
    return path


def opened(file, *, resident=False, batch=BATCH, **output):
    order = Order(len(file), 3, 1)
    return open_feed(
        file, Augment.paper(24), order, Output(batch, torch.device("cpu"), **output), resident=resident, workers=1
    )


def only(monkeypatch, feed, way):
    """Let a stream feed make its batches from the map alone, or by reading alone."""
    if way == "pread":
        monkeypatch.setattr(feed, "_mapped", None)
    elif feed._read_ahead is not None:  # whatever the file system says of its cache
        monkeypatch.setattr(feed._read_ahead, "want", lambda start, count: True)
    forbidden = {"map": "on_cpu_stream", "pread": "on_cpu_map"}[way]
    monkeypatch.setattr(engine_of(feed), forbidden, lambda *_: pytest.fail(f"{forbidden} was called"))
    return feed


def engine_of(feed):
    return feed._makers.at(0)[0][0]


def usable(mapped):
    return mapped.gather(lambda *_: True)


def mappings():
    with open("/proc/self/maps") as lines:
        return sorted(line.split(" ", 1)[0] for line in lines if ".h5" in line)


def run(*words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["..", os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=PROGRAM.parent,
        env=environment,
    )


def test_files_truncated_at_random_moments_are_errors_that_name_a_lost_row_never_a_signal(full):
    ended = run("truncations", full.parent, 20)
    assert ended.returncode == 1, ended.stderr
    rows, changed = ended.stdout.count("row "), ended.stdout.count("changed")
    assert rows and rows + changed == 20
    assert "DataError" in ended.stderr
    assert "can no longer be read" in ended.stderr or "was changed while it was in use" in ended.stderr


ALIENS = ["plain", "thread", "sent", "before", "after", "before-sent", "after-sent", "reset", "reset-sent"]


@pytest.fixture(scope="module")
def ends_of_aliens(tmp_path_factory):
    """How the programs that meet an alien signal ended, two of which ran at a time."""

    def end(how):
        path = tmp_path_factory.mktemp(how) / "full.h5"
        return run("alien", write_raw(path, noise_images(COUNT), np.arange(COUNT) % 10), how)

    with ThreadPoolExecutor(2) as both:
        return dict(zip(ALIENS, both.map(end, ALIENS), strict=True))


@pytest.mark.parametrize("how", ALIENS)
def test_a_bus_error_that_is_not_the_maps_goes_to_whom_it_would_have_gone(ends_of_aliens, how):
    ended = ends_of_aliens[how]
    assert ended.returncode == -signal.SIGBUS, ended.stderr
    assert "alive" not in ended.stdout
    assert ended.stderr.count("Fatal Python error: Bus error") == ("before" in how or "after" in how)


def test_where_others_take_the_signal_over_batches_are_read_and_a_lost_page_is_an_error(full):
    ended = run("replaced", full)
    assert ended.returncode == 1, ended.stderr
    assert "can no longer be read" in ended.stderr
    assert "ours" not in ended.stdout


def test_where_the_default_action_was_set_the_next_batch_and_the_next_map_are_guarded_again(full):
    ended = run("reset", full)
    assert ended.returncode == 1, ended.stderr
    assert "can no longer be read" in ended.stderr


@pytest.mark.parametrize("layout", ["interleaved", "planar"])
def test_map_reads_and_memory_give_the_same_bits(tmp_path, monkeypatch, layout):
    images = noise_images(COUNT)
    if layout == "planar":
        file = open_packed(planar_file(tmp_path / "own.h5", images), images="x", labels="y")
    else:
        file = open_packed(write_raw(tmp_path / "full.h5", images, np.arange(COUNT)))
    with file:
        kinds = itertools.product(
            (torch.float32, torch.float16, torch.bfloat16), (torch.contiguous_format, torch.channels_last)
        )
        for dtype, memory_format in kinds:
            feeds = [opened(file, resident=True, dtype=dtype, memory_format=memory_format)]
            for way in ("map", "pread"):
                feed = opened(file, dtype=dtype, memory_format=memory_format)
                feeds.append(only(monkeypatch, feed, way))
            for start in (0, COUNT - 10):
                resident, mapped, read = (feed.make(start, BATCH) for feed in feeds)
                assert torch.equal(resident.images, mapped.images)
                assert torch.equal(resident.images, read.images)
                assert torch.equal(resident.ids, mapped.ids)
                assert torch.equal(resident.labels, mapped.labels)
            for feed in feeds:
                feed.close()


def test_sets_of_several_files_are_mapped_as_one(tmp_path, monkeypatch):
    images = noise_images(90, 33, 31)  # samples across pages, files that end within one
    for number, (start, stop) in enumerate(((0, 7), (7, 60), (60, 90))):
        write_raw(tmp_path / f"{number}.h5", images[start:stop], np.arange(start, stop))
    with open_packed(f"{tmp_path}/*.h5") as several:
        mapped, read = (only(monkeypatch, opened(several), way) for way in ("map", "pread"))
        resident = opened(several, resident=True)
        for start in (0, 64, 128):
            batches = [feed.make(start, BATCH).images for feed in (mapped, read, resident)]
            assert torch.equal(batches[0], batches[1])
            assert torch.equal(batches[0], batches[2])
        monkeypatch.undo()
        os.truncate(tmp_path / "1.h5", 8192)
        with pytest.raises(DataError, match=r"row \d+ \(id \d+\) can no longer be read") as error:
            mapped.make(0, BATCH)
        assert 7 <= int(str(error.value).split("row ")[1].split(" ")[0]) < 60


def test_places_beyond_two_gigabytes_are_reached(tmp_path):
    begin, sample, rows = 4096 + 3 * 1024**3, 32 * 32 * 3, 5
    images = noise_images(rows).reshape(-1)
    with open(tmp_path / "sparse", "w+b") as file:
        file.truncate(begin)
        file.seek(begin)
        file.write(images.tobytes())
        file.flush()
        place = (
            np.array([file.fileno()], np.int32),
            np.array([4096]),
            np.array([0, begin - 4096 + rows * sample]),
        )
        mapped = GuardedMap.open(place)
        from_map, from_memory = np.empty((2, rows, sample), np.float32)
        engine = FusedEngine(
            paper_like(crop=32, centre=True),
            seed=1,
            phase=0,
            layout=uniform_layout((32, 32, 3), (sample, 96, 3, 1)),
            sides=[(32, 32)],
            dtype=torch.float32,
            channels_last=False,
            batch_size=rows,
        )
        ids = np.arange(rows)
        first = (begin - 4096) // sample
        assert engine.on_cpu_map(mapped, np.arange(first, first + rows), ids, 0 * ids, from_map)
        engine.on_cpu(images, ids, ids, 0 * ids, from_memory)
        np.testing.assert_array_equal(from_map, from_memory)


def test_a_file_that_ends_within_a_page_is_an_error_though_its_rest_reads_as_zeros(full, monkeypatch):
    with PackedFile(full) as file:
        feed = opened(file, batch=COUNT)
        os.truncate(full, file.data_offset + file.nbytes - 1000)
        with pytest.raises(DataError, match=rf"row {COUNT - 1} "):
            feed.make(0, COUNT)
        with pytest.raises(DataError, match="was changed while it was in use"):  # what is left, too
            feed.make(0, 1)


def test_after_a_failure_a_map_is_not_used_again(full, monkeypatch):
    with PackedFile(full) as file:
        feed, stored = opened(file), full.read_bytes()
        feed.make(0, BATCH)
        os.truncate(full, 8192)
        with pytest.raises(DataError):
            feed.make(0, BATCH)
        full.write_bytes(stored)
        assert not usable(feed._mapped)
        with pytest.raises(DataError, match="was changed while it was in use"):  # nobody knows that it is as it was
            feed.make(0, BATCH)


def test_closing_a_feed_leaves_no_mapping_and_no_descriptor(full):
    with PackedFile(full) as file:
        opened(file).close()  # installs what stays
        gc.collect()
        before, descriptors = mappings(), os.listdir("/proc/self/fd")
        feed = opened(file)
        assert len(mappings()) == len(before) + 1
        feed.close()
        assert mappings() == before
        assert os.listdir("/proc/self/fd") == descriptors
        feed = opened(file)
        del feed
        gc.collect()
        assert mappings() == before
        assert os.listdir("/proc/self/fd") == descriptors


def test_a_map_stays_while_a_thread_gathers_from_it(full):
    with PackedFile(full) as file:
        feed = opened(file)
        held = feed._mapped
        count = len(mappings())
        feed.close()
        assert len(mappings()) == count
        assert held.gather(lambda _, ends, begins, firsts, data: data[begins[0]] == file.data[0])
        del held
        assert len(mappings()) == count - 1


def test_a_fork_has_maps_and_handler(full, monkeypatch):
    with PackedFile(full) as file:
        feed = opened(file)
        expected = feed.make(0, BATCH).images.numpy()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # With NumPy: torch's OpenMP threads are not there after a fork, and would be waited for.
                status = 2 if usable(feed._mapped) and (feed.make(0, BATCH).images.numpy() == expected).all() else 3
                os.truncate(full, 8192)
                feed.make(0, BATCH)
            except DataError:
                status += 40
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 42 << 8
        assert usable(feed._mapped)  # what the child laid over its map is not in ours
        with pytest.raises(DataError):
            feed.make(0, BATCH)


def test_more_maps_than_slots_are_read_without_one(full, monkeypatch):
    with PackedFile(full) as file:
        reader = SampleReader(file)
        maps = [GuardedMap.open(reader.place) for _ in range(300)]
        assert 200 < sum(one is not None for one in maps) <= 256
        assert maps[-1] is None
        last = opened(file)
        assert last._mapped is None
        beyond = last.make(0, BATCH).images
        maps.clear()
        again = opened(file)
        assert torch.equal(only(monkeypatch, again, "map").make(0, BATCH).images, beyond)
        reader.close()


def test_where_a_system_is_not_as_expected_files_are_read_without_a_map(full, monkeypatch):
    with PackedFile(full) as file:
        monkeypatch.setattr(guarded_map, "_guard", guarded_map._Guard)  # not installed yet
        monkeypatch.setattr(bus_guard, "supported", lambda: False)
        feed = opened(file)
        assert feed._mapped is None
        assert feed.make(0, BATCH).images.shape == (BATCH, 3, 24, 24)


def test_a_copy_of_the_file_elsewhere_is_untouched_by_a_failure(full, tmp_path, monkeypatch):
    other = Path(shutil.copy(full, tmp_path / "other.h5"))
    with PackedFile(full) as one, PackedFile(other) as two:
        lost, kept = opened(one), only(monkeypatch, opened(two), "map")
        expected = kept.make(0, BATCH).images
        os.truncate(full, 8192)
        with pytest.raises(DataError):
            lost.make(0, BATCH)
        assert torch.equal(kept.make(0, BATCH).images, expected)


def test_each_file_of_a_map_stands_where_a_large_page_of_it_could_be_mapped_whole(tmp_path):
    for number in range(3):
        write_raw(tmp_path / f"{number}.h5", noise_images(COUNT, seed=number), np.arange(COUNT))
    with open_packed(f"{tmp_path}/*.h5") as found:
        reader = SampleReader(found)
        mapped = GuardedMap.open(reader.place)
        if mapped is None:
            pytest.skip("no guarded map on this system")
        addresses = []
        assert mapped.gather(lambda _, ends, begins, firsts, data: addresses.extend(data.ctypes.data + begins) is None)
        assert np.array_equal(np.array(addresses) % (2 << 20), reader.place[1] % (2 << 20))
        reader.close()


@pytest.mark.parametrize(
    ("shuffle", "cached", "way"),
    [
        (True, True, "on_cpu_map"),
        (True, False, "on_cpu_stream"),
        ("block", False, "on_cpu_map"),
        (False, False, "on_cpu_map"),
    ],
)
def test_scattered_samples_that_lie_on_a_disk_are_read_and_all_else_is_gathered(
    full, monkeypatch, shuffle, cached, way
):
    monkeypatch.setattr(SampleReader, "cached", lambda self, starts: np.full(len(starts), cached))
    with PackedFile(full) as file:
        order = Order(len(file), 3, 1, shuffle, block_rows=16)
        feed = open_feed(file, Augment.paper(24), order, Output(BATCH, torch.device("cpu")), resident=False, workers=1)
        calls = []
        for name in ("on_cpu_map", "on_cpu_stream"):
            made = getattr(engine_of(feed), name)
            monkeypatch.setattr(
                engine_of(feed), name, lambda *given, name=name, made=made: (calls.append(name), made(*given))[1]
            )
        for step in range(3):
            feed.make(step * BATCH, BATCH)
        assert calls == [way] * 3
        feed.close()
