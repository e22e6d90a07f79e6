"""The errors that fastload raises on purpose: each message says what was found, where, and what to do."""

from __future__ import annotations

from fastload.common.text import printable, storable


class FastloadError(Exception):
    """Base of all errors that the command prints as one line; `exit_code` is the command's.

    `told`: another process prints it.
    """

    exit_code = 1
    told = False

    def __str__(self) -> str:
        """Return the message as text that can be printed: names of files need not be UTF-8."""
        return storable(super().__str__())

    def __init__(self, text: str = "") -> None:
        # Here, once for all: a message is one line, whatever the names of files and classes in it hold.
        super().__init__(printable(" ".join(text.splitlines())))


class DataError(FastloadError, ValueError):
    """A file, dataset or image that is not what it should be (exit code 1)."""


class UsageError(FastloadError, ValueError):
    """Arguments that cannot be served: a wrong option, a crop too large, no such device (exit code 2)."""

    exit_code = 2


class Interrupted(FastloadError):
    """Ctrl-C, with what was kept (exit code 130)."""

    exit_code = 130


class ClosedError(UsageError):
    """A loader or feed that is used once it is closed, whoever closed it, and when."""

    def __init__(self, text: str = "this loader is closed; make a new one") -> None:
        super().__init__(text)
