"""The memory map of a packed set's images whose lost pages (a truncated file, a failed disk) are no signal."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import operator
import threading
from functools import partial

import numpy as np

from fastload.common.dropping import when_dropped
from fastload.kernels import bus_guard as kernel
from fastload.packed.reader import ImageLocation

_FAILED = -1
_FOLIO = 2 << 20  # the largest page that a map of files is made of, on x86 and (with pages of 4 KB) ARM

_libc = ctypes.CDLL(None)
_mmap, _munmap = _libc.mmap, _libc.munmap
_mmap.restype = ctypes.c_ssize_t
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t


class _Guard:
    """The process's SIGBUS handler, installed, and its table: a row (begin, end, mark) a slot."""

    def __init__(self) -> None:
        self._compiled = kernel.compile_handler()
        self.address = int(self._compiled.address)
        found = np.zeros(1, np.int64)
        ask = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)(self.address)
        ask(0, found.ctypes.data, 0)
        table = int(found[0])
        words = (ctypes.c_int64 * (kernel.ACTION + 3 * kernel.SLOTS)).from_address(table)
        self.slots = np.ctypeslib.as_array(words)[kernel.ACTION :].reshape(kernel.SLOTS, 3)
        self.free = list(range(kernel.SLOTS))
        if not kernel.install(self.address, table):
            raise OSError("sigaction failed")
        # The system may call it as long as the process lives, past the interpreter's end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._compiled))


_guard: _Guard | None = None
_refused = False
_installing = threading.Lock()


def _the_guard() -> _Guard | None:
    """Return the guard, installed once a process; None where this system is not as it expects.

    Once: installed again above somebody who came after us, each would hand an alien signal to the other, for ever.
    """
    global _guard, _refused
    with _installing:
        if _guard is None and not _refused:
            _refused = True
            # Whatever a system makes of it: reading without the map is right everywhere, and only slower.
            with contextlib.suppress(Exception):
                if kernel.supported():
                    _guard = _Guard()
    return _guard


class GuardedMap:
    """A packed set's images, mapped one file after the other, for kernels that gather from memory.

    A batch is made so: `ready()` before, `intact()` after. Where either says no, it must be read in another way, which
    names the row that cannot be read; what was gathered may be zeros. Unmapped when nobody holds this any more: a
    thread that gathers must hold it.

    Attributes:
        data: uint8 [bytes], the map; writing to it is a crash. (It is not flagged as read-only: Numba would compile the
            kernels once more for that, and a sample's bits could differ.)
        place: (descriptors int32 [F], how long the files must be, where in `data` their image bytes begin, int64 [F]
            each, their places in the set int64 [F + 1]).
    """

    def __init__(
        self, guard: _Guard, slot: int, address: int, size: int, begins: np.ndarray, files: ImageLocation
    ) -> None:
        self._guard, self._slot = guard, slot
        self.data: np.ndarray = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self.place = (files[0], files[1] + np.diff(files[2]), begins, files[2])
        self._files = files  # held: kernels look how long they are

    @classmethod
    def open(cls, files: ImageLocation) -> GuardedMap | None:
        """Map the files of a `SampleReader`'s place; None where this cannot be done safely, or at all."""
        guard = _the_guard()
        if guard is None:
            return None
        try:
            slot = guard.free.pop()
        except IndexError:
            return None
        page = mmap.PAGESIZE
        offsets = files[1] // page * page
        sizes = -(-(files[1] + np.diff(files[2]) - offsets) // page) * page
        # Each file begins where in its folios it does: one of 2 MB can then be mapped whole, by one entry for 512.
        rooms = -(-(offsets % _FOLIO + sizes) // _FOLIO) * _FOLIO
        places = np.cumsum(rooms) - rooms + offsets % _FOLIO
        size = int(rooms.sum())
        flags = kernel.MAP_PRIVATE | kernel.MAP_ANONYMOUS | kernel.MAP_NORESERVE
        reserved = _mmap(None, size + _FOLIO, kernel.PROT_NONE, flags, -1, 0)
        if reserved == _FAILED:
            guard.free.append(slot)
            return None
        address = -(-reserved // _FOLIO) * _FOLIO
        # One range for all of the files: a single slot, and a set may have more files than there are.
        guard.slots[slot] = 0
        guard.slots[slot, 1] = address + size
        guard.slots[slot, 0] = address
        mapped = cls(guard, slot, address, size, places + files[1] - offsets, files)
        slots = guard.slots
        when_dropped(
            mapped,
            partial(operator.setitem, slots, (slot, 1), 0),
            partial(operator.setitem, slots, (slot, 0), 0),
            partial(_munmap, reserved, size + _FOLIO),
            partial(guard.free.append, slot),
        )
        for descriptor, offset, length, at in zip(files[0], offsets, sizes, places, strict=True):
            there, flags = address + int(at), kernel.MAP_SHARED | kernel.MAP_FIXED
            if _mmap(there, int(length), kernel.PROT_READ, flags, int(descriptor), int(offset)) != there:
                return None
        return mapped

    def ready(self) -> bool:
        """Whether this thread may gather from the map now."""
        return not self._guard.slots[self._slot, 2] and bool(kernel.is_guarded(self._guard.address))

    def intact(self) -> bool:
        """Whether no page was lost up to now.

        Past a truncated file's end, the rest of its last page reads as zeros without a signal: hence the kernel, after
        a batch, looks how long the files are.
        """
        return not self._guard.slots[self._slot, 2]
