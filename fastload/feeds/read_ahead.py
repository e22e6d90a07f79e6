"""Ask the system to read what an order wants next, ahead of the feed that will read it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from fastload.kernels import file_ranges
from fastload.order import Order, RowOrder
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed

_AHEAD_BYTES = 64 << 20
"""What the system is asked to read ahead of the batches, where it must come from a disk."""

_WINDOW_BYTES = 256 << 20
"""A window of blocks larger than this is asked for sample by sample."""

_MARGIN_BYTES = 16 << 20
"""Asked for beyond the next window of blocks."""


Ranges = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""From rows, their epochs and the first one's position to where byte ranges start in the set, and their sizes."""


def read_ahead_for(
    order: RowOrder, reader: SampleReader, file: Packed, batch_size: int, ranges: Ranges | None = None
) -> ReadAhead | None:
    """Return what has a streamed file read ahead, at least four batches of it, in the order that a feed follows.

    None for an order of another kind than `Order`: one that follows the losses, say, does not know yet what comes.

    Arguments:
        order: of the positions.
        reader: of the samples.
        file: the set.
        batch_size: images in a batch.
        ranges: what a feed reads of samples; all of their bytes by default.
    """
    if not isinstance(order, Order):
        return None
    sample_bytes = max(1, file.nbytes // len(file))
    window = max(_AHEAD_BYTES, 4 * batch_size * sample_bytes)
    return ReadAhead(reader, order, sample_bytes, window, ranges)


class ReadAhead:
    """Asks the system to begin reading what an order wants next, ahead of the threads that make the batches.

    Only what does not lie in the page cache yet (a few samples tell): asking costs as much as reading from there.
    `"block"` mixes rows within windows of blocks: it asks for a block at a time, always one window and 16 MB ahead, so
    that the disk never has nothing to do (a window at a time, it stood still between two: 1.3 instead of 2.0 GB/s).
    Other orders, and windows too large to be held, ask for a unit of samples at a time, sorted, neighbours as one.

    Arguments:
        reader: of the samples.
        order: of the positions.
        sample_bytes: size of a sample, on average.
        window: bytes to be ahead.
        ranges: what is read of samples that are asked for by the unit; of blocks, all is.
    """

    PROBES = 8

    def __init__(
        self, reader: SampleReader, order: Order, sample_bytes: int, window: int, ranges: Ranges | None = None
    ) -> None:
        self._reader, self._order, self._ranges = reader, order, ranges
        self._in_blocks = False
        if order.shuffle == "block":
            block = max(1, order.block_rows * sample_bytes)
            self._in_blocks = order.window_blocks * block <= max(window, _WINDOW_BYTES)
        # Both count in steps: blocks, or units of positions, which begin anew in each epoch.
        if self._in_blocks:
            margin = min(order.window_blocks, -(-_MARGIN_BYTES // block))
            self._step, self._lead = order.block_rows, order.window_blocks + margin
        else:
            self._step, self._lead = max(1, window // 2 // max(1, sample_bytes)), 2
        self._scattered = not self._in_blocks and order.shuffle is not False
        self._reached, self._found = -1, True
        self._lock = threading.Lock()

    def want(self, start: int, count: int) -> bool:
        """Say that the positions start … start + count - 1 are about to be read; return whether a map is good for it.

        It is not for scattered samples that lie on a disk: a page that is touched before it is there brings its
        neighbours with it (0.03 GB/s, and 0.07 with `pread`).
        """
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
        probes = [self._order.rows(start + count * i // self.PROBES, 1) for i in range(min(count, self.PROBES))]
        rows, epochs = (np.concatenate(parts) for parts in zip(*probes, strict=True))
        if self._reader.cached(self._ranges_of(rows, epochs, start)[0]).all():
            return True
        rows, epochs = self._order.rows(start, count)
        starts, sizes = self._ranges_of(rows, epochs, start)
        by_place = np.argsort(starts)
        starts, ends = starts[by_place], (starts + sizes)[by_place]
        breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
        self._advise(starts[np.append(0, breaks)], ends[np.append(breaks, len(ends)) - 1])
        return False

    def _ranges_of(self, rows: np.ndarray, epochs: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
        return self._reader.ranges(rows) if self._ranges is None else self._ranges(rows, epochs, position)

    def _advise(self, starts: np.ndarray, ends: np.ndarray) -> None:
        if starts.size:
            place = self._reader.place
            file_ranges.advise_ranges(*place, starts, ends - starts)
