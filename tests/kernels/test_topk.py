"""kernels/topk*.py and selection/topk*.py: exact lists per column, whatever the chunks, threads and order of rows."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from places import ROOT
from programs import run_programs
from selection_reference import assert_lists_are_exact

from fastload.errors import UsageError
from fastload.kernels.intrinsics import LANES, survey, survey_tail
from fastload.kernels.topk import top_stride
from fastload.kernels.topk_cuda import CUDA_KERNELS, SLAB_THREADS, slab_shape, slabs_at_once
from fastload.selection.topk import TopK
from fastload.selection.topk_state import merge_states


def lists_of(x, ids, k, cuts=(), threads=1, group_of_row=None, groups=1):
    lists = TopK(x.shape[1], k, groups, threads=threads)
    for start, end in zip((0, *cuts), (*cuts, len(x)), strict=True):
        lists.update(x[start:end], ids[start:end], None if group_of_row is None else group_of_row[start:end])
    return lists.result()


def assert_same(a, b):
    for name in a.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def rows_of(kind, n, dims, rng):
    x = rng.standard_normal((n, dims))
    return {
        "random": x,
        "ascending": np.sort(x, axis=0),
        "descending": np.sort(x, axis=0)[::-1],
        "relu": np.maximum(x, 0),
        "ties": rng.integers(-2, 3, (n, dims)),
        "zeros": np.where(rng.random((n, dims)) < 0.5, 0.0, -0.0),
        "negative": -1 - np.abs(x),
    }[kind].astype(np.float32)


KINDS = ["random", "ascending", "descending", "relu", "ties", "zeros", "negative"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "dims", "k"),
    [(1, 1, 1), (7, 3, 7), (5, 2, 20), (2500, 1, 3), (2500, 20, 1), (40, 600, 6), (1500, 24, 200)],
)
def test_lists_are_what_sorting_gives(kind, n, dims, k):
    rng = np.random.default_rng(n + dims)
    x = rows_of(kind, n, dims, rng)
    for ids in (np.arange(n), rng.permutation(n).astype(np.int64) * 2**33):
        assert_lists_are_exact(lists_of(x, ids, k, threads=2), x, ids, k)
        assert_lists_are_exact(lists_of(x, ids, k, cuts=sorted({n // 3, n // 2} - {0, n})), x, ids, k)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_beyond_one_stride_and_their_threads_give_the_same_lists(kind):
    n, dims, k = 70_000, 4, 1
    assert top_stride(n // 2, k) == 1024, "the case is there for three levels of strides"
    x = rows_of(kind, n, dims, np.random.default_rng(1))
    whole = lists_of(x, np.arange(n), k, threads=3)
    order = np.lexsort((np.broadcast_to(np.arange(n), (dims, n)), -(x.T.astype(np.float64) + 0.0)), axis=-1)
    np.testing.assert_array_equal(whole.ids[0, :, 0], order[:, 0])
    for k in (1, 40):
        assert_same(lists_of(x, np.arange(n), k, threads=2), lists_of(x, np.arange(n), k, cuts=(1, 1000, 33_000)))


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_lists_do_not_depend_on_chunks_threads_groups_or_the_order_of_rows(data):
    n, dims = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 5))
    k, groups = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    x = rows_of(data.draw(st.sampled_from(KINDS)), n, dims, rng)
    ids = rng.permutation(3 * n)[:n].astype(np.int64)
    group_of_row = rng.integers(0, groups, n)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=4))) if n > 1 else []
    state = lists_of(x, ids, k, cuts, data.draw(st.integers(1, 3)), group_of_row, groups)
    assert_lists_are_exact(state, x, ids, k, group_of_row, groups)
    shuffle = rng.permutation(n)
    assert_same(state, lists_of(x[shuffle], ids[shuffle], k, (), 1, group_of_row[shuffle], groups))


@given(seed=st.integers(0, 2**32 - 1), first=st.integers(0, 40), second=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_states_merge_exactly_and_in_any_order(seed, first, second):
    rng = np.random.default_rng(seed)
    n, k = 50, 4
    x, ids = rng.integers(-2, 3, (n, 3)).astype(np.float32), rng.permutation(n)
    a, b = sorted((first, second))
    parts = []
    for start, end in ((0, a), (a, b), (b, n)):
        lists = TopK(3, k)
        lists.update(x[start:end], ids[start:end])
        parts.append(lists)
    p, q, r = (lists.result() for lists in parts)
    whole = lists_of(x, ids, k)
    assert_same(merge_states(merge_states(p, q), r), whole)
    assert_same(merge_states(p, merge_states(r, q)), whole)
    parts[2].merge(parts[0])
    parts[2].merge(q)
    assert_same(parts[2].result(), whole)


def test_rows_of_sixteen_bits_are_ranked_by_the_values_they_stand_for():
    import torch

    rng = np.random.default_rng(2)
    x = (rng.standard_normal((900, 40)) * 10.0 ** rng.integers(-8, 4, (900, 40))).astype(np.float16)
    assert np.abs(x[x != 0]).min() < 2.0**-14, "subnormal float16 values should be among them"
    ids = rng.permutation(900)
    assert_lists_are_exact(lists_of(x, ids, 9, threads=2), x, ids, 9)
    tensor = torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)
    wide = tensor.to(torch.float64).numpy()
    for given_as in (tensor, tensor.view(torch.int16).numpy().view(np.uint16)):
        assert_lists_are_exact(lists_of(given_as, ids, 9), wide, ids, 9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("cuts", [(), (100, 333)])
def test_rows_with_nan_or_infinity_are_counted_once_and_named_lowest_first(value, dtype, cuts):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((700, 300)).astype(dtype)
    ids = rng.permutation(10_000)[:700]
    clean = lists_of(x, ids, 5, cuts)
    assert clean.nonfinite == 0
    broken = np.unique(np.concatenate([[0, 699], rng.integers(0, 700, 20)]))
    x[broken, rng.integers(0, 300, len(broken))] = value
    x[0, [0, 299]] = x[699, 299] = value
    for threads in (1, 2):
        state = lists_of(x, ids, 5, cuts, threads)
        assert state.nonfinite == len(broken)
        assert state.nonfinite_ids.tolist() == np.sort(ids[broken])[:10].tolist()


def test_finite_values_whose_sum_overflows_are_no_error():
    x = np.full((64, 3), 3e38, np.float32)
    state = lists_of(x, np.arange(64), 2)
    assert state.nonfinite == 0
    assert_lists_are_exact(state, x, np.arange(64), 2)


def test_updates_go_on_after_a_result():
    x = np.random.default_rng(4).standard_normal((300, 4)).astype(np.float32)
    lists = TopK(4, 5)
    lists.update(x[:100], range(100))
    assert_lists_are_exact(lists.result(), x[:100], range(100), 5)
    lists.update(x[100:], range(100, 300))
    assert_lists_are_exact(lists.result(), x, range(300), 5)


def test_a_read_only_memory_map_is_read_as_it_is(tmp_path):
    x = np.random.default_rng(5).standard_normal((500, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert_lists_are_exact(lists_of(np.load(tmp_path / "x.npy", mmap_mode="r"), range(500), 4), x, range(500), 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TopK(0, 1), "dims, not 0"),
        (lambda: TopK(1, 0), "k, not 0"),
        (lambda: TopK(1, 1, threads=0), "threads=0"),
        (lambda: TopK(1, 1, device="tpu"), 'device=\'tpu\'; it is "cpu" or "cuda"'),
        (lambda: TopK(2, 1).update(np.zeros((4, 3), np.float32), range(4)), "2 columns were expected"),
        (lambda: TopK(3, 1).update(np.zeros((4, 3), np.float32), range(5)), "5 ids for 4 rows"),
        (lambda: TopK(3, 1).update(np.zeros((4, 3)), range(4)), "type float64"),
        (lambda: TopK(3, 1, 2).update(np.zeros((4, 3), np.float32), range(4)), "without their group"),
        (lambda: TopK(3, 1, 2).update(np.zeros((2, 3), np.float32), range(2), np.array([0, 2])), "not 0…1"),
        (lambda: merge_states(TopK(3, 1).result(), TopK(3, 2).result()), "cannot merge"),
    ],
)
def test_what_cannot_be_served_is_one_line_that_says_why(call, words):
    with pytest.raises(UsageError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@given(dims=st.integers(1, 100_000), multiprocessors=st.integers(1, 200))
def test_the_blocks_of_a_launch_cover_every_column_and_fill_a_device_once(dims, multiprocessors):
    tiles, width, height = slab_shape(dims)
    assert 1 <= width * height <= SLAB_THREADS and height >= 1
    # Four columns a thread; of the last tile there is at least one.
    assert 4 * width * (tiles - 1) < dims <= 4 * width * tiles
    slabs = slabs_at_once(dims, multiprocessors)
    assert slabs >= height and slabs % height == 0
    warps = -(-width * height // 32)
    resident = multiprocessors * (20 // warps)
    assert tiles * (slabs // height) <= max(resident, tiles)


def test_cuda_without_a_device_is_an_error_that_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UsageError, match=r"CUDA|numba-cuda"):
        TopK(3, 1, device="cuda")


def test_cuda_kernels_are_exact_in_the_simulator():
    pytest.importorskip("numba_cuda")
    environment = {
        **os.environ,
        "NUMBA_ENABLE_CUDASIM": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::RuntimeWarning",
    }
    script = ROOT / "tests" / "simulator" / "topk_in_simulator.py"
    halves = [[sys.executable, script, half] for half in ("lists", "loads")]
    for told in run_programs(halves, environment, timeout=300):
        assert "exact in the simulator" in told


COMPILE = """
import sys
from types import SimpleNamespace
from fastload.kernels.cuda_target import cuda
from fastload.kernels.topk_cuda import CUDA_KERNELS
import numba.cuda.dispatcher
capability = (int(sys.argv[1]), int(sys.argv[2]))
numba.cuda.dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
for name, kernel, signature in CUDA_KERNELS:
    ptx, _ = cuda.compile(kernel, signature, device=False, abi="numba", cc=capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    print(name, "local" if ".local" in ptx else "registers")
"""


def test_cuda_kernels_compile_without_memory_of_their_own_per_thread():
    pytest.importorskip("numba_cuda")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, "9", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name, *_ in CUDA_KERNELS for word in (name, "registers")]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "dims", "k", "groups"),
    [(100_000, 216, 20, 1), (20_000, 2048, 4, 1), (5_000, 33, 1024, 1), (30_000, 64, 10, 10)],
)
def test_cuda_gives_the_lists_of_its_cpu_twin(kind, n, dims, k, groups):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rng = np.random.default_rng(6)
    x, ids = rows_of(kind, n, dims, rng), rng.permutation(n)
    group_of_row = rng.integers(0, groups, n)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.from_numpy(x).to(dtype)
        twin, lists = TopK(dims, k, groups), TopK(dims, k, groups, device="cuda")
        twin.update(tensor, ids, group_of_row)
        for start, end in ((0, n // 3), (n // 3, n)):
            lists.update(tensor[start:end].cuda(), ids[start:end], group_of_row[start:end])
        assert_same(lists.result(), twin.result())


@njit
def _surveyed(m, starts, column, count, limit, lowest, whole):
    if whole:
        return survey(m, starts, np.uint64(column), np.uint64(count), limit, lowest)
    return survey_tail(m, starts, np.uint64(column), np.uint64(count), limit, lowest)


@settings(deadline=None, max_examples=60)
@given(
    dims=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    odd=st.sampled_from([None, np.nan, np.inf, -np.inf, np.float32(3e38)]),
)
def test_a_survey_tells_of_each_column_whether_one_of_eight_rows_reaches_it(dims, seed, odd):
    rng = np.random.default_rng(seed)
    # Of few values, so that limits are met exactly; and walled by columns that would tell otherwise.
    m = rng.integers(-3, 4, (12, dims)).astype(np.float32)
    if odd is not None:
        m[rng.integers(12), rng.integers(dims)] = odd
    limit, lowest = rng.integers(1, 5, dims).astype(np.float32), rng.integers(-4, -1, dims).astype(np.float32)
    rows = rng.integers(0, 12, 8)
    starts = tuple(np.uint64(row * dims) for row in rows)
    for column in range(0, dims, LANES):
        count = dims - column
        found = int(_surveyed(m, starts, column, count, limit, lowest, count >= LANES))
        here = slice(column, column + LANES)
        with np.errstate(over="ignore", invalid="ignore"):
            seen = m[rows, here].astype(np.float64)
            whole = np.isfinite(seen).all(axis=0)
        told = [[found >> (LANES * part + lane) & 1 for lane in range(min(LANES, count))] for part in range(3)]
        assert not found >> 3 * LANES and all(
            not found >> (LANES * part + lane) & 1 for part in range(3) for lane in range(count, LANES)
        )
        assert all(odd for odd, fine in zip(told[2], whole, strict=True) if not fine), "each column of NaN or infinity"
        if odd is None:
            assert not any(told[2])
        assert np.array_equal(np.array(told[0])[whole], (seen.max(axis=0) >= limit[here])[whole])
        assert np.array_equal(np.array(told[1])[whole], (seen.min(axis=0) < lowest[here])[whole])
