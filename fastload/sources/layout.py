"""Which folders are the classes: the rules of docs/sources.md, as a function of a listing and nothing else.

A folder is a class where that follows from what is there. Where it does not, the error says what was seen, and which
argument says what was meant: `split`, `class_level` or `unlabelled`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fastload.errors import DataError, UsageError
from fastload.sources.folder_names import (
    is_box_of_annotations,
    is_box_of_pictures,
    means_parts,
    means_something,
    numbered_alike,
    split_word,
)
from fastload.sources.kinds import OTHER_PICTURES, suffix_of, system_part
from fastload.sources.members import Member
from fastload.sources.splits import SplitChoice, choose_split, images_in, splits_depth
from fastload.sources.tree import Folder, build, narrowed

_TABLES = (".csv", ".tsv", ".jsonl", ".xlsx", ".xls", ".parquet", ".mat", ".json", ".txt", ".xml", ".db", ".sqlite")
_NO_TABLE = re.compile(r"read.?me|licen[cs]e|copying|changelog|requirements|citation|urls?$", re.IGNORECASE)
_BESIDE = (".json", ".txt", ".cls", ".xml")


@dataclass(frozen=True)
class Layout:
    """Which pictures are samples, of which classes.

    Attributes:
        classes: their names, sorted as text; empty where the set is unlabelled.
        pictures: the paths of all samples, by class and then by path within the class.
        labels: the class of each sample, an index of `classes`; empty where the set is unlabelled.
        wrapper: the leading folders that everything lies in, with a slash at the end, which names leave out.
        passed_over: how many files were left out, by kind: ".heic", "no suffix", "system files", "images elsewhere".
        notes: what people should know of it, a sentence each.
    """

    classes: list[str]
    pictures: list[str]
    labels: list[int]
    wrapper: str
    passed_over: dict[str, int]
    notes: list[str] = field(default_factory=list)


def find_classes(
    where: object,
    members: Sequence[Member],
    *,
    split: str | None = None,
    level: int | None = None,
    archives: bool = False,
) -> Layout:
    """Return the classes of a listing.

    Arguments:
        where: the source, for messages.
        members: everything in it, `picture` being set.
        split: the part to take: a folder's path or name, or train, val or test where one folder is named so.
        level: the classes are the folders that many levels below the source, whatever their names.
        archives: the outermost folders are archives, which shards are too.

    Raises UsageError where an option has to say what is meant, DataError where the pictures stand in no class folders.
    """
    root = build(where, members)
    if not root.count:
        raise DataError(f"{where}: {_found_instead(members)}")
    if level is not None:
        within_splits = split is None and level > splits_depth(root)
        chosen = SplitChoice(root, []) if split is None and not within_splits else choose_split(where, root, split)
        classes = _by_level(where, chosen.folder, level)
    else:
        chosen = choose_split(where, root, split)
        classes = chosen.classes or _Proof(where, root, chosen, archives).classes()
        _refuse_annotations(where, root, classes)
    return _layout(root, members, chosen, classes)


def find_pictures(where: object, members: Sequence[Member], *, split: str | None = None) -> Layout:
    """Return all pictures of a listing or of a split, without classes; arguments and errors as `find_classes`."""
    root = build(where, members)
    if not root.count:
        raise DataError(f"{where}: {_found_instead(members)}")
    chosen = SplitChoice(root, []) if split is None else choose_split(where, root, split)
    if chosen.classes:
        return _layout(root, members, chosen, {"": sorted(name for names in chosen.classes.values() for name in names)})
    return _layout(root, members, chosen, {"": sorted(chosen.folder.all_pictures())})


# -- classes -----------------------------------------------------------------------------------------------------------


def _by_level(where: object, folder: Folder, level: int) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    depth = folder.path.count("/") + 1 if folder.path else 0
    if level <= depth - 1 or level < 1:
        raise UsageError(f"{where}: class_level={level} lies above '{folder.path}'; it is {depth} or more there")
    for inner in folder.walk():
        parts = inner.path.split("/") if inner.path else []
        if len(parts) == level and inner.empty:
            classes.setdefault(parts[-1], [])
        if inner.pictures and len(parts) < level:
            raise DataError(
                f"{where}: image '{'/'.join([*parts, inner.pictures[0]])}' stands above class_level={level}; "
                "move it, or name another level"
            )
        if inner.pictures:
            classes.setdefault(parts[level - 1], []).extend(f"{inner.path}/{name}" for name in inner.pictures)
    return classes


class _Proof:
    """The rules by which the folders in one are its classes, or are not."""

    def __init__(self, where: object, root: Folder, chosen: SplitChoice, archives: bool) -> None:
        self.where, self.root, self.chosen, self.folder = where, root, chosen, chosen.folder
        self.bearing = self.folder.bearing
        self.archives = archives and self.folder is root
        self.level = self.folder.path.count("/") + 2 if self.folder.path else 1
        self.names = [child.name for child in self.bearing]
        self.deep = [child for child in self.bearing if not narrowed(child).pictures]  # those may hold the classes

    def classes(self) -> dict[str, list[str]]:
        """Return each class's pictures."""
        if self.folder.pictures:
            return self._only_class()
        self._refuse_copies()
        self._refuse_repeats()
        self._refuse_parts()
        self._refuse_unproven_depth()
        self._refuse_lost_classes()
        classes = {child.name: list(child.all_pictures()) for child in self.bearing}
        classes |= {child.name: [] for child in self.folder.empties}
        if len(classes) == 1:
            self._refuse_one_class(next(iter(classes)), self.level)
        return classes

    def _only_class(self) -> dict[str, list[str]]:
        """Refuse pictures that stand where the class folders should; but for a class that other splits name."""
        folder = self.folder
        first = f"{folder.path}/{min(folder.pictures)}" if folder.path else min(folder.pictures)
        left = len(folder.pictures) - 1
        others = "" if not left else ", nor does 1 other" if left == 1 else f", nor do {left:,} others"
        if self.bearing:
            raise DataError(
                f"{self.where}: image '{first}' stands in no class folder{others}; move it into one, or remove it"
            )
        if not folder.path or split_word(folder.name) or is_box_of_pictures(folder.name) or self._tables():
            raise DataError(
                f"{self.where}: image '{first}' stands in no class folder{others}{self._table_text()}; move each class "
                "into a folder of its own, or pack them without labels by unlabelled=True"
            )
        self._refuse_one_class(folder.name, self.level - 1)
        return {folder.name: list(folder.all_pictures())}

    def _refuse_one_class(self, name: str, level: int) -> None:
        if any(name in _child_names(rival) and len(_child_names(rival)) > 1 for rival in self.chosen.rivals):
            return  # a part of a set whose classes are known
        raise DataError(
            f"{self.where}: holds {images_in(self.folder)} of one class, '{name}', from which nothing can be "
            f"learned{self._table_text()}; say class_level={level} if that is meant, or unlabelled=True for no classes"
        )

    def _refuse_copies(self) -> None:
        for child in self.deep:
            inner = _child_names(child)
            beside = set(self.names) - {child.name}
            if inner and (len(inner & beside) > 1 or inner == beside):
                raise UsageError(
                    f"{self.where}: '{child.path}' holds folders of the same names as stand beside it "
                    f"({_some(inner & beside)}), as if copied twice; remove one of the two, or name it with "
                    f'split="{narrowed(child).path}"'
                )

    def _refuse_repeats(self) -> None:
        """Siblings whose own folders are named alike: which of the two names the class is anybody's guess."""
        seen: dict[str, Folder] = {}
        for child in self.deep:
            shared: dict[str, set[str]] = {}
            for name in _child_names(child):
                if name in seen:
                    shared.setdefault(seen[name].name, set()).add(name)
                seen.setdefault(name, child)
            for other, names in shared.items():
                if len(names) > 1:
                    raise UsageError(
                        f"{self.where}: the folders '{other}' and '{child.name}' hold folders of the same names "
                        f"({_some(names)}); take one of either by split=, or say which are the classes: "
                        f"class_level={self.level} for {_some(self.names)}, {self._level_of(child)} for {_some(names)}"
                    )

    def _level_of(self, child: Folder) -> int:
        return narrowed(child).path.count("/") + 2

    def _refuse_parts(self) -> None:
        mend = f"give unlabelled=True for no classes, or class_level={self.level} if these folders are classes"
        boxes = [name for name in self.names if is_box_of_pictures(name)]
        if boxes:
            raise UsageError(
                f"{self.where}: the folder '{boxes[0]}' is named for pictures, not for a class, beside "
                f"{_some(set(self.names) - set(boxes)) or 'others'}{self._table_text()}; name it with split=, {mend}"
            )
        stem = numbered_alike(self.names)
        if stem is None:
            return
        sidecars = re.fullmatch(r"\d{3,}", self.names[0]) and all(map(_has_files_beside, self.bearing))
        if sidecars:
            raise UsageError(
                f"{self.where}: the folders {_some(self.names)} are numbered, and each image has a file of its name "
                f"beside it ({_some(_kinds_beside(self.bearing[0]))}): these are shards, as img2dataset writes them, "
                f"not classes; {mend}"
            )
        shards = self.archives and (not stem or means_something(stem))
        if means_parts(stem) or shards or (means_something(stem) and self._tables()):
            what = "archives" if self.archives else "folders"
            raise UsageError(
                f"{self.where}: the {what} {_some(self.names)} are numbered parts of one set, not classes"
                f"{self._table_text()}; {mend}"
            )

    def _refuse_unproven_depth(self) -> None:
        deep = self.deep
        if not deep or 2 * len(deep) < len(self.bearing):
            return  # a few classes in several folders
        inner = sorted(name for child in deep for name in _child_names(child))
        example = next(narrowed(deep[0]).all_pictures())
        raise UsageError(
            f"{self.where}: its images lie deeper than one folder, such as '{example}', so either may name the class; "
            f"say class_level={self.level} for {_some(self.names)}, or {self._level_of(deep[0])} for {_some(inner)}"
        )

    def _refuse_lost_classes(self) -> None:
        """A folder whose pictures cannot be read would be a class without a word."""
        for child in self.folder.lost:
            found = ", ".join(f"{count:,} {kind}" for kind, count in sorted(child.unread.items()))
            raise DataError(
                f"{self.where}: class folder '{child.path}' holds {found}, which cannot be read; convert them to JPEG "
                "or PNG, or remove the folder"
            )

    def _tables(self) -> list[str]:
        """Return the files that may hold the labels, those nearest to the images first."""
        beside = _kinds_beside(self.folder)
        found: list[str] = []
        for above in self._way()[::-1]:
            without_images = [inner for child in above.without_pictures for inner in child.walk()]
            for folder in (above, *without_images):
                for name in sorted(folder.files):
                    own = folder is self.folder and suffix_of(name) in beside  # of one image, not of all
                    if suffix_of(name) in _TABLES and not own and not _NO_TABLE.search(name.rpartition(".")[0]):
                        found.append(f"{folder.path}/{name}" if folder.path else name)
        return found

    def _way(self) -> list[Folder]:
        """Return the folders from the source to this one."""
        way = [self.root]
        for part in self.folder.path.split("/") if self.folder.path else ():
            way.append(way[-1].folders[part])
        return way

    def _table_text(self) -> str:
        tables = self._tables()
        if not tables:
            return ""
        more = f" and {len(tables) - 3:,} more" if len(tables) > 3 else ""
        return f" (labels that may be in {', '.join(repr(name) for name in tables[:3])}{more} are not read)"


