"""Exact top-k down the columns of a matrix: the CUDA kernels, lists of slabs of rows, then their merge."""

import numpy as np
from numba import types

from .cuda_memory import load_four, load_two
from .cuda_target import SIMULATED, cuda
from .topk import FLOAT32, FLOAT32_MAX, LOWEST, NO_ID, RATIO, better, offer
from .topk_cuda_rows import (
    each_widened,
    float32s,
    four_rows,
    four_widened,
    hits_of,
    least_of,
    limits_of,
    position_of,
    shorts_at,
    sum_of,
    value_at,
    words_at,
)

MAX_K_CUDA = 1024
"""The longest list: twice as many entries are sorted in shared memory."""

_SORTED = 2048

MERGE_THREADS = 128

COLUMNS = 4
"""Columns that a thread has: one load of 16 bytes a row, or of 8 where a value has 16 bits."""

SLAB_THREADS = 4 if SIMULATED else 128
"""The most threads a block of `top_slabs` has. A simulated thread is a Python thread: the fewest that show races."""

MAX_REGISTERS = 96
"""Registers a thread may have; left to itself, the linker takes 108 for some architectures, and spills none at 96."""

SLAB_WARPS = 20
"""Warps of `top_slabs` that a multiprocessor holds: five for each quarter of its registers."""


