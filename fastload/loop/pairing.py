"""Whether a full set and a subset go together, and how the labels of both are numbered."""

from __future__ import annotations

import numpy as np

from fastload.errors import DataError, UsageError
from fastload.order import Shuffle, sorted_by_label
from fastload.packed.classes import label_map, mapped_labels
from fastload.packed.labels import checked_labels
from fastload.packed.set import Packed


def check_pair(full: Packed | None, subset: Packed | None, shuffle: Shuffle) -> None:
    """Raise UsageError or DataError, naming what is wrong, unless a loader can be made of these files."""
    if full is not None and shuffle == "block" and full.labels is not None and sorted_by_label(full.labels):
        raise UsageError(
            f'{full.path}: rows are sorted by label, so shuffle="block" would not mix the classes; '
            'pack it with order="shuffled", or use shuffle=True'
        )
    if subset is not None and subset.storage == "encoded":
        raise DataError(
            f"{subset.path}: holds encoded images; a subset is decoded, make it with `fastload build-subset`"
        )
    if full is None or subset is None:
        return
    _check_origin(full, subset)
    ours, theirs = (_label_shape(file) for file in (subset, full))
    if ours != theirs:
        raise DataError(
            f"{subset.path}: has {_labels_in_words(ours)}, {full.path} {_labels_in_words(theirs)}; the two do not "
            "belong together"
        )
    if subset.channels != full.channels:
        raise DataError(f"{subset.path}: has {subset.channels} channels, {full.path} has {full.channels}")


def _check_origin(full: Packed, subset: Packed) -> None:
    if full.selection is not None and full.selection.attributes.get("full_fingerprint") == subset.fingerprint:
        raise UsageError(f"full={full.path} is the subset and subset={subset.path} the full set; swap the two")
    if full.selection is not None and full.fingerprint == subset.fingerprint:
        raise UsageError(f"full={full.path} is the subset, as subset= is; give the full set that it was built from")
    made_from = subset.selection.attributes.get("full_fingerprint") if subset.selection else None
    if made_from is not None and made_from != full.fingerprint:
        raise DataError(
            f"{subset.path}: was built from another full set (fingerprint {str(made_from)[:12]}…) than {full.path} "
            f"({full.fingerprint[:12]}…); run `fastload build-subset {full.path.name} {subset.path.name}` again"
        )


def _label_shape(file: Packed) -> tuple[int, ...] | None:
    return None if file.labels is None else file.labels.shape[1:]


def _labels_in_words(shape: tuple[int, ...] | None) -> str:
    return "no labels" if shape is None else f"labels of shape {shape} a sample"


def class_names(full: Packed | None, subset: Packed | None) -> list[str]:
    """Return the names that a loader's labels are numbered by: the full set's, where it has any."""
    return next((file.classes for file in (full, subset) if file is not None and file.classes), [])


def numbered_labels(file: Packed, classes: list[str], target: object) -> np.ndarray | None:
    """Return a file's labels, numbered by `classes`, the names of `target`; None of an unlabelled file.

    Raises DataError, naming it, for a class of the file that is none of `classes`, and for a label that no training
    can use: not finite, or not the number of a class.
    """
    labels = checked_labels(file)
    if labels is None:
        return None
    return mapped_labels(labels, label_map(file.classes, classes, source=file.path, target=target), file.path)
