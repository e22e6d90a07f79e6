"""Sums over the threads of an image in CUDA kernels, in an order that is the same in every run.

Barriers are the kernels' own: the simulator knows them in a kernel's file only.
"""

import numpy as np

from .inlining import exact

_GROUPS = 16


@exact
def fold_threads(count, scratch, thread, threads, first, stride):
    """Sum `count` quantities of an image's threads, scratch[quantity · stride + first + thread], in a fixed order.

    Between two barriers. Leaves _GROUPS partial sums of each where its first threads' values were; a group's values are
    read by none but the thread that replaces the first of them. Halving would take one barrier a level.
    """
    for g in range(thread, count * _GROUPS, threads):
        group = g % _GROUPS
        base = first + (g // _GROUPS) * stride
        if group < threads:
            total = np.float64(0)
            for k in range(group, threads, _GROUPS):
                total += scratch[base + k]
            scratch[base + group] = total


@exact
def folded_sum(scratch, base, threads):
    """Return the sum of a quantity whose partial sums begin at `base`."""
    total = np.float64(0)
    for g in range(_GROUPS):
        if g < threads:
            total += scratch[base + g]
    return total
