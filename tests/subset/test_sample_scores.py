"""Scores of all samples, in a file beside the subset: a reference in float64, what is refused, what is replaced."""

from __future__ import annotations

import os

import numpy as np
import pytest
from packs import noise_images, write_raw

from fastload.command.cli import main
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.selection import STRATEGIES, register
from fastload.selection.random import random
from fastload.subset import trials
from fastload.subset.build import build_subset

COUNT, DIMS = 60, 5
IDS = np.random.default_rng(2).permutation(COUNT) + 100


@pytest.fixture
def vectors():
    return np.random.default_rng(1).standard_normal((COUNT, DIMS)).astype(np.float32)


@pytest.fixture
def full(tmp_path):
    return write_raw(tmp_path / "full.h5", noise_images(COUNT, 4, 4), np.arange(COUNT) % 3, ids=IDS)


@pytest.fixture
def scores(tmp_path, full):
    """Choose 20 samples, of embeddings in the order of rows unless `order` says otherwise; return the file's arrays."""

    def call(values, order=None, **settings):
        np.save(tmp_path / "e.npy", values if order is None else values[order])
        if order is not None:
            np.save(tmp_path / "ids.npy", IDS[order])
            settings["embedding_ids"] = tmp_path / "ids.npy"
        build_subset(
            full,
            tmp_path / "s.h5",
            embeddings=tmp_path / "e.npy",
            threads=1,
            **({"strategy": "top-activations", "size": 20, "scores": tmp_path / "a.npz"} | settings),
        )
        with np.load(tmp_path / "a.npz") as found:
            return {name: found[name] for name in found.files}

    return call


def reference(values: np.ndarray, scored: np.ndarray) -> tuple[list[float], list[int]]:
    score, dimension = [], []
    seen = [list(map(float, row)) for row, use in zip(values, scored, strict=True) if use]
    for row, use in zip(values, scored, strict=True):
        shares = []
        for column, value in enumerate(row):
            low, high = min(other[column] for other in seen), max(other[column] for other in seen)
            shares.append((float(value) - low) / (high - low) if high > low else 0.0)
        score.append(max(shares) if use else float("nan"))
        dimension.append(shares.index(max(shares)) if use else -1)
    return score, dimension


@pytest.mark.parametrize("strategy", ["top-activations", "combinations", "penalized", "pca"])
def test_a_score_is_the_largest_share_of_a_dimension_s_extent(scores, vectors, strategy):
    vectors[:, 2] = 7  # one that never varies
    found = scores(vectors, strategy=strategy)
    score, dimension = reference(vectors, np.ones(COUNT, bool))
    assert [found[name].dtype for name in ("ids", "score", "dimension")] == [np.int64, np.float32, np.int32]
    np.testing.assert_array_equal(found["ids"], IDS)
    np.testing.assert_array_equal(found["score"], np.array(score, np.float32))
    np.testing.assert_array_equal(found["dimension"], dimension)


@pytest.mark.parametrize("strategy", ["top-activations", "kmeans"])
def test_scores_are_by_the_full_set_s_rows_whatever_the_order_of_embeddings_and_chunks(
    scores, vectors, strategy, monkeypatch
):
    first = scores(vectors, strategy=strategy)
    monkeypatch.setattr("fastload.embedding.matrix_file.CHUNK_BYTES", 7 * DIMS * 4)
    again = scores(vectors, order=np.random.default_rng(3).permutation(COUNT), strategy=strategy)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])


def test_of_equal_dimensions_the_first_is_named(scores, vectors):
    found = scores(vectors[:, [3, 3, 1, 1]])
    assert set(found["dimension"].tolist()) == {0, 2}


def test_excluded_samples_have_no_score_and_count_for_no_extent(scores, vectors):
    rows = [3, 9, 40]
    vectors[3], vectors[9], vectors[40, 1] = np.nan, 1e30, -np.inf
    scored = np.isin(np.arange(COUNT), rows, invert=True)
    found = scores(vectors, exclude=IDS[rows])
    score, dimension = reference(np.where(scored[:, None], vectors, 0), scored)
    np.testing.assert_array_equal(found["score"], np.array(score, np.float32))
    np.testing.assert_array_equal(found["dimension"], dimension)
    assert np.isnan(found["score"]).sum() == 3


def test_included_samples_have_scores_and_those_with_nan_none(scores, vectors):
    vectors[5, 0] = np.nan
    found = scores(vectors, include=IDS[[4, 5]])
    assert np.flatnonzero(np.isnan(found["score"])).tolist() == [5] and found["dimension"][5] == -1


