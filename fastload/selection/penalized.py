"""`penalized`: top activations, less for samples that activate too many dimensions; the paper's third suggestion."""

from __future__ import annotations

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.selection.base import Request, Samples, Selection
from fastload.selection.exact import measure_grid, measure_moments, pieces, rank_columns

HIGH = 2.0
"""An activation is high when it lies more than so many standard deviations above its dimension's mean."""


def penalized(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Rank samples by a / max(1, h / h̄): a the activation, h how many of the sample's are high, h̄ the mean of h.

    `a` is counted from the low end of its dimension's grid, in shares of the grid's extent. Samples with no more high
    activations than the average one are ranked as by top-activations, of which all else holds too. Raises as that does.
    """
    grid = measure_grid(embeddings, samples, request, "penalized", shared=False)
    assert embeddings is not None
    moments = measure_moments(embeddings, samples, request, grid)
    limit = moments.mean + HIGH * moments.stddev

    def count_high(rows: np.ndarray) -> np.ndarray:
        return (grid.quantized(rows) > limit).sum(axis=1)

    total = sum(int(count_high(rows).sum()) for _, rows in pieces(embeddings, samples, request))
    mean = total / len(samples)

    def activations(rows: np.ndarray) -> np.ndarray:
        shares = (np.maximum(rows, grid.low, dtype=np.float64) - grid.low) / grid.step / grid.levels
        return shares / np.maximum(1.0, count_high(rows) / mean)[:, None] if total else shares

    facts = {"mean_high": mean}
    return rank_columns("penalized", embeddings, samples, request, embeddings.shape[1], activations, facts, passes=3)
