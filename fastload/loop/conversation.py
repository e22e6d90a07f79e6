"""Ranks that find each other's loaders of one run in a store, whatever else has been, or is, in it.

Rank 0 gives each run of a loader a name of its own, drawn at random, and notes it as the current one. The others sign
in under that name, and rank 0 notes who has, so that a rank hears only what a process that lives tells to itself: not
a store's file of an earlier, killed run, nor a loader that was made on one rank only. Nobody waits here.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from typing import Any

_heard: set[tuple[int, str]] = set()
"""(rank, run) of the runs that loaders of this process have listened to: no other loader means them."""

_current: dict[str, str] = {}
"""The run that rank 0 has noted last, by the settings' name."""

_token = (0, "")


def _process_token() -> str:
    """Return what this process signs with: the same for all its loaders, and for no other process."""
    global _token
    if _token[0] != os.getpid():
        _token = os.getpid(), secrets.token_hex(8)
    return _token[1]


class Conversation:
    """What the ranks of one run tell each other.

    Arguments:
        store: a torch.distributed store.
        rank: of this process.
        world_size: how many ranks there are.
        name: of the loader's settings, equal on all ranks.
    """

    def __init__(self, store: Any, rank: int, world_size: int, name: str) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._prefix = f"fastload/{name}"
        self._open = world_size == 1
        self._signed = self._settled = ""
        self.run = secrets.token_hex(8) if rank == 0 else ""
        """The run's name; "" on another rank than 0 until it has heard of it."""
        self.meet()

    def meet(self) -> bool:
        """Sign in, or look who has; return whether this rank is known to all of the run, and `run` stands."""
        return self._gather() if self._rank == 0 else self._join()

    def settle(self) -> None:
        """Stay with `run`: this rank has heard from it. No later loader of this process takes it for its own."""
        self._settled = self.run
        _heard.add((self._rank, self.run))

    def tell(self, name: str, value: Any) -> None:
        """Note a value, which JSON can hold, under a name, for all ranks of the run."""
        self._store.set(self._key(name), json.dumps(value))

    def heard(self, name: str) -> Any:
        """Return the value under a name; None where there is none yet."""
        key = self._key(name)
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def heard_from_all(self, name: Callable[[int], str]) -> list[Any] | None:
        """Return the values under the name of each rank but 0; None until all are there."""
        keys = [self._key(name(rank)) for rank in range(1, self._world_size)]
        return [json.loads(self._store.get(key)) for key in keys] if self._store.check(keys) else None

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{self.run}/{name}"

    def _gather(self) -> bool:
        if self._open:
            return True
        if _current.get(self._prefix) != self.run:  # also after another loader has been made, to look at a batch, say
            self._store.set(f"{self._prefix}/run", self.run)
            _current[self._prefix] = self.run
        tokens = self.heard_from_all("here/{}".format)
        if tokens is not None:
            self.tell("open", tokens)
            self._open = True
        return self._open

    def _join(self) -> bool:
        if self._settled:
            return True
        key = f"{self._prefix}/run"
        self.run = self._store.get(key).decode() if self._store.check([key]) else ""
        if not self.run or (self._rank, self.run) in _heard:
            return False
        if self._signed != self.run:
            self.tell(f"here/{self._rank}", _process_token())
            self._signed = self.run
        tokens = self.heard("open")
        return tokens is not None and tokens[self._rank - 1] == _process_token()
