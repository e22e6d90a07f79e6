"""A folder or an archive as a stream of members, each with a function that reads it."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from fastload.common.text import storable
from fastload.errors import DataError

LARGEST_FILE = 1 << 28
"""The most bytes of one picture's file, or of one file of a CIFAR archive: 256 MB. Nothing longer is read."""

LINK = "is a link that cannot be followed here; put a copy in its place"
"""How the obstacle of a member begins that is a link; it may lead to a file or to a folder of them."""

# What unpacks to more than this is a bomb: gzip's utmost is 1,032 times, pictures have 1 to 3.
_FREE, _RATIO = 1 << 30, 1000


class Member(NamedTuple):
    """A file or folder.

    Attributes:
        name: its path within the source, without leading or trailing slash.
        size: in bytes; of a file in an archive, after unpacking.
        kind: "file" or "folder".
        obstacle: why it cannot be read, and the mend, to be read after its name; "" where it can be.
        picture: whether it is one, once that has been looked at.
    """

    name: str
    size: int
    kind: Literal["file", "folder"]
    obstacle: str = ""
    picture: bool = False


class DamagedMember(DataError):
    """One member that cannot be read though all around it can: a broken sample, and named where it is anything else.

    Arguments:
        where: the archive.
        name: the member's.
        reason: why, to be read after its name.
    """

    def __init__(self, where: object, name: str, reason: str) -> None:
        super().__init__(f"{where}: '{name}' {reason}; make or fetch it again, or leave it out")
        self.reason = reason


class Load(Protocol):
    """Reads a member, or its first `limit` bytes; valid until the next member is asked for, and once.

    Raises OSError for a file, and DamagedMember for one in an archive whose other members may be sound.
    """

    def __call__(self, limit: int | None = None) -> bytes: ...


def no_content(limit: int | None = None) -> bytes:
    """Stand for the content of what is no file."""
    return b""


def whole_file(where: object, member: Member, load: Load) -> bytes:
    """Return a file's content; DataError as `check_readable` raises it."""
    check_readable(where, member)
    return load()


def check_readable(where: object, member: Member) -> None:
    """Raise DataError for a file that cannot be read or is too large to be held in memory."""
    if problem := why_unreadable(member):
        raise DataError(f"{where}: '{member.name}' {problem}")


def why_unreadable(member: Member) -> str:
    """Return why a file cannot be read, to be read after its name; "" where it can be."""
    if not member.obstacle and member.size > LARGEST_FILE:
        return (
            f"has {member.size:,} bytes, more than the {LARGEST_FILE:,} that one file may have; make it smaller or "
            "remove it"
        )
    return member.obstacle


def check_unpacked_size(where: object, unpacked: int, packed: int) -> None:
    """Raise DataError for an archive whose members take so much more than itself that somebody meant harm."""
    if unpacked > _FREE + _RATIO * packed:
        raise DataError(
            f"{where}: unpacks to more than {_RATIO:,} times its size, which pictures do not; unpack it yourself if "
            "you trust it, and pack the folder"
        )


def member_name(where: object, name: str) -> str:
    """Return an archive member's name as a path within the archive, "" for the archive's own folder.

    Raises DataError for one that leads out of it.
    """
    parts = [part for part in storable(name).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{where}: member '{storable(name)}' points outside the archive; make the archive again")
    return "/".join(parts)
