"""Threads that the trainer's thread starts and drops, also when it is interrupted meanwhile.

Python code runs as a `Thread` is started, and as one is dropped that has ended. An interrupt in the first leaves a
thread that is listed for ever and never runs, and one in the second is swallowed. So another thread does both.
"""

from __future__ import annotations

import _thread
import contextlib
import queue
import threading
import time
from collections.abc import Callable

_ended: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()


class Signal:
    """Something that happens once, and that others wait for; an interrupt of one who waits takes nothing from it."""

    def __init__(self) -> None:
        self.given = False
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def give(self) -> None:
        self.given = True
        self._news.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; return whether it has happened."""
        with contextlib.suppress(queue.Empty):
            if not self.given:
                self._news.get(timeout=seconds)
                self._news.put(None)  # for the next one who waits
        return self.given


class Started:
    """Daemon threads, started by a thread that also drops those that have ended.

    Arguments:
        make: returns the threads; called once, in that thread.
        failed: is called with the error where one cannot be made or started.
    """

    def __init__(self, make: Callable[[], list[threading.Thread]], failed: Callable[[BaseException], None]) -> None:
        self._threads: list[threading.Thread] = []
        self._all = Signal()
        _thread.start_new_thread(self._start, (make, failed))

    def _start(self, make: Callable[[], list[threading.Thread]], failed: Callable[[BaseException], None]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                _ended.get_nowait()
        try:
            for thread in make():
                thread.start()
                self._threads.append(thread)
        except BaseException as error:
            failed(error)
        finally:
            self._all.give()

    def join(self, seconds: float) -> bool:
        """Wait so long for the threads to end; return whether they have. None of them is waited for again."""
        end = time.monotonic() + seconds
        self._all.wait(seconds)
        found, alive = self._threads[:], False
        for thread in found:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
                alive |= thread.is_alive()
        found, thread = [], None  # type: ignore[assignment]  # `_ended` is to hold them last
        with contextlib.suppress(IndexError):
            while True:
                _ended.put(self._threads.pop())
        return not alive
