"""The feed of the DALI engine, on either device, for raw and encoded files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastload.augment import Augment, draw_parameters
from fastload.common.memory import check_fits
from fastload.errors import DataError
from fastload.feeds.batch import Batch, Output
from fastload.feeds.buffers import BufferRing
from fastload.feeds.dali_engine import DaliEngine, SampleError
from fastload.order import Order
from fastload.packed.reader import ReadAhead, SampleReader
from fastload.packed.set import Packed


class DaliFeed:
    """Batches by a DALI pipeline; a pipeline is not thread-safe: one worker.

    Arguments:
        labels: [N, ...], or None for batches without. ahead: of a streamed feed; None keeps the set on the device.
    """

    immediate = False
    workers = 1

    def __init__(
        self,
        file: Packed,
        augment: Augment,
        order: Order,
        output: Output,
        labels: torch.Tensor | None,
        reader: SampleReader,
        ahead: ReadAhead | None,
    ) -> None:
        self._augment, self._order, self._output = augment, order, output
        self._path, self._name_of = file.path, file.name_of
        self.resident = ahead is None
        self._channels = 3 if file.shape is None else file.shape[2]
        self._encoded = file.shape is None
        self._on_cuda = output.device.type == "cuda"
        self._labels, self._ids = labels, file.ids
        self._reader, self._ahead = reader, ahead
        self._stored: torch.Tensor | None = None
        if ahead is None:
            check_fits(file.nbytes, output.device, str(file.path))
            self._stored = torch.from_numpy(reader.images(np.arange(len(file)))).to(output.device)
            reader.close()
        self._ring = BufferRing(
            output.batch_size,
            (self._channels, *augment.size),
            output.dtype,
            output.channels_last,
            output.keep,
        )
        self._engine = DaliEngine(
            augment, shape=file.shape, batch_size=output.batch_size, device=output.device,
            memory_format=output.memory_format,
        )  # fmt: skip

    def make(self, start: int, count: int) -> Batch:
        rows, epochs = self._order.rows(start, count)
        ids = self._ids[rows]
        parameters = draw_parameters(self._augment, self._order.seed, self._order.phase, ids, epochs)
        device = self._output.device
        if self._on_cuda:
            images = self._output.empty(count, (self._channels, *self._augment.size))
        else:
            images, _ = self._ring.take(count)
        try:
            if self._ahead is not None:
                self._ahead.want(start, count)
            self._engine(self._samples(rows), parameters, images)
        except SampleError as error:
            row = int(rows[error.position])
            raise DataError(f"{self._path}: {self._name_of(row)} {error.problem}") from error
        labels = None if self._labels is None else self._labels[torch.from_numpy(rows)]
        if not self._on_cuda:
            return Batch(images, labels, torch.from_numpy(ids))
        if labels is not None:
            labels = labels.to(device)
        return Batch(images, labels, torch.from_numpy(ids).to(device))

    def _samples(self, rows: np.ndarray) -> Any:
        stored = self._stored
        if self._encoded:
            return self._reader.encoded(rows)
        if stored is not None:
            return stored[torch.from_numpy(rows).to(stored.device)]
        images = self._reader.images(rows)  # raises once this is closed
        return torch.from_numpy(images).to(self._output.device) if self._on_cuda else images

    def close(self) -> None:
        self._engine.close()
        self._reader.close()
        self._stored = None
