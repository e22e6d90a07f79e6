"""The feeds of the fused engine: on the CPU, and on CUDA resident or streamed."""

from __future__ import annotations

import queue

import numpy as np
import torch

from fastload.augment import Augment
from fastload.common.memory import check_pinned, pinned_bytes
from fastload.errors import ClosedError
from fastload.feeds.batch import Batch, Feed, labels_of_rows, one_or_all
from fastload.feeds.fused_engine import FusedEngine
from fastload.feeds.held_feed import HeldFeed
from fastload.feeds.image_sizes import batch_bytes, layout_of
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.resident_set import ResidentSet, Turn, whole_words
from fastload.order import Order
from fastload.packed.guarded_map import GuardedMap


def fused_engines(inputs: FeedInputs, augment: Augment) -> list[FusedEngine]:
    """Return an engine for each view."""
    order, output, layout, sides = inputs.order, inputs.output, inputs.layout, inputs.sides
    return [
        FusedEngine(
            augment,
            seed=order.seed,
            phase=order.phase,
            view=view,
            layout=layout,
            sides=sides,
            dtype=output.dtype,
            channels_last=output.channels_last,
            batch_size=output.batch_size,
        )
        for view in range(inputs.views)
    ]


class FusedCpuFeed(HeldFeed):
    """CPU twin: of images that are held in memory, a whole set's or a rolling pool's, or of a file, as a stream.

    A file is read out of a guarded map, or image by image where there is none. Blocks from a disk too: in a cold pass
    over them, with the reads asked for ahead, the map gave 1.3 to 1.7 GB/s and pread 0.9 to 1.1 (interleaved, two
    cores). Scattered samples from a disk are read: see `ReadAhead.want`.
    """

    immediate = False

    def __init__(self, inputs: FeedInputs) -> None:
        self.workers, self.kind = inputs.workers, inputs.kind
        self._makers = inputs.augments.map(lambda one: (fused_engines(inputs, one), inputs.buffer_ring(one)))
        self._order, self._reader, self._read_ahead = inputs.order, inputs.reader, inputs.read_ahead
        self._labels, self._ids = inputs.labels, inputs.ids
        self._held = inputs.held()
        self._mapped: GuardedMap | None = None
        if self._held is None:
            self._mapped = GuardedMap.open(self._reader.place)
        for first in inputs.augments.firsts:
            if self.kind == "rolling":  # nothing has arrived
                engines, ring = self._makers.at(first)
                engines[0].compile_on_cpu(ring.take(1)[1])
            else:
                self.make(first, 1)  # compiles the kernels

    def _draw(self, turn: Turn, start: int, count: int) -> Batch:
        """Make a batch of images that are held."""
        engines, ring = self._makers.at(start)
        buffers = [ring.take(count) for _ in engines]
        with turn.drawing(self._order, start, count) as drawn:
            ids = self._ids[drawn.rows]
            for engine, (_, values) in zip(engines, buffers, strict=True):
                engine.on_cpu(turn.images.numpy(), drawn.places, ids, drawn.epochs, values)
        return self._batch(buffers, drawn.rows, ids)

    def _stream(self, start: int, count: int) -> Batch:
        """Make a batch of images that are read."""
        # Held until the batch is made, whoever closes this meanwhile.
        mapped, place = self._mapped, self._reader.place  # raises once this is closed
        rows, epochs = self._order.rows(start, count)
        ids = self._ids[rows]
        engines, ring = self._makers.at(start)
        buffers = [ring.take(count) for _ in engines]
        gather = self._read_ahead is None or self._read_ahead.want(start, count)
        for engine, (_, values) in zip(engines, buffers, strict=True):
            failed = -1
            if not (gather and mapped is not None and engine.on_cpu_map(mapped, rows, ids, epochs, values)):
                failed = engine.on_cpu_stream(place, rows, ids, epochs, values)
            self._reader.check(failed, rows)
        return self._batch(buffers, rows, ids)

    def _batch(self, buffers: list[tuple[torch.Tensor, np.ndarray]], rows: np.ndarray, ids: np.ndarray) -> Batch:
        images = one_or_all([images for images, _ in buffers])
        return Batch(images, labels_of_rows(self._labels, rows), torch.from_numpy(ids))

    def close(self) -> None:
        self._reader.close()
        self._mapped = None
        self._let_go()


