"""`stratified`: strata of samples whose embeddings are alike, each of which gives its share, drawn at random."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.errors import UsageError
from fastload.order import permutation
from fastload.selection.base import Request, Samples, Selection
from fastload.selection.exact import pieces
from fastload.selection.kmeans import fit
from fastload.selection.strata import Strata

MOST_STRATA = 1024
"""Reached at a million samples: from there on, a pass takes time in proportion to the samples, and no more memory."""


def strata_of(samples: int) -> int:
    """Return how many strata so many samples get: their square root, rounded down, and `MOST_STRATA` at most."""
    return min(MOST_STRATA, max(1, math.isqrt(samples)))


def stratified(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Rank samples so that any number of the first holds of each stratum its share of all samples.

    The strata are clusters of all samples, found as for kmeans. Sample i, from 0, of a stratum's n samples in the
    seed's permuted order has the key (i + 0.5) / n, and the lowest key comes first, of equal ones the lower stratum's.
    So of the first t samples a stratum with the share p of all K strata's gives p·t, but for (1 + p·(K - 2)) / 2 at
    most, which is less than 1 where it is no larger than the average stratum.

    Balanced, each class gives its share of the samples in the same way: its part of a stratum is a stratum of its own.
    `dimension` is the stratum, `rank` the sample's place in it, `score` 0.

    Raises UsageError for `per_dimension`, else as top-activations does.
    """
    if request.size is None:
        raise UsageError("stratified gives each stratum its share; say size instead of per_dimension")
    clusters = fit(embeddings, samples, request, strata_of(len(samples)), "stratified")
    assert embeddings is not None
    of_row = np.empty(len(samples), np.int64)
    for start, rows in pieces(embeddings, samples, request):
        of_row[start : start + len(rows)] = clusters.nearest(rows)[0]
    # Not the first permutation, in which the clusters' first centres stand in front.
    order = permutation(len(samples), request.seed, 1)
    strata = Strata.of(len(clusters.centres), samples.by_position(of_row), order, samples)
    order = np.lexsort((strata.stratum, (strata.place + 0.5) / strata.size))
    # The grid, the first centres, the fit, and the strata.
    chosen = strata.select("stratified", order, samples, request, passes=clusters.iterations + 3)
    return replace(chosen, report={**chosen.report, "iterations": clusters.iterations})
