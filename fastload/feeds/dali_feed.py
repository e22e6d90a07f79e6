"""The feed of the DALI engine, on either device, for files of every storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastload.augment import Augment
from fastload.augment.parameters import SampleKeys, stream_number
from fastload.common.processors import default_threads
from fastload.feeds.batch import Batch, labels_of_rows, one_or_all
from fastload.feeds.dali_decoding import FileDecoder
from fastload.feeds.dali_engine import DaliEngine, cuda_number
from fastload.feeds.dali_errors import SampleError
from fastload.feeds.held_feed import HeldFeed
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.jpeg_cuts import read_batch
from fastload.feeds.resident_set import Turn

View = tuple[SampleKeys, torch.Tensor]


def _engine(inputs: FeedInputs, augment: Augment, decoder: FileDecoder | None) -> DaliEngine:
    output = inputs.output
    return DaliEngine(
        augment,
        shape=None if decoder is not None else inputs.layout.shape,
        batch_size=output.batch_size,
        device=output.device,
        dtype=output.dtype,
        memory_format=output.memory_format,
        decoder=decoder,
    )


class DaliFeed(HeldFeed):
    """Batches by a DALI pipeline, resident or streamed; a pipeline is not thread-safe: one worker."""

    immediate = False
    workers = 1

    def __init__(self, inputs: FeedInputs) -> None:
        file, output = inputs.file, inputs.output
        self._order, self._output = inputs.order, output
        self._held = inputs.held()
        self.kind, self._encoded = inputs.kind, file.storage == "encoded" and self._held is None
        self._on_cuda = output.device.type == "cuda"
        self._labels, self._ids = inputs.labels, inputs.ids
        self._reader, self._read_ahead = inputs.reader, inputs.read_ahead
        phase = inputs.order.phase
        self._streams = [stream_number(phase, view) for view in range(inputs.views)]
        self._decoder: FileDecoder | None = None
        if self._encoded:
            self._decoder = FileDecoder(output.batch_size, default_threads(), cuda_number(output.device))
        self._makers = inputs.augments.map(
            lambda one: (one, _engine(inputs, one, self._decoder), inputs.buffer_ring(one), inputs.image_shape(one))
        )

    def _draw(self, turn: Turn, start: int, count: int) -> Batch:
        """Make a batch of images that are held."""
        _, engine, _, _ = self._makers.at(start)
        with turn.drawing(self._order, start, count) as drawn:
            ids, views = self._views(start, drawn.rows, drawn.epochs)
            engine.make_views(turn.rows(drawn.places), views)
        return self._batch(views, drawn.rows, ids)

    def _stream(self, start: int, count: int) -> Batch:
        """Make a batch of samples that are read."""
        rows, epochs = self._order.rows(start, count)
        augment, engine, _, _ = self._makers.at(start)
        ids, views = self._views(start, rows, epochs)
        try:
            if self._read_ahead is not None:
                self._read_ahead.want(start, count)
            engine.make_views(self._samples(rows, augment, [keys for keys, _ in views]), views)
        except SampleError as error:
            raise self._reader.error(int(rows[error.position]), error.problem) from error
        return self._batch(views, rows, ids)

    def _views(self, start: int, rows: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, list[View]]:
        """Return the ids of samples, and what each view's parameters hang on, with the memory for its images."""
        ids, views = self._ids[rows], list[View]()
        _, _, ring, image_shape = self._makers.at(start)
        for stream in self._streams:
            images = self._output.empty(len(rows), image_shape) if self._on_cuda else ring.take(len(rows))[0]
            views.append((SampleKeys(self._order.seed, stream, ids, epochs), images))
        return ids, views

    def _batch(self, views: list[View], rows: np.ndarray, ids: np.ndarray) -> Batch:
        made, device = one_or_all([images for _, images in views]), self._output.device
        labels = labels_of_rows(self._labels, rows)
        if not self._on_cuda:
            return Batch(made, labels, torch.from_numpy(ids))
        if labels is not None:
            labels = labels.to(device)
        return Batch(made, labels, torch.from_numpy(ids).to(device))

    def _samples(self, rows: np.ndarray, augment: Augment, views: list[SampleKeys]) -> Any:
        if self._encoded:
            return read_batch(self._reader, rows, augment, views)
        images = self._reader.images(rows)  # raises once this is closed
        if not self._on_cuda:
            return images
        if isinstance(images, list):
            return [torch.from_numpy(image).to(self._output.device) for image in images]
        return torch.from_numpy(images).to(self._output.device)

    def close(self) -> None:
        for _, engine, _, _ in self._makers.values:
            engine.close()
        if self._decoder is not None:
            self._decoder.close()
        self._reader.close()
        self._let_go()
