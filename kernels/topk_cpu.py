"""Exact top-k down the columns of a matrix: the CPU kernels, eight rows at a time, by one thread each."""

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from .compiling import njit
from .intrinsics import LANES, prefetch_element, survey, survey_tail
from .topk import FLOAT32, FLOAT32_MAX, LOWEST, NO_ID, RATIO, better, limit_of, offer, sink, widen

_BLOCK = 256

_ALL_LANES = np.uint64((1 << LANES) - 1)


@register_jitable
def _higher(a, b):
    # Numba's own max() and min() order NaN and zeros, which costs instructions; neither matters here.
    return a if a > b else b


@register_jitable
def _lower(a, b):
    return a if a < b else b


def _float_rows(x, kind, places, buffer):
    """Return a float32 matrix and where eight rows of x stand in it; typed below, for compiled code only."""


@overload(_float_rows)
def _float_rows_typed(x, kind, places, buffer):
    if x.dtype == types.float32:
        return lambda x, kind, places, buffer: (x, places)

    def widened(x, kind, places, buffer):
        for j in range(8):
            for i in range(buffer.shape[1]):
                buffer[j, i] = widen(x[places[j], i], kind)
        return buffer, (0, 1, 2, 3, 4, 5, 6, 7)

    return widened


@register_jitable
def _id_of(samples, first_id, row):
    """Return a row's id; ids that follow each other are not written out, which would take 8 bytes a row."""
    return samples[row] if samples.size else first_id + row


@njit(nogil=True)
def _note_bad_row(m, row, sample, bad_ids, bad_count):
    """Count a row with NaN or infinity in it, and keep its id where it is among the lowest."""
    finite = True
    for i in range(m.shape[1]):
        finite = finite and abs(m[row, i]) <= FLOAT32_MAX
    if finite:
        return
    bad_count[0] += 1
    place = bad_ids.size
    while place > 0 and bad_ids[place - 1] > sample:
        if place < bad_ids.size:
            bad_ids[place] = bad_ids[place - 1]
        place -= 1
    if place < bad_ids.size:
        bad_ids[place] = sample


@njit(nogil=True)
def _scan_rows(
    x,
    kind,
    samples,
    first_id,
    order,
    first,
    last,
    stride,
    floor,
    values,
    ids,
    counts,
    lowest,
    bad_ids,
    bad_count,
    limit,
    buffer,
):
    """Offer every `stride`-th eight rows of order[first … last - 1] (of x where `order` is empty) to heaps.

    Eight rows at once, since one row at a time is bound by the loads of limits, not by memory; while they are looked
    at, the next eight are on their way to the first-level cache. Bound by memory while hits are rare: of 500,000 rows
    of 216 one thread takes 0.26 µs for eight, hits included (AMD EPYC; 0.33 with loops that LLVM makes vectors of).
    Ascending rows are bound by the heaps, which are renewed on each level of samples. Values below `floor` are passed
    over: k others are known to be as high.
    """
    dims, k = values.shape
    heap_values, heap_ids = values.reshape(-1), ids.reshape(-1)
    lowest_id = NO_ID
    for start in range(first, last, 8 * stride):
        for at in range(start, min(last, start + 8)):
            lowest_id = min(lowest_id, _id_of(samples, first_id, order[at] if order.size else at))
    for i in range(dims):
        limit[i] = floor[i]
        if counts[i] == k:
            limit[i] = _higher(floor[i], limit_of(values[i, 0], ids[i, 0], lowest_id))
    for start in range(first, last, 8 * stride):
        n = min(8, last - start)
        p0 = start
        # A short last step repeats its last row, which changes neither maximum nor minimum.
        p1, p2, p3 = p0 + min(1, n - 1), p0 + min(2, n - 1), p0 + min(3, n - 1)
        p4, p5, p6, p7 = p0 + min(4, n - 1), p0 + min(5, n - 1), p0 + min(6, n - 1), p0 + min(7, n - 1)
        if order.size:
            p0, p1, p2, p3 = order[p0], order[p1], order[p2], order[p3]
            p4, p5, p6, p7 = order[p4], order[p5], order[p6], order[p7]
        places = (p0, p1, p2, p3, p4, p5, p6, p7)
        m, rows = _float_rows(x, kind, places, buffer)
        begin = (
            np.uint64(rows[0] * dims),
            np.uint64(rows[1] * dims),
            np.uint64(rows[2] * dims),
            np.uint64(rows[3] * dims),
            np.uint64(rows[4] * dims),
            np.uint64(rows[5] * dims),
            np.uint64(rows[6] * dims),
            np.uint64(rows[7] * dims),
        )
        following = start + 8 * stride
        seen = np.uint64(0)
        for column in range(0, dims, LANES):
            first_column, left = np.uint64(column), np.uint64(dims - column)
            if order.size:
                for j in range(following, min(following + 8, last)):
                    prefetch_element(x, np.uint64(order[j] * dims + column))
            else:  # line by line: the processor's own prefetcher sees a sequence
                for j in range(8):
                    prefetch_element(x, np.uint64(following * dims + 8 * column + LANES * j))
            if left >= np.uint64(LANES):
                found = survey(m, begin, first_column, left, limit, lowest)
            else:
                found = survey_tail(m, begin, first_column, left, limit, lowest)
            if found:
                seen |= found
                for lane in range(min(LANES, dims - column) if found & _ALL_LANES else 0):
                    i = column + lane
                    if found >> np.uint64(lane) & np.uint64(1):
                        for j in range(n):
                            value = m[rows[j], i]
                            if value >= limit[i]:
                                # + 0 turns -0 into +0.
                                value += np.float32(0)
                                sample = _id_of(samples, first_id, places[j])
                                counts[i] = offer(heap_values, heap_ids, i * k, k, counts[i], value, sample)
                                if counts[i] == k:
                                    limit[i] = _higher(floor[i], limit_of(values[i, 0], ids[i, 0], lowest_id))
        if seen >> np.uint64(LANES) & _ALL_LANES:
            for row in rows:
                for i in range(dims):
                    lowest[i] = _lower(m[row, i], lowest[i])
        if seen >> np.uint64(2 * LANES):
            for j in range(n):
                _note_bad_row(m, rows[j], _id_of(samples, first_id, places[j]), bad_ids, bad_count)


