"""Make batches ahead of the trainer, in threads that end when nobody wants more."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch

from fastload.errors import FastloadError, UsageError

_LONGEST_BATCH = 30.0  # seconds; a disk that hangs must not keep a program from ending
_PATIENCE = 2.0  # seconds that `close` waits for a batch in the making; its thread ends after it all the same


class _Shared:
    """What the workers and the consumer share; the workers hold no reference to the Prefetcher itself."""

    def __init__(self, make: Callable[[int], Any], first: int, last: int | None, depth: int) -> None:
        self.make = make
        self.next, self.last, self.depth = first, last, depth
        self.wanted = first  # the step that the consumer takes next
        self.ready: dict[int, Any] = {}
        self.failure: BaseException | None = None
        self.stopped = False
        self.seen_ready = self.asked = 0
        self.changed = threading.Condition()
        self.process = os.getpid()

    def stop(self) -> None:
        if os.getpid() != self.process:
            return  # a fork has no threads to stop, and the lock may be held for ever
        with self.changed:
            self.stopped = True
            self.ready.clear()
            self.changed.notify_all()


_running: weakref.WeakKeyDictionary[threading.Thread, _Shared] = weakref.WeakKeyDictionary()


@atexit.register
def _end_threads() -> None:
    """End all threads before the interpreter goes: one that still makes a batch then would abort the process."""
    left = [(thread, shared) for thread, shared in list(_running.items()) if shared.process == os.getpid()]
    for _, shared in left:
        shared.stop()
    for thread, _ in left:
        thread.join(timeout=_LONGEST_BATCH)


class Prefetcher:
    """Ordered look-ahead: `get(step)` returns `make(step)`, made by one of `workers` threads.

    Arguments:
        make: builds one batch (a tuple of tensors); called from several threads when `workers` > 1.
        first, last: the steps to make, `last` excluded; None for no end.
        depth: batches that may stand ready or be in the making beyond the one that is wanted.
        device: on CUDA each worker queues on a stream of its own, and `get` makes the current stream wait for it.

    A failure in `make` is raised by the next `get`, as itself if it is a FastloadError, else as the cause of a
    RuntimeError. Whole batches are parallel, not parts of one: no barrier, and order is decided by position alone.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        first: int,
        last: int | None,
        *,
        depth: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self._shared = _Shared(make, first, last, max(1, depth))
        self._threads = [
            threading.Thread(target=_work, args=(self._shared, device), name=f"fastload-{i}", daemon=True)
            for i in range(max(1, workers))
        ]
        self._finalizer = weakref.finalize(self, self._shared.stop)
        for thread in self._threads:
            thread.start()
            _running[thread] = self._shared

    def get(self, step: int) -> Any:
        """Return the batch of `step`; steps must be asked for in order, each once."""
        shared = self._shared
        if os.getpid() != shared.process:
            raise UsageError("this loader was begun before a fork, which has none of its threads; make one after it")
        with shared.changed:
            if step != shared.wanted:
                raise RuntimeError(f"step {step} was asked for, but {shared.wanted} comes next")
            shared.asked += 1
            shared.seen_ready += len(shared.ready)
            while step not in shared.ready and shared.failure is None and not shared.stopped:
                shared.changed.wait()
            if shared.failure is not None:
                if isinstance(shared.failure, FastloadError):
                    raise shared.failure
                if isinstance(shared.failure, torch.OutOfMemoryError | MemoryError):
                    raise UsageError(
                        f"out of memory while a batch was made ({_first_line(shared.failure)}); choose a smaller "
                        "batch_size=, prefetch= or resident_budget="
                    ) from shared.failure
                raise RuntimeError(f"a batch could not be made: {shared.failure}") from shared.failure
            if shared.stopped:
                raise RuntimeError("the loader was closed while a batch was being waited for")
            batch, event = shared.ready.pop(step)
            shared.wanted += 1
            shared.changed.notify_all()
        if event is not None:
            stream = torch.cuda.current_stream(event.device)
            stream.wait_event(event)
            for tensor in batch:
                if tensor.is_cuda:
                    tensor.record_stream(stream)  # or its memory would be reused while this stream needs it
        return batch

    @property
    def fill(self) -> float:
        """How full the ring was, on average, whenever a batch was asked for: 0 (empty) to 1."""
        shared = self._shared
        return min(1.0, shared.seen_ready / max(1, shared.asked) / shared.depth)

    def limit(self, last: int | None) -> None:
        """Say where the steps end, where that was not known before; None for no end."""
        with self._shared.changed:
            self._shared.last = last

    def close(self) -> bool:
        """Stop the threads; return whether all have ended (one whose disk hangs goes on for a while). Safe twice."""
        self._finalizer()
        if os.getpid() != self._shared.process:
            return True  # a fork has none of the threads
        end = time.monotonic() + _PATIENCE
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _work(shared: _Shared, device: torch.device) -> None:
    stream = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        stream = torch.cuda.Stream(device)
    while True:
        with shared.changed:
            while not shared.stopped and shared.failure is None and _idle(shared):
                shared.changed.wait()
            if shared.stopped or shared.failure is not None:
                return
            step = shared.next
            shared.next += 1
        try:
            result = _make(shared, step, stream)
        except BaseException as error:  # it must reach the training loop, whatever it is
            with shared.changed:
                shared.failure = error
                shared.changed.notify_all()
            return
        with shared.changed:
            if shared.stopped:
                return
            shared.ready[step] = result
            shared.changed.notify_all()
        del result


def _idle(shared: _Shared) -> bool:
    if shared.last is not None and shared.next >= shared.last:
        return True
    return shared.next > shared.wanted + shared.depth


def _make(shared: _Shared, step: int, stream: torch.cuda.Stream | None) -> tuple[Any, torch.cuda.Event | None]:
    if stream is None:
        return shared.make(step), None
    with torch.cuda.stream(stream):
        batch = shared.make(step)
        event = torch.cuda.Event()
        event.record(stream)
    return batch, event
