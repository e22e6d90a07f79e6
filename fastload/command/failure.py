"""What a command says of an error, in one line, and its exit code: 1 for data, 2 for usage, 130 when interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Callable

from fastload.common.terminal import tell
from fastload.errors import FastloadError, Interrupted


def report(error: BaseException, *, debug: bool = False, in_options: Callable[[str], str] = str) -> int:
    """Print one line about an error on stderr; return the exit code.

    Arguments:
        error: what was raised.
        debug: print the traceback first.
        in_options: says a message of the library, which names Python's arguments, with the options of the command.
    """
    text, code = explain(error)
    if isinstance(error, FastloadError):
        text = in_options(text)
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more
        if debug:
            tell("".join(traceback.format_exception(error)).rstrip("\n"), error=True)
        if text:
            tell(" ".join(text.split()), error=True)
    return code


def wants_debug() -> bool:
    """Whether $FASTLOAD_DEBUG asks for tracebacks."""
    return os.environ.get("FASTLOAD_DEBUG", "0") not in ("", "0")


def explain(error: BaseException) -> tuple[str, int]:
    """Return what to print for an error ("" for nothing) and the exit code."""
    if isinstance(error, Interrupted):
        return f"interrupted: {error}", error.exit_code
    if isinstance(error, FastloadError):
        return "" if error.told else f"error: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", Interrupted.exit_code
    if isinstance(error, MemoryError):
        return "error: out of memory; close other programs, or use smaller batches or fewer workers", 1
    if isinstance(error, OSError):
        mend = "; free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"error: {error.filename or 'the system'}: {error.strerror or error}{mend}", 1
    return f"error: {type(error).__name__}: {error} (this is a bug in fastload; --debug shows where)", 1
