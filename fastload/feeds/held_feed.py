"""What feeds have in common whose images may be held in the device's memory: a whole set's, or a rolling pool's."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

from fastload.feeds.batch import Batch, Feed, Make
from fastload.feeds.resident_set import ResidentSet, Turn
from fastload.feeds.rolling_pool import RollingPool


class HeldFeed(Feed):
    """A feed that makes batches by `_draw` of images that are held, and by `_stream` where none are."""

    _held: ResidentSet | RollingPool | None

    def begin(self, start: int) -> Make:
        held = self._held
        return partial(self._draw, held.begin(start)) if isinstance(held, RollingPool) else self.make

    def end(self) -> None:
        held = self._held
        if held is not None:
            held.end()

    def make(self, start: int, count: int) -> Batch:
        held = self._held
        return self._stream(start, count) if held is None else self._draw(held.begin(start), start, count)

    @abstractmethod
    def _draw(self, turn: Turn, start: int, count: int) -> Batch:
        """Make a batch of images that are held."""

    @abstractmethod
    def _stream(self, start: int, count: int) -> Batch:
        """Make a batch of what is read; raise ClosedError once this is closed."""

    def _let_go(self) -> None:
        """Hold nothing any more: what makes a batch still holds it until that is done."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
