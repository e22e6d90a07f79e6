"""Top-k on a GPU: lists in device memory, the levels of each chunk, and what memory they take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fastload.common.cuda import require_cuda_target
from fastload.errors import UsageError
from fastload.kernels.compiling import cuda_jit
from fastload.kernels.cuda_target import SIMULATED, device_array, launch_stream
from fastload.kernels.topk import RATIO, top_stride
from fastload.kernels.topk_cuda import (
    COLUMNS,
    CUDA_KERNELS,
    MAX_K_CUDA,
    MAX_REGISTERS,
    MERGE_THREADS,
    merge_slabs,
    slab_shape,
    slabs_at_once,
    top_slabs,
)
from fastload.selection.topk_state import FIRST_IDS, TopKState, on_host

_SLAB_BYTES = 1 << 29
"""Of device memory, about as much as a level's lists may take."""


@cache
def _compiled(kernel):
    return cuda_jit(kernel, max_registers=MAX_REGISTERS)


def compile_for(device: Any) -> None:
    """Compile the CUDA kernels for a device, so that the first chunk need not wait for that."""
    require_cuda_target()
    if not SIMULATED:
        with _current(device):  # numba compiles for the current device
            for _, kernel, signature in CUDA_KERNELS:
                _compiled(kernel).compile(signature)


