"""Feeds: from positions of an order to batches on the device. Nothing here knows that there are two phases.

A resident feed keeps the whole set in (device) memory; a stream feed reads the packed file as it goes.
`open_feed` chooses; `stream` runs over one from the first step to the last, for the autoencoder and for scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from fastload.augment import Augment
from fastload.augment.parameters import stream_number
from fastload.augment.schedule import Staged
from fastload.common.cuda import require_cuda_target
from fastload.common.device import resolve_device
from fastload.common.processors import default_threads
from fastload.errors import UsageError
from fastload.feeds.batch import Batch, Feed, Output, label_tensor
from fastload.feeds.dali_feed import DaliFeed
from fastload.feeds.encoded_feed import FusedEncodedFeed
from fastload.feeds.engine_choice import check_scaled_decoding, choose_engine
from fastload.feeds.fused_feeds import FusedCpuFeed, FusedResidentFeed, FusedStreamFeed
from fastload.feeds.image_sizes import check_sizes
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.jpeg_cuts import CutRanges
from fastload.feeds.prefetch import Prefetcher
from fastload.feeds.read_ahead import read_ahead_for
from fastload.kernels.jpeg_cut import cut_margin
from fastload.order import Order, RowOrder
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed


def open_feed(
    file: Packed,
    augment: Augment | Staged[Augment],
    order: RowOrder,
    output: Output,
    *,
    engine: str = "auto",
    resident: bool = False,
    workers: int | None = None,
    labels: np.ndarray | None = None,
    views: int = 1,
    scaled_decoding: bool = False,
) -> Feed:
    """Return the feed of a packed file.

    Arguments:
        file: opened by the caller, who may close it once this has returned.
        augment: what happens to each image; `Staged` says from which position on.
        order: which rows come at which positions.
        output: how batches come out.
        engine: "auto", "fused" or "dali".
        resident: keep the whole file in the device's memory (raw and ragged storage only).
        workers: threads that make batches ahead; the processors, at most 8, by default.
        labels: [N, ...], in place of the file's own.
        views: how many images are made of each sample, each with random parameters of its own.
        scaled_decoding: decode encoded files at 1/2, 1/4 or 1/8 where a crop is at least that much larger than what it
            becomes.

    Raises UsageError for images that cannot be augmented so, naming one.
    """
    augments = augment if isinstance(augment, Staged) else Staged.always(augment)
    on_cuda = output.device.type == "cuda"
    (chosen,) = {choose_engine(engine, file, one, on_cuda=on_cuda) for one in augments.values}
    check_scaled_decoding(scaled_decoding, file, chosen)
    for one in augments.values:
        check_sizes(one, file)
    if resident and file.storage == "encoded":
        raise UsageError(f"{file.path} holds encoded images; a resident set must be raw or ragged")
    found = file.labels if labels is None else labels
    reader = SampleReader(file)
    ranges = None
    if reader.jpeg_files is not None:
        streams = [stream_number(order.phase, view) for view in range(views)]
        ranges = CutRanges(reader, augments, order.seed, streams, cut_margin(scaled_decoding))
    inputs = FeedInputs(
        file,
        augments,
        views,
        order,
        output,
        labels=None if found is None else label_tensor(found),
        reader=reader,
        read_ahead=None if resident else read_ahead_for(order, reader, file, output.batch_size, ranges),
        resident=resident,
        workers=default_threads() if workers is None else workers,
        scaled_decoding=scaled_decoding,
    )
    if chosen == "dali":
        return DaliFeed(inputs)
    if file.storage == "encoded":
        return FusedEncodedFeed(inputs)
    if output.device.type == "cpu":
        return FusedCpuFeed(inputs)
    require_cuda_target()
    return FusedResidentFeed(inputs) if resident else FusedStreamFeed(inputs)


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
) -> FeedRun:
    """Return an iterator over the full, shuffled batches of the steps first_step … steps - 1."""
    output = Output(batch_size, resolve_device(device))
    feed = open_feed(file, augment, Order(len(file), seed, phase), output, engine=engine)
    return run_feed(feed, lambda step: (step * batch_size, batch_size), first_step, steps, output.device)


def run_feed(
    feed: Feed, locate: Callable[[int], tuple[int, int]], first: int, last: int, device: torch.device
) -> FeedRun:
    """Return an iterator over `feed`'s batches of the steps first … last - 1, made ahead; it closes the feed.

    Arguments:
        feed: makes the batches.
        locate: gives (start, count) of a step.
        first: the first step.
        last: the step to end before.
        device: of the batches.
    """
    return FeedRun(feed, locate, first, last, device)


class FeedRun(Iterator[Batch]):
    """See `run_feed`. `close` ends it early; its threads end with it, or when it is dropped."""

    def __init__(
        self, feed: Feed, locate: Callable[[int], tuple[int, int]], first: int, last: int, device: torch.device
    ) -> None:
        self._feed: Feed | None = feed
        self._locate, self._step, self._last = locate, first, last
        self._ahead: Prefetcher | None = None
        if not feed.immediate and first < last:
            workers, make = feed.workers, feed.begin(locate(first)[0])
            self._ahead = Prefetcher(
                lambda step: make(*locate(step)), first, last, depth=workers + 1, workers=workers, device=device
            )

    def __next__(self) -> Batch:
        step, feed, ahead = self._step, self._feed, self._ahead
        if feed is None or step >= self._last:
            self.close()
            raise StopIteration
        try:
            batch = feed.make(*self._locate(step)) if ahead is None else ahead.get(step)
        except Exception:
            self.close()
            raise
        self._step = step + 1
        return batch

    def close(self) -> None:
        """End the threads, and close the feed. Safe to call twice."""
        if self._feed is not None:
            self._feed.end()
        if self._ahead is not None:
            self._ahead.close()
        if self._feed is not None:
            self._feed.close()
        self._feed = None
