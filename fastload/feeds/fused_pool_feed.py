"""The fused engine's feed of a rolling pool on CUDA."""

from __future__ import annotations

import numpy as np
import torch

from fastload.errors import ClosedError
from fastload.feeds.batch import Batch, labels_of_rows, one_or_all
from fastload.feeds.fused_feeds import fused_engines
from fastload.feeds.held_feed import HeldFeed
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.resident_set import Turn, whole_words


class FusedPoolFeed(HeldFeed):
    """CUDA: threads queue batches on streams of their own, once their samples have arrived in the pool."""

    immediate = False
    kind = "rolling"

    def __init__(self, inputs: FeedInputs) -> None:
        assert inputs.pool is not None
        self.workers = min(2, inputs.workers)  # a launch is all that a batch costs
        self._order, self._output, self._held = inputs.order, inputs.output, inputs.pool
        self._memory = inputs.pool.memory
        self._makers = inputs.augments.map(lambda one: (fused_engines(inputs, one), inputs.image_shape(one)))
        self._labels, self._ids = inputs.labels, inputs.ids

    def _draw(self, turn: Turn, start: int, count: int) -> Batch:
        engines, image_shape = self._makers.at(start)
        views = [self._output.empty(count, image_shape) for _ in engines]
        with turn.drawing(self._order, start, count) as drawn:
            ids, epochs = self._to_device(self._ids[drawn.rows]), self._to_device(drawn.epochs)
            places = self._places(drawn.places)
            for engine, images in zip(engines, views, strict=True):
                engine.on_cuda_gathered(places, ids, epochs, images)
        labels = labels_of_rows(self._labels, drawn.rows)
        if labels is not None:
            labels = labels.pin_memory().to(self._output.device, non_blocking=True)
        return Batch(one_or_all(views), labels, ids)

    def _stream(self, start: int, count: int) -> Batch:
        raise ClosedError()  # nothing is held

    def _places(self, slots: np.ndarray) -> torch.Tensor:
        """Return what the engine takes: the images, gathered; or where each lies, with its height and width."""
        memory = self._memory
        if memory.is_ring:
            begins = memory.data.data_ptr() + memory.begins(slots)
            return self._to_device(np.column_stack([begins, memory.layout.shapes[slots]]))
        size = memory.layout.strides[0]
        gathered = torch.empty(whole_words(len(slots) * size), dtype=torch.uint8, device=self._output.device)
        stored = memory.data[: memory.data.numel() // size * size].view(-1, size)
        torch.index_select(stored, 0, self._to_device(slots), out=gathered[: len(slots) * size].view(-1, size))
        return gathered

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).pin_memory().to(self._output.device, non_blocking=True)

    def close(self) -> None:
        self._let_go()
