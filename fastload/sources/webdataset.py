"""WebDataset shards: archives in which files that share a name up to the first dot are one sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastload.errors import DataError
from fastload.sources.files import FileSource, Listing
from fastload.sources.kinds import suffix_of
from fastload.sources.label_files import CLASS_FILES, OTHER_LABEL_FILES, LabelValue
from fastload.sources.members import Member


class WebDataset(FileSource):
    """Samples of one image and one label file each, sorted by shard, then by key.

    Arguments:
        listings: the shards, with the labels that stand in them.
        suffix: of the label files, such as ".cls".

    Integer labels are kept as they are, and named classes are numbered in the order of their names.
    Raises DataError for a sample that lacks either, or a label that is neither a number nor a name.
    """

    kind = "webdataset"

    def __init__(self, listings: Sequence[Listing], suffix: str) -> None:
        values: list[int | str] = []
        names: list[str] = []
        sizes: list[int] = []
        indices: list[dict[str, int]] = []
        kinds: dict[str, int] = {}
        for listing in listings:
            samples = _samples(listing, suffix)
            indices.append({image.name: len(names) + number for number, (image, _) in enumerate(samples)})
            for image, label in samples:
                values.append(_sound(listing.labels[label], listing, label, values))
                sizes.append(image.size)
                names.append(f"{listing.path.name}: {image.name}" if len(listings) > 1 else image.name)
            used = {name for image, label in samples for name in (image.name, label)}
            for member in listing.members:
                if member.kind == "file" and member.name not in used:
                    kind = suffix_of(member.name) or "no suffix"
                    kinds[kind] = kinds.get(kind, 0) + 1
        if not names:
            raise DataError(f"{listings[0].path}: holds no sample of an image and a {suffix}; is it a WebDataset tar?")
        super().__init__(listings, indices)
        if isinstance(values[0], str):
            self.classes = sorted({str(value) for value in values})
            number = {name: label for label, name in enumerate(self.classes)}
            self.labels = np.array([number[str(value)] for value in values], np.int64)
        else:
            self.labels = np.array(values, np.int64)
        self.sizes, self.names, self.passed_over = np.array(sizes, np.int64), names, kinds


def _sound(value: LabelValue, listing: Listing, name: str, before: Sequence[int | str]) -> int | str:
    if isinstance(value, DataError):
        raise value
    if before and isinstance(value, str) is not isinstance(before[0], str):
        raise DataError(
            f"{listing.path}: '{name}' holds {value!r}, where others hold {before[0]!r}; labels are all numbers or all "
            "names"
        )
    return value


def other_label_files(listings: Sequence[Listing]) -> str | None:
    """Return ".json" or ".txt" where every image, all in one folder, has such a file beside it; None otherwise."""
    for suffix in OTHER_LABEL_FILES:
        if all(_have_beside(listing.members, suffix) for listing in listings):
            return suffix
    return None


def _have_beside(members: Sequence[Member], suffix: str) -> bool:
    images = [member.name for member in members if member.picture]
    files = [member.name for member in members if member.kind == "file" and suffix_of(member.name) == suffix]
    if len({name.rpartition("/")[0] for name in images}) != 1:
        return False
    return any({key(name) for name in images} <= {key(name) for name in files} for key in (first_dot, last_dot))


def _samples(listing: Listing, suffix: str) -> list[tuple[Member, str]]:
    """Return (image, name of its label file) sorted by key.

    A key ends at the first dot, as WebDataset has it. Where samples would be incomplete then, since names hold dots
    (im.0.jpg, im.0.cls), it ends at the last one.
    """
    found = _grouped(listing, suffix, first_dot)
    if isinstance(found, DataError):
        again = _grouped(listing, suffix, last_dot)
        if isinstance(again, DataError):
            raise found
        found = again
    return found


def _grouped(listing: Listing, suffix: str, key_of: Callable[[str], str]) -> list[tuple[Member, str]] | DataError:
    images: dict[str, Member] = {}
    labels: dict[str, str] = {}
    where = listing.path
    for member in listing.members:
        key = key_of(member.name)
        if member.name in listing.labels:
            if key in labels:
                return DataError(f"{where}: sample '{key}' has two labels ({labels[key]}, {member.name}); keep one")
            labels[key] = member.name
        elif member.picture:
            if key in images:
                return DataError(
                    f"{where}: sample '{key}' has two images ({images[key].name}, {member.name}); keep one"
                )
            images[key] = member
    orphans = images.keys() ^ labels.keys() if suffix in CLASS_FILES else images.keys() - labels.keys()
    for key in sorted(orphans):
        missing = "image" if key in labels else suffix
        return DataError(f"{where}: sample '{key}' has no {missing}; every sample needs an image and a {suffix}")
    return [(images[key], labels[key]) for key in sorted(images)]


def first_dot(name: str) -> str:
    """Return a file's name up to the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def last_dot(name: str) -> str:
    """Return a file's name up to its last dot."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.rpartition(".")[0]
