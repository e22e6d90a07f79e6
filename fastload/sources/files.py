"""The files of a folder or an archive as one stream, and the sources whose samples are such files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastload.errors import DataError
from fastload.sources.base import Sample, Source
from fastload.sources.folders import walk_folder
from fastload.sources.kinds import HEAD, PICTURE_SUFFIXES, looks_like_picture, needs_a_look, suffix_of, system_part
from fastload.sources.label_files import CLASS_FILES, LabelValue, read_label
from fastload.sources.members import LINK, DamagedMember, Load, Member, why_unreadable
from fastload.sources.tars import is_tar_name, tar_stem, walk_tar
from fastload.sources.zips import is_zip, walk_zip


def walk(path: Path, *, inner: bool = False) -> Iterator[tuple[Member, Load]]:
    """Yield every file and folder of a folder or archive with a function that reads it, valid until the next one.

    Arguments:
        path: the folder or archive.
        inner: of a tar of tars, also what those hold.
    """
    if path.is_dir():
        return walk_folder(path)
    return walk_zip(path) if is_zip(path) else walk_tar(path, inner=inner)


def is_archive_name(name: str) -> bool:
    """Whether a file is a tar or a zip by its name."""
    return is_tar_name(name) or suffix_of(name) == ".zip"


def archive_stem(name: str) -> str:
    """Return an archive's name without what makes it one: "n01440764" of "n01440764.tar.gz"."""
    return name[:-4] if suffix_of(name) == ".zip" else tar_stem(name)


def is_picture(member: Member, load: Load) -> bool:
    """Whether a member is a picture: by its name or, where its suffix says nothing, by its first bytes.

    One that cannot be read (a broken link, an absurd size, no permission, damage within a zip) is a picture all the
    same: it is found to be a broken sample when its turn comes.
    """
    if member.kind != "file" or system_part(member.name) is not None:
        return False
    if suffix_of(member.name) in PICTURE_SUFFIXES:
        return True
    if member.obstacle or not member.size or not needs_a_look(member.name):
        return False
    try:
        return looks_like_picture(load(HEAD))
    except DamagedMember:
        return True
    except OSError:
        return False


@dataclass(frozen=True)
class Listing:
    """What a folder or an archive holds.

    Attributes:
        path: the folder or archive.
        members: everything in it, pictures marked.
        labels: by name, what the label files in it hold that were asked for.
        prefix: what comes before its members' names where it is one of several archives, such as "n01440764/".
        inner: whether the members of archives in it are among them.
    """

    path: Path
    members: Sequence[Member]
    labels: Mapping[str, LabelValue] = field(default_factory=dict)
    prefix: str = ""
    inner: bool = False


def list_files(
    path: Path, *, prefix: str = "", inner: bool = False, label_files: Collection[str] = CLASS_FILES
) -> Listing:
    """Walk through a folder or archive; return what it holds, and what its label files of the given suffixes say.

    Raises DataError for a link that cannot be followed, where a folder of pictures may stand behind it.
    """
    members: list[Member] = []
    labels: dict[str, LabelValue] = {}
    for member, load in walk(path, inner=inner):
        if member.obstacle.startswith(LINK) and needs_a_look(member.name) and system_part(member.name) is None:
            raise DataError(f"{path}: '{member.name}' {member.obstacle}")
        members.append(member._replace(picture=is_picture(member, load)))
        if member.kind == "file" and suffix_of(member.name) in label_files and system_part(member.name) is None:
            labels[member.name] = read_label(path, member, load)
    return Listing(path, members, labels, prefix, inner)


class FileSource(Source):
    """Images that are files: the part that class folders and WebDataset shards share."""

    def __init__(self, listings: Sequence[Listing], indices: Sequence[Mapping[str, int]]) -> None:
        """`indices` gives, for each listing, the index of each of its members that is a sample."""
        super().__init__()
        self._places = [(listing.path, listing.inner, index) for listing, index in zip(listings, indices, strict=True)]

    def read(self) -> Iterator[tuple[int, Sample]]:
        for path, inner, index in self._places:
            remaining = len(index)
            for member, load in walk(path, inner=inner) if remaining else ():
                number = index.get(member.name) if member.kind == "file" else None
                if number is not None:
                    yield number, _content(member, load)
                    remaining -= 1
                if not remaining:
                    break  # the listing has been through the rest, and found it sound


def _content(member: Member, load: Load) -> Sample:
    """Return a file's content, or why it alone cannot be read; a damaged tar is an error for all that follows."""
    if problem := why_unreadable(member):
        return DataError(problem)
    try:
        return load()
    except DamagedMember as error:
        return DataError(error.reason)
    except OSError as error:
        return DataError(f"cannot be read ({error.strerror or error})")
