"""Rows read ahead from a file: the file's own, whatever the view, the chunks and how far the reader gets."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from fastload.embedding.matrix_file import MatrixFile
from fastload.errors import DataError
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
    for start, rows in MatrixFile.of(mapped).chunks(chunk_rows):
        assert start == seen and len(rows) == min(chunk_rows or 1000, 1000 - start)
        np.testing.assert_array_equal(rows, x[start : start + len(rows)])
        seen += len(rows)
    assert seen == 1000 and not readers()


def test_views_of_a_map_are_read_from_their_own_place(saved):
    x, mapped = saved
    for view, same in ((mapped[250:700], x[250:700]), (mapped.reshape(500, 14), x.reshape(500, 14))):
        np.testing.assert_array_equal(next(MatrixFile.of(view).chunks())[1], same)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_map_behind_a_long_header_is_read_from_its_first_byte(tmp_path, dtype):
    x = np.random.default_rng(1).standard_normal((64, 5)).astype(dtype)
    with open(tmp_path / "x.bin", "wb") as out:
        out.write(b"h" * 12_345)
        out.write(x.tobytes())
    mapped = np.memmap(tmp_path / "x.bin", dtype, "r", 12_345, (64, 5))
    np.testing.assert_array_equal(next(MatrixFile.of(mapped).chunks())[1], x)


def test_what_is_no_plain_map_of_that_file_is_left_to_be_looked_at_in_memory(saved, tmp_path):
    x, mapped = saved
    assert MatrixFile.of(x) is None and MatrixFile.of(mapped[:, :3]) is None and MatrixFile.of(mapped[::2]) is None
    # A copy-on-write map's changes are not in the file.
    assert MatrixFile.of(np.load(tmp_path / "x.npy", mmap_mode="c")) is None
    np.save(tmp_path / "y.npy", x + 1)
    os.replace(tmp_path / "y.npy", tmp_path / "x.npy")
    assert MatrixFile.of(mapped) is None, "the name leads to another file now"
    np.testing.assert_array_equal(next(as_embeddings(mapped).chunks())[1], x)
    os.unlink(tmp_path / "x.npy")
    assert MatrixFile.of(mapped) is None


def test_a_file_that_is_cut_short_is_a_data_error_before_and_while_it_is_read(saved, tmp_path):
    _, mapped = saved
    rows = MatrixFile.of(mapped)
    os.truncate(tmp_path / "x.npy", 10_000)
    with pytest.raises(DataError, match=r"x.npy: ends at byte 10,\d+, before its rows do"):
        list(rows.chunks(1000))
    assert not readers()
    with pytest.raises(DataError, match=r"x.npy: is cut short"):
        as_embeddings(mapped)  # a touch of the map would be a SIGBUS
    with pytest.raises(DataError, match=r"x.npy: is cut short"):
        MatrixFile.npy(tmp_path / "x.npy")


@pytest.mark.parametrize("change", ["cut", "other bytes", "cut and grown"])
def test_a_file_that_changes_between_two_chunks_is_a_data_error(saved, tmp_path, change):
    x, _ = saved
    path = tmp_path / "x.npy"
    chunks = MatrixFile.npy(path).chunks(100)
    np.testing.assert_array_equal(next(chunks)[1], x[:100])
    if change == "other bytes":
        found = os.stat(path)
        with open(path, "r+b") as file:
            file.write(b"other bytes")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # as `cp -p` does
    else:
        os.truncate(path, 200)
        if change == "cut and grown":
            os.truncate(path, 128 + x.nbytes)
    with pytest.raises(DataError, match=r"x.npy: (was changed while it was in use|ends at byte)"):
        list(chunks)
    assert not readers()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i2", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(50, 7), (50, 2, 3), (50, 1)])
def test_a_npy_file_of_any_real_type_and_order_gives_its_rows_as_floats(tmp_path, dtype, order, shape):
    x = (np.random.default_rng(2).standard_normal(shape) * 10).astype(dtype)
    np.save(tmp_path / "x.npy", np.asarray(x, order=order))
    for chunk_rows in (1, 16, None):
        chunks = [rows.copy() for _, rows in MatrixFile.npy(tmp_path / "x.npy").chunks(chunk_rows)]
        assert {rows.dtype.name for rows in chunks} == {"float16" if dtype == "<f2" else "float32"}
        np.testing.assert_array_equal(np.concatenate(chunks), x.reshape(50, -1).astype(np.float32))


def test_leaving_early_ends_the_reader_and_it_stays_at_most_three_chunks_ahead(saved, monkeypatch):
    x, mapped = saved
    filled = []
    fill = MatrixFile._fill
    monkeypatch.setattr(MatrixFile, "_fill", lambda *a: (filled.append(a[1]), fill(*a)))
    chunks = MatrixFile.of(mapped).chunks(10)
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
