"""Top-k on the CPU: each thread's heaps over its slab of a chunk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from fastload.errors import UsageError
from fastload.kernels.topk import NO_ID, top_stride
from fastload.kernels.topk_cpu import scan_group, sort_heaps
from fastload.selection.topk_state import FIRST_IDS, TopKState, empty_lists, merge_states

_NO_IDS = np.empty(0, np.int64)


class CpuLists:
    """Heaps of each thread's own, over slabs of the chunk; merged when asked for."""

    def __init__(self, dims: int, k: int, groups: int, threads: int) -> None:
        self.dims, self.k, self.groups, self.threads = dims, k, groups, threads
        self.heaps: list[_Heaps] = []

    def update(self, x: Any, kind: int, ids: np.ndarray | range, order: np.ndarray, bounds: np.ndarray) -> None:
        """Take in a chunk; see `TopK.update`.

        Arguments:
            x: [R, dims], float32 or the bits of `kind` as int16; NumPy or torch.
            kind: FLOAT32, FLOAT16 or BFLOAT16.
            ids: int64 [R], or a range.
            order: int64 [R], the rows sorted by group; empty where there is one group.
            bounds: int64 [groups + 1], where each group begins and ends in `order`.
        """
        samples, first_id = (_NO_IDS, ids.start) if isinstance(ids, range) else (ids, 0)
        if hasattr(x, "data_ptr"):
            if x.device.type != "cpu":
                raise UsageError('embeddings are on the GPU, but device="cpu"; say device="cuda"')
            x = x.detach().numpy()
        x = np.ascontiguousarray(x)
        # A slab below a few thousand values costs more to start than to scan.
        slabs = max(1, min(self.threads, x.size // 16_384))
        cuts = [len(x) * i // slabs for i in range(slabs + 1)]
        while len(self.heaps) < slabs:
            self.heaps.append(_Heaps(self.dims, self.k, self.groups))
        jobs = [(self.heaps[i], x, kind, samples, first_id, order, bounds, cuts[i], cuts[i + 1]) for i in range(slabs)]
        if slabs == 1:
            _Heaps.scan(*jobs[0])
            return
        with ThreadPoolExecutor(slabs) as pool:
            for job in [pool.submit(_Heaps.scan, *job) for job in jobs]:
                job.result()

    def state(self, rows: int) -> TopKState:
        """Return the merged state of all heaps, which have seen `rows` rows together."""
        states = [heaps.state() for heaps in self.heaps] or [_Heaps(self.dims, self.k, self.groups).state()]
        merged = states[0]
        for state in states[1:]:
            merged = merge_states(merged, state)
        return replace(merged, rows=rows)


class _Heaps:
    """One thread's heaps, [groups, dims, k]."""

    def __init__(self, dims: int, k: int, groups: int) -> None:
        self.values, self.ids, self.counts = empty_lists(groups, dims, k)
        self.minimum = np.full(dims, np.inf, np.float32)
        self.bad_ids = np.full(FIRST_IDS, NO_ID)
        self.bad_count = np.zeros(1, np.int64)

    def scan(self, x, kind, samples, first_id: int, order, bounds, first: int, last: int) -> None:
        """Offer the rows order[first … last - 1] of a chunk."""
        for group in range(len(bounds) - 1):
            begin, end = max(first, int(bounds[group])), min(last, int(bounds[group + 1]))
            if begin < end:
                scan_group(
                    x,
                    kind,
                    samples,
                    first_id,
                    order,
                    begin,
                    end,
                    top_stride(end - begin, self.values.shape[2]),
                    self.values[group],
                    self.ids[group],
                    self.counts[group],
                    self.minimum,
                    self.bad_ids,
                    self.bad_count,
                )

    def state(self) -> TopKState:
        values, ids, counts = self.values.copy(), self.ids.copy(), self.counts.copy()
        k = values.shape[2]
        sort_heaps(values.reshape(-1, k), ids.reshape(-1, k), counts.reshape(-1))
        bad_ids = self.bad_ids[self.bad_ids != NO_ID]
        return TopKState.of_lists((values, ids, counts), self.minimum, 0, int(self.bad_count[0]), bad_ids)
