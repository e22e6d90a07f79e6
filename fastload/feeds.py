"""Feeds: from positions of an order to batches on the device. Nothing here knows that there are two phases.

A resident feed keeps the whole set in (device) memory; a stream feed reads the packed file as it goes.
`open_feed` chooses; `stream` is a plain generator over one, for the autoencoder and for scripts.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from fastload.arguments import whole
from fastload.augment import Augment, draw_parameters
from fastload.buffers import FLOAT_TYPES, BufferRing
from fastload.device import resolve_device
from fastload.engines import choose_engine
from fastload.engines.dali import DaliEngine, SampleError
from fastload.engines.fused import FusedEngine, ResidentStore, whole_words
from fastload.errors import DataError, UsageError
from fastload.guarded_map import GuardedMap
from fastload.kernels import cuda_target
from fastload.memory import check_fits, check_pinned, pinned_bytes
from fastload.order import Order
from fastload.packed_set import Packed, labels_of
from fastload.prefetch import Prefetcher
from fastload.processors import makers
from fastload.reading import ReadAhead, SampleReader

_AHEAD_BYTES = 64 << 20
"""What the system is asked to read ahead of the batches, where it must come from a disk."""


class Batch(NamedTuple):
    """images [B, C, h, w], labels [B, ...] and ids int64 [B], on the device."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor


