"""`random`: samples in permuted order, the comparison that every other strategy has to beat."""

from __future__ import annotations

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.errors import UsageError
from fastload.order import permutation
from fastload.selection.base import Request, Samples, Selection, facts_of_draw, first_of_groups


def random(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Return the first `size` samples of the permuted order of ids; embeddings are not looked at.

    Balanced, each class gives its share, in the same permuted order. Raises UsageError for `per_dimension`.
    """
    if request.size is None:
        raise UsageError("random draws from all samples, not per dimension; say size instead of per_dimension")
    ids = samples.sorted_ids[first_of_groups(permutation(len(samples), request.seed), samples, request)]
    return Selection(
        ids,
        np.full(request.size, -1, np.int32),
        np.arange(request.size, dtype=np.int32),
        np.zeros(request.size, np.float32),
        facts_of_draw("random", samples, request, ids),
    )