def _refuse_annotations(where: object, root: Folder, classes: dict[str, list[str]]) -> None:
    """Masks that stand within a class beside its images would be samples of it without a word."""
    for name, pictures in classes.items():
        for path in sorted({picture.rpartition("/")[0] for picture in pictures}):
            parts = path.split("/")
            if name not in parts:
                continue
            class_level = len(parts) - parts[::-1].index(name)  # of several folders of that name, the innermost
            for depth in range(class_level, len(parts)):
                above = root.at("/".join(parts[:depth]))
                if is_box_of_annotations(parts[depth]) and above and (above.pictures or len(above.bearing) > 1):
                    raise UsageError(
                        f"{where}: the folder '{parts[depth]}' stands beside images of the class '{name}' "
                        f"('{'/'.join(parts[: depth + 1])}'), and is named for what is told of images, not for images; "
                        f"move it out, or say class_level={class_level} if its images are samples of that class"
                    )


def _child_names(folder: Folder) -> set[str]:
    inner = narrowed(folder)
    return {child.name for child in inner.bearing} | (
        {child.name for child in inner.empties} if inner.bearing else set()
    )


def _kinds_beside(folder: Folder) -> set[str]:
    """Return the suffixes of files that have a picture's name: 0001.json beside 0001.jpg."""
    stems = {name.rpartition(".")[0] for name in folder.pictures}
    found = Counter(suffix_of(name) for name in folder.files if name.rpartition(".")[0] in stems)
    return {kind for kind, count in found.items() if kind in _BESIDE and count == len(stems)}


