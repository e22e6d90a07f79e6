"""Read a packed set's samples by row, without the GIL; what cannot be read is an error, never a signal."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastload.common.dropping import Descriptor
from fastload.errors import ClosedError, DataError
from fastload.kernels import augment as kernel
from fastload.order import Order
from fastload.packed.file import Extent
from fastload.packed.set import Packed
from fastload.packed.watching import Watches

_PIECE = 64 << 20
_WINDOW_BYTES = 256 << 20  # a window of blocks larger than this is asked for sample by sample
_MARGIN_BYTES = 16 << 20  # asked for beyond the next window of blocks


class Place(tuple[np.ndarray, np.ndarray, np.ndarray]):
    """Where images are, for kernels that read by themselves: (descriptors int32 [F], first image bytes int64 [F],
    their places in the set int64 [F + 1]).

    The files stay open for as long as somebody holds this, so who runs a kernel on it holds it meanwhile.
    """

    files: list[Descriptor]

    def __new__(cls, extents: Sequence[Extent]) -> Place:
        files = [extent.file for extent in extents]
        place = super().__new__(
            cls,
            (
                np.array([file.number for file in files], np.int32),
                np.array([extent.offset for extent in extents], np.int64),
                np.cumsum([0, *(extent.nbytes for extent in extents)]).astype(np.int64),
            ),
        )
        place.files = files
        return place


class SampleReader:
    """Gives the samples of an open packed file or set, also after that was closed.

    Every method raises DataError, naming the row, where a file can no longer be read (truncated, failed disk), and
    where it was written over; UsageError once this is closed. Who reads `place` by himself says so to `check`.
    Thread-safe.
    """

    def __init__(self, file: Packed) -> None:
        self._path, self._name_of = file.path, file.name_of
        self._offsets, self._strides, self._shape = file.offsets, file.strides, file.shape
        self._size = file.nbytes
        self.sample_bytes = 0 if file.strides is None else file.strides[0]
        extents = file.extents
        self._place: Place | None = Place(extents)
        self._watches = Watches([extent.watch for extent in extents], self._place[0].tolist())

    @property
    def place(self) -> Place:
        """Where the images are; hold it for as long as a kernel reads there."""
        place = self._place
        if place is None:
            raise ClosedError()
        return place

    def ranges(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where samples start in the set, and their sizes, int64 [b] bytes each."""
        if self._offsets is not None:
            starts = self._offsets[rows]
            return starts, self._offsets[rows + 1] - starts
        return rows * self.sample_bytes, np.full(len(rows), self.sample_bytes)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy samples, one after the other, to uint8 `out`, which is as large as all of them."""
        place = self.place
        starts, sizes = self.ranges(rows)
        self.check(kernel.read_ranges(*place, starts, sizes, out, np.cumsum(sizes) - sizes), rows)

    def everything(self) -> np.ndarray:
        """Return all of the images' bytes, uint8 [bytes]."""
        place = self.place
        out = np.empty(self._size, np.uint8)
        firsts = place[2]
        starts = np.concatenate([np.arange(a, b, _PIECE) for a, b in pairwise(firsts)])
        sizes = np.diff(np.append(starts, self._size))
        self.check(kernel.read_ranges(*place, starts, sizes, out, starts), starts // max(1, self.sample_bytes))
        return out

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Return raw images, uint8 [b, H, W, C], whatever the file's own layout."""
        assert self._shape is not None and self._strides is not None
        gathered = np.empty(len(rows) * self.sample_bytes, np.uint8)
        self.read(rows, gathered)
        height, width, channels = self._shape
        if self._strides[3] == 1:
            return gathered.reshape(len(rows), height, width, channels)
        return np.ascontiguousarray(gathered.reshape(len(rows), channels, height, width).transpose(0, 2, 3, 1))

    def encoded(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return encoded samples, uint8 [bytes] each."""
        sizes = self.ranges(rows)[1]
        out = np.empty(int(sizes.sum()), np.uint8)
        self.read(rows, out)
        return np.split(out, np.cumsum(sizes)[:-1])

    def check(self, failed: int, rows: np.ndarray) -> None:
        """Say that a batch of `rows` was read, in whatever way; raise DataError where it is not what was opened.

        Whoever read it still holds `place`.

        `failed`: a kernel's index of the row that could not be read, or -1.
        """
        if failed < 0:
            self._watches.check()
            return
        row = int(rows[failed])
        raise DataError(
            f"{self._path}: {self._name_of(row)} can no longer be read; the file was truncated or its disk failed "
            "while it was in use. Restore it, and resume from the last checkpoint"
        )

    def cached(self, starts: np.ndarray) -> np.ndarray:
        """Return whether the bytes at `starts` can be read without waiting for a disk, bool [b]."""
        descriptors, begins, firsts = place = self.place
        parts = np.searchsorted(firsts, starts, side="right") - 1
        offsets = begins[parts] + starts - firsts[parts]
        found = [is_cached(int(one), int(offset)) for one, offset in zip(descriptors[parts], offsets, strict=True)]
        del place  # it was held, and the files with it, until here
        return np.array(found, bool)

    def close(self) -> None:
        """Let go of the files. Safe to call twice; nothing may be read any more."""
        self._place = None


def is_cached(descriptor: int, offset: int) -> bool:
    """Whether a file's byte can be read without waiting for a disk."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError:  # not there yet, or a file system that cannot say
        return False
    return True


class ReadAhead:
    """Asks the system to begin reading what an order wants next, ahead of who makes the batches.

    Only what does not lie in the page cache yet (a few samples tell): asking costs as much as reading from there.
    `"block"` mixes rows within windows of blocks: it asks for a block at a time, always one window and 16 MB ahead, so
    that the disk never has nothing to do (a window at a time, it stood still between two: 1.3 instead of 2.0 GB/s).
    Other orders, and windows too large to be held, ask for a unit of samples at a time, sorted, neighbours as one.

    Arguments:
        reader: whose samples. order: of the positions. sample_bytes: of a sample, on average.
        window: bytes to be ahead.
    """

    PROBES = 8

    def __init__(self, reader: SampleReader, order: Order, sample_bytes: int, window: int) -> None:
        self._reader, self._order = reader, order
        # An order of another kind, such as one that follows the losses, may not know yet what comes.
        self._foresees = isinstance(order, Order)
        self._in_blocks = False
        if self._foresees and order.shuffle == "block":
            block = max(1, order.block_rows * sample_bytes)
            self._in_blocks = order.window_blocks * block <= max(window, _WINDOW_BYTES)
        # Both count in steps: blocks, or units of positions, which begin anew in each epoch.
        if self._in_blocks:
            margin = min(order.window_blocks, -(-_MARGIN_BYTES // block))
            self._step, self._lead = order.block_rows, order.window_blocks + margin
        else:
            self._step, self._lead = max(1, window // 2 // max(1, sample_bytes)), 2
        self._scattered = self._foresees and not self._in_blocks and order.shuffle is not False
        self._reached, self._found = -1, True
        self._lock = threading.Lock()

    def want(self, start: int, count: int) -> bool:
        """Say that the positions start … start + count - 1 are about to be read; return whether a map is good for it.

        It is not for scattered samples that lie on a disk: a page that is touched before it is there brings its
        neighbours with it (0.03 GB/s, and 0.07 with `pread`).
        """
        if not self._foresees:
            return True
        first, last = self._step_of(start), self._step_of(start + count - 1)
        with self._lock:
            last_plausible = last + 2 * self._lead + 8 * (last - first + 1)
            if not first <= self._reached <= last_plausible:  # the first call, or a jump
                self._reached = first - self._into_window(start)
            steps = range(self._reached, last + self._lead + 1)
            self._reached = max(self._reached, steps.stop)
        if self._in_blocks:
            self._ask_for_blocks(steps)
        else:
            for step in steps:
                self._found = self._ask_for_unit(step)
        return self._found or not self._scattered

    @property
    def _steps(self) -> int:
        return -(-self._order.n // self._step)

    def _step_of(self, position: int) -> int:
        """Return the number of the step that holds `position`, in an endless count; of a block, up to one too few.

        The short block may stand anywhere, and moves those after it forward by less than a block.
        """
        epoch, offset = divmod(position, self._order.n)
        return epoch * self._steps + offset // self._step

    def _into_window(self, position: int) -> int:
        """Return how many steps before the one of `position` may hold it just as well."""
        if not self._in_blocks:
            return 0
        return position % self._order.n // self._step % self._order.window_blocks

    def _ask_for_blocks(self, steps: range) -> None:
        blocks = self._order.blocks(steps.start, len(steps))
        first = blocks * self._step
        last = np.minimum(first + self._step, self._order.n) - 1
        starts, sizes = self._reader.ranges(np.concatenate([first, last]))
        starts, ends = starts.reshape(2, -1), (starts + sizes).reshape(2, -1)
        # To look for a page that is not there reads it, alone, and cuts a block's read in two: seldom, if in vain.
        looked = np.array([self._found or step % self.PROBES == 0 for step in steps], bool)
        here = np.zeros(len(steps), bool)
        if looked.any():
            here[looked] = self._reader.cached(starts[:, looked].ravel()).reshape(2, -1).all(axis=0)
            self._found = bool(here[looked][-1])
        self._advise(starts[0, ~here], ends[1, ~here])

    def _ask_for_unit(self, step: int) -> bool:
        """Ask for a unit unless it is there; return whether it is."""
        epoch, unit = divmod(step, self._steps)
        start = epoch * self._order.n + unit * self._step
        count = min(self._step, self._order.n - unit * self._step)
        probes = [self._order.rows(start + count * i // self.PROBES, 1)[0] for i in range(min(count, self.PROBES))]
        if self._reader.cached(self._reader.ranges(np.concatenate(probes))[0]).all():
            return True
        rows = np.sort(self._order.rows(start, count)[0])
        starts, sizes = self._reader.ranges(rows)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        first, last = np.append(0, breaks), np.append(breaks, len(rows)) - 1
        self._advise(starts[first], (starts + sizes)[last])
        return False

    def _advise(self, starts: np.ndarray, ends: np.ndarray) -> None:
        if starts.size:
            place = self._reader.place
            kernel.advise_ranges(*place, starts, ends - starts)
