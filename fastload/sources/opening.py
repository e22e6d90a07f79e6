"""Which kind of source files are, by their names and by what stands beside the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fastload.common.text import plural
from fastload.errors import UsageError
from fastload.sources.base import Source, SourceOptions
from fastload.sources.cifar import Cifar, find_layout
from fastload.sources.class_folders import ClassFolders
from fastload.sources.files import Listing, archive_stem, is_archive_name, list_files
from fastload.sources.folder_names import split_word
from fastload.sources.label_files import CLASS_FILES
from fastload.sources.splits import choose_split, splits_depth
from fastload.sources.tree import build
from fastload.sources.webdataset import WebDataset, other_label_files


def open_files(path: Path, options: SourceOptions) -> Source:
    """Return a folder or an archive as a source: CIFAR, WebDataset samples, class folders, or archives of those."""
    listing = list_files(path)
    found = find_layout(listing.members)
    if found is not None:
        options.refuse_class_level(path)
        return Cifar(path, listing.members, *found, options.split, options.unlabelled)
    if not any(member.picture for member in listing.members):
        archives = [member.name for member in listing.members if member.kind == "file" and is_archive_name(member.name)]
        if archives and path.is_dir():
            return open_archives(path, {name: path / name for name in archives}, options)
        if archives:
            listing = list_files(path, inner=True)
    return _opened(path, [listing], options)


def open_archives(where: object, archives: Mapping[str, Path], options: SourceOptions) -> Source:
    """Return several archives as one source: WebDataset's shards, or one archive a class.

    Arguments:
        where: what was given, for messages.
        archives: the files by their paths below that.
    """
    if len(archives) > 1:
        archives = _of_split(where, archives, options.split)
        options = replace(options, split=None)
    if len(archives) == 1:
        return open_files(next(iter(archives.values())), options)
    listings = [list_files(path, prefix=archive_stem(name) + "/") for name, path in archives.items()]
    return _opened(where, listings, options)


def _opened(where: object, listings: Sequence[Listing], options: SourceOptions) -> Source:
    if not options.unlabelled and options.class_level is None:
        suffix = CLASS_FILES[0] if any(listing.labels for listing in listings) else other_label_files(listings)
        if suffix is not None:
            if suffix not in CLASS_FILES:
                listings = [
                    list_files(one.path, prefix=one.prefix, inner=one.inner, label_files=(suffix,)) for one in listings
                ]
            return WebDataset([_part(where, listings[0], options)] if len(listings) == 1 else listings, suffix)
    return ClassFolders(where, listings, options)


def _part(where: object, listing: Listing, options: SourceOptions) -> Listing:
    """Return what of a listing is of the split that was asked for."""
    root = build(where, listing.members)
    if options.split is None and splits_depth(root) == math.inf:
        return listing
    folder = f"{choose_split(where, root, options.split).folder.path}/"
    return replace(
        listing,
        members=[member for member in listing.members if member.name.startswith(folder)],
        labels={name: value for name, value in listing.labels.items() if name.startswith(folder)},
    )


def _of_split(where: object, archives: Mapping[str, Path], split: str | None) -> Mapping[str, Path]:
    """Return the archives of a split, where their names or their folders' tell splits apart (train-000.tar)."""
    groups: dict[str | None, dict[str, Path]] = {}
    for name, path in archives.items():
        folders = archive_stem(name).split("/")
        word = next((word for part in folders[::-1] if (word := split_word(part))), None)
        groups.setdefault(word, {})[name] = path
    if split is None and (None in groups or len(groups) == 1):
        return archives
    counts = ", ".join(
        f"{word} ({plural(len(paths), 'archive')})" for word, paths in groups.items() if word is not None
    )
    if split is None:
        raise UsageError(f"{where}: holds several splits: {counts}; name one with split=")
    word = split_word(split)
    if word in groups and word is not None:
        return groups[word]
    if not counts:
        raise UsageError(f"{where}: its archives have no splits; give the pattern of the split's own instead of split=")
    raise UsageError(f"{where}: has no split '{split}'; its archives' names say {counts}")
