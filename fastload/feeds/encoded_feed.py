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
from fastload.feeds.batch import Batch, Feed, labels_of_rows, one_or_all
from fastload.feeds.encoded_samples import MESSAGE_BYTES, check_decoded, decode_uncut
from fastload.feeds.fused_engine import passes_caches
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.jpeg_cuts import reductions_of, regions_of
from fastload.kernels.augment_encoded import Drawn, encoded_kernel
from fastload.kernels.jpeg_cut import JpegFiles, cut_margin


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
        files: JpegFiles,
        rows: np.ndarray,
        decoded: np.ndarray,
        ids: np.ndarray,
        epochs: np.ndarray,
        views: list[np.ndarray],
    ) -> tuple[int, int, np.ndarray]:
        """Make a batch; return what `check_decoded` takes: the first that failed or -1, why, and the decoder's reason.

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
        message = np.zeros(MESSAGE_BYTES, np.uint8)
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
        return int(failed), int(reason), message


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


class FusedEncodedFeed(Feed):
    """Batches of encoded files on the CPU."""

    immediate = False
    kind = "stream"

    def __init__(self, inputs: FeedInputs) -> None:
        self.workers = inputs.workers
        self._order, self._reader, self._read_ahead = inputs.order, inputs.reader, inputs.read_ahead
        self._labels, self._ids = inputs.labels, inputs.file.ids
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
        whole = decode_uncut(reader, files, rows)
        addresses = np.zeros(count, np.int64)
        for k, pixels in whole.items():
            addresses[k] = pixels.ctypes.data
        failed, reason, message = engine(files, rows, addresses, ids, epochs, list(values))
        check_decoded(reader, rows, failed, reason, message)
        del place, whole
        return Batch(one_or_all(list(images)), labels_of_rows(self._labels, rows), torch.from_numpy(ids))

    def close(self) -> None:
        self._reader.close()
