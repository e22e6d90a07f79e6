"""Exact top-k down the columns of embeddings that arrive in chunks, on the CPU or on a GPU.

What is kept and why it is exact: `kernels/topk.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastload.common.processors import processors
from fastload.errors import UsageError
from fastload.kernels.topk import BFLOAT16, FLOAT16, FLOAT32
from fastload.selection.topk_cpu import CpuLists
from fastload.selection.topk_cuda import CudaLists
from fastload.selection.topk_state import TopKState, merge_states, on_host


class TopK:
    """Keep each column's k best rows of a matrix that arrives in chunks, on the CPU or on a GPU.

    Arguments:
        dims: the matrix's width.
        k: entries kept a column and group, at most 1,024 on CUDA.
        groups: 1, or the number of classes.
        device: "cpu" or "cuda".
        threads: for the CPU; None for as many as there are processors.

    Raises UsageError for sizes out of range and for CUDA where there is none.
    """

    def __init__(self, dims: int, k: int, groups: int = 1, device: str = "cpu", threads: int | None = None) -> None:
        for name, value in (("dims", dims), ("k", k), ("groups", groups)):
            if value < 1:
                raise UsageError(f"top-k needs at least one of {name}, not {value}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}; at least one is needed")
        self.dims, self.k, self.groups = dims, k, groups
        kind = str(device).partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise UsageError(f'device={device!r}; it is "cpu" or "cuda"')
        self._lists: CpuLists | CudaLists
        if kind == "cuda":
            self._lists = CudaLists(dims, k, groups, str(device))
        else:
            self._lists = CpuLists(dims, k, groups, threads or processors())
        self._merged: TopKState | None = None
        self._rows = 0

    def update(self, embeddings: Any, ids: Any, group_of_row: Any = None) -> None:
        """Take in a chunk.

        Arguments:
            embeddings: [R, dims]; float32, float16, or bfloat16 (as a torch tensor, or as its uint16 bits in NumPy);
                NumPy or torch; on the GPU only for device="cuda", where the launch is on torch's current stream.
            ids: int64 [R], in any order, each id once in all chunks; a `range` where they are consecutive.
            group_of_row: integers [R] in 0…groups - 1, where there is more than one group.
        """
        x, kind = _matrix(embeddings)
        rows = int(x.shape[0]) if x.ndim == 2 else -1
        if x.ndim != 2 or x.shape[1] != self.dims:
            raise UsageError(f"embeddings of shape {tuple(x.shape)}, but {self.dims} columns were expected")
        if len(ids) != rows:
            raise UsageError(f"{len(ids):,} ids for {rows:,} rows of embeddings")
        if rows == 0:
            return
        if not (isinstance(ids, range) and ids.step == 1):
            ids = np.ascontiguousarray(on_host(ids), np.int64)
        order, bounds = _by_group(group_of_row, rows, self.groups)
        self._lists.update(x, kind, ids, order, bounds)
        self._rows += rows

    def merge(self, other: TopK | TopKState) -> None:
        """Add what another pass (a thread's, another rank's) has seen."""
        state = other.result() if isinstance(other, TopK) else other
        self._merged = state if self._merged is None else merge_states(self._merged, state)

    def result(self) -> TopKState:
        """Return the state so far; further updates go on from it."""
        state = self._lists.state(self._rows)
        return state if self._merged is None else merge_states(state, self._merged)


def _matrix(embeddings: Any) -> tuple[Any, int]:
    """Return embeddings as float32, or as 16-bit integers that hold the bits of `kind`; no copy."""
    name = str(embeddings.dtype).rpartition(".")[2]
    is_tensor = hasattr(embeddings, "data_ptr")
    if name == "float32":
        return embeddings, FLOAT32
    if name == "float16":
        kind = FLOAT16
    elif name == "bfloat16" or (name == "uint16" and not is_tensor):
        kind = BFLOAT16
    else:
        raise UsageError(f"embeddings of type {name}; float32, float16 or bfloat16 were expected")
    if is_tensor:
        import torch

        return embeddings.contiguous().view(torch.int16), kind
    return np.ascontiguousarray(embeddings).view(np.int16), kind


def _by_group(group_of_row: Any, rows: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows sorted by group (empty where there is one group) and where each group begins and ends."""
    if group_of_row is None:
        if groups > 1:
            raise UsageError(f"there are {groups} groups, but rows came without their group")
        return np.empty(0, np.int64), np.array([0, rows], np.int64)
    group_of_row = on_host(group_of_row)
    if group_of_row.shape != (rows,):
        raise UsageError(f"groups of shape {group_of_row.shape} for {rows:,} rows of embeddings")
    if group_of_row.min() < 0 or group_of_row.max() >= groups:
        raise UsageError(f"groups of rows go from {group_of_row.min()} to {group_of_row.max()}, not 0…{groups - 1}")
    sizes = np.bincount(group_of_row, minlength=groups)
    order = np.argsort(group_of_row, kind="stable") if groups > 1 else np.empty(0, np.int64)
    return order.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
