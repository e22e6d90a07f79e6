"""What a writer remembers of samples that come one after the other, of sizes that nobody knew before."""

from __future__ import annotations

import numpy as np

from fastload.packed.jpeg_index import WHOLE, Cut, JpegIndex


class Appended:
    """Where samples were appended, and how their files can be cut.

    Attributes:
        starts: int64 [N], of each row.
        sizes: int64 [N].
        end: of the last one.
        in_order: whether they came in the order of the rows.
    """

    def __init__(self, count: int) -> None:
        self.starts, self.sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.end, self.in_order = 0, True
        self._last = -1
        self._cuts = [WHOLE] * count
        self._segments = [np.empty(0, np.uint32)] * count

    def add(self, row: int, size: int, cut: Cut, segments: np.ndarray | None) -> None:
        """Remember a sample that was appended.

        Arguments:
            row: of the packed file.
            size: in bytes.
            cut: how its file can be cut.
            segments: where its segments begin, and its end; None where it is stored whole.
        """
        self.in_order &= row > self._last
        self._last, self.starts[row], self.sizes[row] = row, self.end, size
        self.end += size
        self._cuts[row] = cut
        if segments is not None:
            self._segments[row] = segments

    def index(self) -> JpegIndex | None:
        """Return where the files can be cut; None where none of them can."""
        return JpegIndex.of_files(self._cuts, self._segments) if any(cut.header for cut in self._cuts) else None
