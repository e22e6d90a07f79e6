"""What a strategy gets and what it gives: samples, a request, a ranking of which every prefix is valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastload.common.arguments import flag, integer, seed64
from fastload.embedding.chunks import Embeddings
from fastload.errors import DataError, UsageError
from fastload.kernels.compiling import njit
from fastload.order import permutation
from fastload.selection.given_scores import Scores
from fastload.selection.topk_state import TopKState


@dataclass(frozen=True)
class Selection:
    """Chosen samples in order of choice; every prefix is the valid smaller selection.

    Arguments:
        ids: int64 [N], distinct.
        dimension: int32 [N], the embedding dimension that chose the sample, -1 where none did.
        rank: int32 [N], its place in that dimension's list (from 0), or in the permuted order where none chose it.
        score: float32 [N], its activation there, or 0.
        report: plain numbers, strings and lists, for people and logs.
    """

    ids: np.ndarray
    dimension: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    report: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Samples:
    """The samples of a set, told apart by position: a sample's place in the order of ids.

    Arguments:
        sorted_ids: int64 [n].
        positions: int64 [n], of each row.
        group_of_row: int64 [n], each row's class, all 0 when nothing is balanced.
        group_sizes: int64 [G].
        classes: the labels' values [G], None when nothing is balanced.
    """

    sorted_ids: np.ndarray
    positions: np.ndarray
    group_of_row: np.ndarray
    group_sizes: np.ndarray
    classes: np.ndarray | None

    @classmethod
    def of(cls, ids: Any, labels: Any = None) -> Samples:
        """Check ids (integers [n]) and labels ([n], or None), each row's. Raises DataError and UsageError."""
        ids = _plain(ids, "ids")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(f"ids are {ids.dtype} of shape {ids.shape}; one integer a sample was expected")
        if not len(ids):
            raise DataError("there are no samples to select from")
        if ids.dtype.kind == "u" and int(ids.max()) >= 2**63:
            raise DataError(f"ids hold {int(ids.max())}; they must be below 2^63")
        ids = ids.astype(np.int64, copy=False)
        if (ids[1:] > ids[:-1]).all():
            sorted_ids, positions = ids, np.arange(len(ids))
        else:
            order = np.argsort(ids, kind="stable")
            sorted_ids, positions = ids[order], np.empty(len(ids), np.int64)
            positions[order] = np.arange(len(ids))
            repeated = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
            if len(repeated):
                first = ", ".join(map(str, np.unique(repeated)[:10]))
                raise DataError(f"{len(repeated):,} ids occur more than once, the first: {first}; make them distinct")
        if labels is None:
            return cls(sorted_ids, positions, np.zeros(len(ids), np.int64), np.array([len(ids)]), None)
        labels = _plain(labels, "labels")
        if labels.shape != ids.shape:
            raise UsageError(
                f"labels of shape {labels.shape} for {len(ids):,} samples; balancing needs one label a sample"
            )
        if labels.dtype.kind not in "iubfUS":
            missing = [row for row, label in enumerate(labels.tolist()) if label is None]
            what = f"None in row {missing[0]}" if missing else f"values of type {labels.dtype}"
            raise DataError(f"labels hold {what}; balancing needs a class, a number or a text, for each sample")
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise DataError("labels hold NaN or infinity; balancing needs a class for each sample")
        classes, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        return cls(sorted_ids, positions, group.astype(np.int64), sizes.astype(np.int64), classes)

    def __len__(self) -> int:
        return len(self.sorted_ids)

    def by_position(self, of_row: np.ndarray) -> np.ndarray:
        """Return each row's values [n] in the order of positions."""
        found = np.empty_like(of_row)
        found[self.positions] = of_row
        return found

    def permuted(self, seed: int) -> list[np.ndarray]:
        """Return each group's positions, int64, in the permuted order of all samples."""
        return self.by_group(permutation(len(self), seed))

    def by_group(self, order: np.ndarray) -> list[np.ndarray]:
        """Return each group's positions, int64, as they come in an order of all positions."""
        if len(self.group_sizes) == 1:
            return [order]
        by_group = np.argsort(self.by_position(self.group_of_row)[order], kind="stable")
        return np.split(order[by_group], np.cumsum(self.group_sizes)[:-1])

    def counts_by_class(self, ids: np.ndarray) -> dict[str, int]:
        """Return how many of `ids` each class has, by the label as text; empty when nothing is balanced."""
        if self.classes is None:
            return {}
        chosen = self.by_position(self.group_of_row)[np.searchsorted(self.sorted_ids, ids)]
        counts = np.bincount(chosen, minlength=len(self.classes))
        return {str(label): int(count) for label, count in zip(self.classes, counts, strict=True)}