def _has_files_beside(folder: Folder) -> bool:
    return bool(folder.pictures) and bool(_kinds_beside(folder))


def _some(names: Iterable[str]) -> str:
    listed = sorted(set(names))
    return ", ".join(listed[:4]) + (f", … {len(listed):,} in all" if len(listed) > 4 else "")


# -- what comes of it --------------------------------------------------------------------------------------------------


def _layout(root: Folder, members: Sequence[Member], chosen: SplitChoice, classes: dict[str, list[str]]) -> Layout:
    names = sorted(classes)
    pictures: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        # By the path within the class: "a/z/0.png" of class a comes after "a/1.png", as it did there.
        pictures += sorted(classes[name])
        labels += [label] * len(classes[name])
    unlabelled = names == [""]
    return Layout(
        classes=[] if unlabelled else names,
        pictures=pictures,
        labels=[] if unlabelled else labels,
        wrapper=_wrapper(root),
        passed_over=_passed_over(members, chosen, set(pictures)),
        notes=[] if unlabelled else _notes(names),
    )


def _wrapper(folder: Folder) -> str:
    """Return the folders that an archive often puts around everything, as far as they are no class's."""
    while not folder.pictures and len(folder.bearing) == 1 and folder.bearing[0].bearing:
        folder = folder.bearing[0]
    return f"{folder.path}/" if folder.path else ""


