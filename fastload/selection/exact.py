"""Sums over embeddings that are exact: neither chunks, threads nor the order of rows can change a bit of them.

Values become whole numbers of 16 bits on a grid between minimum and maximum. Products of two such numbers, summed over
a piece of rows or over the dimensions, stay below 2⁵³, where float64 is exact, and so is BLAS in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.selection.base import Embeddings, Request, Samples, Selection
from fastload.selection.top_activations import top_activations

LEVELS = 2**16 - 1
_PIECE_ROWS = 8192
"""Rows at a time: 14 MB of float64 for 216 dimensions."""
_FIRST_IDS = 10


def pieces(embeddings: Embeddings, samples: Samples, request: Request) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, float32 [rows, dims]) over all rows; report progress. Raises DataError for a wrong number."""
    rows, seen = embeddings.shape[0], 0
    for start, chunk in embeddings.chunks():
        end = start + len(chunk)
        if start != seen or end > rows:
            raise DataError(f"embeddings gave rows {start:,} to {end:,} after {seen:,} of {rows:,}")
        for first in range(0, len(chunk), _PIECE_ROWS):
            piece = chunk[first : first + _PIECE_ROWS]
            # Tensors may be of a type that NumPy has not, or on a device.
            array = piece if isinstance(piece, np.ndarray) else piece.float().cpu().numpy()
            yield start + first, array.astype(np.float32, copy=False)
        seen = end
        if request.progress:
            request.progress(seen, rows)
    if seen != len(samples):
        raise DataError(f"embeddings gave {seen:,} rows for {len(samples):,} samples")


@dataclass(frozen=True)
class Grid:
    """Whole numbers 0…65,535 in place of values: `(value - minimum) / step`, rounded; all float64 [dims].

    A dimension that never varies is 0 everywhere.
    """

    minimum: np.ndarray
    step: np.ndarray
    alive: np.ndarray

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """Return the whole numbers, as float64 [rows, dims], of float32 values."""
        return np.rint((rows.astype(np.float64) - self.minimum) / self.step)


def measure_grid(embeddings: Embeddings | None, samples: Samples, request: Request, name: str, shared: bool) -> Grid:
    """Make a pass for the extent of each dimension.

    Arguments:
        name: the strategy's, for messages.
        shared: one step for all dimensions, the widest one's, so that distances keep their meaning; else one for each.

    Raises UsageError where there are no embeddings, DataError for NaN or infinity, with the count and the first ids.
    """
    if embeddings is None:
        raise UsageError(f"{name} ranks samples by their embeddings, and none were given")
    dims = embeddings.shape[1]
    minimum, maximum = np.full(dims, np.inf), np.full(dims, -np.inf)
    bad: list[np.ndarray] = []
    for start, rows in pieces(embeddings, samples, request):
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            bad.append(samples.positions[start : start + len(rows)][~finite])
            continue
        minimum = np.minimum(minimum, rows.min(axis=0))
        maximum = np.maximum(maximum, rows.max(axis=0))
    if bad:
        positions = np.sort(np.concatenate(bad))
        first = ", ".join(str(samples.sorted_ids[position]) for position in positions[:_FIRST_IDS])
        raise DataError(
            f"embeddings hold NaN or infinity in {len(positions):,} of {len(samples):,} samples, "
            f"the first ids: {first}; embed these again or leave them out"
        )
    extent = maximum - minimum
    if shared:
        extent = np.full(dims, extent.max())
    return Grid(minimum, np.where(extent > 0, extent, 1.0) / LEVELS, maximum > minimum)


@dataclass(frozen=True)
class Moments:
    """Of the whole numbers: mean and standard deviation [dims], covariance [dims, dims], float64."""

    mean: np.ndarray
    stddev: np.ndarray
    covariance: np.ndarray


def measure_moments(embeddings: Embeddings, samples: Samples, request: Request, grid: Grid) -> Moments:
    """Make a pass for the moments of the grid's whole numbers."""
    dims = embeddings.shape[1]
    total, cross = np.zeros(dims, np.int64), np.zeros((dims, dims), np.int64)
    for _, rows in pieces(embeddings, samples, request):
        whole = grid.whole(rows)
        total += whole.sum(axis=0).astype(np.int64)
        cross += (whole.T @ whole).astype(np.int64)
    mean = total / len(samples)
    covariance = cross / len(samples) - np.outer(mean, mean)
    return Moments(mean, np.sqrt(np.maximum(np.diagonal(covariance), 0.0)), covariance)


@dataclass(frozen=True)
class _Columns:
    """Embeddings made of embeddings: `make` turns float32 [rows, dims] into [rows, columns], row by row."""

    embeddings: Embeddings
    samples: Samples
    request: Request
    columns: int
    make: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        return self.embeddings.shape[0], self.columns

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start, rows in pieces(self.embeddings, self.samples, replace(self.request, progress=None)):
            yield start, np.ascontiguousarray(self.make(rows), dtype=np.float32)


def rank_columns(
    name: str,
    embeddings: Embeddings,
    samples: Samples,
    request: Request,
    columns: int,
    make: Callable[[np.ndarray], np.ndarray],
    facts: Mapping[str, Any],
    passes: int,
) -> Selection:
    """Return what top-activations chooses from the columns that `make` makes of each row.

    Arguments:
        make: from float32 [rows, dims] to [rows, columns], each value decided by its row alone, to the last bit.
        facts, passes: for the report: what the columns are, and the passes over the embeddings that it took so far.
    """
    derived = _Columns(embeddings, samples, request, columns, make)
    chosen = top_activations(derived, samples, request)
    report = {**chosen.report, "strategy": name, **facts, "passes": chosen.report["passes"] + passes}
    return replace(chosen, report=report)
