"""How the ranks of one selection find each other: rank 0's address stands in torch.distributed's store."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch

from fastload.common.launcher import default_store, launched
from fastload.embedding.messages import connection_of, receive, send, set_patience
from fastload.embedding.ranks import Follower, Leader, RankFailure, Terminated

JOIN_SECONDS = 120.0
"""How long ranks wait for each other at the beginning; afterwards a connection that ends is a failure at once."""

_GREETING_BYTES = 1 << 10
_GREETING_SECONDS = 5

_runs = itertools.count(1)


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
    connections: dict[int, Connection] = {}
    give_up = time.monotonic() + JOIN_SECONDS
    with _server(local) as server:
        store.set(name, json.dumps({"host": host, "port": server.getsockname()[1], "token": token}))
        try:
            while len(connections) < world_size - 1:
                server.settimeout(max(0.01, give_up - time.monotonic()))
                connection = connection_of(server.accept()[0])
                rank = _greeted(connection, token)
                if rank is not None:
                    connections[rank] = connection
        except BaseException as error:
            for connection in connections.values():
                connection.close()
            if isinstance(error, TimeoutError):
                missing = ", ".join(str(rank) for rank in range(1, world_size) if rank not in connections)
                raise TimeoutError(f"missing: {missing}") from error
            raise
    return Leader(dict(sorted(connections.items())))


def _server(local: bool) -> socket.socket:
    if local:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _greeted(connection: Connection, token: str) -> int | None:
    """Return the rank that has connected; None, having closed it, for anybody else."""
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError):
        set_patience(connection, _GREETING_SECONDS)
        header, _ = receive(connection, _GREETING_BYTES)
        if hmac.compare_digest(str(header["token"]).encode(), token.encode()):
            set_patience(connection, 0)
            return int(header["rank"])
    connection.close()
    return None


def _join(store: Any, name: str, rank: int, world_size: int) -> Follower:
    store.wait([name], timedelta(seconds=JOIN_SECONDS))
    told = json.loads(store.get(name))
    address = told["host"], told["port"]
    connection = connection_of(socket.create_connection(address, timeout=JOIN_SECONDS))
    send(connection, {"rank": rank, "token": told["token"]})
    return Follower(rank, world_size, connection)


@contextlib.contextmanager
def _signals(rank: int) -> Iterator[None]:
    """Let rank 0 alone answer Ctrl-C, which a terminal and a launcher send to all; let SIGTERM clear up there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    sign: int = signal.SIGTERM if rank == 0 else signal.SIGINT
    handler: Callable[[int, Any], None] | signal.Handlers = terminate if rank == 0 else signal.SIG_IGN
    before = signal.signal(sign, handler)
    try:
        yield
    finally:
        signal.signal(sign, signal.SIG_DFL if before is None else before)
