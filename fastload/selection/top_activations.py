"""`top-activations`, the paper's Eq. 4: for each embedding dimension, the samples that activate it most.

    Y = ⋃_j top-k { x_i : z_ij }

`per_dimension=k` is that union. `size=N` goes round the dimensions, each giving its next sample not yet chosen.
The embeddings are only ever seen as `TopK` lists, so one pass over them is enough, which may be the encoder's own;
where the lists were too short to tell, the pass is repeated with lists twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.errors import DataError, UsageError
from fastload.kernels.compiling import njit
from fastload.kernels.topk_cuda import MAX_K_CUDA
from fastload.selection.base import (
    Pass,
    Request,
    Samples,
    Selection,
    not_finite,
    places_of_groups,
)
from fastload.selection.topk import TopK
from fastload.selection.topk_state import TopKState

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
    report = report_length(request, embeddings.shape[1]) if request.overlap else 0
    lists: Pass = ListsPass(samples, request, embeddings.shape[1], report=report)
    while (selection := read(embeddings, lists, request.progress).selection()) is None:
        lists = lists.again()
    if not request.overlap:
        return selection
    return replace(selection, report={**selection.report, "lists": measure_overlap(lists.strongest())})


def report_length(request: Request, columns: int) -> int:
    """Return how many of each dimension's strongest samples a report looks at: those that a plain union takes."""
    return request.per_dimension or -(-(request.size or 1) // columns)


def measure_overlap(strongest: TopKState) -> dict[str, int]:
    """Return how much the dimensions' lists (one group) of their `k` strongest samples share.

    `entries` of all lists name `distinct` samples; the sample in most lists is in `most` of them. Only what is above a
    dimension's minimum counts, as in the selection.
    """
    k = strongest.values.shape[2]
    listed = np.arange(k) < strongest.counts[0][:, None]
    real = listed & (strongest.values[0] > strongest.minimum[:, None])
    _, times = np.unique(strongest.ids[0][real], return_counts=True)
    return {"k": k, "entries": int(times.sum()), "distinct": len(times), "most": int(times.max()) if len(times) else 0}


def read(embeddings: Embeddings, lists: Pass, progress: Callable[[int, int], None] | None = None) -> Pass:
    """Show a pass all embeddings, and return it; `progress` hears of (rows done, rows in all)."""
    for start, chunk in embeddings.chunks():
        lists.update(start, chunk)
        if progress:
            progress(lists.rows, embeddings.shape[0])
    return lists


class ListsPass:
    """One pass: the strongest samples of each dimension (and class) so far; see `Pass`.

    Arguments:
        samples: as for a strategy.
        request: as for a strategy.
        dims: the embeddings' width.
        report: how many of each dimension's strongest samples, of all classes, `strongest` returns.
        length: of the lists; by default that of a first pass.
        passes: how many there were, with this one.
    """

    def __init__(
        self, samples: Samples, request: Request, dims: int, *, report: int = 0, length: int = 0, passes: int = 1
    ) -> None:
        self._samples, self._request, self._dims, self._report = samples, request, dims, report
        self._length, self.passes = length or list_length(request, samples, dims), passes
        self.rows = 0
        self._lists = self._empty(self._length, len(samples.group_sizes))
        # Lists by class are too short to tell the strongest of all classes, and with one class they are those.
        balanced = len(samples.group_sizes) > 1
        self._overall = self._empty(report, 1) if report > (0 if balanced else self._length) else None

    def _empty(self, length: int, groups: int) -> TopK:
        return TopK(self._dims, length, groups, device=self._device(length), threads=self._request.threads)

    def _device(self, length: int) -> str:
        # Longer lists than the GPU's kernels take are made by their CPU twin; the report says so.
        return self._request.device if length <= MAX_K_CUDA else "cpu"

    def update(self, first: int, chunk: Any) -> None:
        """Look at rows `first`, first + 1, …"""
        end = first + len(chunk)
        if first != self.rows or end > len(self._samples):
            raise DataError(f"embeddings gave rows {first:,} to {end:,} after {self.rows:,} of {len(self._samples):,}")
        positions = self._samples.positions[first:end]
        groups = len(self._samples.group_sizes)
        self._lists.update(chunk, positions, self._samples.group_of_row[first:end] if groups > 1 else None)
        if self._overall is not None:
            self._overall.update(chunk, positions)
        self.rows = end

    def save(self) -> dict[str, np.ndarray]:
        """Return what `restore` takes: the lists, and how far they are."""
        found = {"passes": np.array([self.passes])}
        for name, lists in (("lists", self._lists), ("overall", self._overall)):
            if lists is not None:
                state = lists.result()
                found |= {f"{name}.{field.name}": np.array(getattr(state, field.name)) for field in fields(state)}
        return found

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Become the pass that was saved."""
        state = _state(saved, "lists")
        self._length, self.passes, self.rows = state.values.shape[2], int(saved["passes"][0]), state.rows
        self._lists = self._empty(self._length, len(self._samples.group_sizes))
        self._lists.merge(state)
        self._overall = None
        if "overall.values" in saved:
            self._overall = self._empty(self._report, 1)
            self._overall.merge(_state(saved, "overall"))

    def selection(self) -> Selection | None:
        """Return the selection, or None where a list was too short to tell."""
        selection = choose(self._lists.result(), self._samples, self._request)
        if selection is None:
            return None
        report = {**selection.report, "passes": self.passes, "device": self._device(self._length)}
        return replace(selection, report=report)

    def again(self) -> ListsPass:
        """Return a pass with lists twice as long."""
        longer = min(2 * self._length, int(self._samples.group_sizes.max()))
        return ListsPass(
            self._samples, self._request, self._dims, report=self._report, length=longer, passes=self.passes + 1
        )

    def strongest(self) -> TopKState:
        """Return lists of the `report` strongest samples of each dimension, of all classes, by position."""
        if self._overall is not None:
            return self._overall.result()
        state = self._lists.result()
        k = self._report
        return replace(
            state, values=state.values[:, :, :k], ids=state.ids[:, :, :k], counts=np.minimum(state.counts, k)
        )


def _state(saved: Mapping[str, np.ndarray], name: str) -> TopKState:
    found = {field.name: saved[f"{name}.{field.name}"] for field in fields(TopKState)}
    rows, nonfinite = int(found.pop("rows")), int(found.pop("nonfinite"))
    return TopKState(**found, rows=rows, nonfinite=nonfinite)


def list_length(request: Request, samples: Samples, dims: int) -> int:
    """Return how long the lists of the first pass are: 2·⌈N/n⌉ for a size N (a class's part of it) of n dimensions."""
    largest = int(samples.group_sizes.max())
    if request.size is None:
        return min(int(request.per_dimension or 1), largest)
    if request.equal:
        share = int(np.bincount(places_of_groups(samples, request)).max())
    else:
        share = -(-request.size * largest // len(samples))
    return min(2 * -(-share // dims), largest)


def choose(state: TopKState, samples: Samples, request: Request) -> Selection | None:
    """Return the selection that the lists hold, or None where a list was too short to tell.

    Arguments:
        state: lists over all samples by their positions (`Samples.positions`), with one group for each class.

    Raises DataError for NaN or infinity in the embeddings.
    """
    if state.nonfinite:
        raise not_finite(state.nonfinite, samples, state.nonfinite_ids)
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
        ids,
        dimension.astype(np.int32),
        rank.astype(np.int32),
        score.astype(np.float32),
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
    )


def _settings(request: Request, samples: Samples) -> dict[str, Any]:
    amount = {"size": request.size} if request.size is not None else {"per_dimension": request.per_dimension}
    return {
        "strategy": "top-activations",
        **amount,
        "seed": request.seed,
        "samples": len(samples),
        "balanced": samples.classes is not None,
    }


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
    group_of_place = places_of_groups(samples, request)
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


@njit(nogil=True)
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
