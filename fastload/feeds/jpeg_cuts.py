"""Which part of each JPEG file a batch's crops show: for both engines, for reading ahead, and cut out for DALI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastload.augment import Augment, RandomCrop, RandomResizedCrop
from fastload.augment.parameters import Parameters, SampleKeys, draw_parameters
from fastload.augment.schedule import Staged
from fastload.feeds.dali_errors import SampleError
from fastload.kernels.jpeg_cut import MARGIN, UNREADABLE, cut_files, ranges_of_cuts
from fastload.packed.reader import SampleReader

OTHER_INDEX = "does not fit what the file's index says of it; the file is damaged, pack it again"


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded images, whole or in part.

    Attributes:
        files: uint8 [bytes] each.
        origins: int64 [b, 2], the row and the column of the whole image at which each file's begins.
        shown: int64 [b, 2], the sides of the files' images; 0 for whole files.
        whole: int64 [b, 2], the sides of the whole images; 0 for whole files, whose decoder tells.
    """

    files: Sequence[np.ndarray]
    origins: np.ndarray
    shown: np.ndarray
    whole: np.ndarray

    @staticmethod
    def of_whole(files: Sequence[np.ndarray]) -> EncodedBatch:
        """Return a batch of whole files."""
        return EncodedBatch(files, *np.zeros((3, len(files), 2), np.int64))


def read_batch(reader: SampleReader, rows: np.ndarray, augment: Augment, views: Sequence[SampleKeys]) -> EncodedBatch:
    """Read what DALI is to decode.

    Arguments:
        reader: of the samples.
        rows: int64 [b].
        augment: what happens to each image.
        views: what the parameters of each view hang on.

    Raises SampleError for a file that its index does not fit, DataError where one cannot be read.
    """
    return _read(
        reader,
        rows,
        lambda sides: regions_of(augment, [draw_parameters(augment, keys, sides) for keys in views], sides),
    )


def read_whole(reader: SampleReader, rows: np.ndarray) -> EncodedBatch:
    """Read whole files for DALI, so that those are told, by their index, which `read_batch` tells.

    Arguments and errors are those of `read_batch`.
    """
    return _read(reader, rows, _whole)


def _read(reader: SampleReader, rows: np.ndarray, regions: Callable[[np.ndarray], np.ndarray]) -> EncodedBatch:
    """Read files, and cut those that can be cut to the regions that are given for the sides of the whole images."""
    files = reader.jpeg_files
    if files is None:
        return EncodedBatch.of_whole(reader.encoded(rows))
    place = reader.place  # held, and the files with it, until all is read
    sides = files.shapes[rows].astype(np.int64)
    sizes = files.offsets[rows + 1] - files.offsets[rows]
    out, parts = np.empty(int(sizes.sum()) + 64, np.uint8), np.zeros((len(rows), 5), np.int64)
    failed, reason = cut_files(files, rows, regions(sides), MARGIN, out, parts)
    if failed >= 0 and reason != UNREADABLE:
        reader.check(-1, rows)  # a file that was written over says so
        raise SampleError(int(failed), OTHER_INDEX)
    reader.check(int(failed), rows)
    del place
    ends = np.cumsum(parts[:, 0])
    cut = [out[start:end] for start, end in zip(ends - parts[:, 0], ends, strict=True)]
    held = parts[:, 0] > 0
    others = np.flatnonzero(~held)
    if len(others):
        for k, data in zip(others.tolist(), reader.encoded(rows[others]), strict=True):
            cut[k] = data
    parts[~held] = 0
    return EncodedBatch(cut, parts[:, 1:3], parts[:, 3:5], np.where(held[:, None], sides, 0))


class CutRanges:
    """Tells which bytes of a set's files crops are cut from, before they are read.

    Arguments:
        reader: of the samples.
        augments: what happens to each image, from which position on.
        seed: of the random parameters.
        streams: of each view.
        margin: pixels around a crop.
    """

    def __init__(
        self, reader: SampleReader, augments: Staged[Augment], seed: int, streams: Sequence[int], margin: int
    ) -> None:
        self._reader, self._augments, self._margin = reader, augments, margin
        self._seed, self._streams, self._ids = seed, streams, reader.ids

    def __call__(self, rows: np.ndarray, epochs: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where ranges start in the set, and their sizes in bytes, int64 [r] each.

        Arguments:
            rows: int64 [b].
            epochs: int64 [b], of the samples.
            position: the first one's, in the order.
        """
        reader = self._reader
        place, files = reader.place, reader.jpeg_files
        assert files is not None
        augment, sides = self._augments.at(position), files.shapes[rows].astype(np.int64)
        keys = [SampleKeys(self._seed, stream, self._ids[rows], epochs) for stream in self._streams]
        regions = regions_of(augment, [draw_parameters(augment, one, sides) for one in keys], sides)
        ranges = np.empty((len(rows), 2, 2), np.int64)
        ranges_of_cuts(files, rows, regions, self._margin, ranges)
        del place
        found = ranges.reshape(-1, 2)
        starts, sizes = found[found[:, 1] > 0].T
        return np.ascontiguousarray(starts), np.ascontiguousarray(sizes)


def reductions_of(views: Sequence[Parameters]) -> np.ndarray:
    """Return by how much each image can be decoded smaller, 1, 2, 4 or 8, so that no crop is smaller than its output.

    Arguments:
        views: the parameters of each view.
    """
    room = np.min([(view.places[:, 2:4] // np.maximum(view.places[:, 4:6], 1)).min(axis=1) for view in views], axis=0)
    return np.select([room >= 8, room >= 4, room >= 2], [8, 4, 2], 1).astype(np.int64)


def regions_of(augment: Augment, views: Sequence[Parameters], sides: np.ndarray) -> np.ndarray:
    """Return which part of each image is needed, int64 [b, 4]: the first row and column, and those behind the last.

    Arguments:
        augment: what happens to each image.
        views: the parameters of each view.
        sides: int64 [b, 2], of the images.
    """
    if isinstance(augment.crop, RandomResizedCrop):
        firsts = np.min([view.places[:, :2] for view in views], axis=0)
        lasts = np.max([view.places[:, :2] + view.places[:, 2:4] for view in views], axis=0)
    elif augment.may_resize or (isinstance(augment.crop, RandomCrop) and augment.crop.pad):
        return _whole(sides)
    else:
        corners = np.array([np.stack([view.top, view.left], axis=1) for view in views])
        firsts, lasts = corners.min(axis=0), corners.max(axis=0) + augment.sides
    return np.ascontiguousarray(np.concatenate([firsts, lasts], axis=1), np.int64)


def _whole(sides: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(sides), sides], axis=1)
