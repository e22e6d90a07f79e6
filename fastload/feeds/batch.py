"""What a feed gives: batches, in the form that the caller asked for, on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from fastload.common.arguments import integer
from fastload.errors import UsageError
from fastload.feeds.buffers import IMAGE_TYPES

MOST_IMAGES = 2**31 - 1
"""In a batch: kernels count them in 32 bits, and the size of a batch of more would overflow where it is reckoned."""


class Batch(NamedTuple):
    """images [B, C, h, w], labels [B, ...] (None of an unlabelled set) and ids int64 [B], on the device.

    Where each sample has several views, `images` is a tuple of such tensors.
    """

    images: Any
    labels: torch.Tensor | None
    ids: torch.Tensor


def one_or_all(views: list[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Return the images of a batch as it holds them: the only view itself, or a tuple of several."""
    return views[0] if len(views) == 1 else tuple(views)


def as_tuple(batch: Batch, with_ids: bool) -> tuple[torch.Tensor, ...]:
    """Return a batch as loaders yield it: (images, labels, ids); without ids unless asked for, and without labels where
    the set has none.
    """
    if batch.labels is None:
        return (batch.images, batch.ids) if with_ids else (batch.images,)
    return batch if with_ids else batch[:2]  # type: ignore[return-value]


@dataclass(frozen=True)
class Output:
    """How batches come out.

    Arguments:
        batch_size: images in a full batch, 1 to MOST_IMAGES.
        device: where they are wanted.
        dtype: of the images: torch.float32, float16, bfloat16 or uint8.
        memory_format: of the images: torch.contiguous_format or channels_last.
        keep: idle output buffers that are kept on the CPU.

    Raises UsageError for values out of range.
    """

    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    keep: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", integer("batch_size", self.batch_size, 1))
        if self.batch_size > MOST_IMAGES:
            raise UsageError(f"batch_size={self.batch_size}; it must be at most {MOST_IMAGES}")
        if self.dtype not in IMAGE_TYPES:
            raise UsageError(
                f"dtype={self.dtype}; it is one of torch.float32, torch.float16, torch.bfloat16, torch.uint8"
            )
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


Make = Callable[[int, int], Batch]
"""Makes the batch of the positions start … start + count - 1, given (start, count)."""


class Feed(Protocol):
    """What makes batches of one packed file.

    `immediate` feeds are called by the trainer's own thread (a launch is all they cost); others by `workers` threads
    ahead of it. `kind` says where batches come from: a "resident" set in device memory, a "rolling" pool there, or the
    "stream" of a file.

    A feed may be closed at any time, by any thread: what makes a batch then holds what it reads until it is done.
    """

    immediate: bool
    workers: int
    kind: str

    def begin(self, start: int) -> Make:
        """Return what makes the batches from the one at position `start` on, each once, in any threads."""
        return self.make

    def end(self) -> None:
        """Have whoever waits for samples of what `begin` returned wait no more: it raises ClosedError."""
        return None

    def make(self, start: int, count: int) -> Batch:
        """Return the batch of the positions start … start + count - 1; raise UsageError once this is closed."""

    def close(self) -> None:
        """Release buffers, files and pipelines: they are freed with the last batch that is being made from them."""


def label_tensor(labels: np.ndarray) -> torch.Tensor:
    """Return labels as they are yielded: integers as int64, others as they are."""
    return torch.from_numpy(labels.astype(np.int64) if labels.dtype.kind in "iu" else np.ascontiguousarray(labels))


def labels_of_rows(labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor | None:
    """Return the labels of rows, int64 [b], out of those of the set; None where the set has none."""
    return None if labels is None else labels[torch.from_numpy(rows)]