def cuda_bytes(dims: int, lists: Iterable[tuple[int, int]], rows: int, multiprocessors: int) -> int:
    """Return the bytes of device memory that several `TopK` take which see the same chunks of `rows` rows of float32.

    Arguments:
        dims: columns of all.
        lists: (k, groups) of each; those that are too long for CUDA do not count.
        rows: of a chunk, at most.
        multiprocessors: of the device.
    """
    kept, passing = 0, 0
    for k, groups in lists:
        if 0 < k <= MAX_K_CUDA:
            kept += groups * dims * (12 * k + 8)
            most = most_slabs(dims, k, slabs_at_once(dims, multiprocessors))
            length = _slab_length(rows, most)
            slabs = -(-rows // length) + groups
            passing = max(passing, slabs * dims * (12 * min(k, length) + 8) + rows * (4 * dims + 17))
    return kept + passing


class CudaLists:
    """Sorted lists on the device, raised level by level of each chunk: slabs' lists, then a merge."""

    def __init__(self, dims: int, k: int, groups: int, device: str) -> None:
        require_cuda_target()
        import torch

        from fastload.common.device import resolve_device

        place = torch.device("cpu") if SIMULATED else resolve_device(device)
        if k > MAX_K_CUDA:
            raise UsageError(f'lists of {k:,} are longer than CUDA takes, {MAX_K_CUDA:,}; use device="cpu"')
        self.dims, self.k, self.groups = dims, k, groups
        self.device = place
        shape = (groups, dims, k)
        self.values = torch.full(shape, -math.inf, dtype=torch.float32, device=self.device)
        self.ids = torch.full(shape, -1, dtype=torch.int64, device=self.device)
        self.counts = torch.zeros((groups, dims), dtype=torch.int32, device=self.device)
        self.minimum = torch.full((groups, dims), math.inf, dtype=torch.float32, device=self.device)
        self.shape = slab_shape(dims)
        at_once = 4
        self.room, self.merge_threads = 1 << (2 * k - 1).bit_length(), 4
        if not SIMULATED:
            at_once = slabs_at_once(dims, torch.cuda.get_device_properties(self.device).multi_processor_count)
            self.room, self.merge_threads = max(256, self.room), MERGE_THREADS
            compile_for(self.device)
        self._most_slabs = most_slabs(dims, k, at_once)
        self.nonfinite = 0
        self.bad_ids = np.empty(0, np.int64)

    def update(self, x: Any, kind: int, ids: np.ndarray | range, order: np.ndarray, bounds: np.ndarray) -> None:
        """Take in a chunk; the arguments are those of `CpuLists.update`, on the GPU too."""
        import torch

        if not hasattr(x, "data_ptr"):
            x = torch.from_numpy(np.ascontiguousarray(x))
        x = x.detach().to(self.device).contiguous()
        rows = len(ids)
        bad = torch.zeros(rows + 1, dtype=torch.uint8, device=self.device)
        if isinstance(ids, range):
            samples, ascending = torch.arange(ids.start, ids.stop, device=self.device), True
        else:
            samples, ascending = self._upload(ids), bool((ids[1:] > ids[:-1]).all())
        on_device = [samples, self._upload(order if order.size else np.zeros(1, np.int64))]
        present = np.flatnonzero(np.diff(bounds))
        stride, skip = top_stride(rows, self.k * len(present)), 0
        while stride > 0:
            plan = plan_level(bounds, present, stride, skip, self._most_slabs)
            if len(plan.first):
                with _current(self.device):  # numba launches in the current device's context
                    self._level(x, kind, on_device, order, ids if ascending else None, plan, present, bad)
            stride, skip = stride // RATIO, 1
        if int(bad[-1]):
            found = _ids_of(ids, np.flatnonzero(on_host(bad[:-1])))
            self.nonfinite += len(found)
            self.bad_ids = np.sort(np.concatenate([self.bad_ids, found]))[:FIRST_IDS]

    def _upload(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _level(self, x, kind, on_device, order, ascending_ids, plan, present, bad) -> None:
        import torch

        slabs, capacity = len(plan.first), min(self.k, plan.length)
        slab_values = torch.empty((slabs, capacity, self.dims), dtype=torch.float32, device=self.device)
        slab_ids = torch.empty((slabs, capacity, self.dims), dtype=torch.int64, device=self.device)
        slab_counts = torch.empty((slabs, self.dims), dtype=torch.int32, device=self.device)
        slab_minimum = torch.empty((slabs, self.dims), dtype=torch.float32, device=self.device)
        lowest_id = np.full(slabs, -1, np.int64)
        if ascending_ids is not None:
            row = (plan.first + plan.skip * (1 + plan.first // (RATIO - 1))) * plan.stride
            lowest_id = _ids_of(ascending_ids, order[row] if order.size else row)
        table = self._upload(np.stack([plan.first, plan.last, plan.group, lowest_id]))
        ranges = self._upload(np.stack([present, plan.first_slab, plan.last_slab]))
        stream = 0 if SIMULATED else launch_stream(torch.cuda.current_stream(self.device))
        state = [device_array(t) for t in (self.values, self.ids, self.counts)]
        lists = [device_array(t) for t in (slab_values, slab_ids, slab_counts, slab_minimum)]
        tiles, width, height = self.shape
        wide = self.dims % COLUMNS == 0 and x.data_ptr() % (COLUMNS * x.element_size()) == 0
        _compiled(top_slabs)[tiles * -(-slabs // height), (width, height), stream](
            x.data_ptr(),
            kind,
            int(wide),
            self.dims,
            *[device_array(t) for t in on_device],
            int(order.size > 0),
            *[device_array(row) for row in table],
            plan.stride,
            plan.skip,
            *state,
            *lists,
            device_array(bad),
        )
        _compiled(merge_slabs)[len(present) * self.dims, self.merge_threads, stream](
            *[device_array(row) for row in ranges], *lists, *state, device_array(self.minimum), self.room
        )

    def state(self, rows: int) -> TopKState:
        """Return the state of all chunks so far, which had `rows` rows together."""
        values, ids, counts = (on_host(t).copy() for t in (self.values, self.ids, self.counts))
        minimum = on_host(self.minimum).min(axis=0)
        return TopKState.of_lists((values, ids, counts), minimum, rows, self.nonfinite, self.bad_ids)


def _current(device: Any) -> Any:
    if SIMULATED:
        return nullcontext()
    import torch

    return torch.cuda.device(device)


@dataclass(frozen=True)
class Level:
    """One level's slabs: which visits each takes, of which group; and each present group's slabs."""

    stride: int
    skip: int
    length: int
    first: np.ndarray
    last: np.ndarray
    group: np.ndarray
    first_slab: np.ndarray
    last_slab: np.ndarray


def plan_level(bounds: np.ndarray, present: np.ndarray, stride: int, skip: int, most: int) -> Level:
    """Cut a level's visits into slabs, each of one group, of a length that fills the device.

    Arguments:
        bounds: int64 [groups + 1], where each group's rows begin and end.
        present: the groups that have rows.
        stride: the level visits positions j·stride.
        skip: 1 to leave out those that the level before has visited.
        most: slabs, and one a group more.
    """
    reached = -(-bounds // stride)
    visits = reached - -(-reached // RATIO) if skip else reached
    begins, ends = visits[present], visits[present + 1]
    length = _slab_length(int(visits[-1]), most)
    pieces = -(-(ends - begins) // length)
    last_slab = np.cumsum(pieces)
    first_slab = last_slab - pieces
    within = np.arange(pieces.sum()) - np.repeat(first_slab, pieces)
    first = np.repeat(begins, pieces) + within * length
    last = np.minimum(first + length, np.repeat(ends, pieces))
    return Level(stride, skip, length, first, last, np.repeat(present, pieces), first_slab, last_slab)


def _ids_of(ids: np.ndarray | range, rows: np.ndarray) -> np.ndarray:
    return ids.start + rows if isinstance(ids, range) else ids[rows]


def _slab_length(visits: int, most: int) -> int:
    """Return how many visits a slab takes of a level that has so many, in `most` slabs and one a group more."""
    return max(16, -(-visits // most))


def most_slabs(dims: int, k: int, at_once: int) -> int:
    """Return how many slabs a level is cut into at most: those worked on `at_once`, as far as memory allows."""
    return min(at_once, max(1, _SLAB_BYTES // (dims * k * 12)))
