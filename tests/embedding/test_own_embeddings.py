"""Embeddings that the user brings: any real type, layout and order; whose they are is never guessed against ids."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from packs import noise_images, write_raw

from fastload.embedding.own import open_embeddings, split_spec
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.subset.build import build_subset

COUNT = 50


@pytest.fixture
def vectors():
    return np.random.default_rng(1).standard_normal((COUNT, 7)).astype(np.float32)


@pytest.fixture
def ids():
    """The ids of a full set that was packed in shuffled order."""
    return np.random.default_rng(2).permutation(COUNT)


@pytest.fixture
def full(tmp_path, ids):
    path = write_raw(tmp_path / "full.h5", noise_images(COUNT, 4, 4), np.arange(COUNT) % 5, ids=ids)
    with PackedFile(path) as file:
        yield file


def rows_of(found) -> np.ndarray:
    return np.concatenate([np.array(rows, np.float32) for _, rows in found.vectors.chunks()])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4"])
def test_npy_and_h5_of_any_real_type_give_the_same_float32(tmp_path, full, vectors, dtype):
    values = (vectors * 10).astype(dtype)
    np.save(tmp_path / "e.npy", values)
    with h5py.File(tmp_path / "e.h5", "w") as out:
        out["flat"] = values
        out.create_dataset("packed", data=values, chunks=(8, 7), compression="gzip")
        out.create_dataset("deep/er", data=values.reshape(50, 7, 1))
        out.create_dataset("tall", data=values, chunks=(50, 1))
    for spec in ("e.npy", "e.h5:flat", "e.h5:packed", "e.h5:deep/er", "e.h5:tall"):
        found = open_embeddings(tmp_path / spec, full)
        assert found.shape == (50, 7) and found.rule.startswith("row i of the embeddings is of row i")
        np.testing.assert_array_equal(rows_of(found), values.astype(np.float32))
        np.testing.assert_array_equal(found.row_of, np.arange(50))


@pytest.mark.parametrize("name", ["fortran64.npy", "e.h5:chunked"])
def test_what_is_not_plain_float32_is_read_in_chunks_and_never_whole(tmp_path, full, monkeypatch, name):
    """Ten times the chunk, in a process that may not take as much memory, would need a process: count instead."""
    from fastload.embedding import matrix_file
    from fastload.embedding import own as own_embeddings

    values = np.random.default_rng(0).standard_normal((COUNT, 300))
    np.save(tmp_path / "fortran64.npy", np.asfortranarray(values))
    with h5py.File(tmp_path / "e.h5", "w") as out:
        out.create_dataset("chunked", data=values, chunks=(5, 300))
    monkeypatch.setattr(matrix_file, "CHUNK_BYTES", 10 * 300 * 8)
    monkeypatch.setattr(own_embeddings, "_READ_BYTES", 10 * 300 * 8)
    found = open_embeddings(tmp_path / name, full)
    assert {len(rows) for _, rows in found.vectors.chunks()} == {10}


def test_a_colon_in_an_existing_name_belongs_to_the_name(tmp_path):
    (tmp_path / "a:b.npy").touch()
    assert split_spec(str(tmp_path / "a:b.npy")) == (tmp_path / "a:b.npy", None)
    assert split_spec(str(tmp_path / "c.h5:x/y")) == (tmp_path / "c.h5", "x/y")


def test_embeddings_that_cannot_be_taken_are_data_errors(tmp_path, full, vectors):
    np.save(tmp_path / "short.npy", vectors[:49])
    np.save(tmp_path / "flat.npy", vectors[:, 0])
    np.save(tmp_path / "objects.npy", np.array([{}] * 50, dtype=object))
    np.save(tmp_path / "text.npy", np.full((50, 2), "a"))
    np.save(tmp_path / "complex.npy", vectors.astype(np.complex64))
    np.save(tmp_path / "bits.npy", vectors.view(np.uint16))
    np.save(tmp_path / "void.npy", vectors.astype(np.float16).view("V2"))
    (tmp_path / "noise.npy").write_bytes(os.urandom(300))
    np.save(tmp_path / "cut.npy", vectors)
    with open(tmp_path / "cut.npy", "r+b") as out:
        out.truncate(500)
    np.savez(tmp_path / "several.npz", a=vectors)
    with h5py.File(tmp_path / "two.h5", "w") as out:
        out["a"], out["b"], out["bits"] = vectors, vectors, vectors.view(np.uint16)
    cases = {
        "short.npy": r"49 embeddings but the full set has 50",
        "flat.npy": r"shape \(50,\)",
        "objects.npy": r"not a .npy file of numbers",
        "text.npy": r"not real numbers",
        "complex.npy": r"not real numbers",
        "bits.npy": r"uint16, in which bfloat16's bits are kept; save float32",
        "void.npy": r"as bfloat16 is saved; save it as float32",
        "two.h5:bits": r"two.h5:bits: of type uint16",
        "noise.npy": r"not a .npy file of numbers",
        "cut.npy": r"is cut short",
        "several.npz": r"is an .npz archive; save the embeddings alone",
        "missing.npy": r"no such file",
        "two.h5": r"name the dataset; it has a, b",
        "two.h5:c": r"has no dataset 'c'; it has a, b",
        "short.npy:x": r"not an HDF5 file",
    }
    for spec, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_embeddings(tmp_path / spec, full)


# -- whose they are --------------------------------------------------------------------------------------------------


def in_other_order(tmp_path, full, vectors, how):
    """The embeddings of `full`'s rows in another order, with their ids as `how` says; options for build_subset."""
    order = np.random.default_rng(3).permutation(COUNT)
    np.save(tmp_path / "e.npy", vectors[order])
    ids = full.ids[order]
    if how == "beside":
        with h5py.File(tmp_path / "e.h5", "w") as out:
            out["deep/vectors"], out["deep/ids"] = vectors[order], ids
        return {"embeddings": tmp_path / "e.h5:deep/vectors"}
    if how == "npy":
        np.save(tmp_path / "ids.npy", ids.astype(np.uint16))
        return {"embeddings": tmp_path / "e.npy", "embedding_ids": tmp_path / "ids.npy"}
    if how == "h5":
        with h5py.File(tmp_path / "ids.h5", "w") as out:
            out.create_dataset("which", data=ids, chunks=(7,), compression="gzip")
        return {"embeddings": tmp_path / "e.npy", "embedding_ids": str(tmp_path / "ids.h5:which")}
    (tmp_path / "ids.txt").write_text("".join(f"{i}\n" for i in ids))
    return {"embeddings": tmp_path / "e.npy", "embedding_ids": str(tmp_path / "ids.txt")}


