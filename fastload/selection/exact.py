"""Sums over embeddings that are exact: neither chunks, threads nor the order of rows can change a bit of them.

Values become integers on a grid. Products of two such numbers, summed over a piece of rows or over the
dimensions, stay below 2⁵³, where float64 is exact, and so is BLAS in whatever order.

The grid spans what nearly all samples span: beyond it values count as its ends, so that a single sample of 10⁶ does not
leave one level to all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastload.embedding.chunks import Embeddings
from fastload.errors import DataError, UsageError
from fastload.order import permutation
from fastload.selection.base import Request, Samples, Selection, not_finite
from fastload.selection.top_activations import top_activations

MOST_BITS = 19
_PIECE_ROWS = 8192
_PIECE_VALUES = 1 << 21
"""In a piece of rows: 16 MB as float64, a few of which are held at once."""
_LOOKED_AT = 4096
_LOOKED_AT_VALUES = 1 << 25
_HEADROOM = 64
"""How many times as wide as the bulk of the samples a grid may be: 8,192 of its levels are then the bulk's."""
_WIDER = 256
"""How many times as wide as most dimensions the widest may be, for a step that all share."""


def piece_rows(dims: int) -> int:
    """Return how many rows of so many dimensions are looked at together."""
    return max(32, min(_PIECE_ROWS, _PIECE_VALUES // dims))


def pieces(embeddings: Embeddings, samples: Sized, request: Request) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, float32 [rows, dims]) over all rows; report progress. Raises DataError for a wrong number."""
    rows, dims = embeddings.shape
    seen, step = 0, piece_rows(dims)
    for start, chunk in embeddings.chunks():
        end = start + len(chunk)
        if start != seen or end > rows:
            raise DataError(f"embeddings gave rows {start:,} to {end:,} after {seen:,} of {rows:,}")
        for first in range(0, len(chunk), step):
            piece = chunk[first : first + step]
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
    """Integers 0…`levels` in place of values: `(value - low) / step`, rounded; arrays are float64 [dims].

    Values below `low` and above `high` count as those. A dimension that never varies (not `alive`) is 0 everywhere.
    """

    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    alive: np.ndarray
    levels: int

    def quantized(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 values [rows, dims] as integers of the grid, held in float64."""
        found = np.clip(rows, self.low, self.high, dtype=np.float64)
        found -= self.low
        found /= self.step
        return np.rint(found, out=found)


def grid_bits(rows: int, dims: int) -> int:
    """Return how many bits integers have, so that sums over rows fit int64 and those over dimensions float64."""
    return max(4, min(MOST_BITS, (62 - rows.bit_length()) // 2, (52 - dims.bit_length()) // 2))


def measure_grid(embeddings: Embeddings | None, samples: Samples, request: Request, name: str, shared: bool) -> Grid:
    """Make a pass for the extent of each dimension, and of the bulk of its samples.

    Arguments:
        name: the strategy's, for messages.
        shared: one step for all dimensions, the widest one's, so that distances keep their meaning; else one for each.

    Raises UsageError where there are no embeddings, DataError for NaN or infinity, with the count and the first ids.
    """
    if embeddings is None:
        raise UsageError(f"{name} ranks samples by their embeddings, and none were given")
    dims, count = embeddings.shape[1], len(samples)
    # The same few for any order of rows; all of them where there are no more.
    few = min(count, _LOOKED_AT, max(64, _LOOKED_AT_VALUES // dims))
    place = np.full(count, -1)
    place[permutation(count, 0)[:few]] = np.arange(few)
    looked_at = np.empty((few, dims), np.float32)
    minimum, maximum = np.full(dims, np.inf), np.full(dims, -np.inf)
    bad: list[np.ndarray] = []
    for start, rows in pieces(embeddings, samples, request):
        positions = samples.positions[start : start + len(rows)]
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            bad.append(positions[~finite])
            continue
        minimum = np.minimum(minimum, rows.min(axis=0))
        maximum = np.maximum(maximum, rows.max(axis=0))
        places = place[positions]
        looked_at[places[places >= 0]] = rows[places >= 0]
    if bad:
        positions = np.sort(np.concatenate(bad))
        raise not_finite(len(positions), samples, positions)
    low, high = _limits(looked_at, minimum, maximum, shared)
    extent = high - low
    if shared:
        extent = np.full(dims, extent.max())
    levels = 2 ** grid_bits(count, dims) - 1
    return Grid(low, high, np.where(extent > 0, extent, 1.0) / levels, maximum > minimum, levels)


def _limits(
    values: np.ndarray, minimum: np.ndarray, maximum: np.ndarray, shared: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of each dimension's grid: its extent, unless its bulk is far narrower.

    Arguments:
        values: some samples' values [samples, dims], which are sorted in place.
        minimum: of all samples, float64 [dims].
        maximum: likewise.
    """
    values.sort(axis=0)
    count = len(values)
    width, lower = np.zeros(len(minimum)), values[count // 2].astype(np.float64)
    upper = lower.copy()
    # Without a tenth at either end; where all others are equal, as a sparse activation's zeros, without fewer.
    for left_out in sorted({share for share in (count // 10, count // 100, count // 1000, 1) if share}, reverse=True):
        if 2 * left_out < count:
            first, last = values[left_out].astype(np.float64), values[count - 1 - left_out].astype(np.float64)
            new = (width == 0) & (last > first)
            width[new], lower[new], upper[new] = (last - first)[new], first[new], last[new]
    known = width > 0
    if shared and known.any():
        width[:] = min(width.max(), _WIDER * np.median(width[known]))
        known[:] = True
    far = known & (maximum - minimum > _HEADROOM * width)
    room = _HEADROOM / 2 * width
    return (
        np.where(far, np.maximum(minimum, lower - room), minimum),
        np.where(far, np.minimum(maximum, upper + room), maximum),
    )


@dataclass(frozen=True)
class Moments:
    """Of the integers: mean and standard deviation, float64 [dims]."""

    mean: np.ndarray
    stddev: np.ndarray


def measure_moments(embeddings: Embeddings, samples: Samples, request: Request, grid: Grid) -> Moments:
    """Make a pass for the moments of the grid's integers."""
    dims = embeddings.shape[1]
    total, squares = np.zeros(dims, np.int64), np.zeros(dims, np.int64)
    for _, rows in pieces(embeddings, samples, request):
        quantized = grid.quantized(rows)
        total += quantized.sum(axis=0).astype(np.int64)
        squares += np.einsum("nd,nd->d", quantized, quantized).astype(np.int64)
    mean = total / len(samples)
    return Moments(mean, np.sqrt(np.maximum(squares / len(samples) - mean**2, 0.0)))


def measure_covariance(
    embeddings: Embeddings, samples: Samples, request: Request, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """Make a pass for the mean [dims] and the covariance [dims, dims], float64, of the grid's integers."""
    dims = embeddings.shape[1]
    total, cross = np.zeros(dims, np.int64), np.zeros((dims, dims), np.int64)
    for _, rows in pieces(embeddings, samples, request):
        quantized = grid.quantized(rows)
        total += quantized.sum(axis=0).astype(np.int64)
        cross += (quantized.T @ quantized).astype(np.int64)
    mean = total / len(samples)
    covariance = cross / len(samples)
    covariance -= np.outer(mean, mean)
    return mean, covariance


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
