"""The lists that a pass over embeddings leaves, and their exact merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastload.errors import UsageError
from fastload.kernels.topk import LOWEST
from fastload.kernels.topk_cpu import merge_lists

FIRST_IDS = 10
"""How many ids of rows with NaN or infinity are kept: the lowest ones."""


@dataclass(frozen=True)
class TopKState:
    """The lists of a pass, or of several merged ones, on the host.

    Lists of a pass with non-finite rows are of no use.

    Attributes:
        values: float32 [groups, dims, k], best first, -inf past `counts`.
        ids: int64 [groups, dims, k], -1 past `counts`.
        counts: int32 [groups, dims], how many entries each list has.
        minimum: float32 [dims], of all groups.
        maximum: float32 [dims], of all groups.
        rows: how many were seen.
        nonfinite: how many of them hold NaN or infinity.
        nonfinite_ids: int64, ascending, the lowest ids of those.
    """

    values: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    rows: int
    nonfinite: int
    nonfinite_ids: np.ndarray

    @classmethod
    def of_lists(
        cls,
        lists: tuple[np.ndarray, np.ndarray, np.ndarray],
        minimum: np.ndarray,
        rows: int,
        nonfinite: int,
        nonfinite_ids: np.ndarray,
    ) -> TopKState:
        """Return the state of sorted lists, (values, ids, counts): their best entries are the maximum."""
        values, ids, counts = lists
        maximum = values[:, :, 0].max(axis=0)
        return cls(values, ids, counts, minimum + np.float32(0), maximum, rows, nonfinite, nonfinite_ids)


def merge_states(a: TopKState, b: TopKState) -> TopKState:
    """Return the state of both passes together: exact, whatever the order in which states are merged.

    Raises UsageError for states of other shapes. No sample may be in both.
    """
    if a.values.shape != b.values.shape:
        raise UsageError(f"cannot merge top-k states of shapes {a.values.shape} and {b.values.shape}")
    groups, dims, k = a.values.shape
    values, ids, counts = empty_lists(groups, dims, k)
    merge_lists(
        *_flat(a.values, a.ids, a.counts),
        *_flat(b.values, b.ids, b.counts),
        *_flat(values, ids, counts),
    )
    return TopKState(
        values=values,
        ids=ids,
        counts=counts,
        minimum=np.minimum(a.minimum, b.minimum),
        maximum=np.maximum(a.maximum, b.maximum),
        rows=a.rows + b.rows,
        nonfinite=a.nonfinite + b.nonfinite,
        nonfinite_ids=np.sort(np.concatenate([a.nonfinite_ids, b.nonfinite_ids]))[:FIRST_IDS],
    )


def empty_lists(groups: int, dims: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (values, ids, counts) of lists without an entry."""
    shape = (groups, dims, k)
    return np.full(shape, LOWEST), np.full(shape, -1, np.int64), np.zeros((groups, dims), np.int32)


def on_host(array: Any) -> np.ndarray:
    """Return a NumPy array or a tensor of any device as a NumPy array."""
    return array.cpu().numpy() if hasattr(array, "cpu") else np.asarray(array)


def _flat(values: np.ndarray, ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return views whose first axis runs over all lists."""
    k = values.shape[2]
    return values.reshape(-1, k), ids.reshape(-1, k), counts.reshape(-1)
