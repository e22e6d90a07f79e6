"""The strategies that draw from strata, `stratified` and `scores`, each against its rule written out in Python."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastload.errors import DataError, UsageError
from fastload.order import permutation
from fastload.selection import Scores, register, select
from fastload.selection.stratified import strata_of


def blobs(rows: int, dims: int, seed: int) -> np.ndarray:
    """Embeddings in a few clumps of very different sizes."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, dims)) * 20
    of_row = rng.choice(6, rows, p=[0.5, 0.25, 0.15, 0.05, 0.04, 0.01])
    return (centres[of_row] + rng.standard_normal((rows, dims))).astype(np.float32)


# -- stratified ---------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), kind=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_stratified_is_the_strata_in_order_of_each_sample_s_share_of_its_own(rows, seed, kind):
    x = blobs(rows, 3, kind)
    chosen = select("stratified", x, np.arange(rows), size=rows, seed=seed)
    stratum_of = dict(zip(chosen.ids.tolist(), chosen.dimension.tolist(), strict=True))
    members: dict[int, list[int]] = {}
    for sample in permutation(rows, seed, 1).tolist():
        members.setdefault(stratum_of[sample], []).append(sample)
    keys = [
        (Fraction(2 * place + 1, 2 * len(samples)), stratum, place, sample)
        for stratum, samples in members.items()
        for place, sample in enumerate(samples)
    ]
    expected = [(sample, stratum, place) for _, stratum, place, sample in sorted(keys)]
    found = list(zip(chosen.ids.tolist(), chosen.dimension.tolist(), chosen.rank.tolist(), strict=True))
    assert found == expected
    assert chosen.report["dimensions"] == int(rows**0.5 + 1e-9)
    empty = chosen.report["dead_dimensions"]
    assert set(empty) == set(range(chosen.report["dimensions"])) - set(members)


