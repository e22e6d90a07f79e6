"""Several ranks at one selection: rank 0 leads, prints and writes; the others embed their chunks and send them to it.

Each rank has one connection, to rank 0 (joining.py). No collective operations: they wait half an hour for a process
that is gone, and say nothing of why, where the end of a connection shows at once and a rank that fails can say its
reason first.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fastload.common.launcher import RankError
from fastload.embedding.messages import Message, end_sending, receive, send
from fastload.errors import FastloadError

_AHEAD = 2
"""Chunks of a rank that wait in rank 0 for their turn: one would let a rank stand still while rank 0 embeds."""

_FAREWELL_SECONDS = 5.0


class RankFailure(RankError):
    """A rank failed, or its process ended: which one, and why.

    Arguments:
        text: which one, and why.
        exit_code: of the command.
        told: whether another process prints it.
    """

    def __init__(self, text: str, exit_code: int = 1, *, told: bool = False) -> None:
        super().__init__(text)
        self.exit_code, self.told = exit_code, told


class Terminated(BaseException):
    """SIGTERM, as launchers send it to the ranks that are left when one failed."""


class Leader:
    """Rank 0, or the only one.

    Arguments:
        connections: to the other ranks, by rank.
    """

    rank = 0

    def __init__(self, connections: Mapping[int, Connection]) -> None:
        self.world_size = len(connections) + 1
        self._connections = dict(connections)
        self._waiting: dict[int, queue.Queue[Message]] = {rank: queue.Queue(_AHEAD) for rank in connections}
        self._failure: RankFailure | None = None
        self._closing = False
        self._readers = [
            threading.Thread(target=self._read, args=(rank, connection), name=f"fastload-rank-{rank}", daemon=True)
            for rank, connection in connections.items()
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, rank: int, connection: Connection) -> None:
        try:
            while True:
                header, payload = receive(connection)
                if "failed" in header:
                    failure = RankFailure(str(header["failed"]), int(header["exit_code"]))
                    break
                self._put(rank, (header, payload))
        except (OSError, EOFError, ValueError):
            failure = RankFailure(
                f"rank {rank}: its process ended without a word (was it killed, or out of memory?); the same command "
                "goes on from what is kept"
            )
        if self._failure is None and not self._closing:
            self._failure = failure

    def _put(self, rank: int, message: Message) -> None:
        while not self._closing:
            with contextlib.suppress(queue.Full):
                self._waiting[rank].put(message, timeout=0.1)
                return

    def tell(self, header: Mapping[str, Any], payload: Any = b"") -> None:
        """Send a message to all other ranks."""
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # its reader knows of the end, and why
                send(connection, header, payload)

    def check(self) -> None:
        """Raise RankFailure where another rank failed."""
        if self._failure is not None:
            raise self._failure

    def chunk(self, rank: int, row: int) -> np.ndarray:
        """Return the embeddings, float32 [b, D], that a rank made of the rows from `row` on.

        Raises RankFailure where it, or another one, failed.
        """
        while True:
            self.check()
            with contextlib.suppress(queue.Empty):
                header, payload = self._waiting[rank].get(timeout=0.05)
                break
        values = np.frombuffer(payload, "<f4")
        if header["row"] != row or len(header["shape"]) != 2 or values.size != np.prod(header["shape"]):
            raise RankFailure(f"rank {rank}: sent {values.size:,} numbers as {header}, where row {row:,} was to come")
        return values.reshape(header["shape"])

    @property
    def on_this_machine(self) -> int:
        """How many of the ranks share this machine, as far as is known."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)) if self.world_size > 1 else 1

    def failed(self, error: BaseException) -> BaseException:
        """Tell the others of an error; return what is to be raised here."""
        if isinstance(error, Terminated):
            give_up = time.monotonic() + 1  # a rank that ended is why launchers send this: hear of it first
            while self._failure is None and time.monotonic() < give_up:
                time.sleep(0.02)
            error = self._failure or RankFailure("rank 0: was ended by SIGTERM; the same command goes on")
        named = error if isinstance(error, RankFailure) else _named(0, error)
        self.tell({"failed": str(named), "exit_code": named.exit_code})
        return error

    def close(self) -> None:
        self._closing = True
        for connection in list(self._connections.values()):
            end_sending(connection)
        # What was told must be read before the connection goes: closing with unread chunks here would take it back.
        give_up = time.monotonic() + _FAREWELL_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, give_up - time.monotonic()))
        with contextlib.suppress(KeyError):
            while True:  # each is closed once, whoever closes this meanwhile
                self._connections.popitem()[1].close()


class Follower:
    """Any other rank.

    Arguments:
        rank: this one.
        world_size: how many ranks there are.
        connection: to rank 0.
    """

    def __init__(self, rank: int, world_size: int, connection: Connection) -> None:
        self.rank, self.world_size, self._connection = rank, world_size, connection
        self._early: Message | None = None

    def receive(self) -> Message:
        """Wait for rank 0's next message; raise RankFailure where it, or another rank, failed."""
        early, self._early = self._early, None
        if early is not None:
            return early
        try:
            header, payload = receive(self._connection)
        except (OSError, EOFError) as error:
            raise RankFailure("rank 0: its process ended before the subset was written; start all ranks again") from (
                error
            )
        if "failed" in header:
            raise RankFailure(str(header["failed"]), int(header["exit_code"]), told=True)
        return header, payload

    def send(self, header: Mapping[str, Any], payload: Any = b"") -> None:
        """Send rank 0 a message; raise RankFailure, with the reason where it gave one, if it is gone."""
        try:
            send(self._connection, header, payload)
        except OSError:
            while True:
                self.receive()

    def check(self) -> None:
        """Raise RankFailure where rank 0 ended the pass."""
        if self._early is None and self._connection.poll():
            self._early = self.receive()  # or else it is what comes after the pass, whose last chunk is sent

    def failed(self, error: BaseException) -> BaseException:
        """Tell rank 0 of an error; return what is to be raised here."""
        if isinstance(error, RankFailure):
            return error
        named = _named(self.rank, error)
        with contextlib.suppress(OSError):
            send(self._connection, {"failed": str(named), "exit_code": named.exit_code})
        return named

    def close(self) -> None:
        self._connection.close()


def _named(rank: int, error: BaseException) -> RankFailure:
    if isinstance(error, KeyboardInterrupt):
        return RankFailure(f"rank {rank}: was interrupted", 130)
    if isinstance(error, FastloadError):
        return RankFailure(f"rank {rank}: {error}", error.exit_code)
    return RankFailure(f"rank {rank}: {type(error).__name__}: {error}")
