"""Walking a folder: every file once, whatever links lead to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fastload.common.text import storable
from fastload.errors import DataError
from fastload.sources.kinds import is_system
from fastload.sources.members import LINK, Load, Member, no_content

_SPECIAL = "is neither a file nor a folder; remove it"

Inode = tuple[int, int]


def walk_folder(root: Path) -> Iterator[tuple[Member, Load]]:
    """Yield every member in sorted order; folders that systems keep (lost+found, @eaDir) are named, not entered.

    Raises DataError for a folder that cannot be read, and for one that links lead to a second time: its pictures
    would count twice, and folders linked to each other would have no end.
    """
    try:
        yield from _walk(root)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from error


def _walk(root: Path) -> Iterator[tuple[Member, Load]]:
    status = root.stat()
    visited: dict[Inode, str] = {(status.st_dev, status.st_ino): ""}
    linked: set[Inode] = set()
    open_folders = [("", iter(_entries(str(root))))]
    while open_folders:
        prefix, entries = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
            continue
        name = prefix + storable(entry.name)
        try:
            status = entry.stat()
        except OSError:
            yield Member(name, 0, "file", LINK), no_content
            continue
        if stat.S_ISREG(status.st_mode):
            yield Member(name, status.st_size, "file"), _loader(entry.path)
        elif not stat.S_ISDIR(status.st_mode):
            yield Member(name, 0, "file", _SPECIAL), no_content
        else:
            yield Member(name, 0, "folder"), no_content
            if is_system(entry.name):
                continue
            # Inode numbers are unique on every file system that knows links; others may give the same to all.
            place = (status.st_dev, status.st_ino)
            if entry.is_symlink():
                linked.add(place)
            if place in visited and (place in linked or entry.is_symlink()):
                raise DataError(f"{root}: {_twice(name, visited[place], [path for path, _ in open_folders])}")
            visited[place] = name
            open_folders.append((name + "/", iter(_entries(entry.path))))


def _twice(name: str, earlier: str, ancestors: list[str]) -> str:
    if f"{earlier}/" in ancestors or not earlier:
        return f"folder '{name}' is a link to a folder that holds it; remove the link"
    return f"folders '{earlier}' and '{name}' are one and the same by a link, and would count twice; remove the link"


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _loader(path: str) -> Load:
    def load(limit: int | None = None) -> bytes:
        with open(path, "rb") as file:
            return file.read(-1 if limit is None else limit)

    return load