def _plain(values: Any, what: str) -> np.ndarray:
    """Return ids or labels as an array; DataError for what only looks like one."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise DataError(f"{what} are masked in row {int(np.flatnonzero(np.ma.getmaskarray(values))[0])}; fill them")
        values = values.data
    if hasattr(values, "toarray"):
        raise DataError(f"{what} are a sparse {type(values).__name__}; give a dense array, with .toarray()")
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{what} are no array, one value a sample ({error})") from error


class NotFinite(DataError):
    """Samples whose embeddings or scores hold NaN or infinity.

    Arguments:
        found: what was found.
        where: in how many samples, and in which.
        mend: what to do about it, if not to leave them out.
    """

    def __init__(self, found: str, where: str, mend: str) -> None:
        super().__init__(f"{found} in {where}; {mend}, or leave them out")
        self.found, self.mend = found, mend


def not_finite(count: int, samples: Samples, positions: np.ndarray, *, scores: bool = False) -> NotFinite:
    """Return the error for `count` samples with NaN or infinity, the first of them at `positions`."""
    first = ", ".join(str(samples.sorted_ids[position]) for position in positions[:_FIRST_IDS])
    more = f" and {count - _FIRST_IDS:,} more" if count > _FIRST_IDS else ""
    where = f"{count:,} of {len(samples):,} samples, of ids {first}{more}"
    if scores:
        return NotFinite("scores are missing, NaN, infinite or beyond float32", where, "give these a score")
    return NotFinite("embeddings hold NaN or infinity", where, "embed these again")


@dataclass(frozen=True)
class Request:
    """How much is wanted, and with what: exactly one of `size` and `per_dimension` is set.

    equal: each class gives as many as the others, not its share of the samples.
    overlap: the report tells how much the dimensions' lists share.
    scores: each row's, for a strategy that chooses by scores that were brought.
    progress: called with (rows done, rows in all) as a pass over the embeddings goes on; a second pass starts over.
    """

    size: int | None = None
    per_dimension: int | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    progress: Callable[[int, int], None] | None = None
    equal: bool = False
    overlap: bool = False
    scores: Scores | None = None

    def __post_init__(self) -> None:
        for name in ("size", "per_dimension", "threads"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, integer(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", seed64(self.seed))
        for name in ("equal", "overlap"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.scores is not None and not isinstance(self.scores, Scores):
            raise UsageError(f"scores={type(self.scores).__name__}(…); give Scores(values, hardest=…)")
        if self.progress is not None and not callable(self.progress):
            raise UsageError(f"progress={self.progress!r}; it is called with (rows done, rows in all)")

    def check(self, samples: int) -> None:
        """Raise UsageError for amounts that `samples` samples cannot give, DataError for scores of others."""
        if self.scores is not None and len(self.scores.values) != samples:
            raise DataError(f"there are {len(self.scores.values):,} scores for {samples:,} samples; give one for each")
        if (self.size is None) == (self.per_dimension is None):
            raise UsageError("say how much to select: either size or per_dimension")
        for name, value in (("size", self.size), ("per_dimension", self.per_dimension)):
            if value is not None and value > samples:
                raise UsageError(
                    f"{name}={value:,} but there are only {samples:,} samples; ask for {samples:,} at most"
                )


class Strategy(Protocol):
    """Rank samples: the order must not depend on chunks, device, threads or the order of rows."""

    def __call__(self, embeddings: Embeddings | None, samples: Samples, request: Request) -> Selection: ...


class Pass(Protocol):
    """One look at all embeddings, in the order of rows, by a strategy that needs no more: nobody has to store them.

    What it keeps is small. It can be saved after any chunk, and a first pass made with the same arguments takes it over
    with `restore` and is then the pass that was saved.
    """

    @property
    def rows(self) -> int:
        """How many rows were seen."""
        ...

    def update(self, first: int, chunk: Any) -> None:
        """Look at rows `first`, first + 1, …: float32 or float16 [rows, dims]."""
        ...

    def save(self) -> dict[str, np.ndarray]: ...

    def restore(self, saved: Mapping[str, np.ndarray]) -> None: ...

    def selection(self) -> Selection | None:
        """Return the selection after the last row, or None where `again` has to look once more."""
        ...

    def again(self) -> Pass:
        """Return the next pass, which keeps more."""
        ...

    def strongest(self) -> TopKState:
        """Return each dimension's strongest samples by position, as many as the pass was asked to report."""
        ...


