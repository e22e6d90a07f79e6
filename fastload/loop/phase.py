"""One phase of a run: its feed, and the batches made ahead of the trainer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastload.errors import ClosedError
from fastload.feeds.batch import Batch, Feed
from fastload.feeds.prefetch import Prefetcher


class Phase:
    """A feed that is opened when it is needed and looks ahead once it runs; batches count from the phase's first.

    It may be closed at any time, by another thread or in the middle of a call: what is used is held, and what is made
    is looked at once more after it is noted.

    Arguments:
        name: of the phase.
        open: makes the feed.
        locate: gives (first position, count) of the phase's batch `index`.
        finish: is given each batch and its first position by the thread that asks for it; None for nothing.
        depth: batches made ahead.
        device: of the batches.
        sample_bytes: what one sample takes in its file, on average.
    """

    def __init__(
        self,
        name: str,
        open: Callable[[], Feed],
        locate: Callable[[int], tuple[int, int]],
        *,
        finish: Callable[[Batch, int], Batch] | None = None,
        depth: int,
        device: torch.device,
        sample_bytes: int,
    ) -> None:
        self.name, self.depth, self.sample_bytes = name, depth, sample_bytes
        self._open, self._locate, self._finish, self._device = open, locate, finish, device
        self._feed: Feed | None = None
        self._ahead: Prefetcher | None = None
        self._fill = 1.0
        self._closed = False
        self.kind = ""
        """ "resident", "rolling" or "stream", once the feed has been opened."""

    def prepare(self) -> Feed:
        """Open the feed where it is not: compile kernels, build pipelines, upload."""
        feed = self._feed
        if feed is None:
            if self._closed:
                raise ClosedError()
            feed = self._open()
            self.kind = feed.kind
            self._feed = feed
            self._stop_if_closed()
        return feed

    def start_ahead(self, index: int = 0, last: int | None = None) -> None:
        """Begin to make batches ahead, from the batch `index` up to `last`, excluded; None for no end."""
        feed = self.prepare()
        if self._ahead is None and not feed.immediate:
            self._begin(feed, index, last)

    @property
    def is_ahead(self) -> bool:
        """Whether batches are being made ahead, or need not be."""
        feed = self._feed
        return feed is not None and (feed.immediate or self._ahead is not None)

    def get(self, index: int, last: int | None) -> Batch:
        """Return the batch `index`, of `last` in all as far as is known; any may be asked for, the next is ready."""
        batch = self._made(index, last)
        return batch if self._finish is None else self._finish(batch, self._locate(index)[0])

    def _made(self, index: int, last: int | None) -> Batch:
        feed = self._feed or self.prepare()
        if feed.immediate:
            return feed.make(*self._locate(index))
        ahead = self._ahead
        if ahead is None or not ahead.follows(index):
            ahead = self._begin(feed, index, last)
        ahead.last = last
        try:
            return ahead.get(index)
        except Exception:
            self.pause()  # the next call makes it anew: the disk may be there again
            raise

    def _begin(self, feed: Feed, index: int, last: int | None) -> Prefetcher:
        self.pause()
        locate = self._locate  # not self: threads must not keep a dropped loader alive
        make = feed.begin(locate(index)[0])
        self._ahead = ahead = Prefetcher(
            lambda at: make(*locate(at)),
            index,
            last,
            depth=self.depth,
            workers=min(feed.workers, self.depth),
            device=self._device,
        )
        self._stop_if_closed()
        return ahead

    def _stop_if_closed(self) -> None:
        if self._closed:
            self.release()
            raise ClosedError()

    @property
    def fill(self) -> float:
        """How full the batches made ahead were, on average, when one was asked for: 0 to 1."""
        ahead = self._ahead
        if ahead is not None:
            self._fill = ahead.fill
        return self._fill

    def pause(self) -> None:
        """Stop making batches ahead; the feed stays."""
        ahead, feed = self._ahead, self._feed
        self._ahead = None  # first: after an interrupt, nobody may go on with batches of a feed that has ended
        if feed is not None:
            feed.end()
        if ahead is not None:
            self._fill = ahead.fill
            ahead.close()

    def release(self) -> None:
        """Free threads, buffers and the feed, which is opened anew when it is needed again."""
        self.pause()
        feed = self._feed
        if feed is not None:
            feed.close()
            self._feed = None

    def close(self) -> None:
        """Free threads, buffers and the feed for good. Safe to call twice."""
        self._closed = True
        self.release()