def _passed_over(members: Sequence[Member], chosen: SplitChoice, taken: set[str]) -> dict[str, int]:
    """Count what is no sample by kind; other splits are left where they are, and not counted."""
    others = tuple(f"{rival.path}/" for rival in chosen.rivals)
    system: set[str] = set()
    kinds: Counter[str] = Counter()
    for member in members:
        part = system_part(member.name)
        if member.name in taken or member.name.startswith(others):
            continue
        if part is not None:
            system.add(part)
        elif member.kind == "file":
            kinds["images elsewhere" if member.picture else suffix_of(member.name) or "no suffix"] += 1
    if system:
        kinds["system files"] = len(system)
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _notes(names: Sequence[str]) -> list[str]:
    if all(name.isascii() and name.isdigit() for name in names) and names != sorted(names, key=int):
        label, name = next((label, name) for label, name in enumerate(names) if name != sorted(names, key=int)[label])
        return [f"class names are sorted as text, as torchvision does: label {label} is the folder '{name}'"]
    return []


def _found_instead(members: Sequence[Member]) -> str:
    files = [member.name for member in members if member.kind == "file" and system_part(member.name) is None]
    if not files:
        return "is empty: there is not one file in it"
    kinds = Counter(suffix_of(name) or "no suffix" for name in sorted(files)).most_common(3)
    found = ", ".join(f"{count:,} of {kind}" for kind, count in kinds)
    many = f"{len(files):,} file" + ("s" if len(files) > 1 else "")
    mend = "; convert them to JPEG or PNG" if any(kind in OTHER_PICTURES for kind, _ in kinds) else ""
    return f"holds no image, no CIFAR batch and no WebDataset sample among {many} ({found}){mend}"
