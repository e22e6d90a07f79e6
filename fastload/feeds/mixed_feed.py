"""A feed whose samples are blended with their neighbours: MixUp and CutMix."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from fastload.augment.mixing import Mix, draw_blend
from fastload.augment.parameters import stream_number
from fastload.errors import UsageError
from fastload.feeds.batch import Batch, Feed, Make
from fastload.order import RowOrder


class MixedFeed(Feed):
    """Blends the batches of another feed.

    Arguments:
        feed: makes the batches; positions of a batch begin at an even number, and their number is even.
        mix: the settings.
        order: which rows come at which positions.
        ids: int64 [N], of the file's samples.
        classes: how many there are.
    """

    def __init__(self, feed: Feed, mix: Mix, order: RowOrder, ids: np.ndarray, classes: int) -> None:
        self._feed, self._mix, self._order, self._ids, self._classes = feed, mix, order, ids, classes
        self.immediate, self.workers, self.kind = feed.immediate, feed.workers, feed.kind

    def begin(self, start: int) -> Make:
        return partial(self._blend, self._feed.begin(start))

    def end(self) -> None:
        self._feed.end()

    def make(self, start: int, count: int) -> Batch:
        return self._blend(self._feed.make, start, count)

    def _blend(self, make: Make, start: int, count: int) -> Batch:
        batch = make(start, count)
        labels = batch.labels
        assert labels is not None and count % 2 == 0
        rows, epochs = self._order.rows(start, count)
        views = batch.images if isinstance(batch.images, tuple) else (batch.images,)
        stream, ids = stream_number(self._order.phase), self._ids[rows]
        blend = draw_blend(self._mix, self._order.seed, stream, ids, epochs, tuple(views[0].shape[2:]))
        device = labels.device
        share, boxes, label_share = (
            torch.from_numpy(one).to(device, non_blocking=True) for one in (blend.share, blend.boxes, blend.label_share)
        )
        blended = tuple(_blended(images, share, boxes) for images in views)
        own = torch.nn.functional.one_hot(labels, self._classes).to(torch.float32)
        mixed = own * label_share[:, None] + _partners(own) * (1 - label_share[:, None])
        return Batch(blended if isinstance(batch.images, tuple) else blended[0], mixed, batch.ids)

    def close(self) -> None:
        self._feed.close()


def _partners(values: torch.Tensor) -> torch.Tensor:
    """Return what is at position ^ 1."""
    return values.reshape(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)


def _blended(images: torch.Tensor, share: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    other, own = _partners(images), share[:, None, None, None]
    mixed = (images.float() * own + other.float() * (1 - own)).to(images.dtype)  # rounded once
    y = torch.arange(images.shape[2], device=images.device)[None, :]
    x = torch.arange(images.shape[3], device=images.device)[None, :]
    rows = (y >= boxes[:, 0:1]) & (y < boxes[:, 2:3])
    columns = (x >= boxes[:, 1:2]) & (x < boxes[:, 3:4])
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(inside, other, mixed).contiguous(memory_format=_format_of(images))


def _format_of(images: torch.Tensor) -> torch.memory_format:
    last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def class_count(mix: Mix, labels: np.ndarray | None, names: int, source: object) -> int:
    """Return how many classes there are; raise UsageError, naming the file, for labels that are none.

    Arguments:
        mix: the settings.
        labels: [N, ...] of the file; None for a set without.
        names: how many names the classes have; 0 where they have none.
        source: the file.
    """
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        found = "no labels" if labels is None else f"labels of type {labels.dtype} and shape {labels.shape}"
        raise UsageError(f"mix= blends classes, one whole number a sample; {source} has {found}")
    least, most = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    classes = mix.classes or names or most + 1
    if least < 0 or most >= classes:
        raise UsageError(f"mix= counts {classes} classes; {source} has labels from {least} to {most}")
    return classes
