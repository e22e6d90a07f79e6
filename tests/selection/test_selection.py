"""fastload.selection: every strategy's promises, and top-activations against brute force."""

from __future__ import annotations

import json
from fractions import Fraction

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_reference import dimension_lists, largest_deficit, ranked, round_robin

from fastload.errors import DataError, UsageError
from fastload.order import permutation
from fastload.selection import STRATEGIES, Request, Samples, Scores, as_embeddings, select
from fastload.selection.base import interleave
from fastload.selection.top_activations import choose, list_length
from fastload.selection.topk import TopK


class Chunked:
    """Embeddings in chunks of the sizes given, over and over."""

    def __init__(self, x, sizes):
        self.x, self.sizes, self.shape, self.passes = x, sizes, x.shape, 0

    def chunks(self):
        self.passes += 1
        start, i = 0, 0
        while start < len(self.x):
            end = min(len(self.x), start + self.sizes[i % len(self.sizes)])
            yield start, self.x[start:end]
            start, i = end, i + 1


def assert_same(a, b, upto=None):
    for name in ("ids", "dimension", "rank", "score"):
        np.testing.assert_array_equal(getattr(a, name)[:upto], getattr(b, name)[:upto], err_msg=name)


@st.composite
def sets(draw):
    """Draw embeddings with ties, dead dimensions and duplicates, ids in any order, and labels."""
    n, dims = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = {
        "random": lambda: rng.standard_normal((n, dims)),
        "relu": lambda: np.maximum(rng.standard_normal((n, dims)) - 0.5, -0.0),
        "ties": lambda: rng.integers(0, 3, (n, dims)),
        "zeros": lambda: np.where(rng.random((n, dims)) < 0.5, 0.0, -0.0),
        "duplicates": lambda: rng.standard_normal((4, dims))[rng.integers(0, 4, n)],
    }[draw(st.sampled_from(["random", "relu", "ties", "zeros", "duplicates"]))]()
    x = x.astype(np.float32)
    if draw(st.booleans()):
        x[:, rng.integers(0, dims)] = 7.0
    ids = rng.permutation(5 * n)[:n].astype(np.int64)
    labels = rng.integers(0, draw(st.integers(1, 5)), n) * 3 - 4
    return x, ids, labels, rng


