"""`pca`: top activations along principal components, in both directions; the paper's second suggestion."""

from __future__ import annotations

import math

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.selection.base import Request, Samples, Selection
from fastload.selection.exact import measure_covariance, measure_grid, rank_columns

EXPLAINED = 0.95
"""Components are taken, largest variance first, until they explain this share of it all."""

_UNIT = 2.0**15


def pca(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Rank samples by the principal components of the embeddings: the furthest along each, and the furthest against it.

    Component c gives two columns, `dimension` 2c along it and 2c + 1 against it; `score` is the distance from the mean
    in shares of the widest dimension's extent. All else is as for top-activations, with columns for dimensions.

    Raises as top-activations does.
    """
    grid = measure_grid(embeddings, samples, request, "pca", shared=True)
    assert embeddings is not None
    mean, covariance = measure_covariance(embeddings, samples, request, grid)
    components, explained = _components(covariance)
    # fsum rounds once, whatever the order; products of the integers themselves are exact.
    centre = np.array([math.fsum(mean * component) for component in components.T])

    def activations(rows: np.ndarray) -> np.ndarray:
        along = (grid.quantized(rows) @ components - centre) / (_UNIT * (grid.levels + 1))
        return np.stack([along, -along], axis=2).reshape(len(rows), -1)

    facts = {"components": components.shape[1], "explained": explained}
    return rank_columns("pca", embeddings, samples, request, 2 * components.shape[1], activations, facts, passes=2)


def _components(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the components as integers [dims, components], 2¹⁵ for 1, and the share of variance explained."""
    variance, vectors = np.linalg.eigh(covariance)
    variance, vectors = np.maximum(variance[::-1], 0.0), vectors[:, ::-1]
    total = float(variance.sum())
    shares = np.cumsum(variance) / total if total else np.ones(len(variance))
    count = min(len(variance), 1 + int((shares < EXPLAINED).sum()))
    kept = vectors[:, :count]
    largest = kept[np.abs(kept).argmax(axis=0), np.arange(count)]
    return np.rint(kept * np.where(largest < 0, -_UNIT, _UNIT)), float(shares[count - 1])
