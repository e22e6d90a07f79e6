"""What a feed makes its batches from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastload.augment import Augment
from fastload.augment.schedule import Staged
from fastload.feeds.batch import Output
from fastload.feeds.buffers import BufferRing
from fastload.feeds.image_sizes import distinct_sides, layout_of
from fastload.feeds.read_ahead import ReadAhead
from fastload.feeds.resident_set import ResidentSet
from fastload.feeds.rolling_pool import RollingPool
from fastload.kernels.image_layout import Layout
from fastload.order import RowOrder
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed


@dataclass(frozen=True)
class FeedInputs:
    """What all feeds are made from; `open_feed` puts it together.

    Arguments:
        file: the packed set.
        augments: what happens to each image, from which position on.
        views: how many images are made of each sample.
        order: which rows come at which positions.
        output: how batches come out.
        labels: [N, ...], or None for batches without.
        reader: of the file's samples.
        read_ahead: has a streamed file read ahead; None for a resident set, and where what comes is not known ahead.
        resident: keep the whole set in the device's memory.
        workers: threads that make batches, for feeds that can use several.
        scaled_decoding: decode JPEG files at 1/2, 1/4 or 1/8 where a crop is at least that much larger than what it
            becomes.
        pool: batches are drawn from this rolling pool of the set, and of a subset before it.
    """

    file: Packed
    augments: Staged[Augment]
    views: int
    order: RowOrder
    output: Output
    labels: torch.Tensor | None
    reader: SampleReader
    read_ahead: ReadAhead | None
    resident: bool
    workers: int
    scaled_decoding: bool = False
    pool: RollingPool | None = None

    @property
    def ids(self) -> np.ndarray:
        """Of the samples that the order's rows count, int64 [N]."""
        return self.file.ids if self.pool is None else self.pool.ids

    @property
    def layout(self) -> Layout:
        """How decoded images lie in the set, or in the pool."""
        return layout_of(self.file) if self.pool is None else self.pool.memory.layout

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Every (H, W) that decoded images have."""
        return distinct_sides(self.layout) if self.pool is None else self.pool.sides

    @property
    def kind(self) -> str:
        """Where batches come from: "rolling", "resident" or "stream"."""
        if self.pool is not None:
            return "rolling"
        return "resident" if self.resident else "stream"

    @property
    def channels(self) -> int:
        """Of the images; encoded ones are decoded to RGB."""
        return self.file.channels

    def image_shape(self, augment: Augment) -> tuple[int, int, int]:
        """Return (C, h, w) of the images in a batch."""
        return (self.channels, *augment.sides)

    def buffer_ring(self, augment: Augment) -> BufferRing:
        """Return output buffers for batches on the CPU."""
        output, keep = self.output, self.output.keep * self.views
        return BufferRing(output.batch_size, self.image_shape(augment), output.dtype, output.channels_last, keep)

    def held(self) -> ResidentSet | RollingPool | None:
        """Return what holds decoded images in the device's memory; None for a stream."""
        if self.pool is not None:
            return self.pool
        return self.resident_set() if self.resident else None

    def resident_set(self) -> ResidentSet:
        """Read the whole set into the device's memory, and close the reader, which nothing needs any more."""
        resident = ResidentSet(self.file, self.reader, self.labels, self.output.device)
        self.reader.close()
        return resident
