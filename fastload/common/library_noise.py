"""Silence what C libraries (libpng, DALI) print about a damaged file beside the one line of a command."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Send nowhere what is written to descriptor 2 while the block runs, and on to the terminal what Python writes.

    For a command of our own: the descriptor is the whole process's.
    """
    try:
        stderr, is_python = sys.stderr, sys.stderr.fileno() == 2
        kept = os.dup(2)
    except (OSError, ValueError, AttributeError):  # none, or closed
        yield
        return
    stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    python = io.TextIOWrapper(
        os.fdopen(os.dup(kept), "wb", 0), encoding=stderr.encoding, errors=stderr.errors, write_through=True
    )
    try:
        sys.stderr = python if is_python else stderr
        yield
    finally:
        sys.stderr = stderr
        python.close()
        os.dup2(kept, 2)
        os.close(kept)
