"""Top-k and selection by brute force, in plain Python and float64: what the fast code is tested against."""

from __future__ import annotations

import numpy as np


def ranked(column, ids):
    """Return (value, id) of a column, highest value first, then lowest id; -0.0 sorts as 0.0."""
    return sorted(((float(v) + 0.0, int(i)) for v, i in zip(column, ids, strict=True)), key=lambda e: (-e[0], e[1]))


def assert_lists_are_exact(state, x, ids, k, group_of_row=None, groups=1):
    """Assert that a TopKState holds what sorting every column gives."""
    x, ids = np.asarray(x, np.float64), np.asarray(ids)
    group_of_row = np.zeros(len(x), int) if group_of_row is None else group_of_row
    for group in range(groups):
        member = group_of_row == group
        for d in range(x.shape[1]):
            expected = ranked(x[member, d], ids[member])[:k]
            count = state.counts[group, d]
            found = list(
                zip(state.values[group, d, :count].tolist(), state.ids[group, d, :count].tolist(), strict=True)
            )
            assert found == expected, f"group {group}, column {d}"
            assert not np.signbit(state.values[group, d, :count][state.values[group, d, :count] == 0]).any()
            assert (state.ids[group, d, count:] == -1).all()
    assert state.rows == len(x)
    assert state.minimum.tolist() == (x.min(axis=0) + 0.0).tolist()
    assert state.maximum.tolist() == (x.max(axis=0) + 0.0).tolist()
    assert state.nonfinite == 0 and len(state.nonfinite_ids) == 0


def dimension_lists(x, ids):
    """Return each dimension's full ranking of the samples above its minimum."""
    return [[(v, i) for v, i in ranked(x[:, d], ids) if v > float(x[:, d].min()) + 0.0] for d in range(x.shape[1])]


def round_robin(lists, fillers, size):
    """Return (id, dimension, rank, score) of the greedy choice that goes round the dimensions."""
    chosen, out, cursor = set(), [], [0] * len(lists)
    while len(out) < size:
        progressed = False
        for d, entries in enumerate(lists):
            while cursor[d] < len(entries) and entries[cursor[d]][1] in chosen:
                cursor[d] += 1
            if cursor[d] < len(entries) and len(out) < size:
                value, sample = entries[cursor[d]]
                chosen.add(sample)
                out.append((sample, d, cursor[d], value))
                progressed = True
        if not progressed:
            rest = [i for i in fillers if i not in chosen][: size - len(out)]
            out += [(sample, -1, order, 0.0) for order, sample in enumerate(rest)]
    return out


def largest_deficit(sizes, size):
    """Return which class gives each place: the one furthest behind its share of the places so far."""
    given, out = [0] * len(sizes), []
    for t in range(1, size + 1):
        deficits = [t * s - g * sum(sizes) for s, g in zip(sizes, given, strict=True)]
        best = deficits.index(max(deficits))
        given[best] += 1
        out.append(best)
    return out