def slab_shape(dims: int) -> tuple[int, int, int]:
    """Return (tiles, width, height) of `top_slabs`: blocks side by side for a row, a block's threads and slabs."""
    threads = -(-dims // COLUMNS)
    tiles = -(-threads // SLAB_THREADS)
    width = -(-threads // tiles)
    return tiles, width, SLAB_THREADS // width


def slabs_at_once(dims: int, multiprocessors: int) -> int:
    """Return how many slabs a device works on at once: with a few more, most of it would wait for the last ones."""
    tiles, width, height = slab_shape(dims)
    blocks = multiprocessors * (SLAB_WARPS // -(-width * height // 32))
    return max(1, blocks // tiles) * height


def top_slabs(
    x,
    kind,
    wide,
    dims,
    samples,
    order,
    ordered,
    slab_first,
    slab_last,
    slab_group,
    slab_lowest_id,
    stride,
    skip,
    values,
    ids,
    counts,
    slab_values,
    slab_ids,
    slab_counts,
    slab_minimum,
    bad,
):
    """CUDA kernel: one thread four columns of a slab of rows, lists of what gets past the state's k-th best.

    Lanes of a warp take neighbouring columns, so rows load whole; threads' y takes further slabs where columns are
    few. Limits stay in registers; what only hits need (floors, counts) lies in shared memory, each thread's its own.

    Bound by memory: each row of this level is read once, and after the first levels hits are rare. Memory of 4.8 TB/s
    that answers after some 700 ns is kept busy by 3.4 MB under way, 25 KB for each of an H200's 132 multiprocessors. A
    thread has four rows of 16 bytes under way (eight of 8 bytes where values have 16 bits), and a multiprocessor five
    blocks of up to 128 threads: 40 KB, or 34 KB where 216 columns make blocks of 2 × 54. A step is about 160
    instructions (float32) or 340 for a warp's 2 KB, of the 430 that can be issued while memory delivers them. Reasoned
    from the machine code, not measured; where loads are not wide, four times as many ask for as much. A hit waits for
    memory itself, some 1 µs: of a million rows and k = 20, about one a thread.

    Arguments:
        x: address of float32 or 16-bit values [R, D].
        kind: FLOAT32, FLOAT16 or BFLOAT16.
        wide: whether four columns are one load: D a multiple of four and x aligned to it; else a thread's columns lie a
            block's width apart.
        dims: D.
        samples: int64 [R], the ids.
        order: int64 [R], rows sorted by group, used where `ordered` is 1.
        ordered: 1 where there are several groups.
        slab_first: int64 [S], the first of the level's visits.
        slab_last: int64 [S], the last of them, and one more.
        slab_group: int64 [S].
        slab_lowest_id: int64 [S], the slab's lowest id, or -1 where it is not known.
        stride: the level visits positions j·stride.
        skip: 0 for all j, 1 for those that are not multiples of 32.
        values: float32 [G, D, k], of the state, read only, as are the next two.
        ids: int64 [G, D, k].
        counts: int32 [G, D].
        slab_values: float32 [S, c, D], written, as are the next three.
        slab_ids: int64 [S, c, D].
        slab_counts: int32 [S, D].
        slab_minimum: float32 [S, D].
        bad: uint8 [R + 1], set to 1 for rows with NaN or infinity, and at R when there is any.
    """
    floor_values = cuda.shared.array((COLUMNS, SLAB_THREADS), types.float32)
    floor_ids = cuda.shared.array((COLUMNS, SLAB_THREADS), types.int64)
    held = cuda.shared.array((COLUMNS, SLAB_THREADS), types.int32)
    width, dims = np.int32(cuda.blockDim.x), np.int32(dims)
    tiles = np.int32((dims + COLUMNS * width - 1) // (COLUMNS * width))
    block = np.int32(cuda.blockIdx.x)
    apart = np.int32(1 if wide else width)
    column = np.int32((block % tiles) * COLUMNS * width + np.int32(cuda.threadIdx.x) * (COLUMNS if wide else 1))
    slab = np.int64(block // tiles) * cuda.blockDim.y + cuda.threadIdx.y
    if column >= dims or slab >= slab_first.shape[0]:
        return
    thread = np.int32(np.int32(cuda.threadIdx.y) * width + np.int32(cuda.threadIdx.x))
    group, lowest_id = slab_group[slab], slab_lowest_id[slab]
    k = values.shape[2]
    for c in range(COLUMNS):
        held[c, thread] = 0
        floor_values[c, thread], floor_ids[c, thread] = LOWEST, NO_ID
        one = column + c * apart
        if one < dims and counts[group, one] == k:
            floor_values[c, thread], floor_ids[c, thread] = values[group, one, k - 1], ids[group, one, k - 1]
    limits = limits_of(floor_values, floor_ids, thread, column, apart, dims, lowest_id)
    infinity = np.float32(np.inf)
    minimum, total = (infinity, infinity, infinity, infinity), np.float32(0)
    size = np.int32(4 if kind == FLOAT32 else 2)
    # A column that is not there is read as the last one is.
    places = (
        np.int32(column * size),
        np.int32(min(column + apart, dims - 1) * size),
        np.int32(min(column + 2 * apart, dims - 1) * size),
        np.int32(min(column + 3 * apart, dims - 1) * size),
    )
    begin = slab_first[slab]
    origin, pitch = (begin + skip * (1 + begin // (RATIO - 1))) * stride, np.int64(dims) * size
    start, leap = x + origin * pitch, stride * pitch
    phase, skip = np.int32(begin % (RATIO - 1)), np.int32(skip)
    visit, end = np.int32(0), np.int32(slab_last[slab] - begin - 1)
    rows = np.int32(8 if wide and kind != FLOAT32 else 4)  # of a step: where loads are wide, 64 bytes a thread
    while visit <= end:  # a short last step repeats its last row
        r0, r1, r2, r3 = four_rows(visit, end, phase, skip, x, pitch, start, leap, order, ordered, origin, stride)
        hits, at = np.uint32(0), places[0]
        # All of a step's loads before the first use of one, and no branch between them.
        if wide and kind == FLOAT32:
            f0, f1, f2, f3 = load_four(r0 + at), load_four(r1 + at), load_four(r2 + at), load_four(r3 + at)
            p, q, r, s = float32s(f0), float32s(f1), float32s(f2), float32s(f3)
        elif wide:
            more = np.int32(visit + 4)
            r4, r5, r6, r7 = four_rows(more, end, phase, skip, x, pitch, start, leap, order, ordered, origin, stride)
            w0, w1, w2, w3 = load_two(r0 + at), load_two(r1 + at), load_two(r2 + at), load_two(r3 + at)
            w4, w5, w6, w7 = load_two(r4 + at), load_two(r5 + at), load_two(r6 + at), load_two(r7 + at)
            p, q, r, s = four_widened(w4, w5, w6, w7, kind)
            hits = np.uint32(hits_of(p, q, r, s, limits) << np.uint32(16))
            minimum = least_of(minimum, p, q, r, s)
            total += sum_of(p, q, r, s)
            p, q, r, s = four_widened(w0, w1, w2, w3, kind)
        elif kind == FLOAT32:
            f0, f1, f2, f3 = words_at(r0, places), words_at(r1, places), words_at(r2, places), words_at(r3, places)
            p, q, r, s = float32s(f0), float32s(f1), float32s(f2), float32s(f3)
        else:
            h0, h1, h2, h3 = (
                shorts_at(r0, places),
                shorts_at(r1, places),
                shorts_at(r2, places),
                shorts_at(r3, places),
            )
            p, q = each_widened(h0, kind), each_widened(h1, kind)
            r, s = each_widened(h2, kind), each_widened(h3, kind)
        hits = np.uint32(hits | hits_of(p, q, r, s, limits))
        minimum = least_of(minimum, p, q, r, s)
        total += sum_of(p, q, r, s)
        if hits != 0:
            while hits != 0:  # a lane takes its own next one, so that a warp's lanes wait for memory together
                bit = np.int32(cuda.popc(np.uint32(~hits & np.uint32(hits - np.uint32(1)))))
                hits = np.uint32(hits & np.uint32(hits - np.uint32(1)))
                hit = np.int32(visit + (bit >> 2))
                if hit <= end:
                    c = bit & 3
                    one = column + c * apart
                    row = origin + position_of(hit, phase, skip) * stride
                    if ordered:
                        row = order[row]
                    sample = samples[row]
                    value = np.float32(value_at(x + row * pitch + one * size, kind) + np.float32(0))
                    if better(value, sample, floor_values[c, thread], floor_ids[c, thread]):
                        list_values, list_ids = slab_values[slab, :, one], slab_ids[slab, :, one]
                        count = offer(list_values, list_ids, 0, list_values.shape[0], held[c, thread], value, sample)
                        held[c, thread] = count
                        # The slab's own k-th best raises the floor; a shorter list holds its whole slab.
                        if count == k and better(
                            list_values[0], list_ids[0], floor_values[c, thread], floor_ids[c, thread]
                        ):
                            floor_values[c, thread], floor_ids[c, thread] = list_values[0], list_ids[0]
            limits = limits_of(floor_values, floor_ids, thread, column, apart, dims, lowest_id)
        visit = np.int32(visit + rows)
    slab_counts[slab, column], slab_minimum[slab, column] = held[0, thread], minimum[0]
    if column + apart < dims:
        slab_counts[slab, column + apart], slab_minimum[slab, column + apart] = held[1, thread], minimum[1]
    if column + 2 * apart < dims:
        slab_counts[slab, column + 2 * apart], slab_minimum[slab, column + 2 * apart] = held[2, thread], minimum[2]
    if column + 3 * apart < dims:
        slab_counts[slab, column + 3 * apart], slab_minimum[slab, column + 3 * apart] = held[3, thread], minimum[3]
    if not abs(total) <= FLOAT32_MAX:
        for visit in range(end + 1):
            row = origin + position_of(np.int32(visit), phase, skip) * stride
            if ordered:
                row = order[row]
            for c in range(COLUMNS):
                one = column + c * apart
                if one < dims and not abs(value_at(x + row * pitch + one * size, kind)) <= FLOAT32_MAX:
                    bad[row] = 1
                    bad[bad.shape[0] - 1] = 1


def merge_slabs(
    groups,
    first_slab,
    last_slab,
    slab_values,
    slab_ids,
    slab_counts,
    slab_minimum,
    values,
    ids,
    counts,
    minimum,
    room,
):
    """CUDA kernel: one block a (group, column): the slabs' lists and the state's list become the state's list.

    Entries go to shared memory as long as there is room, are sorted there (a bitonic network on the total order of
    values and ids, so that the arrival order does not show), the best k stay, and the next ones follow. Bound by the
    barriers of the network, not by memory: it reads lists, of which a level has far fewer bytes than rows.

    Arguments:
        groups: int64 [Q], of this launch; the grid is Q · D: a second axis would end at 65,535.
        first_slab: int64 [Q], of each group.
        last_slab: int64 [Q], of each group, and one more.
        slab_values: as `top_slabs` wrote them, as are the next three.
        slab_ids: see there.
        slab_counts: see there.
        slab_minimum: see there.
        values: float32 [G, D, k], the state, as are the next two.
        ids: int64 [G, D, k].
        counts: int32 [G, D].
        minimum: float32 [G, D].
        room: entries sorted at once, a power of two, above k and at most 2,048.
    """
    best = cuda.shared.array(_SORTED, types.float32)
    best_ids = cuda.shared.array(_SORTED, types.int64)
    least = cuda.shared.array(MERGE_THREADS, types.float32)
    shared = cuda.shared.array(2, types.int32)  # entries in use; whether a thread has more
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    dims, k = values.shape[1], values.shape[2]
    which, column = cuda.blockIdx.x // dims, cuda.blockIdx.x % dims
    group, first, last = groups[which], first_slab[which], last_slab[which]
    kept = np.int64(counts[group, column])
    for i in range(thread, kept, threads):
        best[i] = values[group, column, i]
        best_ids[i] = ids[group, column, i]
    low = np.float32(np.inf)
    for slab in range(first + thread, last, threads):
        low = min(low, slab_minimum[slab, column])
    least[thread] = low
    slab, entry = first + thread, 0
    more = True
    while more:
        if thread == 0:
            shared[0] = kept
            shared[1] = 0
        cuda.syncthreads()
        floor_value, floor_id = LOWEST, NO_ID
        if kept == k:
            floor_value, floor_id = best[k - 1], best_ids[k - 1]
        full = False
        while slab < last and not full:
            if entry >= slab_counts[slab, column]:
                slab, entry = slab + threads, 0
            else:
                value, sample = slab_values[slab, entry, column], slab_ids[slab, entry, column]
                if better(value, sample, floor_value, floor_id):
                    place = cuda.atomic.add(shared, 0, 1)
                    if place < room:
                        best[place] = value
                        best_ids[place] = sample
                        entry += 1
                    else:
                        full = True
                        shared[1] = 1
                else:
                    entry += 1
        cuda.syncthreads()
        used = min(np.int64(shared[0]), np.int64(room))
        more = shared[1] == 1
        size = 2
        while size < used:
            size *= 2
        for i in range(used + thread, size, threads):
            best[i] = LOWEST
            best_ids[i] = NO_ID
        cuda.syncthreads()
        span = 2
        while span <= size:
            step = span // 2
            while step > 0:
                for i in range(thread, size // 2, threads):
                    a = 2 * step * (i // step) + i % step
                    b = a + step
                    upside_down = better(best[b], best_ids[b], best[a], best_ids[a])
                    if upside_down == ((a & span) == 0):
                        value, sample = best[a], best_ids[a]
                        best[a], best_ids[a] = best[b], best_ids[b]
                        best[b], best_ids[b] = value, sample
                cuda.syncthreads()
                step //= 2
            span *= 2
        kept = min(used, np.int64(k))
    for i in range(thread, kept, threads):
        values[group, column, i] = best[i]
        ids[group, column, i] = best_ids[i]
    if thread == 0:
        counts[group, column] = kept
        for i in range(threads):
            low = min(low, least[i])
        minimum[group, column] = min(minimum[group, column], low)


def _cuda_signatures():
    integer, ids = types.int64, types.int64[::1]
    lists, list_ids = types.float32[:, :, ::1], types.int64[:, :, ::1]
    counts, floats = types.int32[:, ::1], types.float32[:, ::1]
    yield (
        "top_slabs",
        top_slabs,
        (
            integer,
            integer,
            integer,
            integer,
            ids,
            ids,
            integer,
            ids,
            ids,
            ids,
            ids,
            integer,
            integer,
            lists,
            list_ids,
            counts,
            lists,
            list_ids,
            counts,
            floats,
            types.uint8[::1],
        ),
    )
    yield (
        "merge_slabs",
        merge_slabs,
        (ids, ids, ids, lists, list_ids, counts, floats, lists, list_ids, counts, floats, integer),
    )


CUDA_KERNELS = list(_cuda_signatures())
"""(name, function, argument types) of each kernel, for compiling them without a GPU."""
