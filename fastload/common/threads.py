"""Threads that the trainer's thread starts and drops, also when it is interrupted meanwhile.

Python code runs as a `Thread` is started, and as one is dropped that has ended. An interrupt in the first leaves a
thread that is listed for ever and never runs, and one in the second is swallowed. So another thread does both.
"""

from __future__ import annotations

import _thread
import atexit
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


class WorkThread(threading.Thread):
    """A daemon thread that makes something ahead, and ends before the interpreter does.

    Arguments:
        number: of the thread, for its name.
        stop: has it end, from any thread.
    """

    def __init__(self, number: int, stop: Callable[[], None]) -> None:
        super().__init__(name=f"fastload-{number}", daemon=True)
        self.stop = stop


_LONGEST_WORK = 30.0  # seconds; a disk that hangs must not keep a program from ending


@atexit.register
def _end_threads() -> None:
    """End all threads before the interpreter goes: one that still makes a batch then would abort the process."""
    left = [thread for thread in threading.enumerate() if isinstance(thread, WorkThread) and thread.is_alive()]
    for thread in left:
        thread.stop()
    for thread in left:
        thread.join(timeout=_LONGEST_WORK)


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