class FusedResidentFeed(Feed):
    """CUDA, resident: one launch a batch on the trainer's own stream; nothing is prefetched and nothing waits."""

    immediate = True
    workers = 0
    kind = "resident"

    def __init__(self, inputs: FeedInputs) -> None:
        assert isinstance(inputs.order, Order)  # its kernel finds the rows by itself, in this order only
        self._order, self._output = inputs.order, inputs.output
        self._makers = inputs.augments.map(lambda one: (fused_engines(inputs, one), inputs.image_shape(one)))
        self._label_shape = None if inputs.labels is None else inputs.labels.shape[1:]
        self._set: ResidentSet | None = inputs.resident_set()
        self._home = torch.cuda.current_stream(self._output.device)
        for first in inputs.augments.firsts:
            self.make(first, 1)  # compiles the kernels

    def make(self, start: int, count: int) -> Batch:
        resident = self._set  # held until the launch is queued; then its memory waits for the stream
        if resident is None:
            raise ClosedError()
        device = self._output.device
        engines, image_shape = self._makers.at(start)
        views = [self._output.empty(count, image_shape) for _ in engines]
        labels = torch.empty((count, resident.labels.shape[1]), dtype=resident.labels.dtype, device=device)
        ids = torch.empty(count, dtype=torch.int64, device=device)
        stream = torch.cuda.current_stream(device)
        if stream != self._home:
            resident.record_stream(stream)  # or closing would give its memory away while that stream reads it
        for engine, images in zip(engines, views, strict=True):
            engine.on_cuda_resident(resident, self._order, start, images, labels, ids)
        given = None if self._label_shape is None else labels.reshape(count, *self._label_shape)
        return Batch(one_or_all(views), given, ids)

    def close(self) -> None:
        self._set = None


class FusedStreamFeed(Feed):
    """CUDA, streamed: threads gather samples into pinned buffers, copied and augmented on a stream of their own."""

    immediate = False
    kind = "stream"

    def __init__(self, inputs: FeedInputs) -> None:
        self.workers = workers = inputs.workers
        self._order, self._output = inputs.order, inputs.output
        self._makers = inputs.augments.map(lambda one: (fused_engines(inputs, one), inputs.image_shape(one)))
        self._reader, self._read_ahead = inputs.reader, inputs.read_ahead
        self._labels, self._ids = inputs.labels, inputs.file.ids
        self._shapes = inputs.file.shapes
        batch_size, device = self._output.batch_size, self._output.device
        size = whole_words(batch_bytes(layout_of(inputs.file), batch_size))
        check_pinned(workers * pinned_bytes(size), workers, batch_size)
        # One buffer a worker; its event says when the copy out of it is done.
        self._pinned: queue.SimpleQueue[tuple[torch.Tensor, torch.cuda.Event]] | None = queue.SimpleQueue()
        for _ in range(workers):
            self._pinned.put((_pinned(size), torch.cuda.Event(blocking=True)))
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for first in inputs.augments.firsts:
                self.make(first, 1)  # compiles the kernels
            torch.cuda.current_stream().synchronize()

    def make(self, start: int, count: int) -> Batch:
        pinned = self._pinned
        if pinned is None:
            raise ClosedError()
        rows, epochs = self._order.rows(start, count)
        device = self._output.device
        ids = torch.from_numpy(self._ids[rows])
        buffer, copied = pinned.get()
        try:
            copied.synchronize()  # returns at once for an event that was never recorded
            sizes = self._reader.ranges(rows)[1]
            size = int(sizes.sum())
            if len(buffer) < size:  # a ragged batch as large as few are
                buffer = _pinned(whole_words(size))
            if self._read_ahead is not None:
                self._read_ahead.want(start, count)
            self._reader.read(rows, buffer.numpy()[:size])
            stored = buffer[: whole_words(size)].to(device, non_blocking=True)
            copied.record()
        finally:
            pinned.put((buffer, copied))
        engines, image_shape = self._makers.at(start)
        views = [self._output.empty(count, image_shape) for _ in engines]
        ids_there = ids.pin_memory().to(device, non_blocking=True)
        epochs_there = torch.from_numpy(epochs).pin_memory().to(device, non_blocking=True)
        labels = labels_of_rows(self._labels, rows)
        if labels is not None:
            labels = labels.pin_memory().to(device, non_blocking=True)
        places = stored
        if self._shapes is not None:
            begins = stored.data_ptr() + np.cumsum(sizes) - sizes
            table = torch.from_numpy(np.column_stack([begins, self._shapes[rows]]))
            places = table.pin_memory().to(device, non_blocking=True)
        for engine, images in zip(engines, views, strict=True):
            engine.on_cuda_gathered(places, ids_there, epochs_there, images)
        return Batch(one_or_all(views), labels, ids_there)

    def close(self) -> None:
        self._reader.close()
        self._pinned = None


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
