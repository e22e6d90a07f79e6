"""Make batches ahead of the trainer, in threads that end when nobody wants more."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastload.common.dropping import when_dropped
from fastload.common.threads import Started, WorkThread
from fastload.errors import ClosedError, FastloadError, UsageError

_PATIENCE = 2.0  # seconds that `close` waits for a batch in the making; its thread ends after it all the same


class _Failure:
    """Stands for a batch that could not be made."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Shared:
    """What the workers and the consumer share; the workers hold no reference to the Prefetcher itself.

    The consumer may be interrupted anywhere (a signal's handler may raise, or close the loader), so it takes no lock
    and waits for none: it puts steps into `tasks`, finds batches in `ready`, and sleeps on `wake`, each by one call.
    """

    def __init__(self, make: Callable[[int], Any], first: int) -> None:
        self.make = make
        self.tasks: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # steps to make, in order; None: no more
        self.ready: dict[int, Any] = {}  # (batch, event) or a failure, by step
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.waiting = False  # whether the consumer sleeps, or is about to
        self.failure: BaseException | None = None  # of a thread, whatever the step
        self.stopped = False
        self.claimed = first - 1
        self.claiming = threading.Lock()
        self.process = os.getpid()

    def stop(self) -> None:
        self.stopped = True
        self.tasks.put(None)
        self.wake.put(None)

    def notify(self) -> None:
        if self.waiting:
            self.waiting = False
            self.wake.put(None)

    def fail(self, error: BaseException) -> None:
        self.failure = error
        self.notify()

    def claim(self) -> int | None:
        """Wait for a step to make; None where no more are wanted."""
        with self.claiming:
            while (step := self.tasks.get()) is not None:
                if self.stopped:
                    break
                if step > self.claimed:  # it comes twice where the consumer was interrupted as it put it
                    self.claimed = step
                    return step
            self.tasks.put(None)  # for the next thread
            return None


class _Worker(WorkThread):
    def __init__(self, shared: _Shared, device: torch.device, number: int) -> None:
        super().__init__(number, shared.stop)
        self.shared, self._device = shared, device

    def run(self) -> None:
        try:
            _work(self.shared, self._device)
        except BaseException as error:  # it must reach the training loop, whatever it is
            self.shared.fail(error)


class Prefetcher:
    """Ordered look-ahead: `get(step)` returns `make(step)`, made by one of `workers` threads.

    Arguments:
        make: builds one batch (a tuple of tensors); called from several threads when `workers` > 1.
        first: the first step to make.
        last: the step to end before; None for no end. It may be set anew at any time.
        depth: batches that may stand ready or be in the making beyond the one that is wanted.
        workers: how many threads make batches.
        device: on CUDA each worker queues on a stream of its own, and `get` makes the current stream wait for it.

    A failure in `make` is raised by the `get` of its step, as itself if it is a FastloadError, else as the cause of a
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
        self.last = last
        self._depth = max(1, depth)
        self._shared = shared = _Shared(make, first)
        self._wanted, self._put = first, first
        self._seen_ready = self._asked = 0
        # Threads must not keep a dropped loader alive, nor go on without it.
        when_dropped(self, partial(setattr, shared, "stopped", True), partial(shared.tasks.put, None))
        self._put_tasks(first)
        self._threads = Started(partial(_workers, shared, device, max(1, workers)), shared.fail)

    def follows(self, step: int) -> bool:
        """Whether `step` may be asked for: the one that was asked for last, again, or the next."""
        return 0 <= step - self._wanted <= 1

    def get(self, step: int) -> Any:
        """Return the batch of `step`, the one asked for last or the next; it is kept until a later one is asked for."""
        shared = self._shared
        if os.getpid() != shared.process:
            raise UsageError("this loader was begun before a fork, which has none of its threads; make one after it")
        ready, wanted = shared.ready, self._wanted
        if step != wanted:
            if step != wanted + 1:
                raise RuntimeError(f"step {step} was asked for, but {wanted} or the next can be had")
            ready.pop(wanted, None)
            self._wanted = step
        self._put_tasks(step)
        self._asked += 1
        self._seen_ready += len(ready)
        while (found := ready.get(step)) is None:
            shared.waiting = True
            # Looked at again: what came before `waiting` was true has woken nobody.
            if step not in ready and shared.failure is None and not shared.stopped:
                shared.wake.get()
            if shared.stopped:
                raise ClosedError()
            if shared.failure is not None and step not in ready:
                raise _to_raise(shared.failure)
        if isinstance(found, _Failure):
            raise _to_raise(found.error)
        batch, event = found
        if event is not None:
            stream = torch.cuda.current_stream(event.device)
            stream.wait_event(event)
            for tensor in batch:
                if tensor is not None and tensor.is_cuda:
                    tensor.record_stream(stream)  # or its memory would be reused while this stream needs it
        return batch

    def _put_tasks(self, step: int) -> None:
        """Have all batches made up to `depth` beyond `step`."""
        end = step + self._depth + 1
        if self.last is not None:
            end = min(end, self.last)
        while self._put < end:
            self._shared.tasks.put(self._put)  # first: after an interrupt it is put again, and never left out
            self._put += 1

    @property
    def fill(self) -> float:
        """How full the ring was, on average, whenever a batch was asked for: 0 (empty) to 1."""
        return min(1.0, self._seen_ready / max(1, self._asked) / self._depth)

    def close(self) -> bool:
        """Stop the threads; return whether all have ended (one whose disk hangs goes on for a while). Safe twice."""
        shared = self._shared
        if os.getpid() != shared.process:
            return True  # a fork has none of the threads
        shared.stop()
        ended = self._threads.join(_PATIENCE)
        shared.ready.clear()
        # The threads' objects stay for a while, and the memory that batches are drawn from must not.
        shared.make = _closed
        return ended


def _closed(step: int) -> Any:
    raise ClosedError()


def _workers(shared: _Shared, device: torch.device, count: int) -> list[threading.Thread]:
    """Return the threads to start: none where nobody wants batches any more."""
    return [] if shared.stopped else [_Worker(shared, device, number) for number in range(count)]


def _to_raise(error: BaseException) -> BaseException:
    """Return what the training loop raises for a failure in a thread."""
    if isinstance(error, FastloadError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        raised: Exception = UsageError(
            f"out of memory while a batch was made ({_first_line(error)}); choose a smaller batch_size=, prefetch= or "
            "resident_budget="
        )
    else:
        raised = RuntimeError(f"a batch could not be made: {error}")
    raised.__cause__ = error
    return raised


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _work(shared: _Shared, device: torch.device) -> None:
    stream = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        stream = torch.cuda.Stream(device)
    while (step := shared.claim()) is not None:
        found: Any
        try:
            found = _make(shared, step, stream)
        except BaseException as error:
            found = _Failure(error)
        if shared.stopped:
            del found  # or an error in it and this frame would hold each other, and all that the batch was made from
            return
        shared.ready[step] = found
        shared.notify()
        del found  # or the last batch would be held while the next one is waited for


def _make(shared: _Shared, step: int, stream: torch.cuda.Stream | None) -> tuple[Any, torch.cuda.Event | None]:
    if stream is None:
        return shared.make(step), None
    with torch.cuda.stream(stream):
        batch = shared.make(step)
        event = torch.cuda.Event()
        event.record(stream)
    return batch, event
