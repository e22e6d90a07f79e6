"""`random`: samples in permuted order, the comparison that every other strategy has to beat."""

from __future__ import annotations

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.errors import UsageError
from fastload.selection.base import Request, Samples, Selection, places_of_groups


def random(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Return the first `size` samples of the permuted order of ids; embeddings are not looked at.

    Balanced, each class gives its share, in the same permuted order. Raises UsageError for `per_dimension`.
    """
    if request.size is None:
        raise UsageError("random draws from all samples, not per dimension; say size instead of per_dimension")
    group_of_place = places_of_groups(samples, request)
    by_group = np.argsort(group_of_place, kind="stable")
    quotas = np.bincount(group_of_place, minlength=len(samples.group_sizes))
    position = np.empty(request.size, np.int64)
    position[by_group] = np.concatenate(
        [order[:quota] for order, quota in zip(samples.permuted(request.seed), quotas, strict=True)]
    )
    ids = samples.sorted_ids[position]
    report = {
        "strategy": "random",
        "size": request.size,
        "seed": request.seed,
        "samples": len(samples),
        "distinct": request.size,
        "balanced": samples.classes is not None,
        "per_class_counts": samples.counts_by_class(ids),
        "passes": 0,
    }
    return Selection(
        ids,
        np.full(request.size, -1, np.int32),
        np.arange(request.size, dtype=np.int32),
        np.zeros(request.size, np.float32),
        report,
    )
