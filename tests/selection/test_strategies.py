"""Strategies by embeddings, the paper's suggestions against their definitions in NumPy, and through build-subset."""

from __future__ import annotations

import numpy as np
import pytest
from packs import noise_images, write_raw

from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.selection import STRATEGIES, Selection, StrategyRow, register, select
from fastload.selection.combinations import _pairs
from fastload.subset.build import build_subset

SUGGESTIONS = ["combinations", "kmeans", "pca", "penalized"]
BY_EMBEDDINGS = [*SUGGESTIONS, "stratified"]


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


@pytest.mark.parametrize("strategy", BY_EMBEDDINGS)
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


@pytest.mark.parametrize("strategy", BY_EMBEDDINGS)
def test_bad_embeddings_are_the_same_errors_as_for_top_activations(strategy):
    x = relu(50, 4, 5)
    ids = np.arange(50)[::-1] * 10
    with pytest.raises(UsageError, match=f"{strategy} ranks samples by their embeddings, and none were given"):
        select(strategy, None, ids, size=5)
    for value in (np.nan, np.inf, -np.inf):
        x[[4, 30], [0, 3]] = value
        with pytest.raises(DataError, match=r"in 2 of 50 samples, of ids 190, 450; .*leave them out$"):
            select(strategy, x, ids, size=5)


