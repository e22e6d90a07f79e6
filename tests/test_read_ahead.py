"""Rows read ahead from a file: the file's own, whatever the view, the chunks and how far the reader gets."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from fastload.errors import DataError
from fastload.read_ahead import FileRows
from fastload.selection import as_embeddings, select


@pytest.fixture
def saved(tmp_path):
    x = np.random.default_rng(0).standard_normal((1000, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return x, np.load(tmp_path / "x.npy", mmap_mode="r")


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "fastload-read-ahead"]


@pytest.mark.parametrize("chunk_rows", [1, 7, 333, 1000, 5000, None])
def test_chunks_are_the_file_s_rows_in_order(saved, chunk_rows):
    x, mapped = saved
    seen = 0
    for start, rows in FileRows.of(mapped).chunks(chunk_rows):
        assert start == seen and len(rows) == min(chunk_rows or 1000, 1000 - start)
        np.testing.assert_array_equal(rows, x[start : start + len(rows)])
        seen += len(rows)
    assert seen == 1000 and not readers()


def test_views_of_a_map_are_read_from_their_own_place(saved):
    x, mapped = saved
    for view, same in ((mapped[250:700], x[250:700]), (mapped.reshape(500, 14), x.reshape(500, 14))):
        np.testing.assert_array_equal(next(FileRows.of(view).chunks())[1], same)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_map_behind_a_long_header_is_read_from_its_first_byte(tmp_path, dtype):
    x = np.random.default_rng(1).standard_normal((64, 5)).astype(dtype)
    with open(tmp_path / "x.bin", "wb") as out:
        out.write(b"h" * 12_345)
        out.write(x.tobytes())
    mapped = np.memmap(tmp_path / "x.bin", dtype, "r", 12_345, (64, 5))
    np.testing.assert_array_equal(next(FileRows.of(mapped).chunks())[1], x)


def test_what_is_no_plain_map_of_that_file_is_left_to_be_looked_at_in_memory(saved, tmp_path):
    x, mapped = saved
    assert FileRows.of(x) is None and FileRows.of(mapped[:, :3]) is None and FileRows.of(mapped[::2]) is None
    # A copy-on-write map's changes are not in the file.
    assert FileRows.of(np.load(tmp_path / "x.npy", mmap_mode="c")) is None
    np.save(tmp_path / "y.npy", x + 1)
    os.replace(tmp_path / "y.npy", tmp_path / "x.npy")
    assert FileRows.of(mapped) is None, "the name leads to another file now"
    np.testing.assert_array_equal(next(as_embeddings(mapped).chunks())[1], x)
    os.unlink(tmp_path / "x.npy")
    assert FileRows.of(mapped) is None


def test_a_file_that_was_cut_short_is_a_data_error(saved, tmp_path):
    _, mapped = saved
    rows = FileRows.of(mapped)
    os.truncate(tmp_path / "x.npy", 10_000)
    with pytest.raises(DataError, match=r"x.npy: ends at byte 10,\d+, before its 1,000 rows do|x.npy: ends at byte"):
        list(rows.chunks(100))
    assert not readers()
    os.unlink(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"x.npy: cannot be read \(No such file"):
        list(rows.chunks(100))


def test_leaving_early_ends_the_reader_and_it_stays_at_most_three_chunks_ahead(saved, monkeypatch):
    x, mapped = saved
    filled = []
    fill = FileRows._fill
    monkeypatch.setattr(FileRows, "_fill", lambda *a: (filled.append(a[3]), fill(*a)))
    chunks = FileRows.of(mapped).chunks(10)
    _, first = next(chunks)
    time.sleep(0.2)
    np.testing.assert_array_equal(first, x[:10])
    assert len(filled) == 3 and len(readers()) == 1
    chunks.close()
    assert not readers()


def test_a_selection_from_a_file_is_that_of_the_array(saved):
    x, mapped = saved
    for strategy in ("top-activations",):
        one, other = (select(strategy, source, np.arange(1000), size=100) for source in (x, mapped))
        np.testing.assert_array_equal(one.ids, other.ids)
