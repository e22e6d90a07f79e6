"""Detect that an open file was written over while it is in use."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from fastload.errors import DataError
from fastload.packed.format import digest

_EACH_TIME = 16
"""Up to so many files are looked at for each batch (half a microsecond each); of more, all once a second."""


class Watch:
    """How a file stood when it was opened: its size, and when its content and its entry changed last.

    The entry's time (ctime) alone also changes where a file is renamed, linked, removed or given another mode; and it
    is the only one that tells where somebody wrote to the file and set the other back. So then some of the content is
    looked at.

    Arguments:
        path: for messages.
        descriptor: of the open file.

    Attributes:
        known: (position, bytes, digest) of what the content is known by.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.known: list[tuple[int, int, int]] = []
        self._path, self._state = path, _state(descriptor)

    def check(self, descriptor: int) -> None:
        """Raise DataError unless the file that a descriptor leads to stands as it did."""
        found = _state(descriptor)
        if found == self._state:
            return
        if found[:2] != self._state[:2] or not self._is_known(descriptor):
            raise DataError(
                f"{self._path}: was changed while it was in use, so what it holds now is not what was opened; put that "
                "file back and resume from the last checkpoint, or begin anew with this one"
            )
        self._state = found

    def _is_known(self, descriptor: int) -> bool:
        try:
            return bool(self.known) and all(
                digest(os.pread(descriptor, count, position)) == expected for position, count, expected in self.known
            )
        except OSError:
            return False


class Watches:
    """The watches of a set's files, for who reads them batch by batch.

    Arguments:
        watches: one a file.
        descriptors: through which each is read.
    """

    def __init__(self, watches: Sequence[Watch], descriptors: Sequence[int]) -> None:
        self._pairs = list(zip(watches, map(int, descriptors), strict=True))
        self._next = 0.0

    def check(self) -> None:
        """Raise DataError where a file was changed; call it when a batch has been read."""
        if len(self._pairs) > _EACH_TIME:
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + 1.0
        for watch, descriptor in self._pairs:
            watch.check(descriptor)


def _state(descriptor: int) -> tuple[int, int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
