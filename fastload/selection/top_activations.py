"""`top-activations`, the paper's Eq. 4: for each embedding dimension, the samples that activate it most.

    Y = ⋃_j top-k { x_i : z_ij }

`per_dimension=k` is that union. `size=N` goes round the dimensions, each giving its next sample not yet chosen.
The embeddings are only ever seen as `TopK` lists, so a caller that embeds can feed `update` itself and call
`choose` at the end; where `choose` says that the lists were too short, the pass is repeated with longer ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fastload.errors import DataError, UsageError
from fastload.kernels.topk import MAX_K_CUDA, TopK, TopKState
from fastload.selection.base import Embeddings, Request, Samples, Selection, interleave

# position, dimension, rank, score; and how often a sample was passed over, being chosen already
_Choice = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]


def top_activations(embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection:
    """Rank samples by how much they activate embedding dimensions.

    Only samples above a dimension's minimum are ranked by it. Ties go to the lower id. With classes, the lists are
    per dimension and class, and each class gives its share. When no dimension has any sample left, the rest come in
    permuted order, dimension -1, and are counted in the report.

    Raises DataError for NaN or infinity, with the count and the first ids, and for a source that is too short.
    """
    if embeddings is None:
        raise UsageError("top-activations ranks samples by their embeddings, and none were given")
    length = list_length(request, samples, embeddings.shape[1])
    passes = 1
    while True:
        state, device = _read(embeddings, samples, request, length)
        selection = choose(state, samples, request)
        if selection is not None:
            break
        length, passes = min(2 * length, int(samples.group_sizes.max())), passes + 1
    return Selection(
        selection.ids, selection.dimension, selection.rank, selection.score,
        {**selection.report, "passes": passes, "device": device},
    )  # fmt: skip


def list_length(request: Request, samples: Samples, dims: int) -> int:
    """Return how long the lists of the first pass are: 2·⌈N/n⌉ for a size N (a class's share of it) of n dimensions."""
    largest = int(samples.group_sizes.max())
    if request.size is None:
        return min(int(request.per_dimension or 1), largest)
    share = -(-request.size * largest // len(samples))
    return min(2 * -(-share // dims), largest)


def choose(state: TopKState, samples: Samples, request: Request) -> Selection | None:
    """Return the selection that the lists hold, or None where a list was too short to tell.

    Arguments:
        state: lists over all samples by their positions (`Samples.positions`), with one group for each class.

    Raises DataError for NaN or infinity in the embeddings.
    """
    if state.nonfinite:
        first = ", ".join(str(samples.sorted_ids[position]) for position in state.nonfinite_ids)
        raise DataError(
            f"embeddings hold NaN or infinity in {state.nonfinite:,} of {state.rows:,} samples, "
            f"the first ids: {first}; embed these again or leave them out"
        )
    if state.rows != len(samples):
        raise DataError(f"embeddings gave {state.rows:,} rows for {len(samples):,} samples")
    # Lists are sorted, so what is above the minimum is a prefix of each.
    listed = np.arange(state.values.shape[2]) < state.counts[:, :, None]
    eligible = (listed & (state.values > state.minimum[:, None])).sum(axis=2)
    if request.per_dimension is not None:
        chosen = _union(state, eligible)
    else:
        found = _round_robin(state, eligible, samples, request)
        if found is None:
            return None
        chosen = found
    position, dimension, rank, score, passed_over = chosen
    ids = samples.sorted_ids[position]
    return Selection(
        ids, dimension.astype(np.int32), rank.astype(np.int32), score.astype(np.float32),
        {
            **_settings(request, samples),
            "dimensions": int(state.values.shape[1]),
            "dead_dimensions": np.flatnonzero(state.minimum == state.maximum).tolist(),
            "filled_at_random": int((dimension < 0).sum()),
            "distinct": len(ids),
            "overlap": int(passed_over),
            "per_dimension_counts": np.bincount(dimension[dimension >= 0], minlength=state.values.shape[1]).tolist(),
            "per_class_counts": samples.counts_by_class(ids),
            "list_length": int(state.values.shape[2]),
        },
    )  # fmt: skip


def _settings(request: Request, samples: Samples) -> dict[str, Any]:
    amount = {"size": request.size} if request.size is not None else {"per_dimension": request.per_dimension}
    return {
        "strategy": "top-activations", **amount, "seed": request.seed, "samples": len(samples),
        "balanced": samples.classes is not None,
    }  # fmt: skip


def _read(embeddings: Embeddings, samples: Samples, request: Request, length: int) -> tuple[TopKState, str]:
    """Make one pass over the embeddings; return the lists and the device that made them."""
    rows, dims = embeddings.shape
    # Longer lists than the GPU's kernels take are made by their CPU twin; the report says so.
    device = request.device if length <= MAX_K_CUDA else "cpu"
    groups = len(samples.group_sizes)
    lists = TopK(dims, length, groups, device=device, threads=request.threads)
    seen = 0
    for start, chunk in embeddings.chunks():
        end = start + len(chunk)
        if start != seen or end > rows:
            raise DataError(f"embeddings gave rows {start:,} to {end:,} after {seen:,} of {rows:,}")
        group = samples.group_of_row[start:end] if groups > 1 else None
        lists.update(chunk, samples.positions[start:end], group)
        seen = end
        if request.progress:
            request.progress(seen, rows)
    return lists.result(), device


def _union(state: TopKState, eligible: np.ndarray) -> _Choice:
    """Take every list whole: rank 0 of all dimensions (and their classes), then rank 1, each sample once."""
    ranked = np.arange(state.values.shape[2])[:, None, None] < eligible.T[None]
    rank, dimension, group = np.nonzero(ranked)
    position = state.ids[group, dimension, rank]
    first = np.sort(np.unique(position, return_index=True)[1])
    rank, dimension, group = rank[first], dimension[first], group[first]
    score = state.values[group, dimension, rank]
    return position[first], dimension, rank, score, len(position) - len(first)


def _round_robin(state: TopKState, eligible: np.ndarray, samples: Samples, request: Request) -> _Choice | None:
    """Let each class go round its dimensions for its share, then put the classes' choices between each other."""
    groups, _, k = state.values.shape
    size = int(request.size or 0)
    group_of_place = interleave(samples.group_sizes, size)
    places = np.split(
        np.argsort(group_of_place, kind="stable"),
        np.cumsum(np.bincount(group_of_place, minlength=groups))[:-1],
    )
    position, dimension, rank = np.empty(size, np.int64), np.full(size, -1), np.empty(size, np.int64)
    score = np.zeros(size, np.float32)
    fillers = samples.permuted(request.seed)
    taken = np.zeros(len(samples), np.bool_)
    overlap = 0
    for group in range(groups):
        truncated = (eligible[group] == k) & (k < samples.group_sizes[group])
        wanted = len(places[group])
        drawn = np.empty((3, wanted), np.int64)
        given, skipped = _draw(state.ids[group], eligible[group], truncated, taken, drawn)
        if given < 0:
            return None
        place = places[group][:given]
        position[place], dimension[place], rank[place] = drawn[:, :given]
        score[place] = state.values[group, dimension[place], rank[place]]
        overlap += skipped
        rest = fillers[group][~taken[fillers[group]]][: wanted - given]
        place = places[group][given:]
        position[place], rank[place] = rest, np.arange(len(rest))
    return position, dimension, rank, score, int(overlap)


@njit(nogil=True, cache=True)
def _draw(lists, eligible, truncated, taken, drawn):
    """Go round the dimensions until `drawn` (position, dimension, rank: [3, wanted]) is full or all lists ran out.

    Return how many were drawn and how many were passed over as taken, or (-1, 0) when a list ended that was cut short.
    """
    dims, wanted = lists.shape[0], drawn.shape[1]
    cursor, alive = np.zeros(dims, np.int64), np.arange(dims)
    living, given, skipped = dims, 0, 0
    while living > 0 and given < wanted:
        kept = 0
        for i in range(living):
            if given == wanted:
                break
            d = alive[i]
            at = cursor[d]
            while at < eligible[d] and taken[lists[d, at]]:
                at += 1
                skipped += 1
            if at == eligible[d]:
                if truncated[d]:
                    return -1, 0
                continue
            taken[lists[d, at]] = True
            drawn[0, given], drawn[1, given], drawn[2, given] = lists[d, at], d, at
            given += 1
            cursor[d] = at + 1
            alive[kept] = d
            kept += 1
        living = kept
    return given, skipped