@given(rows=st.integers(2, 400), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_of_any_number_of_samples_each_stratum_gives_its_share_but_for_the_published_bound(rows, seed):
    chosen = select("stratified", blobs(rows, 4, seed), np.arange(rows), size=rows, seed=seed)
    sizes = Counter(chosen.dimension.tolist())
    strata = len(sizes)
    given_by: Counter[int] = Counter()
    for taken, stratum in enumerate(chosen.dimension.tolist(), 1):
        given_by[stratum] += 1
        for each, size in sizes.items():
            share = Fraction(size, rows)
            bound = (1 + share * (strata - 2)) / 2
            assert abs(given_by[each] - share * taken) <= bound
            assert share > Fraction(1, strata) or bound < 1


def test_a_stratum_s_samples_are_those_nearest_to_the_mean_of_it():
    x = blobs(900, 5, 3)
    chosen = select("stratified", x, np.arange(900), size=900, seed=1)
    assert chosen.report["dimensions"] == 30
    order = np.argsort(chosen.ids)
    stratum = chosen.dimension[order]
    held = np.flatnonzero(np.bincount(stratum, minlength=30))
    means = np.array([x[stratum == s].astype(np.float64).mean(axis=0) for s in held])
    distance = np.linalg.norm(x[:, None].astype(np.float64) - means, axis=2)
    own = distance[np.arange(900), np.searchsorted(held, stratum)]
    # Lloyd's passes may have ended before the last few samples moved, and the grid rounds.
    assert (own <= distance.min(axis=1) + 1e-2).mean() > 0.97


def test_balanced_each_class_gives_its_share_of_each_stratum():
    rng = np.random.default_rng(4)
    x, labels = blobs(2000, 4, 4), rng.choice(3, 2000, p=[0.7, 0.2, 0.1])
    whole = select("stratified", x, np.arange(2000), size=2000, labels=labels, seed=3)
    chosen = select("stratified", x, np.arange(2000), size=400, labels=labels, seed=3)
    stratum = np.empty(2000, np.int64)
    stratum[whole.ids] = whole.dimension
    for label in range(3):
        of_class, taken = labels == label, chosen.ids[labels[chosen.ids] == label]
        sizes = np.bincount(stratum[of_class], minlength=44)
        share = sizes / sizes.sum()
        bound = (1 + share * ((sizes > 0).sum() - 2)) / 2
        assert (np.abs(np.bincount(stratum[taken], minlength=44) - share * len(taken)) <= bound + 1e-9).all()


def test_the_first_centres_of_the_clusters_are_drawn_no_sooner_than_others():
    firsts = []
    for seed in range(40):
        chosen = select("stratified", blobs(400, 3, 9), np.arange(400), size=60, seed=seed)
        firsts.append(len(set(chosen.ids.tolist()) & set(permutation(400, seed)[:20].tolist())))
    assert 1.5 <= np.mean(firsts) <= 4.5, "3 of 20 by chance"


def test_strata_are_the_root_of_the_samples_as_far_as_a_pass_stays_cheap():
    assert [strata_of(n) for n in (1, 3, 4, 50_000, 2**20, 10**9)] == [1, 1, 2, 223, 1024, 1024]


# -- scores -------------------------------------------------------------------------------------------------------


def ccs_budgets(sizes: list[int], budget: int) -> list[int]:
    """Algorithm 1 of Zheng et al. 2023: how many samples each stratum gives."""
    left = {stratum: size for stratum, size in enumerate(sizes) if size}
    given = [0] * len(sizes)
    while left:
        fewest = min(left, key=lambda stratum: left[stratum])
        given[fewest] = min(left[fewest], budget // len(left))
        budget -= given[fewest]
        del left[fewest]
    return given


def ccs_strata(values: dict[int, float], hardest: str, leave_out: Fraction, drawn: list[int]) -> list[list[int]]:
    """The samples of each stratum in the order drawn, and last those that are left out, the least hard first."""
    sign = 1 if hardest == "highest" else -1
    easiest_first = sorted(drawn, key=lambda sample: sign * values[sample])  # stable
    kept = easiest_first[: len(drawn) - int(leave_out * len(drawn))]
    low, high = (Fraction(end(values[s] for s in kept)) for end in (min, max))
    strata: list[list[int]] = [[] for _ in range(50)]
    for sample in drawn:
        if sample in set(kept):
            share = (Fraction(values[sample]) - low) / (high - low) if high > low else Fraction(0)
            strata[min(49, int(share * 50))].append(sample)
    return [*strata, easiest_first[len(kept) :]]


@st.composite
def scored(draw):
    """Draw scores with ties, gaps and outliers whose strata are exact in float64, and how they are read."""
    count = draw(st.integers(1, 250))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = {
        "even": lambda: rng.integers(-400, 401, count) / 8.0,
        "ties": lambda: rng.integers(0, 4, count).astype(float),
        "skewed": lambda: np.rint(rng.exponential(30, count)),
        "equal": lambda: np.full(count, 3.0),
        "outlier": lambda: np.append(rng.integers(0, 50, count - 1), 1e6),
    }[draw(st.sampled_from(["even", "ties", "skewed", "equal", "outlier"]))]()
    leave_out = draw(st.sampled_from(["0", "0.1", "0.3", "0.57", "0.99"]))
    return values, draw(st.sampled_from(["lowest", "highest"])), leave_out, draw(st.integers(0, 2**64 - 1))


@given(drawn=scored())
@settings(max_examples=80, deadline=None)
def test_any_number_of_samples_is_spread_over_the_strata_as_by_the_paper_s_algorithm(drawn):
    values, hardest, leave_out, seed = drawn
    count = len(values)
    ranking = select(
        "scores", None, np.arange(count), size=count, seed=seed, scores=Scores(values, hardest, float(leave_out))
    )
    order = permutation(count, seed).tolist()
    *strata, left_out = ccs_strata(dict(enumerate(values.tolist())), hardest, Fraction(leave_out), order)
    sizes = [len(stratum) for stratum in strata]
    for budget in range(1, sum(sizes) + 1):
        taken = ranking.ids[:budget].tolist()
        given_by = np.bincount(ranking.dimension[:budget], minlength=50).tolist()
        # Of strata of one size the algorithm does not say which gives the odd sample.
        expected = sorted(zip(sizes, ccs_budgets(sizes, budget), strict=True))
        assert sorted(zip(sizes, given_by, strict=True)) == expected
        if budget in (1, sum(sizes) // 2, sum(sizes)):
            for stratum, number in zip(strata, given_by, strict=True):
                assert set(stratum) & set(taken) == set(stratum[:number])
    assert ranking.ids[sum(sizes) :].tolist() == left_out
    assert (ranking.dimension[sum(sizes) :] == -1).all()
    assert ranking.rank[sum(sizes) :].tolist() == list(range(len(left_out)))
    assert ranking.score.tolist() == values[ranking.ids].astype(np.float32).tolist()
    assert ranking.report["left_out"] == len(left_out) == ranking.report["left_out_but_taken"]


def test_balanced_each_class_is_ranked_by_itself():
    rng = np.random.default_rng(0)
    values, labels = rng.standard_normal(600), rng.choice(3, 600, p=[0.6, 0.3, 0.1])
    values[labels == 2] -= 100  # of no other class's range, and the hardest of all
    chosen = select("scores", None, np.arange(600), size=300, labels=labels, seed=5, scores=Scores(values))
    order = permutation(600, 5)
    for label, count in zip(range(3), np.bincount(labels), strict=True):
        members = order[labels[order] == label].tolist()
        *strata, _ = ccs_strata({s: float(values[s]) for s in members}, "lowest", Fraction(1, 10), members)
        taken = chosen.ids[labels[chosen.ids] == label]
        assert abs(len(taken) - count / 2) < 3
        sizes = [len(stratum) for stratum in strata]
        given_by = [len(set(taken.tolist()) & set(stratum)) for stratum in strata]
        expected = sorted(zip(sizes, ccs_budgets(sizes, len(taken)), strict=True))
        assert sorted(zip(sizes, given_by, strict=True)) == expected


def test_which_end_is_hard_decides_what_is_left_out():
    values = np.arange(100.0)
    for hardest, last in (("lowest", range(9, -1, -1)), ("highest", range(90, 100))):
        chosen = select("scores", None, np.arange(100), size=100, scores=Scores(values, hardest))
        assert chosen.ids[90:].tolist() == list(last)


def test_scores_of_any_real_type_and_place_choose_alike():
    values = np.random.default_rng(1).integers(0, 100, 200)
    expected = select("scores", None, np.arange(200), size=50, scores=Scores(values)).ids.tolist()
    for same in (values.astype(np.float32), values.astype(np.uint8), values.tolist(), torch.tensor(values)):
        assert select("scores", None, np.arange(200), size=50, scores=Scores(same)).ids.tolist() == expected


def test_the_share_that_is_left_out_is_that_which_was_written():
    # In binary, 0.29 × 100 is a little less than 29.
    assert Scores([], leave_out=0.29).left_out(100) == 29
    assert Scores([], leave_out=0.1).left_out(9) == 0


def test_a_strategy_of_one_s_own_gets_the_scores(own_name="by-value"):
    from fastload.selection import STRATEGIES, Selection

    def by_value(embeddings, samples, request):
        best = np.argsort(-samples.by_position(request.scores.values), kind="stable")[: request.size]
        return Selection(samples.sorted_ids[best], np.full(len(best), -1), np.arange(len(best)), np.zeros(len(best)))

    register(own_name, by_value, needs_embeddings=False, needs_scores=True)
    try:
        chosen = select(own_name, None, np.array([7, 5, 6]), size=2, scores=Scores([0.0, 2.0, 1.0]))
        assert chosen.ids.tolist() == [5, 6]
    finally:
        del STRATEGIES[own_name]


IDS = np.arange(50)[::-1] * 10
NAN = np.where(np.isin(np.arange(50), [4, 30]), np.nan, 1.0)
MANY = np.where(np.arange(50) < 12, np.inf, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: select("scores", None, IDS, size=5),
            UsageError,
            "scores ranks samples by scores that one brings; say",
        ),
        (lambda: select("random", None, IDS, size=5, scores=Scores(IDS)), UsageError, "random has no use for scores"),
        (lambda: select("scores", None, IDS, size=5, scores=IDS), UsageError, r"scores=ndarray\(…\); give Scores\("),
        (lambda: select("scores", None, IDS, size=5, scores=Scores(IDS[1:])), DataError, "49 scores for 50 samples"),
        (lambda: select("scores", None, IDS, per_dimension=1, scores=Scores(IDS)), UsageError, "say size instead"),
        (lambda: select("stratified", None, IDS, per_dimension=1), UsageError, "say size instead"),
        (lambda: select("stratified", None, IDS, size=1), UsageError, "stratified ranks samples by their embeddings"),
        (
            lambda: select("scores", None, IDS, size=5, scores=Scores(NAN)),
            DataError,
            "2 of 50 samples, of ids 190, 450;",
        ),
        (lambda: select("scores", None, IDS, size=5, scores=Scores(MANY)), DataError, "12 of 50 .* and 2 more; give"),
        (lambda: select("scores", None, IDS, size=5, scores=Scores(IDS + 1e300)), DataError, "float32 in 50 of 50"),
        (lambda: Scores(IDS, "hard"), UsageError, "hardest='hard'; say which scores"),
        (lambda: Scores(IDS, leave_out=1), UsageError, "leave_out=1; it is a share"),
        (lambda: Scores(IDS, leave_out=np.nan), UsageError, "leave_out=nan"),
        (lambda: Scores(IDS, leave_out="10%"), UsageError, "leave_out='10%'; it must be a number"),
        (lambda: Scores(IDS[:, None]), DataError, r"int64 of shape \(50, 1\); one real number a sample"),
        (lambda: Scores(["a"]), DataError, "one real number a sample"),
        (lambda: Scores([[1], [1, 2]]), DataError, "no array"),
    ],
)
def test_what_cannot_be_served_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