@pytest.mark.parametrize("strategy", BY_EMBEDDINGS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_embeddings_of_any_magnitude_are_ranked_alike(strategy, scale):
    x = relu(200, 5, 6)
    plain = select(strategy, x, np.arange(200), size=40)
    scaled = select(strategy, (x.astype(np.float64) * scale).astype(np.float32), np.arange(200), size=40)
    assert len(set(plain.ids.tolist()) & set(scaled.ids.tolist())) >= 38, "beyond what rounding can do"
    assert (scaled.dimension >= 0).all()


@pytest.mark.parametrize("strategy", SUGGESTIONS)
@pytest.mark.parametrize(("value", "rows"), [(1e6, 1), (-1e6, 5), (1e30, 1)])
def test_a_few_values_far_from_all_others_leave_the_choice_of_the_others_as_it_was(strategy, value, rows):
    scales = 1.3 ** np.arange(32)  # or components of the covariance would be any
    x = (np.random.default_rng(8).standard_normal((3000, 32)) * scales).astype(np.float32)
    plain = select(strategy, x, np.arange(3000), size=300)
    x[np.arange(7, 7 + rows), 3] = value
    found = select(strategy, x, np.arange(3000), size=300)
    # The moments of that one dimension change, and with them clusters. A grid without levels chose by id.
    assert len(set(plain.ids.tolist()) & set(found.ids.tolist())) >= (100 if strategy == "kmeans" else 150)
    assert abs(np.corrcoef(found.ids, np.arange(300))[0, 1]) < 0.5
    order = np.random.default_rng(0).permutation(3000)
    again = select(strategy, x[order], np.arange(3000)[order], size=300)
    np.testing.assert_array_equal(again.ids, found.ids)


@pytest.mark.parametrize("strategy", BY_EMBEDDINGS)
@pytest.mark.parametrize("rows", [1, 5, 60])
def test_samples_far_from_all_others_in_every_dimension_do_not_make_the_choice_one_by_id(strategy, rows):
    x = np.random.default_rng(0).standard_normal((3000, 32)).astype(np.float32)
    x[2900 : 2900 + rows] *= 1e8
    chosen = select(strategy, x, np.arange(3000), size=200).ids
    others = chosen[(chosen < 2900) | (chosen >= 2900 + rows)]
    assert 1000 <= np.median(others) <= 2000, "by id, the median would be 100"


def test_of_sparse_embeddings_combinations_choose_no_sample_for_its_id():
    x = np.maximum(np.random.default_rng(1).standard_normal((3000, 32)) - 2.5, 0).astype(np.float32)
    found = select("combinations", x, np.arange(3000), size=200)
    assert 1200 <= np.median(found.ids) <= 1800
    pairs = np.array(found.report["pairs"])[found.dimension[found.dimension >= 0]]
    both = x[found.ids[found.dimension >= 0, None], pairs] > 0
    assert both.all(), "a sample that is inactive in one of the two activates no pair"


def test_narrow_values_far_from_zero_keep_their_order_beside_one_outlier():
    x = np.random.default_rng(9).standard_normal((1000, 8)) * 1e-3 + 10
    plain = select("pca", x, np.arange(1000), size=100)
    x[5, 2] = 1e6
    assert len(set(plain.ids.tolist()) & set(select("pca", x, np.arange(1000), size=100).ids.tolist())) >= 65


def test_only_pca_makes_a_matrix_of_dimensions_by_dimensions(monkeypatch):
    from fastload.selection import exact
    from fastload.selection import pca as module  # the function, which has the module's name

    def refused(*arguments):
        raise AssertionError("a covariance")

    monkeypatch.setattr(exact, "measure_covariance", refused)
    monkeypatch.setitem(module.__globals__, "measure_covariance", refused)
    for strategy in ("combinations", "penalized", "kmeans"):
        assert len(select(strategy, relu(100, 8, 1), np.arange(100), size=10)) == 10
    with pytest.raises(AssertionError, match="a covariance"):
        select("pca", relu(100, 8, 1), np.arange(100), size=10)


@pytest.mark.parametrize("strategy", SUGGESTIONS)
def test_the_overlap_that_is_reported_is_that_of_the_strategy_s_own_lists(strategy):
    report = select(strategy, relu(300, 6, 7), np.arange(300), per_dimension=5, overlap=True).report
    lists = report["lists"]
    assert lists["k"] == 5 and lists["entries"] <= 5 * report["dimensions"]
    assert lists["distinct"] == report["distinct"] and lists["entries"] - lists["distinct"] == report["overlap"]
    if strategy == "kmeans":
        assert lists["most"] == 1, "a sample is in one cluster"


@pytest.fixture
def own_strategy():
    def farthest(embeddings, samples, request):
        norms = np.empty(len(samples))
        for start, rows in embeddings.chunks():
            norms[samples.positions[start : start + len(rows)]] = np.linalg.norm(rows, axis=1)
        best = np.argsort(-norms, kind="stable")[: request.size]
        nothing = np.full(len(best), -1)
        return Selection(samples.sorted_ids[best], nothing, np.arange(len(best)), norms[best], {"strategy": "farthest"})

    register("farthest", farthest)
    yield
    del STRATEGIES["farthest"]


def test_a_strategy_of_one_s_own_is_registered_and_served_as_the_others_are(own_strategy, tmp_path):
    full = write_raw(tmp_path / "full.h5", noise_images(60, 4, 4), np.arange(60) % 3)
    x = relu(60, 5, 3)
    np.save(tmp_path / "e.npy", x)
    report = build_subset(full, tmp_path / "s.h5", strategy="farthest", size=9, embeddings=tmp_path / "e.npy")
    assert report.ids == np.argsort(-np.linalg.norm(x, axis=1), kind="stable")[:9].tolist()
    assert report.filled == 0 and report.overlap is None and "at random" not in str(report)
    with pytest.raises(UsageError, match='farthest" has no dimensions for per_dimension=2; give size='):
        build_subset(full, tmp_path / "s.h5", strategy="farthest", per_dimension=2, embeddings=tmp_path / "e.npy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kmeans", print), "'kmeans' is a strategy of fastload"),
        (("a b", print), "name='a b'"),
        ((3, print), "name=3"),
        (("own", 3), "rank=3"),
    ],
)
def test_what_cannot_be_registered_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        register(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [1, 1]}, "gave an id twice"),
        ({"ids": [1, 99]}, "one that is none of the samples'"),
        ({"ids": [1]}, "several lengths"),
        ({"score": [1.0, np.nan]}, "not finite"),
    ],
)
def test_what_an_own_strategy_gives_is_checked(monkeypatch, change, message):
    columns = {"ids": [1, 2], "dimension": [0, 0], "rank": [0, 1], "score": [1.0, 0.5]} | change
    monkeypatch.setitem(STRATEGIES, "own", StrategyRow(lambda *_: Selection(**columns)))
    with pytest.raises(DataError, match=f"'own' gave .*{message}|{message}"):
        select("own", relu(10, 2, 0), np.arange(10), size=2)


@pytest.mark.parametrize("strategy", SUGGESTIONS)
def test_per_dimension_takes_the_best_of_each(strategy):
    x = relu(300, 6, 7)
    chosen = select(strategy, x, np.arange(300), per_dimension=3)
    assert 3 <= len(chosen) <= 3 * chosen.report["dimensions"]
    assert chosen.report["strategy"] == strategy and (chosen.rank < 3).all()


@pytest.mark.parametrize("strategy", BY_EMBEDDINGS)
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


def test_the_page_s_own_strategy_runs(tmp_path, monkeypatch):
    import re

    from places import ROOT

    write_raw(tmp_path / "full.h5", noise_images(60, 4, 4), np.arange(60) % 3)
    x = relu(60, 5, 3)
    np.save(tmp_path / "embeddings.npy", x)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/strategies.md").read_text(), re.S)
    try:
        exec(compile(block, "docs/strategies.md", "exec"), {})
    finally:
        STRATEGIES.pop("farthest", None)
    with PackedFile("subset.h5") as chosen:
        assert chosen.ids.tolist() == np.argsort(-np.linalg.norm(x, axis=1), kind="stable")[:6].tolist()
