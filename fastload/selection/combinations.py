"""`combinations`: the samples that activate a pair of embedding dimensions most; the paper's first suggestion."""

from __future__ import annotations

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.order import permutation
from fastload.selection.base import Request, Samples, Selection
from fastload.selection.exact import measure_grid, measure_moments, rank_columns


def combinations(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Rank samples by pairs of dimensions: a pair's activation is the lower of the two, each standardized.

    Standardized is (activation - mean) / standard deviation over all samples. A sample that is at the least value of
    one of the two does not activate the pair, however high it is in the other: of sparse embeddings, most are. The
    pairs are neighbours on a circle of the dimensions in the seed's permuted order, so that there are as many pairs as
    dimensions and each is in two; dimensions that never vary are left out, and one that is alone is paired with itself.
    `dimension` is the pair's number. All else is as for top-activations, with pairs for dimensions; `per_dimension`
    counts for each pair.

    Raises as top-activations does.
    """
    grid = measure_grid(embeddings, samples, request, "combinations", shared=False)
    assert embeddings is not None
    moments = measure_moments(embeddings, samples, request, grid)
    first, second = _pairs(grid.alive, request.seed)
    stddev = np.where(moments.stddev > 0, moments.stddev, 1.0)

    least = -moments.mean / stddev
    inactive = np.maximum(least[first], least[second])

    def activations(rows: np.ndarray) -> np.ndarray:
        standardized = (grid.quantized(rows) - moments.mean) / stddev
        return np.maximum(np.minimum(standardized[:, first], standardized[:, second]), inactive)

    facts = {"pairs": np.stack([first, second], axis=1).tolist()}
    return rank_columns("combinations", embeddings, samples, request, len(first), activations, facts, passes=2)


def _pairs(alive: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two dimensions of each pair: those alive, or the first where none is, on a circle."""
    candidates = np.flatnonzero(alive) if alive.any() else np.zeros(1, np.int64)
    circle = candidates[permutation(len(candidates), seed)]
    if len(circle) == 2:  # both neighbours are the same
        return circle[:1], circle[1:]
    return circle, np.roll(circle, -1)
