"""Run by tests/kernels/test_topk.py in a process of its own with NUMBA_ENABLE_CUDASIM=1, which is read at import.

topk_in_simulator.py lists | loads: two parts, which the test runs at the same time.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from selection_reference import assert_lists_are_exact
from walled import walled

from fastload.kernels import topk_cuda, topk_cuda_rows
from fastload.kernels.cuda_target import SIMULATED
from fastload.kernels.topk import BFLOAT16, FLOAT16, FLOAT32, widen
from fastload.selection.topk import TopK
from fastload.selection.topk_state import merge_states

assert SIMULATED
rng = np.random.default_rng(0)


def run(x, ids, k, cuts=(), group_of_row=None, groups=1):
    lists = TopK(x.shape[1], k, groups, device="cuda")
    for start, end in zip((0, *cuts), (*cuts, len(x)), strict=True):
        lists.update(x[start:end], ids[start:end], None if group_of_row is None else group_of_row[start:end])
    return lists.result()


def check(x, ids, k, cuts=(), group_of_row=None, groups=1):
    assert_lists_are_exact(run(x, ids, k, cuts, group_of_row, groups), x, ids, k, group_of_row, groups)


ties = np.maximum(rng.integers(-3, 3, (70, 5)), -0.0).astype(np.float32)
ties[:, 1] = np.where(rng.random(70) < 0.5, -0.0, 0.0)


def lists_of_every_kind():
    # More than 64·k rows go through two levels of strides. A row visited by both would stand in a list twice: the best
    # of column c is row 32·(c + 1), which the first level has, and its neighbour comes second.
    for n in (150, 170, 180):
        peaks = rng.standard_normal((n, 4)).astype(np.float32)
        for c in range(4):
            peaks[32 * (c + 1), c], peaks[32 * (c + 1) + 1, c] = 9, 8
        check(peaks, np.arange(n), 2)
    # k = 3 makes merges of several batches.
    for order in (1, -1):
        check(np.sort(rng.standard_normal((140, 2)).astype(np.float32), axis=0)[::order], np.arange(140), 1)
    check(ties, rng.permutation(70) * 2**33, 3, cuts=(31,))
    check(ties[:1, :1], np.array([5]), 1)
    check(ties[:12, :2], np.arange(12), 12)
    check(ties, np.arange(70), 2, cuts=(40,), group_of_row=rng.integers(0, 3, 70), groups=4)
    check(ties[:60].astype(np.float16), range(60), 2)

    # bfloat16 goes in as its bits: here the upper halves of float32.
    exact = ties[:40, :2]
    lists = TopK(2, 2, device="cuda")
    lists.update((exact.view(np.uint32) >> 16).astype(np.uint16), range(40))
    assert_lists_are_exact(lists.result(), exact, range(40), 2)

    # NaN and infinity: the rows are counted, once each, and the lowest ids named.
    for value in (np.nan, np.inf, -np.inf):
        broken = ties.copy()
        broken[[3, 50], 1] = value
        broken[50, 4] = value
        with np.errstate(invalid="ignore"):
            state = run(broken, np.arange(70)[::-1], 2, cuts=(20,))
        assert state.nonfinite == 2 and state.nonfinite_ids.tolist() == [19, 66]

    # A state made on the GPU merges with one made on the CPU.
    on_cpu = TopK(5, 3)
    on_cpu.update(ties[30:], np.arange(30, 70))
    merged = merge_states(run(ties[:30], np.arange(30), 3), on_cpu.result())
    assert_lists_are_exact(merged, ties, np.arange(70), 3)

    # The arithmetic that replaces hardware conversions, on what the kernels see: int16 bits.
    bits = np.concatenate([np.arange(0, 2**16, 97), [0x7C00, 0xFC00, 0x8000, 1, 0x3FF]]).astype(np.uint16)
    expected = bits.view(np.float16).astype(np.float32)
    found = np.array([widen(b, FLOAT16) for b in bits.view(np.int16)], np.float32)
    np.testing.assert_array_equal(found, expected)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.array([widen(b, BFLOAT16) for b in bits.view(np.int16)], np.float32), wide)
    assert widen(np.float32(1.5), FLOAT32) == np.float32(1.5)


def loads_of_every_width():
    # Wide and narrow loads: each matrix with both, where its width allows (a base that is not aligned does not), in
    # every type, with rows that are no multiple of a step and several tiles of columns, of which the last is not full.
    taken = set()

    def noted(name, load):
        def loading(address):
            taken.add(name)
            return load(address)

        return loading

    for module, names in ((topk_cuda, ("load_two", "load_four")), (topk_cuda_rows, ("load_short", "load_word"))):
        for name in names:
            setattr(module, name, noted(name, getattr(module, name)))

    def shifted(tensor):
        """The same values from one further on than an aligned place."""
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
        return room.copy_(tensor)

    def update(x, ids, k, group_of_row=None, groups=1):
        taken.clear()
        lists = TopK(x.shape[1], k, groups, device="cuda")
        lists.update(x, ids, group_of_row)
        return lists.result()

    for dtype, wide, narrow in (
        (torch.float32, "load_four", "load_word"),
        (torch.float16, "load_two", "load_short"),
        (torch.bfloat16, "load_two", "load_short"),
    ):
        for rows, dims in ((37, 4), (43, 24), (20, 19)):
            x = torch.from_numpy(rng.integers(-9, 9, (rows, dims)).astype(np.float32)).to(dtype)
            ids, exact = rng.permutation(rows), x.double().numpy()
            ends = torch.from_numpy(walled(x.view(torch.uint8).numpy())).view(dtype)
            assert_lists_are_exact(update(ends, ids, 2), exact, ids, 2)
            assert wide in taken if dims % 4 == 0 else wide not in taken
            assert_lists_are_exact(update(shifted(x), ids, 2), exact, ids, 2)
            assert wide not in taken and narrow in taken
        group_of_row = rng.integers(0, 3, rows)
        x = x[:, :16].contiguous()
        exact = x.double().numpy()
        assert_lists_are_exact(update(x, ids, 3, group_of_row, 4), exact, ids, 3, group_of_row, 4)
        assert wide in taken
        tall = torch.from_numpy(rng.integers(-9, 9, (150, 4)).astype(np.float32)).to(dtype)  # two levels of strides
        assert_lists_are_exact(update(tall, range(150), 2), tall.double().numpy(), range(150), 2)
        tall[[31, 32, 149], 3] = torch.tensor([-np.inf, np.nan, np.inf], dtype=dtype)
        with np.errstate(invalid="ignore"):
            state = update(tall, range(5, 155), 2)
        assert state.nonfinite == 3 and state.nonfinite_ids.tolist() == [36, 37, 154]


{"lists": lists_of_every_kind, "loads": loads_of_every_width}[sys.argv[1]]()
print("exact in the simulator")
