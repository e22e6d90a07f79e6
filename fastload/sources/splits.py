"""Which part of a set to take: train, val, test and the like, by the names and the places of its folders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastload.errors import UsageError
from fastload.sources.folder_names import split_word
from fastload.sources.tree import Folder, narrowed


@dataclass(frozen=True)
class SplitChoice:
    """The folder to take, and its `rivals`: the other splits. `classes` where it is a folder in each class."""

    folder: Folder
    rivals: list[Folder]
    classes: dict[str, list[str]] = field(default_factory=dict)


# Ways in which a folder's name is the split that was asked for, the strictest first.
_SAME: tuple[Callable[[str, str], bool], ...] = (
    lambda name, split: name == split,
    lambda name, split: name.lower() == split.lower(),
    lambda name, split: split_word(name) is not None and split_word(name) == split_word(split),
)


def choose_split(where: object, root: Folder, split: str | None) -> SplitChoice:
    """Return the part of a tree that `split` names, or all of it where it has no splits."""
    top = narrowed(root)
    if split is None:
        splits = _splits(top)
        if len(splits) > 1:
            raise UsageError(f"{where}: holds several splits: {_counts(splits)}; name one with split=")
        return SplitChoice(narrowed(splits[0]), []) if splits else SplitChoice(top, [])
    found = _named(root, top, split)
    if found is None:
        if across := _across(top, split):
            rivals = [part for child in top.bearing for part in child.bearing if part.name != split]
            return SplitChoice(top, rivals, across)
        if any(same(part, split) for same in _SAME for part in top.path.split("/")):
            return SplitChoice(top, [])  # the only one there is
        folders = _splits(top) or top.bearing
        there = f"its folders are {_counts(folders)}" if folders else f"{images_in(top)} stand in one folder"
        raise UsageError(f"{where}: has no split '{split}'; {there}")
    inner = narrowed(found)
    further = _splits(inner)
    if len(further) > 1:
        paths = ", ".join(f"{split}/{folder.path[len(found.path) + 1 :]} ({images_in(folder)})" for folder in further)
        raise UsageError(f"{where}: '{split}' holds several splits: {paths}; name one with split=")
    return SplitChoice(inner, [rival for rival in _siblings(root, found) if rival is not found])


def splits_depth(root: Folder) -> float:
    """Return how many levels below the source the splits stand, infinite where there is not more than one."""
    splits = _splits(narrowed(root))
    return splits[0].path.count("/") + 1 if len(splits) > 1 else math.inf


def _splits(folder: Folder) -> list[Folder]:
    """Return the folders that are splits: those in this one, or in the only folder of it that has folders itself."""
    bearing = folder.bearing
    named = [child for child in bearing if split_word(child.name)]
    if len(bearing) > 1 and len(named) == len(bearing):
        return named
    if any(narrowed(child).bearing for child in named):  # a class may be called "train", and stand on rails
        return named
    trees = [inner for child in bearing if (inner := narrowed(child)).bearing]
    return _splits(trees[0]) if len(bearing) > 1 and len(trees) == 1 else []


def _named(root: Folder, top: Folder, split: str) -> Folder | None:
    """Return the folder that a user means by a split's name: by its path, its name, or the word for it."""
    path = split.strip("/")
    for base in (top, root):
        found = base.at(path)
        if found is not None and found.count:
            return found
    splits = _splits(top)
    for same in _SAME:
        matches = [folder for folder in splits if same(folder.name, path)]
        if len(matches) == 1:
            return matches[0]
    return None


def _siblings(root: Folder, folder: Folder) -> list[Folder]:
    parent = root.at(folder.path.rpartition("/")[0]) if "/" in folder.path else root
    assert parent is not None
    splits = [child for child in parent.bearing if split_word(child.name)]
    return splits if folder in splits else parent.bearing


def _across(top: Folder, split: str) -> dict[str, list[str]]:
    """Return each class's pictures of a split, where every class folder has its own splits (cats/train, dogs/train)."""
    parts = {folder.name: folder.folders.get(split) for folder in top.bearing}
    if not top.pictures and parts and all(part is not None and not narrowed(part).bearing for part in parts.values()):
        return {name: sorted(part.all_pictures()) for name, part in parts.items() if part is not None}
    return {}


def images_in(folder: Folder) -> str:
    return f"{folder.count:,} image{'' if folder.count == 1 else 's'}"


def _counts(folders: Sequence[Folder]) -> str:
    listed = ", ".join(f"{folder.name} ({images_in(folder)})" for folder in folders[:12])
    return listed + (f", … {len(folders):,} in all" if len(folders) > 12 else "")