def fillers_of(ids, seed):
    """Return all ids in permuted order."""
    return np.sort(ids)[permutation(len(ids), seed)].tolist()


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("balanced", [False, True])
@given(drawn=sets(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_strategy_gives_distinct_ids_prefixes_and_the_same_answer_twice(strategy, balanced, drawn, data):
    x, ids, labels, rng = drawn
    labels = labels if balanced else None
    size = data.draw(st.integers(1, len(x)))
    seed = data.draw(st.integers(0, 2**64 - 1))

    def scores(rows):
        return Scores(x[rows, 0], leave_out=0.3) if STRATEGIES[strategy].needs_scores else None

    all_rows = np.arange(len(x))
    chosen = select(strategy, x, ids, size=size, labels=labels, seed=seed, scores=scores(all_rows))
    assert len(chosen) == size == len(set(chosen.ids.tolist()))
    assert set(chosen.ids.tolist()) <= set(ids.tolist())
    assert [getattr(chosen, a).dtype for a in ("ids", "dimension", "rank", "score")] == [
        np.int64,
        np.int32,
        np.int32,
        np.float32,
    ]
    json.dumps(chosen.report)
    # The same samples in other rows, other chunks, another number of threads.
    order = rng.permutation(len(x))
    source = Chunked(x[order], data.draw(st.lists(st.integers(1, 15), min_size=1, max_size=4)))
    again = select(
        strategy,
        source,
        ids[order],
        size=size,
        seed=seed,
        threads=3,
        labels=None if labels is None else labels[order],
        scores=scores(order),
    )
    assert_same(chosen, again)
    smaller = data.draw(st.integers(1, size))
    less = select(strategy, x, ids, size=smaller, labels=labels, seed=seed, scores=scores(all_rows))
    assert_same(less, chosen, smaller)
    if balanced:
        _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        group_of_id = dict(zip(ids.tolist(), group.tolist(), strict=True))
        given_by = np.bincount([group_of_id[i] for i in chosen.ids.tolist()], minlength=len(sizes))
        for count, class_size in zip(given_by, sizes, strict=True):
            share = Fraction(size * int(class_size), len(x))
            assert abs(count - share) < len(sizes), "a class is far from its share"
        assert sum(chosen.report["per_class_counts"].values()) == size


@given(drawn=sets(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_top_activations_goes_round_the_dimensions_as_brute_force_does(drawn, data):
    x, ids, _, _ = drawn
    size, seed = data.draw(st.integers(1, len(x))), data.draw(st.integers(0, 99))
    chosen = select("top-activations", Chunked(x, [7]), ids, size=size, seed=seed)
    expected = round_robin(dimension_lists(x, ids), fillers_of(ids, seed), size)
    found = list(zip(*(getattr(chosen, a).tolist() for a in ("ids", "dimension", "rank", "score")), strict=True))
    assert found == expected
    assert chosen.report["filled_at_random"] == sum(e[1] < 0 for e in expected)
    assert chosen.report["dead_dimensions"] == [d for d in range(x.shape[1]) if len(set((x[:, d] + 0.0).tolist())) == 1]
    assert chosen.report["per_dimension_counts"] == [sum(e[1] == d for e in expected) for d in range(x.shape[1])]


@given(drawn=sets(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_balanced_top_activations_is_each_class_by_brute_force_in_largest_deficit_order(drawn, data):
    x, ids, labels, _ = drawn
    size, seed = data.draw(st.integers(1, len(x))), data.draw(st.integers(0, 99))
    chosen = select("top-activations", x, ids, size=size, labels=labels, seed=seed)
    classes, sizes = np.unique(labels, return_counts=True)
    everything = dimension_lists(x, ids)
    label_of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    by_class = []
    for label, class_size in zip(classes, sizes, strict=True):
        lists = [[(v, i) for v, i in entries if label_of[i] == label] for entries in everything]
        fillers = [i for i in fillers_of(ids, seed) if label_of[i] == label]
        by_class.append(iter(round_robin(lists, fillers, int(class_size))))
    expected = [next(by_class[group]) for group in largest_deficit(sizes.tolist(), size)]
    found = list(zip(*(getattr(chosen, a).tolist() for a in ("ids", "dimension", "rank", "score")), strict=True))
    assert found == expected


@pytest.mark.parametrize("balanced", [False, True])
@given(drawn=sets(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_union_is_the_top_k_of_each_dimension_best_ranks_first(balanced, drawn, data):
    x, ids, labels, _ = drawn
    k = data.draw(st.integers(1, len(x)))
    chosen = select("top-activations", x, ids, per_dimension=k, labels=labels if balanced else None)
    label_of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    groups = sorted(set(labels.tolist())) if balanced else [None]
    expected, seen, listed = [], set(), 0
    lists = {
        (d, g): [e for e in entries if g is None or label_of[e[1]] == g]
        for d, entries in enumerate(dimension_lists(x, ids))
        for g in groups
    }
    for rank in range(k):
        for d in range(x.shape[1]):
            for g in groups:
                for value, sample in lists[d, g][rank : rank + 1]:
                    listed += 1
                    if sample not in seen:
                        seen.add(sample)
                        expected.append((sample, d, rank, value))
    found = list(zip(*(getattr(chosen, a).tolist() for a in ("ids", "dimension", "rank", "score")), strict=True))
    assert found == expected
    assert chosen.report["overlap"] == listed - len(expected)
    smaller = select("top-activations", x, ids, per_dimension=max(1, k // 2), labels=labels if balanced else None)
    assert_same(smaller, chosen, len(smaller))


def test_the_pass_is_repeated_with_lists_twice_as_long_where_one_runs_out():
    # Each dimension ranks the samples alike, so that all but one of a list's entries are taken by others.
    rng = np.random.default_rng(0)
    strength = rng.permutation(400).astype(np.float32)
    x = np.repeat(strength[:, None], 8, axis=1)
    source = Chunked(x, [64])
    seen = []
    chosen = select("top-activations", source, np.arange(400), size=40, progress=lambda *a: seen.append(a))
    assert chosen.ids.tolist() == np.argsort(-strength)[:40].tolist()
    assert chosen.report["passes"] == source.passes == 3
    assert chosen.report["list_length"] == 40
    assert seen[:7] == [(64 * i, 400) for i in range(1, 7)] + [(400, 400)] and len(seen) == 3 * 7


def test_the_size_of_the_paper_comes_out_exactly_where_the_union_falls_short():
    rng = np.random.default_rng(1)
    # 216 dimensions of ReLU units that correlate, as an encoder's do.
    x = np.maximum(rng.standard_normal((20_000, 40)) @ rng.standard_normal((40, 216)), 0).astype(np.float32)
    union = select("top-activations", x, np.arange(20_000), per_dimension=20)
    assert 216 * 20 - union.report["overlap"] == union.report["distinct"] == len(union) < 4320
    best = {i for d in range(216) for _, i in ranked(x[:, d], range(20_000))[:20]}
    assert set(union.ids.tolist()) == best
    exact = select("top-activations", x, np.arange(20_000), size=4320)
    assert len(set(exact.ids.tolist())) == 4320 and exact.report["filled_at_random"] == 0
    assert set(exact.report["per_dimension_counts"]) == {20}


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_shares_of_classes_are_largest_deficits_and_end_in_whole_classes(sizes):
    places = interleave(np.array(sizes), sum(sizes))
    assert places.tolist() == largest_deficit(sizes, sum(sizes))
    assert np.bincount(places).tolist() == sizes


def test_random_is_the_permuted_order_of_ids_and_needs_no_embeddings():
    ids = np.array([40, 10, 30, 20, 50])
    chosen = select("random", None, ids, size=5, seed=3)
    assert chosen.ids.tolist() == fillers_of(ids, 3)
    assert set(chosen.dimension.tolist()) == {-1} and chosen.rank.tolist() == [0, 1, 2, 3, 4]
    assert select("random", None, np.arange(1000), size=9, seed=4).ids.tolist() != list(range(9))


def test_lists_filled_beside_an_encoder_on_several_ranks_choose_as_one_pass_does():
    rng = np.random.default_rng(5)
    x, ids, labels = (
        rng.standard_normal((300, 6)).astype(np.float32),
        rng.permutation(900)[:300],
        np.arange(300) % 3,
    )
    samples, request = Samples.of(ids, labels), Request(size=60, seed=2)
    length = list_length(request, samples, 6)
    ranks = [TopK(6, length, groups=3) for _ in range(2)]
    for start in range(0, 300, 50):
        rows = slice(start, start + 50)
        ranks[start // 50 % 2].update(x[rows], samples.positions[rows], samples.group_of_row[rows])
    ranks[0].merge(ranks[1].result())
    chosen = choose(ranks[0].result(), samples, request)
    assert chosen is not None
    assert_same(chosen, select("top-activations", x, ids, size=60, labels=labels, seed=2))
    # A dimension's one entry is its whole list here, and it ends at once: the lists are too short to tell.
    short = TopK(6, 1, groups=3)
    short.update(x, samples.positions, samples.group_of_row)
    assert choose(short.result(), samples, request) is None


def test_arrays_of_all_sorts_give_the_same_choice(tmp_path):
    rng = np.random.default_rng(2)
    x = rng.integers(-100, 100, (300, 9)).astype(np.float32)
    ids = np.arange(300)
    expected = select("top-activations", x, ids, size=50)
    np.save(tmp_path / "x.npy", x)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("plain", data=x)
        f.create_dataset("chunked", data=x.astype(np.float16), chunks=(7, 9), compression="gzip")
        for source in (
            np.load(tmp_path / "x.npy", mmap_mode="r"),
            f["plain"],
            f["chunked"],
            x.astype(np.float64),
            x.astype(">f4"),
            x.astype(np.int16),
            np.asfortranarray(x),
            x[::-1][::-1],
            as_embeddings(x, 11),
            as_embeddings(f["chunked"], 1),
            x.tolist(),
            torch.from_numpy(x).double(),
            torch.from_numpy(x).half(),
            torch.from_numpy(x).requires_grad_(),
            np.ma.masked_invalid(x),
        ):
            assert_same(select("top-activations", source, ids, size=50), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_anywhere_is_an_error_with_the_count_and_the_first_ids(value):
    x = np.random.default_rng(3).standard_normal((50, 4)).astype(np.float32)
    ids = np.arange(50)[::-1] * 10
    x[[4, 30], [0, 3]] = value
    for asked in ({"size": 5}, {"per_dimension": 2}, {"size": 5, "labels": ids % 3}):
        with pytest.raises(DataError, match=r"in 2 of 50 samples, of ids 190, 450; .*leave them out$"):
            select("top-activations", x, ids, **asked)


X = np.random.default_rng(4).standard_normal((50, 4)).astype(np.float32)
IDS = np.arange(50)


class Sparse:
    """What SciPy's matrices look like."""

    shape, dtype = (50, 4), np.dtype(np.float32)

    def toarray(self):
        return X


class Short(Chunked):
    def chunks(self):
        yield from list(super().chunks())[:-1]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: select("top-activations", X, IDS, size=60_000), UsageError, "only 50 samples"),
        (lambda: select("random", X, IDS, size=51), UsageError, "size=51 but there are only 50 samples; ask for 50"),
        (lambda: select("random", X, IDS, size=0), UsageError, "size=0; it must be at least 1"),
        (lambda: select("top-activations", X, IDS, per_dimension=51), UsageError, "=51 but there are only 50"),
        (lambda: select("top-activations", X, IDS, per_dimension=0), UsageError, "per_dimension=0"),
        (lambda: select("top-activations", X, IDS), UsageError, "either size or per_dimension"),
        (lambda: select("top-activations", X, IDS, size=1, per_dimension=1), UsageError, "either size or"),
        (lambda: select("random", X, IDS, per_dimension=1), UsageError, "say size"),
        (lambda: select("best", X, IDS, size=1), UsageError, "'best' is unknown; choose one of combinations, kmeans"),
        (lambda: select("top-activations", None, IDS, size=1), UsageError, "none were given"),
        (lambda: select("top-activations", X, IDS[:-1], size=1), DataError, "50 rows but there are 49 ids"),
        (lambda: select("top-activations", X, IDS // 2, size=1), DataError, "25 ids occur more than once"),
        (lambda: select("top-activations", X, IDS + 0.5, size=1), DataError, "one integer a sample"),
        (lambda: select("top-activations", X, IDS, size=1, labels=IDS[:4]), UsageError, "one label a sample"),
        (lambda: select("top-activations", X, IDS, size=1, labels=IDS * np.nan), DataError, "labels hold NaN"),
        (lambda: select("top-activations", X[0], IDS, size=1), DataError, "of shape (4,)"),
        (lambda: select("top-activations", X[:0], IDS[:0], size=1), DataError, "are empty"),
        (lambda: select("top-activations", X[:, :0], IDS, size=1), DataError, "are empty"),
        (lambda: select("top-activations", X.astype(str), IDS, size=1), DataError, "real numbers"),
        (lambda: select("top-activations", X * 1j, IDS, size=1), DataError, "real numbers"),
        (lambda: select("top-activations", Short(X, [20]), IDS, size=1), DataError, "40 rows for 50 samples"),
        (lambda: select("random", None, IDS, size=10.0), UsageError, "size=10.0; it must be a whole number"),
        (lambda: select("random", None, IDS, size="10%"), UsageError, "size='10%'"),
        (lambda: select("random", None, IDS, size=True), UsageError, "size=True"),
        (lambda: select("kmeans", X, IDS, per_dimension=2.5), UsageError, "per_dimension=2.5"),
        (lambda: select("random", None, IDS, size=5, threads="2"), UsageError, "threads='2'"),
        (lambda: select("random", None, IDS, size=5, device="gpu"), UsageError, "device='gpu' is no device"),
        (lambda: select("random", None, IDS, size=5, labels=IDS, equal="no"), UsageError, "equal='no'"),
        (lambda: select("random", None, IDS, size=5, progress=3), UsageError, "progress=3"),
        (lambda: select(["random"], None, IDS, size=5), UsageError, "strategy ['random'] is unknown"),
        (lambda: select("random", None, IDS, size=5, labels=[None] + [1] * 49), DataError, "None in row 0"),
        (lambda: select("random", None, IDS.astype("u8") + 2**63, size=5), DataError, "must be below 2^63"),
        (lambda: select("kmeans", np.ma.masked_less(X, 0), IDS, size=5), DataError, "masked array"),
        (lambda: select("kmeans", torch.from_numpy(X).to_sparse(), IDS, size=5), DataError, "to_dense()"),
        (lambda: select("kmeans", Sparse(), IDS, size=5), DataError, "sparse Sparse; give a dense array"),
        (lambda: select("kmeans", X.view(np.uint16), IDS, size=5), DataError, "bfloat16's bits"),
        (lambda: select("top-activations", X.astype(float) * 1e300, IDS, size=1), DataError, "infinity in 50 of 50"),
    ],
)
def test_what_cannot_be_served_is_one_line_that_says_why(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_equal_classes_give_the_same_number_until_one_has_none_left(sizes, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    size = data.draw(st.integers(1, sum(sizes)))
    chosen = select("random", None, np.arange(len(labels)), size=size, labels=labels, equal=True, seed=1)
    counts = np.bincount(labels[chosen.ids], minlength=len(sizes))
    # A class that gave less than another by two or more has given all it has.
    assert all(count >= counts.max() - 1 or count == has for count, has in zip(counts, sizes, strict=True))
    smaller = select("random", None, np.arange(len(labels)), size=max(1, size // 2), labels=labels, equal=True, seed=1)
    assert_same(smaller, chosen, len(smaller))
