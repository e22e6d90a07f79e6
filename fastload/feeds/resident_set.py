"""A set that is kept whole in the device's memory, for every feed that draws from one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fastload.common.memory import check_fits
from fastload.feeds.image_sizes import layout_of
from fastload.kernels.image_layout import Layout
from fastload.order import RowOrder
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed


class Drawn(NamedTuple):
    """The samples of a batch.

    Arguments:
        rows: int64 [b], of the set, or of the subset and the full set.
        epochs: int64 [b].
        places: int64 [b], where their images are held.
    """

    rows: np.ndarray
    epochs: np.ndarray
    places: np.ndarray


class Turn(Protocol):
    """Batches drawn from images in the device's memory, from one position on, in any threads, each once."""

    @property
    def images(self) -> torch.Tensor:
        """The images' bytes, uint8."""

    def rows(self, places: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """Return images on the device, uint8 [b, H, W, C], or [H, W, C] each where they have sizes of their own."""

    def drawing(self, order: RowOrder, start: int, count: int) -> AbstractContextManager[Drawn]:
        """Hold the samples of a batch, that of the positions start … start + count - 1 of an order."""


class ResidentSet:
    """A whole raw or ragged set in the device's memory, read once.

    A feed drops it when it is closed; what makes a batch holds it until the batch is made.

    Arguments:
        file: the set.
        reader: of its samples.
        labels: [N, ...], or None for a set without.
        device: where it is kept.

    Attributes:
        images: uint8 [`whole_words` of the set's bytes], as the file stores them.
        labels: [N, L], their axes flattened; L is 0 for a set without labels.
        ids: int64 [N].
        offsets: of ragged images, int64 [N + 1], where each begins; empty of raw ones.
        shapes: of ragged images, int32 [N, 2], their heights and widths; likewise.

    Raises DataError unless the device has memory for it, and where the file cannot be read.
    """

    def __init__(self, file: Packed, reader: SampleReader, labels: torch.Tensor | None, device: torch.device) -> None:
        layout = layout_of(file)
        check_fits(file.nbytes, device, str(file.path))
        # NumPy asks the system for huge pages, which torch does not: images are drawn from all over this memory.
        images = np.empty(whole_words(file.nbytes), np.uint8)
        reader.read_all(images[: file.nbytes])
        self.images = torch.from_numpy(images).to(device)
        self.ids = torch.from_numpy(file.ids).to(device)
        self.labels = (torch.empty((len(file), 0)) if labels is None else labels.reshape(len(file), -1)).to(device)
        self.offsets = torch.from_numpy(layout.offsets).to(device)
        self.shapes = torch.from_numpy(layout.shapes).to(device)
        self._layout = layout

    def rows(self, rows: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """Return images on the device, uint8 [b, H, W, C] whatever the file's own layout; ragged, [H, W, C] each."""
        return image_views(self.images, self._layout, rows)

    def begin(self, start: int) -> ResidentSet:
        """Return what batches are drawn from: everything is there."""
        return self

    @contextmanager
    def drawing(self, order: RowOrder, start: int, count: int) -> Iterator[Drawn]:
        """Hold the samples of a batch: all are there."""
        rows, epochs = order.rows(start, count)
        yield Drawn(rows, epochs, rows)

    def end(self) -> None:
        """Nothing is waited for."""

    def close(self) -> None:
        """There are no threads; the memory goes with the last who holds this."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory from being reused, once this is dropped, before what `stream` has queued is done."""
        for tensor in (self.images, self.labels, self.ids, self.offsets, self.shapes):
            tensor.record_stream(stream)


def image_views(data: torch.Tensor, layout: Layout, rows: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
    """Return images out of uint8 `data`: [b, H, W, C], copied; where each has its own sides, [H, W, C] as they lie."""
    if layout.is_ragged:
        shapes, begins = layout.shapes[rows].tolist(), layout.offsets[rows].tolist()
        channels = layout.shape[2]
        return [
            data[begin : begin + height * width * channels].reshape(height, width, channels)
            for begin, (height, width) in zip(begins, shapes, strict=True)
        ]
    count = data.numel() // layout.strides[0]
    stored = data.as_strided((count, *layout.shape), layout.strides)
    return stored[torch.from_numpy(rows).to(stored.device)].contiguous()


def whole_words(size: int) -> int:
    """Return how many bytes of device memory `size` bytes of images must have: kernels read words, of four bytes."""
    return -(-size // 4) * 4
