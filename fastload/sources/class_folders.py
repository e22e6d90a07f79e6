"""A folder of class folders, or the same inside a tar: both give the same samples in the same order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.sources.base import SPLITS
from fastload.sources.files import FileSource
from fastload.sources.kinds import system_part
from fastload.sources.members import Member


class ClassFolders(FileSource):
    """Images sorted by class name, then by path within the class.

    Arguments:
        path: the folder or tar.
        members: everything in it.
        split: the top-level folder to take; None where there is but one.

    Raises DataError for an empty class folder or an image outside one, UsageError where a split must be named.
    """

    kind = "class folders"

    def __init__(self, path: Path, members: Sequence[Member], split: str | None) -> None:
        images = {member.name: member.size for member in members if member.picture}
        if not images:
            raise DataError(f"{path}: {_found_instead(members)}")
        prefix = _prefix(path, list(images), split)
        samples = sorted((*name[len(prefix) :].partition("/")[::2], name) for name in images if name.startswith(prefix))
        for top, rest, name in samples:
            if not rest:
                raise DataError(f"{path}: image '{name}' stands in no class folder; move it into one ('{top}' alone)")
        self.classes = sorted({top for top, _, _ in samples})
        _refuse_empty_class(path, members, prefix, set(self.classes))
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.array([number[top] for top, _, _ in samples], dtype=np.int64)
        self.names = [name for _, _, name in samples]
        self.sizes = np.array([images[name] for name in self.names], dtype=np.int64)
        others = (member for member in members if member.kind == "file" or system_part(member.name) is not None)
        passed_over = {system_part(member.name) or member.name for member in others} - set(self.names)
        self.ignored = sum(name.startswith(prefix) for name in passed_over)
        super().__init__({path: {name: index for index, name in enumerate(self.names)}})


def _prefix(path: Path, names: list[str], split: str | None) -> str:
    """Return the leading folders to pass over: those all images share, and the split's."""
    prefix = ""
    while True:
        tops = Counter(name[len(prefix) :].split("/")[0] for name in names)
        deep = all(name.count("/", len(prefix)) >= 2 for name in names)
        if split is not None and split in tops:
            return f"{prefix}{split}/"
        if len(tops) > 1 or not deep:
            break
        prefix += f"{next(iter(tops))}/"
    counts = ", ".join(f"{top} ({count:,} images)" for top, count in sorted(tops.items())[:12])
    if split is not None:
        raise UsageError(f"{path}: has no split '{split}'; its folders are {counts}")
    if len(tops) > 1 and all(top.lower() in SPLITS for top in tops):
        raise UsageError(f"{path}: holds several splits: {counts}; name one with --split")
    return prefix


def _refuse_empty_class(path: Path, members: Sequence[Member], prefix: str, classes: set[str]) -> None:
    for member in members:
        if member.kind == "folder" and member.name.startswith(prefix) and system_part(member.name) is None:
            top = member.name[len(prefix) :].split("/")[0]
            if top and top not in classes:
                raise DataError(f"{path}: class folder '{prefix}{top}' holds no image; fill it or remove it")


def _found_instead(members: Sequence[Member]) -> str:
    files = [member.name for member in members if member.kind == "file" and system_part(member.name) is None]
    if not files:
        return "is empty: there is not one file in it"
    kinds = Counter(Path(name).suffix or "no suffix" for name in files).most_common(3)
    found = ", ".join(f"{count:,} of {kind}" for kind, count in kinds)
    return f"holds no image, no CIFAR batch and no WebDataset sample among {len(files):,} files ({found})"
