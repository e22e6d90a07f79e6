"""A batch is delivered and counted at once: no interrupt can come between the two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

_second: Callable[[Any, Any], Any] = {}.get  # written in C: of a key that is not there, its second argument


def deliveries(owner: object, attribute: str, lock: Any, prepare: Callable[[], tuple[Any, Any]]) -> Iterator[Any]:
    """Return an iterator that, at each step, sets an attribute of `owner` to a new state, and returns a batch.

    A step has two halves. `prepare` makes the state and the batch, and may be interrupted anywhere (by a signal's
    handler that raises, by an error): nothing has changed then, and it is called again for the next batch. What
    follows once it has returned, setting the attribute, freeing the lock and returning the batch, is done by iterators
    and functions that are written in C. Python runs signal handlers between its own instructions only, so that a batch
    counts if and only if `next()` has returned it.

    Arguments:
        owner: what the state belongs to.
        attribute: the name of its state.
        lock: an RLock, held from before `prepare` until the state is set: several threads may share the owner.
        prepare: returns (state, batch); StopIteration ends the iterator.
    """
    prepared = _Prepared(lock, prepare)
    counted = map(partial(setattr, owner, attribute), prepared)
    freed = iter(lock.release, lock)  # it returns None, never its second argument
    return map(_second, zip(counted, freed, strict=False), iter(prepared.batches.pop, None))


class _Prepared(Iterator[Any]):
    """States, each with its batch in `batches`, and with the lock held."""

    def __init__(self, lock: threading.RLock, prepare: Callable[[], tuple[Any, Any]]) -> None:
        self.batches: list[Any] = []
        self._lock, self._prepare = lock, prepare

    def __next__(self) -> Any:
        held: list[bool] = []
        try:
            held.extend(map(self._lock.acquire, (True,)))  # taken and noted at once, in C too
            state, batch = self._prepare()
            self.batches[:] = (batch,)
            return state
        except BaseException:
            if held:
                self._lock.release()
            raise
