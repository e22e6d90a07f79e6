"""Read a packed set's samples by row, without the GIL; what cannot be read is an error, never a signal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastload.common.dropping import Descriptor
from fastload.errors import ClosedError, DataError
from fastload.kernels import file_ranges
from fastload.kernels.jpeg_cut import JpegFiles
from fastload.packed.file import Extent
from fastload.packed.jpeg_index import JpegIndex
from fastload.packed.set import Packed
from fastload.packed.watching import Watches

_PIECE = 64 << 20


class ImageLocation(tuple[np.ndarray, np.ndarray, np.ndarray]):
    """Where images are, for kernels that read by themselves: (descriptors int32 [F], first image bytes int64 [F],
    their places in the set int64 [F + 1]).

    The files stay open for as long as somebody holds this, so who runs a kernel on it holds it meanwhile.
    """

    files: list[Descriptor]

    def __new__(cls, extents: Sequence[Extent]) -> ImageLocation:
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
        self._path, self._name_of, self.ids = file.path, file.name_of, file.ids
        self._offsets, self._strides, self._shape = file.offsets, file.strides, file.shape
        self._size = file.nbytes
        self._shapes, self._channels = file.shapes, file.channels
        self.sample_bytes = 0 if file.strides is None else file.strides[0]
        extents = file.extents
        self._place: ImageLocation | None = ImageLocation(extents)
        self._jpeg: JpegFiles | None = None
        if file.jpeg is not None and file.shapes is not None and file.offsets is not None:
            self._jpeg = _jpeg_files(file.jpeg, file.shapes, file.offsets, self._place)
        self._watches = Watches([extent.watch for extent in extents], self._place[0].tolist())

    @property
    def place(self) -> ImageLocation:
        """Where the images are; hold it for as long as a kernel reads there."""
        place = self._place
        if place is None:
            raise ClosedError()
        return place

    @property
    def jpeg_files(self) -> JpegFiles | None:
        """The files that can be cut, for kernels, which hold `place` meanwhile; None where none can."""
        return self._jpeg

    def ranges(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where samples start in the set, and their sizes, int64 [b] bytes each."""
        if self._offsets is not None:
            starts = self._offsets[rows]
            return starts, self._offsets[rows + 1] - starts
        return rows * self.sample_bytes, np.full(len(rows), self.sample_bytes)

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray | None = None) -> None:
        """Copy samples.

        Arguments:
            rows: int64 [b].
            out: uint8 [bytes]; filled.
            places: int64 [b], where each sample goes in `out`; one after the other by default.
        """
        place = self.place
        starts, sizes = self.ranges(rows)
        if places is None:
            places = np.cumsum(sizes) - sizes
        self.check(file_ranges.read_ranges(*place, starts, sizes, out, places), rows)

    def read_all(self, out: np.ndarray) -> None:
        """Copy all of the images' bytes to uint8 `out`, which is as large as they are."""
        place = self.place
        firsts = place[2]
        starts = np.concatenate([np.arange(a, b, _PIECE) for a, b in pairwise(firsts)])
        sizes = np.diff(np.append(starts, self._size))
        if self._offsets is None:
            rows = starts // self.sample_bytes
        else:
            rows = np.searchsorted(self._offsets, starts, side="right") - 1
        self.check(file_ranges.read_ranges(*place, starts, sizes, out, starts), rows)

    def images(self, rows: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Return raw images, uint8 [b, H, W, C], whatever the file's own layout; ragged ones, [H, W, C] each."""
        if self._shape is None or self._strides is None:
            assert self._shapes is not None
            sides = self._shapes[rows].tolist()
            return [one.reshape(*pair, self._channels) for one, pair in zip(self.encoded(rows), sides, strict=True)]
        gathered = np.empty(len(rows) * self.sample_bytes, np.uint8)
        self.read(rows, gathered)
        height, width, channels = self._shape
        if self._strides[3] == 1:
            return gathered.reshape(len(rows), height, width, channels)
        return np.ascontiguousarray(gathered.reshape(len(rows), channels, height, width).transpose(0, 2, 3, 1))

    def encoded(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return encoded samples, or others whose sizes differ, as they are stored: uint8 [bytes] each."""
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
        raise self.error(
            int(rows[failed]),
            "can no longer be read; the file was truncated or its disk failed while it was in use. Restore it, and "
            "resume from the last checkpoint",
        )

    def error(self, row: int, problem: str) -> DataError:
        """Return an error that names a sample and says what is wrong with it."""
        return DataError(f"{self._path}: {self._name_of(row)} {problem}")

    def ask(self, rows: np.ndarray) -> None:
        """Have the system begin to read samples from the disk, unless the first and the last lie in its cache."""
        place, (starts, sizes) = self.place, self.ranges(rows)
        if not self.cached(starts[[0, -1]]).all():
            file_ranges.advise_ranges(*place, starts, sizes)

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


def _jpeg_files(index: JpegIndex, shapes: np.ndarray, offsets: np.ndarray, place: ImageLocation) -> JpegFiles:
    begins = np.array([begin for begin, _ in index.places], np.int64)
    firsts = np.cumsum([0, *(4 * count for _, count in index.places)]).astype(np.int64)
    return JpegFiles(*place, offsets, shapes, index.cuts, begins, firsts, index.segment_offsets)


def is_cached(descriptor: int, offset: int) -> bool:
    """Whether a file's byte can be read without waiting for a disk."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError:  # not there yet, or a file system that cannot say
        return False
    return True
