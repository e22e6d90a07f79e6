"""The memory map of a packed set's images whose lost pages (a truncated file, a failed disk) are no signal."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import operator
import signal
import threading
from collections.abc import Callable

import numpy as np

from fastload.common.dropping import when_dropped
from fastload.kernels import bus_guard
from fastload.packed.reader import ImageLocation

_FOLIO = 2 << 20  # the largest page that a map of files is made of, on x86 and (with pages of 4 KB) ARM
_Action = ctypes.c_int64 * bus_guard.ACTION
_opening = threading.Lock()

_mmap = ctypes.CDLL(None).mmap
_mmap.restype = ctypes.c_ssize_t
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_sigaction = ctypes.PyDLL(None).sigaction  # with the GIL: to get it back takes longer than this


class _Guard:
    """The SIGBUS handler, installed, and its table: the action before it, and `slots`, rows of (begin, end, mark)."""

    def __init__(self) -> None:
        if not bus_guard.supported():
            raise OSError("the SIGBUS handler needs 64-bit Linux on x86 or ARM")
        compiled = bus_guard.compile_handler()
        self._table = (ctypes.c_int64 * bus_guard.WORDS).from_address(compiled.ctypes(0, None, None))
        self.slots: np.ndarray = np.ctypeslib.as_array(self._table)[bus_guard.ACTION :].reshape(-1, 3)
        self._ours = _Action(compiled.address, *[0] * 16, bus_guard.FLAGS)
        # The system may call it as long as the process lives, past the interpreter's end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(compiled))
        _sigaction(signal.SIGBUS, self._ours, self._table)

    def stands(self) -> bool:
        """Whether a SIGBUS of this thread would come to the handler: nobody replaced it, and it is not blocked.

        Where the default action is found, the handler is installed again: Lightning, as it ends, sets all signals to
        what Python knows of them. Never over others: they may hand on to us, and each would call the other for ever.
        """
        found = _Action()
        _sigaction(signal.SIGBUS, None, found)
        if found[0] == signal.SIG_DFL:
            self._table[0] = signal.SIG_DFL
            _sigaction(signal.SIGBUS, self._ours, found)
            if found[0] != signal.SIG_DFL:  # somebody came in between
                _sigaction(signal.SIGBUS, found, None)
            _sigaction(signal.SIGBUS, None, found)
        return found[0] == self._ours[0] and signal.SIGBUS not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


_guard = functools.cache(_Guard)


class GuardedMap:
    """A packed set's images, mapped one file after the other, for kernels that gather from memory.

    Unmapped when nobody holds this any more: a thread that gathers must hold it.
    """

    def __init__(self, files: ImageLocation) -> None:
        self._guard, self._files = _guard(), files  # the files are held: kernels look how long they are
        ends = files[1] + np.diff(files[2])
        offsets = files[1] // mmap.PAGESIZE * mmap.PAGESIZE
        # Each file begins where in its folios it does: one of 2 MB can then be mapped whole, by one entry for 512.
        rooms = -(-(offsets % _FOLIO + ends - offsets) // _FOLIO) * _FOLIO
        places = np.cumsum(rooms) - rooms + offsets % _FOLIO
        size = int(rooms.sum())
        self._reserved = mmap.mmap(-1, size + _FOLIO, flags=bus_guard.MAP_RESERVED, prot=bus_guard.PROT_NONE)
        address = -(-np.frombuffer(self._reserved, np.uint8).ctypes.data // _FOLIO) * _FOLIO
        # Not flagged as read-only: Numba would compile the kernels once more, and a sample's bits could differ.
        self._data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self._place = (files[0], ends, places + files[1] - offsets, files[2])
        # One slot for all of the files: a set may have more than there are. Without a free one, this is an IndexError.
        self._slot = self._guard.slots[np.flatnonzero(self._guard.slots[:, 0] == 0)[0]]
        self._slot[:] = address, address + size, 0
        when_dropped(self, functools.partial(operator.setitem, self._slot, slice(None), 0))
        for descriptor, end, offset, place in zip(files[0], ends, offsets, places, strict=True):
            there, flags = address + int(place), bus_guard.MAP_SHARED | bus_guard.MAP_FIXED
            if _mmap(there, int(end - offset), bus_guard.PROT_READ, flags, int(descriptor), int(offset)) != there:
                raise OSError("mmap failed")

    @classmethod
    def open(cls, files: ImageLocation) -> GuardedMap | None:
        """Map the files of a `SampleReader`'s place; None where this cannot be done safely, or at all."""
        # Whatever a system makes of it: reading with pread is right everywhere, and only slower.
        with _opening, contextlib.suppress(Exception):
            return cls(files)
        return None

    def gather(self, kernel: Callable[..., bool], *arguments: object) -> bool:
        """Let a kernel gather from the map; return whether what it made is right.

        Where it is not (it may be zeros), or the kernel could not be called, its twin that reads with pread must do the
        work: it names the row that cannot be read.

        Arguments:
            kernel: called with the files (descriptors int32 [F]; how long they must be, where in the map their image
                bytes begin, int64 [F] each; their places in the set int64 [F + 1]), the map (uint8 [bytes]; writing to
                it is a crash) and `arguments`. It returns whether the files are as long as they must be after it has
                gathered: past a truncated file's end, the rest of its last page reads as zeros without a signal.
        """
        mark = self._slot[2:]
        right = not mark[0] and self._guard.stands() and kernel(*self._place, self._data, *arguments)
        return right and not mark[0]
