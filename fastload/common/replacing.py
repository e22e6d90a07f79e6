"""Files are written beside their name, synced, read back, and only then put in the place of what was there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

_PIECE = 8 << 20
_TOKEN = re.compile(r"[0-9a-z_]{8}")


class Replacement:
    """A file in the making, `.NAME.xxxxxxxx.partial` beside the one that it will replace.

    replacement = Replacement(path)
    try:
        replacement.write(0, data)      # any order, from any thread
        replacement.publish()
    finally:
        replacement.abandon()           # nothing is left of what was not published

    Arguments:
        path: the final name. What a link leads to is replaced, and the link stays.

    A file that is replaced passes its mode on. What killed writers of the same name left is removed. A lock tells other
    writers that this one is alive. Every method raises OSError where the system refuses it.
    """

    def __init__(self, path: Path) -> None:
        self.target = target_of(path)
        self.descriptor = -1
        _remove_orphans(self.target)
        mode = _mode_of(self.target)
        while self.descriptor < 0:
            self.path = self.target.with_name(f".{self.target.name}.{secrets.token_hex(4)}.partial")
            self._create(0o666 if mode is None else 0o600)
        try:
            if mode is not None:
                os.fchmod(self.descriptor, mode)
        except BaseException:
            self.abandon()
            raise

    def _create(self, mode: int) -> None:
        """Make the file and lock it; a neighbour that clears orphans away in between has it made anew."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            return
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            self.descriptor = descriptor
        else:
            os.close(descriptor)

    def reserve(self, size: int) -> None:
        """Make the file `size` bytes long, and have the system keep room for them where it can."""
        if size <= 0:
            return
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            os.ftruncate(self.descriptor, max(size, os.fstat(self.descriptor).st_size))

    def write(self, position: int, data: Any) -> None:
        """Write a buffer's bytes at a position. Thread-safe."""
        write_all(self.descriptor, position, data)

    def read(self, position: int, count: int) -> bytes:
        """Return `count` bytes from a position. Thread-safe."""
        data = os.pread(self.descriptor, count, position)
        while len(data) < count:
            more = os.pread(self.descriptor, count - len(data), position + len(data))
            if not more:
                raise OSError(errno.EIO, f"{self.path.name} ends at byte {position + len(data):,}")
            data += more
        return data

    def sync(self) -> None:
        """Have the disk take all that was written: the last moment at which it may say that it cannot."""
        os.fsync(self.descriptor)

    def check(self, position: int, data: Any) -> None:
        """Read back what was written at a position; raise OSError where other bytes come."""
        view = memoryview(data).cast("B")
        with contextlib.suppress(OSError):  # so that it is read from the disk, which may lie about what it took
            os.posix_fadvise(self.descriptor, position, len(view), os.POSIX_FADV_DONTNEED)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            if self.read(position + start, len(piece)) != piece:
                raise OSError(errno.EIO, "what was written there reads back otherwise")

    def publish(self) -> None:
        """Put the file in its place. Call `sync` before, and `check` what no digest covers."""
        os.replace(self.path, self.target)
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def abandon(self) -> None:
        """Remove the file unless it was published. Safe to call twice."""
        if self.descriptor < 0:
            return
        descriptor, self.descriptor = self.descriptor, -1
        self.path.unlink(missing_ok=True)
        os.close(descriptor)


def write_all(descriptor: int, position: int, data: Any) -> None:
    """Write all of a buffer's bytes to an open file at a position, in as many calls as that takes."""
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count


def target_of(path: Path) -> Path:
    """Return what a path leads to where it is a link, for that disk was chosen for its room; else the path."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def replace_file(path: Path, data: Any) -> None:
    """Write a whole file, a buffer's bytes: they are all there, or what was there before is.

    Raises OSError where the disk is full or fails.
    """
    replacement = Replacement(path)
    try:
        replacement.reserve(memoryview(data).nbytes)
        replacement.write(0, data)
        replacement.sync()
        replacement.check(0, data)
        replacement.publish()
    finally:
        replacement.abandon()


def _mode_of(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode) & 0o777
    except OSError:
        return None


def _remove_orphans(path: Path) -> None:
    """Remove what killed writers of the same file left: regular files of this user's that nobody holds a lock on."""
    prefix, suffix = f".{path.name}.", ".partial"
    for orphan in path.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
        if not _TOKEN.fullmatch(orphan.name[len(prefix) : -len(suffix)]):
            continue
        try:
            if not _is_own(orphan.lstat()):
                continue
            descriptor = os.open(orphan, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if _is_own(os.fstat(descriptor)):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                orphan.unlink(missing_ok=True)
        except OSError:
            pass  # alive
        finally:
            os.close(descriptor)


def _is_own(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
