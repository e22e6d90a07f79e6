"""One phase of a run: its feed, the batches made ahead of the trainer, and what it has cost so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastload.feeds import Batch, Feed
from fastload.prefetch import Prefetcher


class Phase:
    """A feed that is opened when it is needed and looks ahead once it runs; batches count from the phase's first.

    Arguments:
        open: makes the feed. locate: gives (first position, count) of the phase's batch `index`.
        last: batches in all, None where that is not known yet. depth: batches made ahead.
        sample_bytes: what one sample takes in its file, on average.
    """

    def __init__(
        self,
        name: str,
        open: Callable[[], Feed],
        locate: Callable[[int], tuple[int, int]],
        *,
        last: int | None,
        depth: int,
        device: torch.device,
        sample_bytes: int,
    ) -> None:
        self.name, self.last, self.depth = name, last, depth
        self._open, self._locate, self._device, self._sample_bytes = open, locate, device, sample_bytes
        self._feed: Feed | None = None
        self._ahead: Prefetcher | None = None
        self._kind, self._fill = "", 1.0
        self.batches = 0
        self.seconds = 0.0
        self.waited = 0.0

    def prepare(self) -> Feed:
        """Open the feed where it is not: compile kernels, build pipelines, upload."""
        if self._feed is None:
            self._feed = self._open()
            self._kind = "resident" if self._feed.resident else "stream"
        return self._feed

    def warm(self, index: int = 0) -> None:
        """Begin to make batches ahead, from the batch `index` on."""
        feed = self.prepare()
        if self._ahead is None and not feed.immediate:
            make, locate = feed.make, self._locate  # not self: threads must not keep a dropped loader alive
            self._ahead = Prefetcher(
                lambda at: make(*locate(at)), index, self.last,
                depth=self.depth, workers=min(feed.workers, self.depth), device=self._device,
            )  # fmt: skip

    def get(self, index: int) -> Batch:
        """Return the batch `index`; they are asked for in order."""
        feed = self.prepare()
        if feed.immediate:
            return feed.make(*self._locate(index))
        self.warm(index)
        assert self._ahead is not None
        return self._ahead.get(index)

    def limit(self, last: int | None) -> None:
        """Say how many batches the phase has, None where that is open."""
        self.last = last
        if self._ahead is not None:
            self._ahead.limit(last)

    def count(self, seconds: float, waited: float) -> None:
        """Note that a batch was delivered, after so much time, so much of it spent waiting for the batch."""
        self.batches += 1
        self.seconds += seconds
        self.waited += waited

    def stats(self, batch_size: int) -> dict[str, Any]:
        """Return what the phase has cost so far; see `TwoPhaseLoader.stats`."""
        images = self.batches * batch_size
        rate = images / self.seconds if self.seconds else 0.0
        if self._ahead is not None:
            self._fill = self._ahead.fill
        return {
            "feed": self._kind,
            "batches": self.batches,
            "images": images,
            "seconds": self.seconds,
            "images_per_second": rate,
            "waited": self.waited / self.seconds if self.seconds else 0.0,
            "read_bytes_per_second": rate * self._sample_bytes if self._kind == "stream" else 0.0,
            "ring_fill": self._fill,
        }

    def rest(self) -> bool:
        """Stop making batches ahead; the feed stays. Returns whether all threads have ended."""
        ended = True
        if self._ahead is not None:
            self._fill, ended = self._ahead.fill, self._ahead.close()
            self._ahead = None
        return ended

    def close(self) -> None:
        """Free threads, buffers and the feed. Safe to call twice."""
        ended = self.rest()
        feed, self._feed = self._feed, None
        if feed is not None and ended:  # else its last thread still reads: it goes when that ends
            feed.close()
