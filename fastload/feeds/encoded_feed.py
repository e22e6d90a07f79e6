"""The fused engine's feed of encoded files on the CPU: each JPEG file is cut, decoded and finished by one kernel."""

from __future__ import annotations

import numpy as np
import torch

from fastload.augment import Augment
from fastload.augment.parameters import (
    Parameters,
    SampleKeys,
    draw_parameters,
    kernel_norm,
    kernel_numbers,
    kernel_recipe,
    stream_number,
)
from fastload.errors import DataError
from fastload.feeds.batch import Batch, labels_of_rows, one_or_all
from fastload.feeds.fused_engine import passes_caches
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.jpeg_cuts import OTHER_INDEX, reductions_of, regions_of
from fastload.kernels import jpeg_cut
from fastload.kernels.augment_encoded import NO_DECODER, NOT_DECODED, Drawn, encoded_kernel
from fastload.kernels.jpeg_cut import cut_margin
from fastload.packing.decoding import BrokenImage, decode, own_limits

_MESSAGE = 200


class EncodedEngine:
    """Makes batches of the JPEG files of a packed set, in any number of threads.

    Files that cannot be cut (progressive, CMYK, PNG) are decoded whole, by Pillow.

    Arguments:
        augment: what happens to each image.
        inputs: what the feed is made from.
    """

    def __init__(self, augment: Augment, inputs: FeedInputs) -> None:
        output = inputs.output
        self._augment, self._seed = augment, inputs.order.seed
        self._numbers, self._norm = kernel_numbers(augment), kernel_norm(augment, 3, output.dtype)
        self._streams = [stream_number(inputs.order.phase, view) for view in range(inputs.views)]
        self._scaled = inputs.scaled_decoding
        recipe = kernel_recipe(
            augment,
            channels=3,
            dtype=output.dtype,
            channels_last=output.channels_last,
            resample=augment.may_resize,
            streamed=passes_caches(augment, 3, output.dtype, output.batch_size),
        )
        self._kernel = encoded_kernel(recipe)

    def __call__(
        self,
        files: jpeg_cut.JpegFiles,
        rows: np.ndarray,
        decoded: np.ndarray,
        ids: np.ndarray,
        epochs: np.ndarray,
        views: list[np.ndarray],
    ) -> tuple[int, int, str]:
        """Make a batch; return the first that could not be made, why, and the decoder's own reason; or -1.

        Arguments:
            files: of the set.
            rows: int64 [b].
            decoded: int64 [b], addresses of the images that are decoded already; 0 for the others.
            ids: int64 [b].
            epochs: int64 [b].
            views: the values of each view, [b, h·w·3], filled.
        """
        sides = files.shapes[rows].astype(np.int64)
        keys = [SampleKeys(self._seed, stream, ids, epochs) for stream in self._streams]
        drawn = [draw_parameters(self._augment, one, sides, resample=self._augment.may_resize) for one in keys]
        message = np.zeros(_MESSAGE, np.uint8)
        failed, reason = self._kernel(
            files,
            rows,
            regions_of(self._augment, drawn, sides),
            reductions_of(drawn) if self._scaled else np.ones(len(rows), np.int64),
            cut_margin(self._scaled),
            decoded,
            _together(drawn),
            self._numbers,
            self._norm,
            np.array([values.ctypes.data for values in views], np.int64),
            message,
        )
        text = message.tobytes().partition(b"\0")[0].decode("ascii", "replace")
        return int(failed), int(reason), " ".join(text.split())


def _together(views: list[Parameters]) -> Drawn:
    """Return the parameters of several views as a kernel takes them."""
    colors = [np.stack([one.brightness, one.contrast, one.saturation, one.hue], axis=1) for one in views]
    return Drawn(
        np.stack([one.places for one in views]),
        np.stack([one.flip for one in views]),
        np.stack(colors),
        np.stack([one.grey for one in views]),
        np.stack([one.erased for one in views]),
    )


class FusedEncodedFeed:
    """Batches of encoded files on the CPU."""

    immediate = False
    resident = False

    def __init__(self, inputs: FeedInputs) -> None:
        self.workers = inputs.workers
        self._order, self._reader, self._read_ahead = inputs.order, inputs.reader, inputs.read_ahead
        self._labels, self._ids = inputs.labels, inputs.file.ids
        self._path, self._name_of = inputs.file.path, inputs.file.name_of
        self._views = inputs.views
        self._makers = inputs.augments.map(lambda one: (EncodedEngine(one, inputs), inputs.buffer_ring(one)))
        for first in inputs.augments.firsts:
            self.make(first, 1)  # compiles the kernels

    def make(self, start: int, count: int) -> Batch:
        reader = self._reader
        place, files = reader.place, reader.jpeg_files  # held until the batch is made, whoever closes this meanwhile
        assert files is not None
        rows, epochs = self._order.rows(start, count)
        ids = self._ids[rows]
        engine, ring = self._makers.at(start)
        if self._read_ahead is not None:
            self._read_ahead.want(start, count)
        images, values = zip(*(ring.take(count) for _ in range(self._views)), strict=True)
        whole = self._decoded(files, rows)
        addresses = np.array([0 if pixels is None else pixels.ctypes.data for pixels in whole], np.int64)
        failed, reason, text = engine(files, rows, addresses, ids, epochs, list(values))
        if failed >= 0 and reason != jpeg_cut.UNREADABLE:
            reader.check(-1, rows)  # a file that was written over says so
            raise self._error(int(rows[failed]), reason, text)
        reader.check(failed, rows)
        del place
        return Batch(one_or_all(list(images)), labels_of_rows(self._labels, rows), torch.from_numpy(ids))

    def _decoded(self, files: jpeg_cut.JpegFiles, rows: np.ndarray) -> list[np.ndarray | None]:
        """Return the pixels of files that cannot be cut."""
        whole: list[np.ndarray | None] = [None] * len(rows)
        for k in np.flatnonzero(files.cuts[rows, 0] == 0).tolist():
            whole[k] = self._decode(files, rows[k : k + 1])
        return whole

    def _decode(self, files: jpeg_cut.JpegFiles, row: np.ndarray) -> np.ndarray:
        (data,) = self._reader.encoded(row)
        try:
            with own_limits():
                pixels = np.ascontiguousarray(decode(data.tobytes()))
        except BrokenImage as error:
            raise DataError(f"{self._path}: {self._name_of(int(row[0]))} {error}; pack it again") from error
        expected = files.shapes[row[0]]
        if pixels.shape[:2] != tuple(expected):
            raise self._error(int(row[0]), jpeg_cut.OTHER_INDEX, "")
        return pixels

    def _error(self, row: int, reason: int, text: str) -> Exception:
        if reason == NO_DECODER:
            return DataError("libturbojpeg has no memory for a decoder; close other programs, or use fewer workers")
        if reason == NOT_DECODED:
            problem = f"cannot be decoded (libturbojpeg: {text}); the file is damaged, pack it again"
        else:
            problem = OTHER_INDEX
        return DataError(f"{self._path}: {self._name_of(row)} {problem}")

    def close(self) -> None:
        self._reader.close()