@pytest.mark.parametrize("strategy", ["top-activations", "kmeans"])
@pytest.mark.parametrize("how", ["beside", "npy", "h5", "txt"])
def test_ids_say_whose_embeddings_are_and_the_choice_is_that_of_row_order(tmp_path, full, vectors, strategy, how):
    np.save(tmp_path / "rows.npy", vectors)
    settings = {"strategy": strategy, "size": 20, "balance_classes": True, "threads": 1}
    build_subset(full.path, tmp_path / "a.h5", embeddings=tmp_path / "rows.npy", **settings)
    report = build_subset(full.path, tmp_path / "b.h5", **in_other_order(tmp_path, full, vectors, how), **settings)
    with PackedFile(tmp_path / "a.h5") as a, PackedFile(tmp_path / "b.h5") as b:
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.selection.dimension, b.selection.dimension)
        assert (a.data == b.data).all() and (a.labels == b.labels).all()
        assert a.selection.attributes["embedding_order"].startswith("row i of the embeddings")
        assert b.selection.attributes["embedding_order"].startswith("by the ids of ")
    (step,) = [step for step in report.steps if step.step == "embed"]
    assert "by the ids of" in step.detail


def test_rows_says_that_ids_beside_the_embeddings_are_something_else(tmp_path, full, vectors):
    spec = in_other_order(tmp_path, full, vectors, "beside")["embeddings"]
    found = open_embeddings(spec, full, "rows")
    np.testing.assert_array_equal(found.row_of, np.arange(COUNT))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids + 1, r"e.h5:ids: has id 50, which .*full.h5 does not hold; bring one embedding for each"),
        (lambda ids: np.where(ids == 7, 8, ids), r"e.h5:ids: has id 8 more than once, and id 7 not at all"),
        (lambda ids: ids[:-1], r"e.h5:ids: has 49 ids for 50 embeddings"),
        (lambda ids: ids * 1.5, r"e.h5:ids: holds float64; ids are whole numbers, or the samples' names"),
        (lambda ids: ids.astype(np.uint64) + np.uint64(2**63), r"which is no id: they are below 2\^63"),
        (lambda ids: ids[:, None], r"ids are one a row"),
        (lambda ids: [b"a"] * COUNT, r"has names such as 'a', but .*full.h5 holds none"),
    ],
)
def test_ids_that_do_not_match_one_to_one_are_refused_and_the_first_is_named(tmp_path, full, vectors, change, message):
    with h5py.File(tmp_path / "e.h5", "w") as out:
        out["vectors"], out["ids"] = vectors, change(full.ids)
    with pytest.raises(DataError, match=message):
        open_embeddings(tmp_path / "e.h5", full)


def test_ids_need_embeddings_and_a_file_that_is_there(tmp_path, full, vectors):
    np.save(tmp_path / "e.npy", vectors)
    with pytest.raises(UsageError, match="embedding_ids= says whose embeddings= are"):
        build_subset(full.path, tmp_path / "s.h5", strategy="top-activations", embedding_ids="x.npy")
    for spec, message in (
        ("x.npy", "x.npy: no such file; embedding_ids= takes"),
        ("full.h5:classes", "classes"),
        ("e.npy", r"e.npy: has shape \(50, 7\); ids are one a row"),
    ):
        with pytest.raises(DataError, match=message):
            open_embeddings(tmp_path / "e.npy", full, str(tmp_path / spec))
