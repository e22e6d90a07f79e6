"""Class numbers of one file in those of another: labels are matched by their classes' names, not by their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fastload.common.text import printable, shortened
from fastload.errors import DataError

_LONGEST_NAME = 60


def label_map(
    from_classes: Sequence[str],
    to_classes: Sequence[str],
    *,
    source: object = "the one file",
    target: object = "the other",
) -> np.ndarray | None:
    """Return which class of `to_classes` each of `from_classes` is, by name.

    Arguments:
        from_classes: names of the classes that labels are numbered by.
        to_classes: names of the classes that they are to be numbered by.
        source, target: the files that the names are of, for messages.

    Returns int64 [len(from_classes)], so that `found[labels]` are the new labels; None where numbers mean the same
    already: the same names, the same first names, or no names on one of the sides.
    Raises DataError, naming it, for a class that has no counterpart, or more than one.
    """
    known = list(to_classes)
    if not from_classes or not known or list(from_classes) == known[: len(from_classes)]:
        return None
    places = {name: number for number, name in enumerate(known)}
    missing = [name for name in from_classes if name not in places]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{source}: has other classes than {target}: {_quoted(missing[:1])}{more} is none of its {len(known):,} "
            f"({_quoted(known[:3])}{', …' if len(known) > 3 else ''}), so their labels do not mean the same; name the "
            "classes alike, or leave out what the other has not"
        )
    twice = [name for name, count in (Counter(from_classes) | Counter(known)).items() if count > 1]
    if twice:
        raise DataError(
            f"{source}: has its classes in another order than {target}, and the name {_quoted(twice[:1])} stands for "
            "more than one of them, so labels cannot be matched by name; give each class a name of its own"
        )
    return np.array([places[name] for name in from_classes], np.int64)


def mapped_labels(labels: np.ndarray, mapping: np.ndarray | None, source: object) -> np.ndarray:
    """Return a file's labels as `mapping`, a `label_map`, numbers them.

    Arguments:
        labels: class numbers, any integers [N, ...].
        mapping: None leaves them as they are.
        source: the file, for messages.

    Raises DataError for labels that are no class numbers, or that no name belongs to.
    """
    if mapping is None:
        return labels
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{source}: its labels are {labels.dtype}, no class numbers, so they cannot follow classes that stand in "
            "another order; pack it with its classes in that order"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < len(mapping):
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise DataError(f"{source}: has a label {wrong:,}, but names for 0 to {len(mapping) - 1:,} only; pack it again")
    return mapping[labels]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(shortened(printable(name), _LONGEST_NAME)) for name in names)


def class_counts(labels: np.ndarray | None, classes: Sequence[str]) -> dict[str, int]:
    """Return how many samples each class has, by name or else by label; {} where labels are not class indices."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iub":
        return {}
    found, counts = np.unique(labels, return_counts=True)
    by_label = {int(label): int(count) for label, count in zip(found, counts, strict=True)}
    for label in range(len(classes)):
        by_label.setdefault(label, 0)
    named = {label: classes[label] if 0 <= label < len(classes) else str(label) for label in sorted(by_label)}
    if len(set(named.values())) < len(named):  # two classes of one name
        named = {label: f"{name} ({label})" for label, name in named.items()}
    return {name: by_label[label] for label, name in named.items()}
