"""How fast samples arrive in a rolling pool while they are fetched: the rate of storage and decoders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ArrivalMeter:
    """Counts samples that threads fetch, and the time in which at least one of them did.

    Arguments:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._active, self._since = 0, 0.0
        self._samples, self._seconds = 0, 0.0

    @contextmanager
    def counting(self, samples: int) -> Iterator[None]:
        """Count samples that are fetched meanwhile."""
        with self._lock:
            if not self._active:
                self._since = self._clock()
            self._active += 1
        try:
            yield
            with self._lock:
                self._samples += samples
        finally:
            with self._lock:
                self._active -= 1
                if not self._active:
                    self._seconds += self._clock() - self._since

    @property
    def samples(self) -> int:
        """Fetched so far."""
        return self._samples

    @property
    def seconds(self) -> float:
        """In which any were fetched."""
        with self._lock:
            return self._seconds + (self._clock() - self._since if self._active else 0.0)

    @property
    def rate(self) -> float:
        """Samples a second of that time; 0 before the first."""
        seconds = self.seconds
        return self._samples / seconds if seconds > 0 else 0.0
