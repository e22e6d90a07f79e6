"""The feed of the DALI engine, on either device, for raw and encoded files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastload.augment import draw_parameters
from fastload.errors import DataError
from fastload.feeds.batch import Batch, labels_of_rows
from fastload.feeds.dali_engine import DaliEngine
from fastload.feeds.dali_errors import SampleError
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.resident_set import ResidentSet


class DaliFeed:
    """Batches by a DALI pipeline, resident or streamed; a pipeline is not thread-safe: one worker."""

    immediate = False
    workers = 1

    def __init__(self, inputs: FeedInputs) -> None:
        file, output = inputs.file, inputs.output
        self._augment, self._order, self._output = inputs.augment, inputs.order, output
        self._path, self._name_of = file.path, file.name_of
        self.resident, self._encoded = inputs.resident, file.shape is None
        self._on_cuda = output.device.type == "cuda"
        self._labels, self._ids = inputs.labels, file.ids
        self._reader, self._read_ahead = inputs.reader, inputs.read_ahead
        self._set: ResidentSet | None = inputs.resident_set() if self.resident else None
        self._image_shape, self._ring = inputs.image_shape, inputs.buffer_ring()
        self._engine = DaliEngine(
            inputs.augment,
            shape=file.shape,
            batch_size=output.batch_size,
            device=output.device,
            memory_format=output.memory_format,
        )

    def make(self, start: int, count: int) -> Batch:
        rows, epochs = self._order.rows(start, count)
        ids = self._ids[rows]
        parameters = draw_parameters(self._augment, self._order.seed, self._order.phase, ids, epochs)
        device = self._output.device
        if self._on_cuda:
            images = self._output.empty(count, self._image_shape)
        else:
            images, _ = self._ring.take(count)
        try:
            if self._read_ahead is not None:
                self._read_ahead.want(start, count)
            self._engine(self._samples(rows), parameters, images)
        except SampleError as error:
            row = int(rows[error.position])
            raise DataError(f"{self._path}: {self._name_of(row)} {error.problem}") from error
        labels = labels_of_rows(self._labels, rows)
        if not self._on_cuda:
            return Batch(images, labels, torch.from_numpy(ids))
        if labels is not None:
            labels = labels.to(device)
        return Batch(images, labels, torch.from_numpy(ids).to(device))

    def _samples(self, rows: np.ndarray) -> Any:
        resident = self._set
        if self._encoded:
            return self._reader.encoded(rows)
        if resident is not None:
            return resident.rows(rows)
        images = self._reader.images(rows)  # raises once this is closed
        return torch.from_numpy(images).to(self._output.device) if self._on_cuda else images

    def close(self) -> None:
        self._engine.close()
        self._reader.close()
        self._set = None