def test_kmeans_gives_its_own_scores_and_clusters(scores, vectors, tmp_path):
    found = scores(vectors, strategy="kmeans", include=IDS[[7]], exclude=IDS[[8]])
    with PackedFile(tmp_path / "s.h5") as subset:
        rows = np.array([np.flatnonzero(number == IDS)[0] for number in subset.ids])
        chosen = subset.selection
        own = chosen.dimension >= 0
        assert own.sum() == 19
        np.testing.assert_array_equal(found["score"][rows[own]], chosen.score[own])
        np.testing.assert_array_equal(found["dimension"][rows[own]], chosen.dimension[own])
    assert np.flatnonzero(np.isnan(found["score"])).tolist() == [8]
    assert 0 < found["score"][7] <= 1 and 0 <= found["dimension"][7] < DIMS


def test_scores_of_a_kept_run_are_those_of_its_stored_embeddings(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "TRIAL_SECONDS", 0.01)
    settings = {"strategy": "top-activations", "size": 20, "threads": 1}
    settings |= {"epochs": 1, "batch_size": 32, "embedding_size": 4}
    path = write_raw(tmp_path / "large.h5", noise_images(COUNT, 28, 28), np.arange(COUNT) % 3)
    build_subset(path, tmp_path / "s.h5", keep=True, scores=tmp_path / "a.npz", **settings)
    stored = np.load(tmp_path / "s.h5.work" / "embeddings.npy")
    with np.load(tmp_path / "a.npz") as found:
        score, dimension = reference(stored, np.ones(COUNT, bool))
        np.testing.assert_array_equal(found["score"], np.array(score, np.float32))
        np.testing.assert_array_equal(found["dimension"], dimension)


def test_what_has_no_scores_is_refused_before_any_work(full, tmp_path):
    register("mine", random)
    register("blind", random, needs_embeddings=False)
    try:
        for strategy, words in (
            ("random", "no use for scores="),
            ("blind", 'strategy="blind" looks at no embeddings, so there is no use for scores='),
            ("stratified", 'has no scores for scores= to write; say strategy="top-activations", the paper\'s'),
            ("mine", "'mine' is a strategy of your own"),
            ("top-activations", "keep=True"),
        ):
            with pytest.raises(UsageError, match=words):
                build_subset(full, tmp_path / "s.h5", strategy=strategy, size=20, scores=tmp_path / "a.npz")
    finally:
        del STRATEGIES["mine"], STRATEGIES["blind"]
    assert os.listdir(tmp_path) == ["full.h5"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("full.h5", "is the full set itself"),
        ("link.h5", "is the full set itself"),
        ("s.h5", "is the subset itself"),
        ("s.h5.work", "in its work folder"),
        ("nowhere/a.npz", "no folder"),
        ("folder", "is a folder"),
        ("e.npy", "holds no scores"),
        ("hard.h5", "holds no scores"),
        ("other.npz", "holds no scores"),
        ("", "empty"),
        ("a" * 300, "cannot be written"),
    ],
)
def test_a_place_that_would_cost_other_data_is_refused_before_any_work(scores, full, vectors, tmp_path, name, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.h5").symlink_to(full)
    (tmp_path / "hard.h5").hardlink_to(full)
    np.savez(tmp_path / "other.npz", ids=IDS)
    before = full.read_bytes()
    with pytest.raises(UsageError, match=words):
        scores(vectors, scores=str(tmp_path / name) if name else "")
    assert full.read_bytes() == before and not (tmp_path / "s.h5").exists() and not (tmp_path / "s.h5.work").exists()


def test_earlier_scores_are_replaced_and_a_disk_that_refuses_them_leaves_them(scores, vectors, tmp_path, monkeypatch):
    scores(vectors)
    before = (tmp_path / "a.npz").read_bytes()
    scores(vectors)
    assert (tmp_path / "a.npz").read_bytes() == before, "the same bytes for the same data"
    scores(-vectors)
    assert (tmp_path / "a.npz").read_bytes() != before
    before = (tmp_path / "a.npz").read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastload.common.replacing.Replacement.sync", full_disk)
    with pytest.raises(DataError, match=r"a\.npz: cannot be written \(No space left on device\)"):
        scores(vectors)
    assert (tmp_path / "a.npz").read_bytes() == before and not list(tmp_path.glob(".*partial"))


def test_the_command_writes_them_and_says_its_refusals_in_one_line(full, vectors, tmp_path, capfd):
    np.save(tmp_path / "e.npy", vectors)
    words = ["build-subset", str(full), str(tmp_path / "s.h5"), "--size", "20", "--scores", str(tmp_path / "a.npz")]
    own = ["--strategy", "top-activations", "--embeddings", str(tmp_path / "e.npy")]
    assert main([*words, *own, "--quiet"]) == 0
    with np.load(tmp_path / "a.npz") as found:
        assert set(found.files) == {"ids", "score", "dimension"} and len(found["ids"]) == COUNT
    capfd.readouterr()
    assert main([*words, "--strategy", "random"]) == 2
    assert "looks at no embeddings, so there is no use for --scores; say --strategy" in capfd.readouterr().err