@njit(nogil=True)
def scan_group(
    x,
    kind,
    samples,
    first_id,
    order,
    first,
    last,
    stride,
    values,
    ids,
    counts,
    lowest,
    bad_ids,
    bad_count,
):
    """Offer rows order[first … last - 1] (first … last - 1 where `order` is empty) to one group's heaps.

    Samples of every `stride`-th eight rows, then of 32 times as many, and so on, come first, into heaps of their own:
    the k-th best of a sample is a floor for the next, so that the last pass, over all rows in sequence, seldom hits.
    Eight rows together, since a row alone is fetched at the latency of memory, not at its bandwidth.
    """
    dims, k = values.shape
    limit = np.empty(dims, np.float32)
    floor = np.full(dims, LOWEST)
    buffer = np.empty((8, dims if kind != FLOAT32 else 0), np.float32)
    if stride > 1:
        sample_values, sample_ids = np.empty((dims, k), np.float32), np.empty((dims, k), np.int64)
        sample_lowest = np.full(dims, LOWEST)
        sample_bad, sample_bad_count = np.empty(0, np.int64), np.zeros(1, np.int64)
    while stride > 1:
        sample_counts = np.zeros(dims, np.int32)
        for start in range(first, last, _BLOCK * stride):
            _scan_rows(
                x,
                kind,
                samples,
                first_id,
                order,
                start,
                min(last, start + _BLOCK * stride),
                stride,
                floor,
                sample_values,
                sample_ids,
                sample_counts,
                sample_lowest,
                sample_bad,
                sample_bad_count,
                limit,
                buffer,
            )
        for i in range(dims):
            if sample_counts[i] == k:
                floor[i] = sample_values[i, 0]
        stride //= RATIO
    for start in range(first, last, _BLOCK):
        _scan_rows(
            x,
            kind,
            samples,
            first_id,
            order,
            start,
            min(last, start + _BLOCK),
            1,
            floor,
            values,
            ids,
            counts,
            lowest,
            bad_ids,
            bad_count,
            limit,
            buffer,
        )


@njit(nogil=True)
def sort_heaps(values, ids, counts):
    """Turn heaps [lists, k] into lists, best entry first."""
    flat_values, flat_ids, k = values.reshape(-1), ids.reshape(-1), values.shape[1]
    for row in range(values.shape[0]):
        first = row * k
        for end in range(counts[row] - 1, 0, -1):
            value, sample = values[row, end], ids[row, end]
            worst_value, worst_id = values[row, 0], ids[row, 0]
            sink(flat_values, flat_ids, first, end, value, sample)
            values[row, end], ids[row, end] = worst_value, worst_id


@njit(nogil=True)
def merge_lists(a_values, a_ids, a_counts, b_values, b_ids, b_counts, values, ids, counts):
    """Merge sorted lists [lists, k] pair by pair."""
    lists, k = values.shape
    for row in range(lists):
        i, j, n = 0, 0, 0
        while n < k and (i < a_counts[row] or j < b_counts[row]):
            if j == b_counts[row] or (
                i < a_counts[row] and better(a_values[row, i], a_ids[row, i], b_values[row, j], b_ids[row, j])
            ):
                values[row, n], ids[row, n] = a_values[row, i], a_ids[row, i]
                i += 1
            else:
                values[row, n], ids[row, n] = b_values[row, j], b_ids[row, j]
                j += 1
            n += 1
        counts[row] = n
