"""A listing as a tree of folders, and the ways through it that need no decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastload.errors import DataError
from fastload.sources.kinds import OTHER_PICTURES, suffix_of, system_part
from fastload.sources.members import Member

DEEPEST = 100


class Folder:
    """A folder with what stands in it.

    Attributes:
        path: below the source, "" for the source itself.
        name: its own.
        folders: those in it by name.
        pictures: names of the pictures that stand in it.
        files: names of the other files that stand in it.
        count: the pictures in it and below.
        unread: the pictures in it and below of kinds that cannot be read, by suffix.
        empty: whether there is not one file in it, nor below.
    """

    __slots__ = ("count", "empty", "files", "folders", "name", "path", "pictures", "unread")

    def __init__(self, path: str) -> None:
        self.path, self.name = path, path.rpartition("/")[2]
        self.folders: dict[str, Folder] = {}
        self.pictures: list[str] = []
        self.files: list[str] = []
        self.count = 0
        self.unread: dict[str, int] = {}
        self.empty = True

    @property
    def bearing(self) -> list[Folder]:
        """The folders in it that hold pictures, by name."""
        return [folder for folder in self._inner() if folder.count]

    @property
    def without_pictures(self) -> list[Folder]:
        """The folders in it that hold none that can be read, by name."""
        return [folder for folder in self._inner() if not folder.count]

    @property
    def empties(self) -> list[Folder]:
        """The folders in it that hold nothing, by name."""
        return [folder for folder in self._inner() if folder.empty]

    @property
    def lost(self) -> list[Folder]:
        """The folders in it whose pictures are all of kinds that cannot be read, by name."""
        return [folder for folder in self.without_pictures if folder.unread]

    def _inner(self) -> list[Folder]:
        return [self.folders[name] for name in sorted(self.folders)]

    def at(self, path: str) -> Folder | None:
        """Return the folder of a path below this one, None where there is none."""
        folder: Folder | None = self
        for part in path.split("/"):
            folder = folder.folders.get(part) if folder is not None else None
        return folder

    def walk(self) -> Iterator[Folder]:
        """Yield this folder and all below it, by path."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder._inner())

    def all_pictures(self) -> Iterator[str]:
        """Yield the paths of all pictures in it and below, in no order."""
        for folder in self.walk():
            for name in folder.pictures:
                yield f"{folder.path}/{name}" if folder.path else name


def build(where: object, members: Iterable[Member]) -> Folder:
    """Return a listing's tree, without what systems left in it."""
    root = Folder("")
    for member in members:
        if system_part(member.name) is not None:
            continue
        parts = member.name.split("/")
        if len(parts) > DEEPEST:
            raise DataError(f"{where}: '{member.name}' lies more than {DEEPEST} folders deep; move it up")
        folders = parts if member.kind == "folder" else parts[:-1]
        way = [root]
        for part in folders:
            parent = way[-1]
            if part not in parent.folders:
                parent.folders[part] = Folder(f"{parent.path}/{part}" if parent.path else part)
            way.append(parent.folders[part])
        if member.kind == "file":
            (way[-1].pictures if member.picture else way[-1].files).append(parts[-1])
            suffix = suffix_of(parts[-1])
            for folder in way:
                folder.empty = False
                folder.count += member.picture
                if suffix in OTHER_PICTURES:
                    folder.unread[suffix] = folder.unread.get(suffix, 0) + 1
    return root


def narrowed(folder: Folder) -> Folder:
    """Pass over folders that hold nothing but one folder with pictures; stop where pictures or several folders are.

    An empty folder beside that one is a class without pictures, if the other is no tree of folders itself; so is one
    whose pictures cannot be read.
    """
    bearing = folder.bearing
    if folder.pictures or len(bearing) != 1:
        return folder
    inner = narrowed(bearing[0])
    return folder if (folder.empties or folder.lost) and not inner.bearing else inner
