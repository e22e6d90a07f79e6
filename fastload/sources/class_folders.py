"""Class folders, in a folder or in archives: all give the same samples in the same order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastload.sources.base import SourceOptions
from fastload.sources.files import FileSource, Listing
from fastload.sources.layout import find_classes, find_pictures


class ClassFolders(FileSource):
    """Images sorted by class name, then by path within the class; without classes, by path.

    Arguments:
        where: what was given, for messages.
        listings: the folder or archive; several archives are folders of their names.
        options: the split to take, and how the classes are to be found.

    Raises DataError and UsageError as `fastload.sources.layout` does.
    """

    kind = "class folders"

    def __init__(self, where: object, listings: Sequence[Listing], options: SourceOptions) -> None:
        members = [
            member._replace(name=listing.prefix + member.name) if listing.prefix else member
            for listing in listings
            for member in listing.members
        ]
        if options.unlabelled:
            layout = find_pictures(where, members, split=options.split)
        else:
            archives = len(listings) > 1
            layout = find_classes(where, members, split=options.split, level=options.class_level, archives=archives)
        number = {name: index for index, name in enumerate(layout.pictures)}
        indices = [
            {
                member.name: number[listing.prefix + member.name]
                for member in listing.members
                if member.picture and listing.prefix + member.name in number
            }
            for listing in listings
        ]
        super().__init__(listings, indices)
        if options.unlabelled:
            self.kind = "images without labels"
        else:
            self.classes, self.labels = layout.classes, np.array(layout.labels, dtype=np.int64)
        size_of = {member.name: member.size for member in members if member.picture}
        self.names = [name.removeprefix(layout.wrapper) for name in layout.pictures]
        self.sizes = np.array([size_of[name] for name in layout.pictures], dtype=np.int64)
        self.passed_over, self.notes = layout.passed_over, layout.notes
        self.details = {"split": options.split} if options.split is not None else {}
