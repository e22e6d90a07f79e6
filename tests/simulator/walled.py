"""Arrays that end where memory does, so that a simulated kernel that reads behind them ends its process."""

import ctypes
import mmap

import numpy as np

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def walled(array):
    """A copy of an array whose last byte is the last before a page that nobody may read."""
    room = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, room + mmap.PAGESIZE), np.uint8)
    assert _mprotect(memory.ctypes.data + room, mmap.PAGESIZE, 0) == 0, ctypes.get_errno()
    copy = memory[room - array.nbytes : room].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
