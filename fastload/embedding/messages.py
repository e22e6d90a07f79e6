"""Messages between ranks over a connection: a JSON header, and bytes. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

Message = tuple[dict[str, Any], bytes]


def connection_of(opened: socket.socket) -> Connection:
    """Return a connection in place of an open TCP socket."""
    opened.settimeout(None)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A machine that is gone sends no end of its connections: asked after 10 s of silence, given up 15 s later.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(opened.detach())


def send(connection: Connection, header: Mapping[str, Any], payload: Any = b"") -> None:
    """Send a message; raise OSError where nobody is there any more."""
    connection.send_bytes(json.dumps(header).encode())
    connection.send_bytes(memoryview(payload).cast("B"))


def receive(connection: Connection, most: int | None = None) -> Message:
    """Wait for a message; raise OSError or EOFError where none comes, or one of a part above `most` bytes."""
    header, payload = connection.recv_bytes(most), connection.recv_bytes(most)
    return json.loads(header), payload


def set_patience(connection: Connection, seconds: int) -> None:
    """Let `receive` raise OSError after so many seconds without a byte; 0: let it wait for ever."""
    with _socket_of(connection) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", seconds, 0))


def end_sending(connection: Connection) -> None:
    """Say that nothing more will be sent."""
    with contextlib.suppress(OSError), _socket_of(connection) as opened:
        opened.shutdown(socket.SHUT_WR)


def _socket_of(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))
