"""Samples whose embeddings or scores are NaN or infinite: the first by name, all of them as a list for `exclude`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from fastload.common.text import shortened
from fastload.errors import DataError
from fastload.packed.set import Packed
from fastload.selection import Embeddings
from fastload.selection.base import NotFinite
from fastload.subset.candidates import Candidates
from fastload.subset.work_folder import NOT_FINITE, WorkFolder

_NAMED = 10
_NAME_LENGTH = 60


@contextlib.contextmanager
def naming_them(
    file: Packed, candidates: Candidates, work: WorkFolder, find: Callable[[], np.ndarray], where: str = ""
) -> Iterator[None]:
    """Turn a strategy's NotFinite into a DataError that says which samples of the full set they are, and the mend.

    Arguments:
        file: the full set.
        candidates: what may be chosen of it.
        work: where the list goes when it is too long for a command line.
        find: gives the full set's rows, int64, whose embeddings or scores hold NaN or infinity.
        where: what the message begins with.
    """
    try:
        yield
    except NotFinite as error:
        found = find()
        found = found[np.argsort(file.ids[found], kind="stable")]
        rows = found[candidates.keep[found]]
        named = ", ".join(shortened(file.name_of(row), _NAME_LENGTH) for row in rows[:_NAMED].tolist())
        more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        # Copies of theirs too, which would be candidates in their place.
        known = np.concatenate([candidates.excluded, candidates.included])
        left_out = _exclude(file, np.concatenate([candidates.excluded, found[~np.isin(found, known)]]), work)
        raise DataError(
            f"{where}{error.found} in {len(rows):,} of {int(candidates.keep.sum()):,} samples: {named}{more}; "
            f'{error.mend}, or leave them out: exclude="{left_out}"'
        ) from error


def rows_not_finite(embeddings: Embeddings) -> np.ndarray:
    """Return the rows, int64, of embeddings [N, D] that hold NaN or infinity."""
    found = [np.zeros(0, np.int64)]
    for start, rows in embeddings.chunks():
        found.append(start + np.flatnonzero(~np.isfinite(rows).all(axis=1)))
    return np.concatenate(found)


def _exclude(file: Packed, rows: np.ndarray, work: WorkFolder) -> str:
    """Return what `exclude` takes for these rows: their ids, or a file that holds them, one a line."""
    ids = file.ids[rows].tolist()
    if len(ids) <= _NAMED:
        return ",".join(map(str, ids))
    work.write(NOT_FINITE, "".join(f"{number}\n" for number in ids).encode())
    return str(work.path / NOT_FINITE)
