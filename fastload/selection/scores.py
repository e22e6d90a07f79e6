"""`scores`: by scores that one brings, spread evenly over their range; the rule of coverage-centric coresets (CCS)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.errors import UsageError
from fastload.order import permutation
from fastload.selection.base import Request, Samples, Selection, not_finite
from fastload.selection.strata import Strata

STRATA = 50
"""The paper's."""


def scores(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Rank samples by Algorithm 1 of "Coverage-centric Coreset Selection for High Pruning Rates" (Zheng et al., 2023).

    The hardest samples, a share of `request.scores.leave_out`, are left out. The range of the others' scores is cut
    into 50 strata of equal width, which share the size evenly, a stratum with too few giving what it has; within a
    stratum samples are drawn at random.

    As a ranking: strata take turns, each round one sample from each that has any left, the largest stratum first and
    of equal ones that of lower scores. So after any number of samples each stratum has given what the algorithm
    allots it. What was left out comes after all others, the least hard first, so that any size can be served. Samples
    of equal score stand in the seed's permuted order where the share that is left out ends among them.

    Balanced, each class is ranked like this by itself and gives its share: its hardest are left out, and the strata
    cut its own range. `dimension` is the stratum, from that of the lowest scores on, or -1 for what was left out,
    `rank` the sample's place there, `score` the score that was brought. Embeddings are not looked at.

    Raises UsageError for `per_dimension` and where no scores were given, DataError for NaN and infinity among them,
    with the count and the first ids.
    """
    if request.size is None:
        raise UsageError("scores go over all samples, not per dimension; say size instead of per_dimension")
    given = request.scores
    if given is None:
        raise UsageError("scores ranks samples by scores that one brings, and none were given; say scores=Scores(…)")
    unusable = given.unusable()
    if len(unusable):
        raise not_finite(len(unusable), samples, np.sort(samples.positions[unusable]), scores=True)
    values, hardness = samples.by_position(given.values), samples.by_position(given.hardness())
    drawn = np.empty(len(samples), np.int64)
    drawn[permutation(len(samples), request.seed)] = np.arange(len(samples))
    stratum = np.full(len(samples), -1)
    for easiest_first in samples.by_group(np.lexsort((drawn, hardness))):
        kept = easiest_first[: len(easiest_first) - given.left_out(len(easiest_first))]
        stratum[kept] = cut(values[kept])
    left_out = stratum < 0
    strata = Strata.of(STRATA, stratum, np.lexsort((drawn, np.where(left_out, hardness, 0.0))), samples)
    turn = strata.place + np.where(left_out, len(samples), 0)
    chosen = strata.select("scores", np.lexsort((stratum, -strata.size, turn)), samples, request, score=values)
    facts = {"left_out": int(left_out.sum()), "left_out_but_taken": int((chosen.dimension < 0).sum())}
    return replace(chosen, report={**chosen.report, **given.settings(), **facts})


def cut(values: np.ndarray) -> np.ndarray:
    """Return the stratum of each score, int64: `STRATA` of equal width reach from the least to the largest."""
    low, high = values.min(), values.max()
    width = high - low if high > low else 1.0
    return np.minimum(STRATA - 1, (values - low) / width * STRATA).astype(np.int64)
