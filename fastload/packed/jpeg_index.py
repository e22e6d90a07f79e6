"""Where the JPEG files of a packed file can be cut: for each its header, the grid of its segments, where they begin.

A file that was transcoded when it was packed has restart markers every few MCUs (the blocks of pixels that JPEG codes
together). What stands between two of them is a segment, which can be decoded by itself. See docs/format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fastload.errors import DataError


class Cut(NamedTuple):
    """How a file can be cut, as the dataset `jpeg` holds it, int32 each; all 0 for a file that is stored whole.

    Attributes:
        header: bytes before the first segment.
        frame: where in the header the height stands, two bytes, and the width after it.
        mcu_height: in pixels.
        mcu_width: in pixels.
        interval: MCUs in a segment; it divides those of a row.
        orientation: 1 to 8, as EXIF has it: the file's own pixels are turned by it; `shapes` are upright.
    """

    header: int
    frame: int
    mcu_height: int
    mcu_width: int
    interval: int
    orientation: int


FIELDS = len(Cut._fields)
WHOLE = Cut(0, 0, 0, 0, 0, 0)


class JpegIndex:
    """The index of a packed file.

    Arguments:
        cuts: int32 [N, 6], one `Cut` a file.
        segment_offsets: int64 [N + 1]; the entries of file i are `segment_offsets[i] … segment_offsets[i + 1] - 1`.
        read: gives entries from one place to another, uint32: where in its file each segment begins, row by row, and
            where the file ends. A segment's last two bytes are a marker.
        places: where the entries begin in each packed file of the set, in bytes, and how many there are.
    """

    def __init__(
        self,
        cuts: np.ndarray,
        segment_offsets: np.ndarray,
        read: Callable[[int, int], np.ndarray],
        places: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.cuts, self.segment_offsets, self.places, self._read = cuts, segment_offsets, list(places), read

    def segments(self, row: int) -> np.ndarray:
        """Return the entries of a file, uint32; none for one that is stored whole."""
        return self._read(int(self.segment_offsets[row]), int(self.segment_offsets[row + 1]))

    def of_rows(self, rows: np.ndarray) -> JpegIndex:
        """Return the index of some of the files, int64 [rows], in that order."""
        return JpegIndex.of_files([Cut(*self.cuts[row].tolist()) for row in rows], [self.segments(row) for row in rows])

    def datasets(self) -> list[tuple[str, np.ndarray]]:
        """Return the datasets by their names."""
        everything = self._read(0, int(self.segment_offsets[-1]))
        return [("jpeg", self.cuts), ("segments", everything), ("segment_offsets", self.segment_offsets)]

    @staticmethod
    def joined(parts: Sequence[JpegIndex | None], counts: Sequence[int]) -> JpegIndex | None:
        """Return the index of a set of packed files; None where none of them has one.

        Arguments:
            parts: of each file.
            counts: how many samples each has.
        """
        if all(part is None for part in parts):
            return None
        known = [part or JpegIndex.of_files([WHOLE] * count, []) for part, count in zip(parts, counts, strict=True)]
        sizes = [int(part.segment_offsets[-1]) for part in known]
        firsts = np.cumsum([0, *sizes])
        shifted = [part.segment_offsets[:-1] + first for part, first in zip(known, firsts, strict=False)]

        def read(start: int, stop: int) -> np.ndarray:
            pieces = [
                part._read(max(start - first, 0), min(stop - first, size))
                for part, first, size in zip(known, firsts.tolist(), sizes, strict=False)
                if start < first + size and stop > first
            ]
            return np.concatenate([np.empty(0, np.uint32), *pieces])

        places = [place for part in known for place in (part.places or [(0, 0)])]
        cuts = np.concatenate([part.cuts for part in known])
        return JpegIndex(cuts, np.concatenate([*shifted, firsts[-1:]]), read, places)

    @staticmethod
    def of_files(cuts: Sequence[Cut], segments: Sequence[np.ndarray]) -> JpegIndex:
        """Return the index of files, given each one's cut and entries."""
        sizes = [len(entries) for entries in segments]
        everything = np.concatenate([np.empty(0, np.uint32), *segments]).astype(np.uint32)
        offsets = np.zeros(len(cuts) + 1, np.int64)
        offsets[1 : len(sizes) + 1] = np.cumsum(sizes, dtype=np.int64)
        table = np.array(cuts, np.int32).reshape(len(cuts), FIELDS)
        return JpegIndex(table, offsets, lambda start, stop: everything[start:stop])


def check_index(path: object, cuts: np.ndarray, segment_offsets: np.ndarray, shapes: np.ndarray) -> None:
    """Raise DataError unless an index can be that of files of these shapes; its entries are checked as they are used.

    Arguments:
        path: the file's name, for messages.
        cuts: int32 [N, 6].
        segment_offsets: int64 [N + 1].
        shapes: int32 [N, 2], upright.
    """
    held = cuts[:, 0] != 0
    sound = (cuts[~held] == 0).all() and (cuts >= 0).all()
    header, frame, mcu_height, mcu_width, interval, orientation = cuts[held].astype(np.int64).T
    sound = sound and (frame >= 7).all() and (frame + 4 <= header).all() and (header < 1 << 20).all()
    sound = sound and np.isin(mcu_height, (8, 16, 24, 32)).all() and np.isin(mcu_width, (8, 16, 24, 32)).all()
    sound = sound and (interval > 0).all() and (interval < 1 << 16).all()
    sound = sound and (orientation >= 1).all() and (orientation <= 8).all()
    if sound:
        turned = orientation >= 5
        sides = shapes[held].astype(np.int64)
        height, width = np.where(turned, sides[:, 1], sides[:, 0]), np.where(turned, sides[:, 0], sides[:, 1])
        columns = -(-width // mcu_width)
        counts = np.zeros(len(cuts), np.int64)
        counts[held] = -(-height // mcu_height) * (columns // interval) + 1
        sound = bool((columns % interval == 0).all() and np.array_equal(np.diff(segment_offsets), counts))
    if not sound:
        raise DataError(
            f"{path}: dataset 'jpeg' does not say how files of these shapes can be cut; it is damaged, pack it again"
        )
