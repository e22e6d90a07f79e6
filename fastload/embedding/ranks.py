"""Several ranks at one selection: rank 0 leads, prints and writes; the others embed their chunks and send them to it.

Each rank has one connection, to rank 0, whose address it finds in torch.distributed's store. No collective operations:
they wait half an hour for a process that is gone, and say nothing of why, where the end of a connection shows at once
and a rank that fails can say its reason first.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import json
import os
import queue
import secrets
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from fastload.common.launcher import RankError, default_store, launched
from fastload.errors import FastloadError

JOIN_SECONDS = 120.0
"""How long ranks wait for each other at the beginning; afterwards a connection that ends is a failure at once."""

_AHEAD = 2
"""Chunks of a rank that wait in rank 0 for their turn: one would let a rank stand still while rank 0 embeds."""

_FAREWELL_SECONDS = 5.0
_HELLO_BYTES = 1 << 10
_LENGTHS = struct.Struct("!QQ")

_runs = itertools.count(1)


class RankFailure(RankError):
    """A rank failed, or its process ended: which one, and why.

    `told`: whether another process prints it.
    """

    def __init__(self, text: str, exit_code: int = 1, *, told: bool = False) -> None:
        super().__init__(text)
        self.exit_code, self.told = exit_code, told


class _Terminated(BaseException):
    """SIGTERM, as launchers send it to the ranks that are left when one failed."""


class Line:
    """A connection that carries messages: a JSON header, and bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that is gone sends no end of its connections: asked after 10 s of silence, given up 15 s later.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, header: Mapping[str, Any], payload: Any = b"") -> None:
        """Send a message; raise OSError where nobody is there any more."""
        text, data = json.dumps(header).encode(), memoryview(payload).cast("B")
        self._socket.sendall(_LENGTHS.pack(len(text), len(data)) + text)
        self._socket.sendall(data)

    def receive(self, most: int | None = None) -> tuple[dict[str, Any], bytearray]:
        """Wait for a message, of `most` bytes; raise OSError or EOFError where none comes."""
        lengths = _LENGTHS.unpack(self._exactly(_LENGTHS.size))
        if most is not None and sum(lengths) > most:
            raise EOFError
        text, payload = (self._exactly(length) for length in lengths)
        return json.loads(text), payload

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        left = memoryview(data)
        while left:
            received = self._socket.recv_into(left)
            if not received:
                raise EOFError
            left = left[received:]
        return data

    def waits(self) -> bool:
        """Whether a message, or the connection's end, is there."""
        asked = select.poll()
        asked.register(self._socket, select.POLLIN)
        return bool(asked.poll(0))

    def end(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class Leader:
    """Rank 0, or the only one.

    Arguments:
        lines: to the other ranks, by rank.
    """

    rank = 0

    def __init__(self, lines: Mapping[int, Line]) -> None:
        self.world_size = len(lines) + 1
        self._lines = lines
        self._waiting: dict[int, queue.Queue[tuple[dict[str, Any], bytearray]]] = {
            rank: queue.Queue(_AHEAD) for rank in lines
        }
        self._failure: RankFailure | None = None
        self._closing = False
        self._readers = [
            threading.Thread(target=self._read, args=(rank, line), name=f"fastload-rank-{rank}", daemon=True)
            for rank, line in lines.items()
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, rank: int, line: Line) -> None:
        try:
            while True:
                header, payload = line.receive()
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

    def _put(self, rank: int, message: tuple[dict[str, Any], bytearray]) -> None:
        while not self._closing:
            with contextlib.suppress(queue.Full):
                self._waiting[rank].put(message, timeout=0.1)
                return

    def tell(self, header: Mapping[str, Any], payload: Any = b"") -> None:
        """Send a message to all other ranks."""
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # its reader knows of the end, and why
                line.send(header, payload)

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
        if isinstance(error, _Terminated):
            give_up = time.monotonic() + 1  # a rank that ended is why launchers send this: hear of it first
            while self._failure is None and time.monotonic() < give_up:
                time.sleep(0.02)
            error = self._failure or RankFailure("rank 0: was ended by SIGTERM; the same command goes on")
        named = error if isinstance(error, RankFailure) else _named(0, error)
        self.tell({"failed": str(named), "exit_code": named.exit_code})
        return error

    def close(self) -> None:
        self._closing = True
        for line in self._lines.values():
            line.end()
        # What was told must be read before the connection goes: closing with unread chunks here would take it back.
        give_up = time.monotonic() + _FAREWELL_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, give_up - time.monotonic()))
        for line in self._lines.values():
            line.close()