@dataclass(frozen=True)
class Output:
    """How batches come out: `batch_size` images, device, dtype (float32, float16, bfloat16) and memory format."""

    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    keep: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", whole("batch_size", self.batch_size, 1))
        if self.dtype not in FLOAT_TYPES:
            raise UsageError(f"dtype={self.dtype}; it is one of torch.float32, torch.float16, torch.bfloat16")
        if self.memory_format not in (torch.contiguous_format, torch.channels_last):
            raise UsageError(
                f"memory_format={self.memory_format}; it is torch.contiguous_format or torch.channels_last"
            )

    @property
    def channels_last(self) -> bool:
        return self.memory_format == torch.channels_last

    def empty(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return memory on the device for `count` images of `shape` (C, h, w)."""
        size = (count, *shape)
        return torch.empty(size, dtype=self.dtype, device=self.device, memory_format=self.memory_format)


class Feed(Protocol):
    """What makes batches of one packed file.

    `immediate` feeds are called by the trainer's own thread (a launch is all they cost); others by `workers` threads
    ahead of it. `resident` ones keep the whole set in device memory.
    """

    immediate: bool
    workers: int
    resident: bool

    def make(self, start: int, count: int) -> Batch:
        """Return the batch of the positions start … start + count - 1."""

    def close(self) -> None:
        """Free threads, buffers and pipelines."""


def label_tensor(labels: np.ndarray) -> torch.Tensor:
    """Return labels as they are yielded: integers as int64, others as they are."""
    return torch.from_numpy(labels.astype(np.int64) if labels.dtype.kind in "iu" else np.ascontiguousarray(labels))


def open_feed(
    file: Packed,
    augment: Augment,
    order: Order,
    output: Output,
    *,
    engine: str = "auto",
    resident: bool = False,
    workers: int | None = None,
    labels: np.ndarray | None = None,
) -> Feed:
    """Return the feed of a packed file.

    Arguments:
        file: opened by the caller, who closes it after the feed.
        augment, order, output: what comes out. engine: "auto", "fused" or "dali".
        resident: keep the whole file in device memory (raw storage only).
        workers: threads that make batches ahead; the processors, at most 8, by default.
        labels: [N, ...], in place of the file's own.
    """
    chosen = choose_engine(engine, file, augment)
    if resident and file.shape is None:
        raise UsageError(f"{file.path} holds encoded images; a resident set must be raw")
    if workers is None:
        workers = makers()
    given = label_tensor(labels_of(file, "a batch") if labels is None else labels)
    if chosen == "dali":
        return _DaliFeed(file, augment, order, output, resident, given)
    if output.device.type == "cpu":
        return _FusedCpuFeed(file, augment, order, output, resident, workers, given)
    cuda_target.require()
    if resident:
        return _FusedResidentFeed(file, augment, order, output, given)
    return _FusedStreamFeed(file, augment, order, output, workers, given)


def _fused(file: Packed, augment: Augment, order: Order, output: Output) -> FusedEngine:
    assert file.shape is not None and file.strides is not None
    return FusedEngine(
        augment, seed=order.seed, phase=order.phase, shape=file.shape, strides=file.strides,
        dtype=output.dtype, channels_last=output.channels_last,
    )  # fmt: skip


class _FusedCpuFeed:
    """CPU twin, resident (a copy in memory) or streamed: out of a guarded map, or image by image where there is none.

    Blocks from a disk too: in a cold pass over them, with the reads asked for ahead, the map gave 1.3 to 1.7 GB/s and
    pread 0.9 to 1.1 (interleaved, two cores). Scattered samples from a disk are read: see `ReadAhead.want`.
    """

    immediate = False

    def __init__(
        self, file: Packed, augment: Augment, order: Order, output: Output, resident: bool, workers: int,
        labels: torch.Tensor,
    ) -> None:  # fmt: skip
        assert file.shape is not None
        self.workers, self.resident = workers, resident
        self._engine = _fused(file, augment, order, output)
        self._order = order
        self._reader = SampleReader(file)
        if resident:
            check_fits(file.nbytes, output.device, str(file.path))
        self._data = self._reader.everything() if resident else None
        self._mapped = None if resident else GuardedMap.open(self._reader.place)
        self._ahead = None if resident else _read_ahead(self._reader, order, file, output)
        self._labels, self._ids = labels, file.ids
        shape = (file.shape[2], *augment.size)
        self._ring = BufferRing(output.batch_size, shape, output.dtype, output.channels_last, output.keep)
        _discard(self.make(0, 1))  # compiles the kernels

    def make(self, start: int, count: int) -> Batch:
        rows, epochs = self._order.rows(start, count)
        images, values = self._ring.take(count)
        ids = self._ids[rows]
        if self._data is not None:
            self._engine.on_cpu(self._data, rows, ids, epochs, values)
        else:
            gather = self._ahead is None or self._ahead.want(start, count)
            failed = -1
            if not (gather and self._make_mapped(rows, ids, epochs, values)):
                failed = self._engine.on_cpu_stream(self._reader.place, rows, ids, epochs, values)
            self._reader.check(failed, rows)
        return Batch(images, self._labels[torch.from_numpy(rows)], torch.from_numpy(ids))

    def _make_mapped(self, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, values: np.ndarray) -> bool:
        """Make a batch out of the map; return whether it is right, or must be read in the other way."""
        mapped = self._mapped  # held: it goes when nobody holds it
        if mapped is None or not mapped.ready():
            return False
        return self._engine.on_cpu_map(mapped, rows, ids, epochs, values) and mapped.intact()

    def close(self) -> None:
        self._reader.close()
        self._data = self._mapped = None


class _FusedResidentFeed:
    """CUDA, resident: one launch a batch on the trainer's own stream; nothing is prefetched and nothing waits."""

    immediate = True
    workers = 0
    resident = True

    def __init__(self, file: Packed, augment: Augment, order: Order, output: Output, labels: torch.Tensor) -> None:
        assert file.shape is not None
        self._engine = _fused(file, augment, order, output)
        self._order, self._output = order, output
        self._shape = (file.shape[2], *augment.size)
        self._label_shape = labels.shape[1:]
        check_fits(file.nbytes, output.device, str(file.path))
        reader = SampleReader(file)
        self._store: ResidentStore | None = ResidentStore(reader.everything(), labels, file.ids, output.device)
        self._home = torch.cuda.current_stream(output.device)
        reader.close()
        _discard(self.make(0, 1))

    def make(self, start: int, count: int) -> Batch:
        assert self._store is not None
        device = self._output.device
        images = self._output.empty(count, self._shape)
        labels = torch.empty((count, self._store.labels.shape[1]), dtype=self._store.labels.dtype, device=device)
        ids = torch.empty(count, dtype=torch.int64, device=device)
        stream = torch.cuda.current_stream(device)
        if stream != self._home:
            self._store.record_stream(stream)  # or closing would give its memory away while that stream reads it
        self._engine.on_cuda_resident(self._store, self._order, start, images, labels, ids)
        return Batch(images, labels.reshape(count, *self._label_shape), ids)

    def close(self) -> None:
        self._store = None


class _FusedStreamFeed:
    """CUDA, streamed: threads gather samples into pinned buffers, copied and augmented on a stream of their own."""

    immediate = False
    resident = False

    def __init__(
        self, file: Packed, augment: Augment, order: Order, output: Output, workers: int, labels: torch.Tensor
    ) -> None:
        assert file.shape is not None
        self.workers = workers
        self._engine = _fused(file, augment, order, output)
        self._order, self._output = order, output
        self._shape = (file.shape[2], *augment.size)
        self._reader = SampleReader(file)
        self._ahead = _read_ahead(self._reader, order, file, output)
        self._labels, self._ids = labels, file.ids
        size = whole_words(self._reader.sample_bytes * output.batch_size)
        check_pinned(workers * pinned_bytes(size), workers, output.batch_size)
        # One buffer a worker; its event says when the copy out of it is done.
        self._pinned: queue.SimpleQueue[tuple[torch.Tensor, torch.cuda.Event]] = queue.SimpleQueue()
        for _ in range(workers):
            self._pinned.put((torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event(blocking=True)))
        with torch.cuda.stream(torch.cuda.Stream(output.device)):
            _discard(self.make(0, 1))
            torch.cuda.current_stream().synchronize()

    def make(self, start: int, count: int) -> Batch:
        rows, epochs = self._order.rows(start, count)
        device = self._output.device
        ids = torch.from_numpy(self._ids[rows])
        buffer, copied = self._pinned.get()
        try:
            copied.synchronize()  # returns at once for an event that was never recorded
            size = count * self._reader.sample_bytes
            self._ahead.want(start, count)
            self._reader.read(rows, buffer.numpy()[:size])
            stored = buffer[: whole_words(size)].to(device, non_blocking=True)
            copied.record()
        finally:
            self._pinned.put((buffer, copied))
        images = self._output.empty(count, self._shape)
        ids_there = ids.pin_memory().to(device, non_blocking=True)
        epochs_there = torch.from_numpy(epochs).pin_memory().to(device, non_blocking=True)
        labels = self._labels[torch.from_numpy(rows)].pin_memory().to(device, non_blocking=True)
        self._engine.on_cuda_gathered(stored, ids_there, epochs_there, images)
        return Batch(images, labels, ids_there)

    def close(self) -> None:
        self._reader.close()
        while not self._pinned.empty():
            self._pinned.get()


class _DaliFeed:
    """The DALI pipeline, on either device, for raw or encoded files; a pipeline is not thread-safe: one worker."""

    immediate = False
    workers = 1

    def __init__(
        self, file: Packed, augment: Augment, order: Order, output: Output, resident: bool, labels: torch.Tensor
    ) -> None:
        self._augment, self._order, self._output = augment, order, output
        self._path, self._name_of = file.path, file.name_of
        self.resident = resident
        self._channels = 3 if file.shape is None else file.shape[2]
        self._encoded = file.shape is None
        self._on_cuda = output.device.type == "cuda"
        self._labels, self._ids = labels, file.ids
        self._reader = SampleReader(file)
        self._ahead = None if resident else _read_ahead(self._reader, order, file, output)
        self._stored: torch.Tensor | None = None
        if resident:
            check_fits(file.nbytes, output.device, str(file.path))
            self._stored = torch.from_numpy(self._reader.images(np.arange(len(file)))).to(output.device)
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
        labels = self._labels[torch.from_numpy(rows)]
        if not self._on_cuda:
            return Batch(images, labels, torch.from_numpy(ids))
        return Batch(images, labels.to(device), torch.from_numpy(ids).to(device))

    def _samples(self, rows: np.ndarray) -> Any:
        if self._encoded:
            return self._reader.encoded(rows)
        if self._stored is not None:
            return self._stored[torch.from_numpy(rows).to(self._stored.device)]
        images = self._reader.images(rows)
        return torch.from_numpy(images).to(self._output.device) if self._on_cuda else images

    def close(self) -> None:
        self._engine.close()
        self._reader.close()
        self._stored = None


def _discard(batch: Batch) -> None:
    """Say that a batch was made only to compile and check what makes it."""


def _read_ahead(reader: SampleReader, order: Order, file: Packed, output: Output) -> ReadAhead:
    mean = max(1, file.nbytes // len(file))
    return ReadAhead(reader, order, mean, max(_AHEAD_BYTES, 4 * output.batch_size * mean))


def stream(
    file: Packed,
    augment: Augment,
    *,
    batch_size: int,
    steps: int,
    phase: int,
    seed: int = 0,
    first_step: int = 0,
    device: str | torch.device = "cpu",
    engine: str = "auto",
) -> Iterator[Batch]:
    """Yield the full, shuffled batches of the steps first_step … steps - 1; closing it frees its threads."""
    output = Output(batch_size, resolve_device(device))
    feed = open_feed(file, augment, Order(len(file), seed, phase), output, engine=engine)
    yield from run_feed(feed, lambda step: (step * batch_size, batch_size), first_step, steps, output.device)


def run_feed(feed: Feed, locate: Any, first: int, last: int, device: torch.device) -> Iterator[Batch]:
    """Yield `feed`'s batches of the steps first … last - 1, prefetched; `locate(step)` gives (start, count)."""
    ahead = None
    try:
        if feed.immediate:
            for step in range(first, last):
                yield feed.make(*locate(step))
            return
        ahead = Prefetcher(
            lambda step: feed.make(*locate(step)),
            first,
            last,
            depth=feed.workers + 1,
            workers=feed.workers,
            device=device,
        )
        for step in range(first, last):
            yield ahead.get(step)
    finally:
        if ahead is None or ahead.close():
            feed.close()  # else its last thread still reads: it goes when that ends
