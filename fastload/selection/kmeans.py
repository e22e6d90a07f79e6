"""`kmeans`: clusters in place of dimensions, nearest to each centre first; the paper's second suggestion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.order import permutation
from fastload.selection.base import Request, Samples, Selection
from fastload.selection.exact import Grid, measure_grid, pieces, rank_columns

ITERATIONS = 25
"""Passes over the embeddings at most; 25 over 50,000 × 216 take four seconds on two cores."""


def kmeans(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Rank samples by clusters of the embeddings: each cluster in turn gives its sample nearest to its centre.

    There are as many clusters as embedding dimensions (samples, where those are fewer), whatever the size asked for,
    so that every prefix is a smaller selection. Lloyd's algorithm on all samples, from samples that the seed draws,
    until no centre moves or 25 passes are done. `dimension` is the cluster, `score` 1 / (1 + distance), the distance
    in shares of the widest dimension's extent. All else is as for top-activations, with clusters for dimensions: a
    cluster ranks only its own samples, and `per_dimension` counts for each cluster.

    Raises as top-activations does.
    """
    clusters = fit(embeddings, samples, request)
    assert embeddings is not None
    count = len(clusters.centres)

    def activations(rows: np.ndarray) -> np.ndarray:
        nearest, score = clusters.nearest(rows)
        out = np.zeros((len(rows), count), np.float32)
        out[np.arange(len(rows)), nearest] = score
        return out

    facts = {"clusters": count, "empty_clusters": clusters.empty, "iterations": clusters.iterations}
    return rank_columns("kmeans", embeddings, samples, request, count, activations, facts, clusters.iterations + 2)


@dataclass(frozen=True)
class Clusters:
    """Centres, integers [clusters, dims] on a grid; how many have no sample; how many passes they took."""

    grid: Grid
    centres: np.ndarray
    empty: int
    iterations: int

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cluster, int64 [b], of float32 rows [b, dims], and their score, float64 [b]."""
        nearest, squared = _nearest(self.grid.quantized(rows), self.centres)
        return nearest, 1.0 / (1.0 + np.sqrt(squared) / self.grid.levels)


def fit(
    embeddings: Embeddings | None,
    samples: Samples,
    request: Request,
    count: int | None = None,
    name: str = "kmeans",
) -> Clusters:
    """Find the clusters of all samples, by `request.seed` alone. Raises as `kmeans` does.

    Arguments:
        count: how many, at most as many as samples; by default as many as embedding dimensions.
        name: the strategy's, for messages.
    """
    grid = measure_grid(embeddings, samples, request, name, shared=True)
    assert embeddings is not None
    centres = _drawn(embeddings, samples, request, grid, min(count or embeddings.shape[1], len(samples)))
    iterations, moving = 0, True
    while moving and iterations < ITERATIONS:
        totals, counts = _sums(embeddings, samples, request, grid, centres)
        moved = np.where(counts[:, None] > 0, np.rint(totals / np.maximum(counts, 1)[:, None]), centres)
        moving = bool((moved != centres).any())
        centres, iterations = moved, iterations + 1
    return Clusters(grid, centres, int((counts == 0).sum()), iterations)


def _drawn(embeddings: Embeddings, samples: Samples, request: Request, grid: Grid, clusters: int) -> np.ndarray:
    """Return the first centres, integers [clusters, dims]: the samples first in the seed's permuted order."""
    place = np.full(len(samples), -1)
    place[permutation(len(samples), request.seed)[:clusters]] = np.arange(clusters)
    centres = np.empty((clusters, embeddings.shape[1]))
    for start, rows in pieces(embeddings, samples, request):
        places = place[samples.positions[start : start + len(rows)]]
        centres[places[places >= 0]] = grid.quantized(rows[places >= 0])
    return centres


def _sums(
    embeddings: Embeddings, samples: Samples, request: Request, grid: Grid, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Make a pass; return each cluster's sum [clusters, dims] and number of samples [clusters]."""
    totals, counts = np.zeros_like(centres), np.zeros(len(centres))
    for _, rows in pieces(embeddings, samples, request):
        quantized = grid.quantized(rows)
        member = np.zeros((len(rows), len(centres)))
        member[np.arange(len(rows)), _nearest(quantized, centres)[0]] = 1.0
        totals += member.T @ quantized
        counts += member.sum(axis=0)
    return totals, counts


def _nearest(quantized: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest centre, the first of equals, and the squared distance: exact, as all are integers."""
    squared = (centres**2).sum(axis=1) - 2.0 * (quantized @ centres.T)
    nearest = squared.argmin(axis=1)
    return nearest, squared[np.arange(len(quantized)), nearest] + (quantized**2).sum(axis=1)
