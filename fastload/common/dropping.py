"""Clean up when an object is dropped, by calls written in C: an interrupt in Python code would be swallowed there.

Python runs what belongs to an object's end (`__del__`, weakref callbacks, a generator's `finally`) wherever the last
reference happens to go, and prints what it raises as "Exception ignored in": Ctrl-C too, where it comes just then.
"""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

_references: dict[int, weakref.ref[Any]] = {}


def when_dropped(owner: object, *calls: Callable[[], Any]) -> None:
    """Make `calls` once nobody holds `owner` any more.

    Arguments:
        owner: an object that takes weak references.
        calls: functions written in C with their arguments, such as `partial(os.close, 3)`; they must not hold `owner`.
    """
    steps = list(calls)
    # `countOf` goes through the map, which makes the calls, and is called with a second argument as callbacks are.
    reference = weakref.ref(owner, partial(operator.countOf, map(operator.call, steps)))
    steps.append(partial(_references.pop, id(reference), None))
    _references[id(reference)] = reference


class Descriptor:
    """An open file's descriptor, closed when nobody holds this any more: who reads holds it for as long as that takes.

    Arguments:
        number: the descriptor, which is this object's from now on.
    """

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        when_dropped(self, partial(os.close, number))
