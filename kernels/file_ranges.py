"""Byte ranges of a set's files: read with pread, or asked for ahead, without the GIL."""

import numpy as np
from numba import types
from numba.extending import register_jitable

from .compiling import njit
from .inlining import exact

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))

_posix_fadvise = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
)

_lseek = types.ExternalFunction("lseek", types.int64(types.int32, types.int64, types.int32))

_POSIX_FADV_WILLNEED = 3
_SEEK_END = 2


@exact
def part_of(firsts, position):
    """Return which part of a set holds the byte `position`; parts begin at `firsts`, whose last entry is the end."""
    low, high = 0, firsts.size - 2
    while low < high:
        middle = (low + high + 1) // 2
        if firsts[middle] <= position:
            low = middle
        else:
            high = middle - 1
    return low


@exact
def read_range(descriptors, begins, firsts, position, size, address):
    """Read bytes of a set that lie in one of its files to `address`; return whether they came whole."""
    part = part_of(firsts, position)
    return _pread(descriptors[part], address, np.uint64(size), begins[part] + position - firsts[part]) == size


@njit(nogil=True)
def read_ranges(descriptors, begins, firsts, starts, sizes, out, places):
    """Read byte ranges of a set to `places` of uint8 `out`; return the first that cannot be read whole, or -1.

    Arguments:
        descriptors: int32 [F], the set's files.
        begins: int64 [F], where each file's image bytes begin.
        firsts: int64 [F + 1], the place of each file's first byte in the set, and the end.
        starts: int64 [b], of the ranges in the set; each lies in one file.
        sizes: int64 [b], in bytes.
        out: uint8 [bytes], filled.
        places: int64 [b], where each range goes in `out`.

    pread and not a memory map: that needs MADV_POPULATE_READ before each touch, or a file that shrank is SIGBUS, and
    one that shrinks between the two still is; or a guard (see bus_guard.py), which not every system has. Gathering 3 KB
    samples at random from the page cache took 630 ns each with pread, 660 with populate, 700 with process_vm_readv, 220
    unprotected (EPYC, two shared cores).
    """
    for i in range(starts.size):
        address = np.uint64(out[places[i] :].ctypes.data)
        if not read_range(descriptors, begins, firsts, starts[i], sizes[i], address):
            return i
    return -1


@njit(nogil=True)
def advise_ranges(descriptors, begins, firsts, starts, sizes):
    """Ask the system to begin reading byte ranges of a set, which may go on in its next files, and do not wait.

    Arguments: as for `read_ranges`.
    """
    for i in range(starts.size):
        position, end = starts[i], starts[i] + sizes[i]
        while position < end:
            part = part_of(firsts, position)
            last = min(end, firsts[part + 1])
            offset = begins[part] + position - firsts[part]
            _posix_fadvise(descriptors[part], offset, last - position, np.int32(_POSIX_FADV_WILLNEED))
            position = last


@register_jitable
def are_whole(descriptors, ends):
    """Whether each file (int32 [F]) still has its bytes up to `ends`, int64 [F]."""
    short = 0
    for k in range(descriptors.size):
        short += _lseek(descriptors[k], 0, np.int32(_SEEK_END)) < ends[k]
    return short == 0
