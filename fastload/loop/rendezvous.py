"""Ranks that find each other's loaders of one run in a store, whatever else has been, or is, in it.

Rank 0 gives each run of a loader a name of its own, drawn at random, and notes it as the current one. The others sign
in under that name, and rank 0 notes which ones have. So a rank reads only what the living processes of its own run have
written: nothing of an earlier, killed run in a store's file, nor of a loader that was made on one rank only. No call
waits here.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from typing import Any

_joined_runs: set[tuple[int, str]] = set()
"""(rank, run) of the runs that a loader of this process has joined: no other loader of it belongs to them."""

_current: dict[str, str] = {}
"""The run that rank 0 has stored last, by the settings' name."""

_token = (0, "")


def _process_token() -> str:
    """Return what this process signs with: the same for all its loaders, and for no other process."""
    global _token
    if _token[0] != os.getpid():
        _token = os.getpid(), secrets.token_hex(8)
    return _token[1]


class Rendezvous:
    """The values that the ranks of one run share.

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
        self._signed = self._kept = ""
        self.run = secrets.token_hex(8) if rank == 0 else ""
        """The run's name; "" on a rank other than 0 until it has read it."""
        self.join()

    def join(self) -> bool:
        """Sign in, or look which ranks have; return whether all ranks know this one, and `run` is final."""
        return self._admit() if self._rank == 0 else self._sign_in()

    def keep_run(self) -> None:
        """Stay with `run`, which this rank has read from; no later loader of this process joins it."""
        self._kept = self.run
        _joined_runs.add((self._rank, self.run))

    def put(self, name: str, value: Any) -> None:
        """Store a value, which JSON can hold, under a name, for all ranks of the run."""
        self._store.set(self._key(name), json.dumps(value))

    def get(self, name: str) -> Any:
        """Return the value under a name; None where there is none yet."""
        key = self._key(name)
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def get_all(self, name: Callable[[int], str]) -> list[Any] | None:
        """Return the values under the name of each rank but 0; None until all are there."""
        keys = [self._key(name(rank)) for rank in range(1, self._world_size)]
        return [json.loads(self._store.get(key)) for key in keys] if self._store.check(keys) else None

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{self.run}/{name}"

    def _admit(self) -> bool:
        if self._open:
            return True
        if _current.get(self._prefix) != self.run:  # also after another loader has been made, to look at a batch, say
            self._store.set(f"{self._prefix}/run", self.run)
            _current[self._prefix] = self.run
        tokens = self.get_all("here/{}".format)
        if tokens is not None:
            self.put("open", tokens)
            self._open = True
        return self._open

    def _sign_in(self) -> bool:
        if self._kept:
            return True
        key = f"{self._prefix}/run"
        self.run = self._store.get(key).decode() if self._store.check([key]) else ""
        if not self.run or (self._rank, self.run) in _joined_runs:
            return False
        if self._signed != self.run:
            self.put(f"here/{self._rank}", _process_token())
            self._signed = self.run
        tokens = self.get("open")
        return tokens is not None and tokens[self._rank - 1] == _process_token()
