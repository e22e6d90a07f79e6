"""The files of a folder or an archive as one stream, and the sources whose samples are such files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fastload.sources.base import Sample, Source
from fastload.sources.folders import walk_folder
from fastload.sources.kinds import HEAD, PICTURE_SUFFIXES, looks_like_picture, needs_a_look, suffix_of, system_part
from fastload.sources.members import Load, Member, check_readable
from fastload.sources.tars import walk_tar


def walk(path: Path, *, inner: bool = False) -> Iterator[tuple[Member, Load]]:
    """Yield every file and folder of a folder or archive with a function that reads it, valid until the next one.

    Arguments:
        path: the folder or archive.
        inner: of a tar of tars, also what those hold.
    """
    return walk_folder(path) if path.is_dir() else walk_tar(path, inner=inner)


def is_picture(path: Path, member: Member, load: Load) -> bool:
    """Whether a member is a picture: by its name or, where its suffix says nothing, by its first bytes.

    Raises DataError for a picture that cannot be read: a link, an absurd size.
    """
    if member.kind != "file" or system_part(member.name) is not None:
        return False
    if suffix_of(member.name) not in PICTURE_SUFFIXES:
        if member.obstacle or not member.size or not needs_a_look(member.name):
            return False
        if not looks_like_picture(load(HEAD)):
            return False
    check_readable(path, member)
    return True


class FileSource(Source):
    """Images that are files: the part that class folders and WebDataset shards share."""

    def __init__(self, shards: Mapping[Path, Mapping[str, int]], *, inner: bool = False) -> None:
        """`shards` gives, for each folder or archive, the index of each file that is a sample."""
        super().__init__()
        self._shards, self._inner = shards, inner

    def read(self) -> Iterator[tuple[int, Sample]]:
        for path, index in self._shards.items():
            remaining = len(index)
            for member, load in walk(path, inner=self._inner):
                number = index.get(member.name) if member.kind == "file" else None
                if number is not None:
                    yield number, load()
                    remaining -= 1
                if not remaining:
                    break  # the listing has been through the rest, and found it sound
