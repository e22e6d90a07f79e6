"""The paper's suggestions as strategies, each against its definition in plain NumPy, and through build-subset."""

from __future__ import annotations

import numpy as np
import pytest
from packs import noise_images, write_raw

from fastload.errors import DataError, UsageError
from fastload.packed import PackedFile
from fastload.selection import select
from fastload.selection.combinations import _pairs
from fastload.subset import build_subset

SUGGESTIONS = ["combinations", "kmeans", "pca", "penalized"]


def relu(rows: int, dims: int, seed: int) -> np.ndarray:
    """Activations that correlate, none negative, as an encoder's."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((rows, 5)) @ rng.standard_normal((5, dims)), 0).astype(np.float32)


def of_columns(columns: np.ndarray, size: int) -> list[int]:
    """What top-activations, tested by brute force elsewhere, chooses from columns."""
    return select("top-activations", columns.astype(np.float32), np.arange(len(columns)), size=size).ids.tolist()


def test_combinations_rank_by_the_lower_standardized_activation_of_each_pair():
    x = relu(500, 7, 0).astype(np.float64)
    chosen = select("combinations", x.astype(np.float32), np.arange(500), size=60, seed=5)
    standardized = (x - x.mean(axis=0)) / x.std(axis=0)
    pairs = np.array(chosen.report["pairs"])
    expected = of_columns(np.minimum(standardized[:, pairs[:, 0]], standardized[:, pairs[:, 1]]), 60)
    assert chosen.ids.tolist() == expected
    assert sorted(pairs.ravel().tolist()) == sorted([*range(7), *range(7)]), "a dimension is not in two pairs"
    other = select("combinations", x.astype(np.float32), np.arange(500), size=60, seed=6)
    assert other.report["pairs"] != chosen.report["pairs"]


@pytest.mark.parametrize(
    ("alive", "pairs"), [([1, 0, 0], {(0, 0)}), ([0, 0, 0], {(0, 0)}), ([0, 1, 1], {(1, 2)}), ([0, 0, 1], {(2, 2)})]
)
def test_pairs_leave_out_dimensions_that_never_vary(alive, pairs):
    first, second = _pairs(np.array(alive, bool), 0)
    assert {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)} == pairs


def test_pca_ranks_along_and_against_the_components_of_the_covariance():
    x = relu(800, 6, 1).astype(np.float64)
    chosen = select("pca", x.astype(np.float32), np.arange(800), size=90)
    variance, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    count = chosen.report["components"]
    assert variance[::-1][:count].sum() / variance.sum() >= 0.95 > variance[::-1][: count - 1].sum() / variance.sum()
    along = (x - x.mean(axis=0)) @ vectors[:, ::-1][:, :count]
    # The sign of a component is arbitrary: compare what each end of each component chose first.
    firsts = chosen.ids[: 2 * count].reshape(count, 2)
    assert chosen.dimension[: 2 * count].tolist() == list(range(2 * count))
    for component in range(count):
        ends = {int(along[:, component].argmax()), int(along[:, component].argmin())}
        assert set(firsts[component].tolist()) == ends or component > 0  # later ones may be taken already
    everything = np.stack([along, -along], axis=2).reshape(800, -1)
    assert len(set(of_columns(everything, 90)) ^ set(chosen.ids.tolist())) <= 4, "beyond what rounding can do"


def test_kmeans_finds_clusters_and_ranks_their_samples_by_distance_to_the_centre():
    rng = np.random.default_rng(2)
    centres = np.array([[0, 0, 0], [50, 0, 0], [0, 50, 0]], float)
    of_row = rng.integers(0, 3, 300)
    x = (centres[of_row] + rng.standard_normal((300, 3))).astype(np.float32)
    # Centres drawn in one blob may stay there: take a seed whose first draws are one of each.
    seed = next(s for s in range(100) if select("kmeans", x, np.arange(300), size=1, seed=s).report["iterations"] < 5)
    chosen = select("kmeans", x, np.arange(300), size=300, seed=seed)
    assert chosen.report["empty_clusters"] == 0
    for cluster in range(3):
        members = chosen.ids[chosen.dimension == cluster]
        (blob,) = set(of_row[members].tolist())
        mean = x[of_row == blob].astype(float).mean(axis=0)
        distance = np.linalg.norm(x[members] - mean, axis=1)
        # The grid is 50 / 65,535 wide, and so may the distances be off.
        assert (np.diff(distance) > -0.01).all()


def test_penalized_divides_by_how_many_more_high_activations_than_the_mean():
    x = relu(600, 20, 3).astype(np.float64)
    chosen = select("penalized", x.astype(np.float32), np.arange(600), size=80)
    high = (x > x.mean(axis=0) + 2 * x.std(axis=0)).sum(axis=1)
    assert chosen.report["mean_high"] == pytest.approx(high.mean())
    shares = (x - x.min(axis=0)) / np.ptp(x, axis=0)
    assert chosen.ids.tolist() == of_columns(shares / np.maximum(1, high / high.mean())[:, None], 80)
    plain = select("top-activations", x.astype(np.float32), np.arange(600), size=80)
    assert high[chosen.ids].mean() < high[plain.ids].mean()


@pytest.mark.parametrize("strategy", SUGGESTIONS)
def test_threads_of_blas_and_longer_pieces_change_nothing(strategy):
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl comes with scikit-learn")
    x = relu(20_000, 24, 4)
    ids = np.arange(20_000)
    with threadpoolctl.threadpool_limits(1):
        one = select(strategy, x, ids, size=300)
    order = np.random.default_rng(0).permutation(20_000)
    many = select(strategy, x[order], ids[order], size=300)
    for name in ("ids", "dimension", "rank", "score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))


@pytest.mark.parametrize("strategy", SUGGESTIONS)
def test_bad_embeddings_are_the_same_errors_as_for_top_activations(strategy):
    x = relu(50, 4, 5)
    ids = np.arange(50)[::-1] * 10
    with pytest.raises(UsageError, match=f"{strategy} ranks samples by their embeddings, and none were given"):
        select(strategy, None, ids, size=5)
    for value in (np.nan, np.inf, -np.inf):
        x[[4, 30], [0, 3]] = value
        with pytest.raises(DataError, match=r"in 2 of 50 samples, the first ids: 190, 450;"):
            select(strategy, x, ids, size=5)


@pytest.mark.parametrize("strategy", SUGGESTIONS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_embeddings_of_any_magnitude_are_ranked_alike(strategy, scale):
    x = relu(200, 5, 6)
    plain = select(strategy, x, np.arange(200), size=40)
    scaled = select(strategy, (x.astype(np.float64) * scale).astype(np.float32), np.arange(200), size=40)
    assert len(set(plain.ids.tolist()) & set(scaled.ids.tolist())) >= 38, "beyond what rounding can do"
    assert scaled.report["filled_at_random"] == 0


@pytest.mark.parametrize("strategy", SUGGESTIONS)
def test_per_dimension_takes_the_best_of_each(strategy):
    x = relu(300, 6, 7)
    chosen = select(strategy, x, np.arange(300), per_dimension=3)
    assert 3 <= len(chosen) <= 3 * chosen.report["dimensions"]
    assert chosen.report["strategy"] == strategy and (chosen.rank < 3).all()


@pytest.mark.parametrize("strategy", SUGGESTIONS)
def test_build_subset_takes_every_strategy_and_the_file_says_which(strategy, tmp_path):
    full = write_raw(tmp_path / "full.h5", noise_images(120), np.arange(120) % 10)
    own = tmp_path / "own.npy"
    np.save(own, relu(120, 8, 8))
    report = build_subset(full, tmp_path / "s.h5", strategy=strategy, size=30, embeddings=own, balance_classes=True)
    assert report.chosen == 30
    assert report.per_dimension.sum() + report.filled == 30
    with PackedFile(tmp_path / "s.h5") as subset:
        assert subset.selection.attributes["strategy"] == strategy
        assert np.bincount(subset.labels).tolist() == [3] * 10
