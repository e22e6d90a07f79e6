"""Dear data: a stream that delivers no more than so many images a second, as slow storage or decoding would."""

from __future__ import annotations

import time
from collections.abc import Callable


class Throttle:
    """Lets batches pass at `rate` images/s at most, with `ahead` images of look-ahead, as a prefetching stream has.

    Arguments:
        rate: images/s.
        ahead: what may stand ready when the trainer was slower than the stream for a while.
        clock, sleep: for tests.
    """

    def __init__(
        self,
        rate: float,
        ahead: int,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate, self._ahead, self._clock, self._sleep = rate, ahead, clock, sleep
        self._due = clock()

    def wait(self, images: int) -> None:
        """Return when so many more images may have been delivered."""
        now = self._clock()
        self._due = max(self._due, now - self._ahead / self._rate) + images / self._rate
        if self._due > now:
            self._sleep(self._due - now)
