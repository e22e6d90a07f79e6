"""What memory there is, and what will be taken: torch's cache, pinned buffers, the selection's lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastload import UsageError
from fastload.common import memory
from fastload.kernels.topk import RATIO, top_stride
from fastload.kernels.topk_cuda import MAX_K_CUDA, slabs_at_once
from fastload.selection.topk_cuda import cuda_bytes, most_slabs, plan_level

CUDA = torch.device("cuda", 0)


@pytest.fixture
def device(monkeypatch):
    """A device of which 1,000 bytes are free by the driver, and 500 kept by torch, of which 200 are in use."""

    def has(reserved=500, allocated=200, gaps=0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 10**9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: allocated)
        found = {"inactive_split_bytes.all.current": gaps} if gaps else {}
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda device=None: found)

    has()
    return has


def test_what_torch_keeps_for_tensors_to_come_is_free(device):
    assert memory.free_memory(CUDA) == 1300
    device(gaps=100)  # between tensors that are in use
    assert memory.free_memory(CUDA) == 1200
    device(reserved=0, allocated=0)
    assert memory.free_memory(CUDA) == 1000


def test_a_set_fits_into_what_torch_keeps(device):
    memory.check_fits(1300, CUDA, "subset.h5")
    with pytest.raises(memory.DataError, match=r"subset\.h5: needs"):
        memory.check_fits(1301, CUDA, "subset.h5")
    assert memory.resident_room(CUDA, 5000, beside=100) == 1200


@pytest.mark.parametrize(("size", "taken"), [(1, 1), (4096, 4096), (4097, 8192), (50 << 20, 64 << 20)])
def test_a_pinned_buffer_takes_the_next_power_of_two(size, taken):
    assert memory.pinned_bytes(size) == taken


def test_pinned_buffers_that_the_host_cannot_hold_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    memory.check_pinned(10**9, 8, 256)
    with pytest.raises(UsageError, match=r"8 threads .*batch of 256 .*2,000 MB.*1,000 MB.*batch_size="):
        memory.check_pinned(2 * 10**9, 8, 256)
    kept = {"allocated_bytes.current": 2 * 10**9, "active_bytes.current": 10**9}
    monkeypatch.setattr(torch.cuda, "host_memory_stats", lambda: kept, raising=False)
    memory.check_pinned(2 * 10**9, 8, 256)


@settings(deadline=None, max_examples=200)
@given(
    dims=st.integers(1, 3000),
    k=st.integers(1, MAX_K_CUDA),
    groups=st.integers(1, 20),
    rows=st.integers(1, 10**7),
    processors=st.integers(1, 200),
    data=st.data(),
)
def test_no_chunk_of_rows_takes_more_lists_than_were_forecast(dims, k, groups, rows, processors, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=groups - 1, max_size=groups - 1)))
    bounds = np.array([0, *cuts, rows], np.int64)
    present = np.flatnonzero(np.diff(bounds))
    most = most_slabs(dims, k, slabs_at_once(dims, processors))
    forecast = cuda_bytes(dims, [(k, groups)], rows, processors)
    stride, skip = top_stride(rows, k * len(present)), 0
    while stride > 0:
        plan = plan_level(bounds, present, stride, skip, most)
        slabs = len(plan.first) * dims * (12 * min(k, plan.length) + 8)
        assert slabs + groups * dims * (12 * k + 8) + rows * 4 * dims <= forecast
        stride, skip = stride // RATIO, 1


def test_lists_that_see_the_same_chunks_share_what_passes():
    one, other = (cuda_bytes(100, [pair], 1000, 132) for pair in ((20, 1), (10, 1)))
    both = cuda_bytes(100, [(20, 1), (10, 1)], 1000, 132)
    assert max(one, other) < both < one + other
    assert cuda_bytes(100, [(MAX_K_CUDA + 1, 1), (0, 1)], 1000, 132) == 0