class Follower:
    """Any other rank.

    Arguments:
        rank: this one.
        world_size: how many ranks there are.
        line: to rank 0.
    """

    def __init__(self, rank: int, world_size: int, line: Line) -> None:
        self.rank, self.world_size, self._line = rank, world_size, line
        self._early: tuple[dict[str, Any], bytearray] | None = None

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        """Wait for rank 0's next message; raise RankFailure where it, or another rank, failed."""
        early, self._early = self._early, None
        if early is not None:
            return early
        try:
            header, payload = self._line.receive()
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
            self._line.send(header, payload)
        except OSError:
            while True:
                self.receive()

    def check(self) -> None:
        """Raise RankFailure where rank 0 ended the pass."""
        if self._early is None and self._line.waits():
            self._early = self.receive()  # or else it is what comes after the pass, whose last chunk is sent

    def failed(self, error: BaseException) -> BaseException:
        """Tell rank 0 of an error; return what is to be raised here."""
        if isinstance(error, RankFailure):
            return error
        named = _named(self.rank, error)
        with contextlib.suppress(OSError):
            self._line.send({"failed": str(named), "exit_code": named.exit_code})
        return named

    def close(self) -> None:
        self._line.close()


def _named(rank: int, error: BaseException) -> RankFailure:
    if isinstance(error, KeyboardInterrupt):
        return RankFailure(f"rank {rank}: was interrupted", 130)
    if isinstance(error, FastloadError):
        return RankFailure(f"rank {rank}: {error}", error.exit_code)
    return RankFailure(f"rank {rank}: {type(error).__name__}: {error}")


# -- how ranks find each other -------------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(*, alone: bool = False) -> Iterator[Leader | Follower]:
    """Bring together the ranks that torch.distributed has, or that a launcher started; yields this one's part.

    An error in the block ends all ranks, in the others as a RankFailure that names the rank and the cause. Ctrl-C is
    answered by rank 0 for all of them.

    Arguments:
        alone: take this process for the only one.
    """
    group = torch.distributed
    initialized = group.is_available() and group.is_initialized()
    rank, world_size = (group.get_rank(), group.get_world_size()) if initialized else launched()
    if alone or world_size == 1:
        yield Leader({})
        return
    name = f"fastload/build-subset/{next(_runs)}"  # ranks build subsets in the same order
    try:
        store = default_store(world_size) if initialized else _launcher_store()
        part = _gather(store, name, world_size) if rank == 0 else _join(store, name, rank, world_size)
    except (OSError, RuntimeError) as error:  # torch's errors of its stores are RuntimeErrors
        raise RankFailure(
            f"rank {rank}: the {world_size} ranks did not find each other "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); start all of them together, or, "
            "to build in one process, call build_subset(…, alone=True) or unset WORLD_SIZE"
        ) from error
    try:
        with _signals(rank):
            yield part
    except BaseException as error:
        failure = part.failed(error)
        if failure is error:
            raise
        raise failure from error
    finally:
        part.close()


def _launcher_store() -> Any:
    store, _, _ = next(torch.distributed.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    return store


def _gather(store: Any, name: str, world_size: int) -> Leader:
    """Wait for all other ranks to connect."""
    # A token from the store keeps strangers out; ranks of one machine need no port that others could reach at all.
    token = secrets.token_hex(16)
    local = os.environ.get("LOCAL_WORLD_SIZE") == str(world_size)
    host = "127.0.0.1" if local else os.environ.get("MASTER_ADDR") or socket.gethostname()
    lines: dict[int, Line] = {}
    give_up = time.monotonic() + JOIN_SECONDS
    with _server(local) as server:
        store.set(name, json.dumps({"host": host, "port": server.getsockname()[1], "token": token}))
        try:
            while len(lines) < world_size - 1:
                server.settimeout(max(0.01, give_up - time.monotonic()))
                connection, _ = server.accept()
                rank = _greeted(connection, token)
                if rank is not None:
                    lines[rank] = Line(connection)
        except BaseException as error:
            for line in lines.values():
                line.close()
            if isinstance(error, TimeoutError):
                missing = ", ".join(str(rank) for rank in range(1, world_size) if rank not in lines)
                raise TimeoutError(f"missing: {missing}") from error
            raise
    return Leader(dict(sorted(lines.items())))


def _server(local: bool) -> socket.socket:
    if local:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _greeted(connection: socket.socket, token: str) -> int | None:
    """Return the rank that has connected; None, having closed it, for anybody else."""
    line = Line(connection)
    connection.settimeout(5)
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError):
        header, _ = line.receive(_HELLO_BYTES)
        if hmac.compare_digest(str(header["token"]).encode(), token.encode()):
            return int(header["rank"])
    line.close()
    return None


def _join(store: Any, name: str, rank: int, world_size: int) -> Follower:
    store.wait([name], timedelta(seconds=JOIN_SECONDS))
    told = json.loads(store.get(name))
    connection = socket.create_connection((told["host"], told["port"]), timeout=JOIN_SECONDS)
    line = Line(connection)
    line.send({"rank": rank, "token": told["token"]})
    return Follower(rank, world_size, line)


@contextlib.contextmanager
def _signals(rank: int) -> Iterator[None]:
    """Let rank 0 alone answer Ctrl-C, which a terminal and a launcher send to all; let SIGTERM clear up there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    sign: int = signal.SIGTERM if rank == 0 else signal.SIGINT
    handler: Callable[[int, Any], None] | signal.Handlers = terminate if rank == 0 else signal.SIG_IGN
    before = signal.signal(sign, handler)
    try:
        yield
    finally:
        signal.signal(sign, signal.SIG_DFL if before is None else before)
