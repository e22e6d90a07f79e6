"""The callbacks of the swap: each is called once, and once more where it raised."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from fastload.errors import UsageError


class SwapCallbacks(list[Callable[[Any], Any]]):
    """Callbacks in the order of their registration, and how many of them have been called at the swap.

    Arguments:
        returned: how many of the first have been called already.
    """

    def __init__(self, callbacks: Iterable[Callable[[Any], Any]] = (), returned: int = 0) -> None:
        super().__init__(callbacks)
        self._begun = self.returned = returned

    def add(self, callback: Callable[[Any], Any]) -> None:
        """Register one. Raises UsageError, now rather than at the swap, for what does not take one argument."""
        if not callable(callback) or not _takes_one(callback):
            raise UsageError(f"on_swap({callback!r}): it takes a function of one argument, the loader")
        self.append(callback)

    @property
    def running(self) -> bool:
        return self._begun > self.returned

    def call(self, loader: Any) -> None:
        """Call those that are left, in turn; where one raises, it and those after it are called the next time.

        Those before it have done their work (a learning rate was lowered, say), so they are not called again. One
        that draws batches itself is passed over by what it calls meanwhile.
        """
        while (number := max(self._begun, self.returned)) < len(self):
            done: list[Any] = []
            try:
                self._begun = number + 1
                done.extend(map(self[number], (loader,)))  # called, and noted, at once: see `delivery`
                self.returned = max(self.returned, number + 1)
            except BaseException:
                if done:
                    self.returned = max(self.returned, number + 1)
                else:
                    self._begun = number
                raise


def _takes_one(callback: Callable[..., Any]) -> bool:
    try:
        inspect.signature(callback).bind(None)
    except TypeError:
        return False
    except ValueError:  # built-in, with no signature to look at
        return True
    return True