class StreamingStrategy(Protocol):
    """Begin the first pass of a strategy: `report` strongest samples a dimension are kept for the report."""

    def __call__(self, samples: Samples, request: Request, dims: int, *, report: int = 0) -> Pass: ...


_FIRST_IDS = 10


@njit(nogil=True)
def take_turns(sizes, count):
    """Return which group gives each of `count` places, int64: the one that gave least, of those with any left."""
    given = np.zeros(sizes.size, np.int64)
    out = np.empty(count, np.int64)
    for t in range(count):
        best = -1
        for g in range(sizes.size):
            if given[g] < sizes[g] and (best < 0 or given[g] < given[best]):
                best = g
        given[best] += 1
        out[t] = best
    return out


def places_of_groups(samples: Samples, request: Request) -> np.ndarray:
    """Return which class gives each of `request.size` places: by shares of the samples, or all alike."""
    return (take_turns if request.equal else interleave)(samples.group_sizes, request.size)


def first_of_groups(order: np.ndarray, samples: Samples, request: Request) -> np.ndarray:
    """Return the `request.size` positions that come first in an order of all, int64: of each class, its share."""
    group_of_place = places_of_groups(samples, request)
    quotas = np.bincount(group_of_place, minlength=len(samples.group_sizes))
    found = np.empty(len(group_of_place), np.int64)
    found[np.argsort(group_of_place, kind="stable")] = np.concatenate(
        [positions[:quota] for positions, quota in zip(samples.by_group(order), quotas, strict=True)]
    )
    return found


def facts_of_draw(name: str, samples: Samples, request: Request, ids: np.ndarray, passes: int = 0) -> dict[str, Any]:
    """Return what a strategy that draws at random reports, whatever it draws from."""
    return {
        "strategy": name,
        "size": request.size,
        "seed": request.seed,
        "samples": len(samples),
        "distinct": len(ids),
        "balanced": samples.classes is not None,
        "per_class_counts": samples.counts_by_class(ids),
        "passes": passes,
    }


@njit(nogil=True)
def interleave(sizes, count):
    """Return which group gives each of `count` places, int64: the one furthest behind its share, the first of equals.

    After t places group g is owed t·sizes[g]/sum(sizes). One that gets a place is owed something, so that no group
    is ever asked for more than it has, and a shorter answer is a prefix of a longer one.
    """
    total = sizes.sum()
    given = np.zeros(sizes.size, np.int64)
    out = np.empty(count, np.int64)
    for t in range(count):
        best, best_deficit = 0, np.int64(-(2**62))
        for g in range(sizes.size):
            deficit = (t + 1) * sizes[g] - given[g] * total
            if deficit > best_deficit:
                best, best_deficit = g, deficit
        given[best] += 1
        out[t] = best
    return out
