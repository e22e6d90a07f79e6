"""What brings samples into a rolling pool: read and decoded on the host, on CUDA copied to the device from there."""

from __future__ import annotations

import queue
import threading
from typing import Any, Protocol

import numpy as np
import torch

from fastload.common.memory import check_pinned, pinned_bytes
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.pool_memory import PoolMemory
from fastload.kernels import place_cuda
from fastload.kernels.compiling import cuda_jit
from fastload.kernels.cuda_target import launch_stream

_ALIGNMENT = 16
"""The copying kernel takes so many bytes at once where an image lies alike in its buffer and in its slot."""


class Writer(Protocol):
    """Brings samples into a pool's memory, called by several threads."""

    def ask(self, rows: np.ndarray) -> None:
        """Have the system begin to read samples; `rows` int64 [b], ascending."""

    def write(self, rows: np.ndarray, slots: np.ndarray) -> None:
        """Read and decode samples, and put them into slots. Raises DataError for what cannot be read."""

    def before_reading(self) -> None:
        """Have the current stream wait for what has been written."""

    def after_reading(self) -> None:
        """Have what is written from now on wait for what the current stream reads."""

    def close(self) -> None:
        """Let go of the files."""


class PoolSources:
    """The subset and the full set, one behind the other, decoded.

    Arguments:
        sources: of the subset, if there is one, and of the full set.
    """

    def __init__(self, sources: list[DecodedSource]) -> None:
        self._sources = sources
        self._firsts = np.cumsum([0, *(len(source.sizes) for source in sources)])

    def ask(self, rows: np.ndarray) -> None:
        """Have the system begin to read samples."""
        for source, part, first in self._parts(rows):
            source.ask(rows[part] - first)

    def fetch(self, rows: np.ndarray, out: np.ndarray, begins: np.ndarray) -> None:
        """Write decoded samples to where each begins in uint8 `out`."""
        for source, part, first in self._parts(rows):
            source.fetch(rows[part] - first, out, begins[part])

    def _parts(self, rows: np.ndarray) -> list[tuple[DecodedSource, slice, int]]:
        """Return which of the ascending `rows` are of which source, with the first row of each."""
        edges = np.searchsorted(rows, self._firsts)
        parts = zip(self._sources, edges, edges[1:], self._firsts.tolist(), strict=False)
        return [(source, slice(begin, end), first) for source, begin, end, first in parts if begin < end]

    def close(self) -> None:
        """Let go of the files."""
        for source in self._sources:
            source.close()


class HostWriter:
    """Writes to a pool in the host's memory.

    Arguments:
        sources: of the samples.
        memory: of the pool.
    """

    def __init__(self, sources: PoolSources, memory: PoolMemory) -> None:
        self._sources, self._memory = sources, memory

    def ask(self, rows: np.ndarray) -> None:
        self._sources.ask(rows)

    def write(self, rows: np.ndarray, slots: np.ndarray) -> None:
        self._sources.fetch(rows, self._memory.data.numpy(), self._memory.begins(slots))

    def before_reading(self) -> None:
        """What is there is there."""

    def after_reading(self) -> None:
        """Whoever reads has read."""

    def close(self) -> None:
        self._sources.close()


class CudaWriter:
    """Writes to a pool in a device's memory: through pinned buffers, on a stream of its own.

    A sample's slot is written once all batches that may read what was there have been queued; so the stream waits for
    those, by the events of `after_reading`, and batches wait for it, by the event behind what it wrote last.

    Arguments:
        sources: of the samples.
        memory: of the pool.
        sizes: int64 [N], bytes of each image.
        threads: that write.
        piece: samples that are written at a time, at most.
    """

    def __init__(
        self, sources: PoolSources, memory: PoolMemory, sizes: np.ndarray, *, threads: int, piece: int
    ) -> None:
        self._sources, self._memory, self._sizes = sources, memory, sizes
        self._device = memory.data.device
        self._stream = torch.cuda.Stream(self._device)
        # The pool's memory may have been another tensor's a moment ago, which the current stream still reads.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._queueing = threading.Lock()
        self._written = torch.cuda.Event()
        self._written.record(self._stream)
        self._read = queue.SimpleQueue[torch.cuda.Event]()
        room = piece * (int(sizes.mean()) + _ALIGNMENT) + int(sizes.max())
        check_pinned(threads * pinned_bytes(room), threads, piece)
        self._buffers = queue.SimpleQueue[tuple[torch.Tensor, torch.cuda.Event]]()
        for _ in range(threads):
            self._buffers.put((_pinned(room), torch.cuda.Event(blocking=True)))
        self._kernel: Any = cuda_jit(place_cuda.place_images)
        memory.data.record_stream(self._stream)

    def ask(self, rows: np.ndarray) -> None:
        self._sources.ask(rows)

    def write(self, rows: np.ndarray, slots: np.ndarray) -> None:
        sizes = self._sizes[rows]
        targets = self._memory.data.data_ptr() + self._memory.begins(slots)
        begins = _begins_like(targets, sizes)
        total = int(begins[-1] + sizes[-1])
        buffer, copied = self._buffers.get()
        try:
            copied.synchronize()  # returns at once for an event that was never recorded
            if len(buffer) < total:
                buffer = _pinned(total)
            self._sources.fetch(rows, buffer.numpy(), begins)
            table = torch.from_numpy(np.column_stack([begins, targets, sizes])).pin_memory()
            with self._queueing, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                while not self._read.empty():
                    self._stream.wait_event(self._read.get())
                there = buffer[:total].to(self._device, non_blocking=True)
                table_there = table.to(self._device, non_blocking=True)
                copied.record(self._stream)
                blocks, threads = place_cuda.launch_shape(sizes)
                launch = self._kernel[blocks, threads, launch_stream(self._stream)]
                launch(there.data_ptr(), table_there.data_ptr())
                written = torch.cuda.Event()
                written.record(self._stream)
                self._written = written
        finally:
            self._buffers.put((buffer, copied))

    def before_reading(self) -> None:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._written)
        self._memory.data.record_stream(stream)

    def after_reading(self) -> None:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        self._read.put(event)

    def close(self) -> None:
        self._sources.close()


def _begins_like(targets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return where images begin in a buffer, one behind the other, each with its target's remainder by `_ALIGNMENT`."""
    begins, end = [], 0
    for target, size in zip(targets.tolist(), sizes.tolist(), strict=True):
        begin = end + (target - end) % _ALIGNMENT
        begins.append(begin)
        end = begin + size
    return np.array(begins, np.int64)


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
