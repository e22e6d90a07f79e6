"""WebDataset shards: tars in which files that share a name up to the first dot are one sample."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fastload.errors import DataError
from fastload.sources.files import FileSource, is_picture, walk
from fastload.sources.kinds import system_part
from fastload.sources.members import Member

_IMAGES = (".jpg", ".jpeg", ".png")
LARGEST_LABEL = 64


class WebDataset(FileSource):
    """Samples of one image (.jpg, .jpeg, .png) and a .cls each, sorted by shard, then by key.

    Arguments:
        shards: for each tar its members and the contents of its .cls files by name.

    Raises DataError for a sample that lacks either, or a .cls that is not an integer.
    """

    kind = "webdataset"

    def __init__(self, shards: Mapping[Path, tuple[Sequence[Member], Mapping[str, bytes]]]) -> None:
        labels: list[int] = []
        sizes: list[int] = []
        names: list[str] = []
        index: dict[Path, dict[str, int]] = {}
        for path, (members, contents) in shards.items():
            index[path] = {}
            for image, label in _samples(path, members):
                index[path][image.name] = len(labels)
                labels.append(_integer(path, label, contents[label]))
                sizes.append(image.size)
                names.append(f"{path.name}: {image.name}" if len(shards) > 1 else image.name)
            used = 2 * len(index[path])
            self.ignored += sum(member.kind != "folder" for member in members) - used
        if not labels:
            raise DataError(f"{next(iter(shards))}: holds no sample of an image and a .cls; is it a WebDataset tar?")
        self.labels, self.sizes, self.names = np.array(labels, np.int64), np.array(sizes, np.int64), names
        super().__init__(index)


def _samples(path: Path, members: Iterable[Member]) -> list[tuple[Member, str]]:
    """Return (image, name of the .cls) sorted by key."""
    images: dict[str, Member] = {}
    labels: dict[str, str] = {}
    for member in members:
        if member.kind == "folder" or system_part(member.name) is not None:
            continue
        key, suffix = split_key(member.name)
        if suffix == ".cls":
            labels[key] = member.name
        elif suffix in _IMAGES:
            if not member.picture:
                continue
            if key in images:
                raise DataError(f"{path}: sample '{key}' has two images ({images[key].name}, {member.name})")
            images[key] = member
    for key in sorted(images.keys() ^ labels.keys()):
        missing = "image" if key in labels else ".cls"
        raise DataError(f"{path}: sample '{key}' has no {missing}; every sample needs an image and a .cls")
    return [(images[key], labels[key]) for key in sorted(images)]


def split_key(name: str) -> tuple[str, str]:
    """Return a file's sample key and its suffix, both split at the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _integer(path: Path, name: str, content: bytes) -> int:
    if re.fullmatch(rb"\s*\d+\s*", content) and int(content) < 1 << 63:
        return int(content)
    shown = content[:20].decode("utf-8", "replace")
    raise DataError(f"{path}: '{name}' holds {shown!r}, not an integer label from 0 to 2^63 - 1")


def scan(path: Path) -> tuple[list[Member], dict[str, bytes]]:
    """Return a folder's or tar's members, and the contents of its .cls files."""
    members, contents = [], {}
    for member, load in walk(path):
        members.append(member._replace(picture=is_picture(path, member, load)))
        if member.kind == "file" and member.name.lower().endswith(".cls"):
            if member.size > LARGEST_LABEL:
                raise DataError(f"{path}: '{member.name}' has {member.size:,} bytes, not an integer label")
            contents[member.name] = load()
    return members, contents
