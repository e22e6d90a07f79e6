"""Which few samples matter most: embeddings → a ranking of samples, by a strategy of a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastload.errors import DataError, UsageError
from fastload.selection.base import Embeddings, Pass, Request, Samples, Selection, Strategy, StreamingStrategy
from fastload.selection.combinations import combinations
from fastload.selection.embeddings import as_embeddings
from fastload.selection.kmeans import kmeans
from fastload.selection.pca import pca
from fastload.selection.penalized import penalized
from fastload.selection.random import random
from fastload.selection.top_activations import ListsPass, top_activations

STRATEGIES: dict[str, Strategy] = {
    "top-activations": top_activations,
    "random": random,
    "combinations": combinations,
    "kmeans": kmeans,
    "pca": pca,
    "penalized": penalized,
}
STREAMING: dict[str, StreamingStrategy] = {"top-activations": ListsPass}
"""Those that need one pass over the embeddings and no more, which may then be the encoder's own."""


def select(
    strategy: str,
    embeddings: Any,
    ids: Any,
    *,
    size: int | None = None,
    per_dimension: int | None = None,
    labels: Any = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Choose samples; the same answer whatever the chunks, device, threads or order of rows.

    Arguments:
        strategy: a name in STRATEGIES.
        embeddings: real numbers [n, dims], anything that `as_embeddings` takes; random does without (None).
        ids: distinct integers [n], each row's sample.
        size: exactly so many samples; or per_dimension: the best so many of each dimension, fewer as they overlap.
        labels: [n], each row's class, to give each class its share; None to leave classes alone.
        seed: decides what is drawn at random. device: "cpu" or "cuda". threads: for the CPU, all cores by default.
        progress: called with (rows done, rows in all); a repeated pass starts over.

    Raises UsageError for amounts that cannot be served, DataError for embeddings or ids that are not what they
    should be (shapes, NaN, infinity, repeated ids).
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"there is no strategy {strategy!r}; known are {', '.join(STRATEGIES)}")
    source = None if embeddings is None else as_embeddings(embeddings)
    samples = Samples.of(ids, labels)
    if source is not None and source.shape[0] != len(samples):
        raise DataError(f"embeddings have {source.shape[0]:,} rows but there are {len(samples):,} ids")
    request = Request(size, per_dimension, seed, device, threads, progress)
    request.check(len(samples))
    return STRATEGIES[strategy](source, samples, request)


__all__ = [
    "STRATEGIES",
    "STREAMING",
    "Embeddings",
    "Pass",
    "Request",
    "Samples",
    "Selection",
    "Strategy",
    "StreamingStrategy",
    "as_embeddings",
    "select",
]
