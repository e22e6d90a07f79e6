"""Files of an open folder, reached by name only: no link is followed, and nobody else's file is changed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fastload.common.dropping import Descriptor

_CLOSED = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO without a writer would wait for one for ever


class OpenFolder:
    """A folder, held open: what its path leads to later makes no difference.

    Arguments:
        path: the folder.
        follow: whether the path itself may be a link.

    Raises OSError: NotADirectoryError for a link that may not be followed, as for a file.
    """

    def __init__(self, path: Path, *, follow: bool = False) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        self._open: Descriptor | None = Descriptor(os.open(path, flags))

    @property
    def descriptor(self) -> int:
        """The folder's descriptor; -1 once it was given back, since its number may be another file's by then."""
        held = self._open
        return -1 if held is None else held.number

    def file(self, name: str) -> FolderFile:
        """Return the file of a name, there or not."""
        return FolderFile(self, name)

    def names(self) -> list[str]:
        """Return the names of all that is in the folder, sorted."""
        return sorted(os.listdir(self.descriptor))

    def close(self) -> None:
        """Give the folder back. Safe to call twice."""
        self._open = None


class FolderFile:
    """A file of a folder. All methods raise OSError for a link, a FIFO, a folder of that name, a file of two names."""

    def __init__(self, folder: OpenFolder, name: str) -> None:
        self.folder, self.name = folder, name

    @classmethod
    def of(cls, place: FolderFile | Path) -> FolderFile:
        """Return the file at a path, whose folder may be reached by links; a FolderFile is returned as it is."""
        return place if isinstance(place, FolderFile) else cls(OpenFolder(place.parent, follow=True), place.name)

    @property
    def path(self) -> Path:
        """The path, for messages."""
        return self.folder.path / self.name

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether there is anything of that name, a link included."""
        try:
            os.stat(self.name, dir_fd=self.folder.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def open(self, *, write: bool = False) -> int:
        """Return a descriptor of the regular file that is there."""
        return self._checked(self._open((os.O_RDWR if write else os.O_RDONLY) | _CLOSED), one_name=write)

    def open_or_create(self) -> int:
        """Return a descriptor, for reading and writing, of the regular file that is there, or of a new one."""
        return self._checked(self._open(os.O_RDWR | os.O_CREAT | _CLOSED), one_name=True)

    def create(self) -> int:
        """Return a descriptor, for reading and writing, of a new and empty file; what had the name loses it."""
        self.remove()
        return self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOSED)

    def _open(self, flags: int) -> int:
        return os.open(self.name, flags, 0o666, dir_fd=self.folder.descriptor)

    def _checked(self, descriptor: int, *, one_name: bool) -> int:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and not (one_name and found.st_nlink > 1):
            return descriptor
        os.close(descriptor)
        reason = "is a file of other names too" if stat.S_ISREG(found.st_mode) else "is no regular file"
        raise OSError(errno.EPERM, reason, str(self.path))

    @contextlib.contextmanager
    def reading(self) -> Iterator[int]:
        """Open for reading while the block runs."""
        descriptor = self.open()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, limit: int | None = None) -> bytes:
        """Return the content, or its first `limit` bytes."""
        with self.reading() as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read() if limit is None else file.read(limit)

    def write(self, data: bytes) -> None:
        """Replace the file: whole, on disk and read back, or not at all. What a link of that name leads to stays."""
        partial = self.folder.file(self.name + ".partial")
        try:
            descriptor = partial.create()
            with os.fdopen(descriptor, "w+b") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
                file.seek(0)
                if file.read() != data:
                    raise OSError(errno.EIO, "what was written there reads back otherwise")
            here = self.folder.descriptor
            os.rename(partial.name, self.name, src_dir_fd=here, dst_dir_fd=here)
        except OSError:
            with contextlib.suppress(OSError):
                partial.remove()
            raise

    def remove(self) -> None:
        """Take the name away, if it is there; where it is a link, what that leads to stays."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.folder.descriptor)
