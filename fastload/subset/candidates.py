"""Which samples of a full set a strategy may choose from: without what is excluded, and without exact duplicates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fastload.embedding.chunks import Embeddings
from fastload.embedding.own import OwnEmbeddings, find_rows, id_and_name, ids_of, read_list
from fastload.errors import UsageError
from fastload.packed.set import Packed, labels_of
from fastload.selection import Samples


@dataclass(frozen=True)
class Candidates:
    """Rows of a full set.

    Arguments:
        keep: bool [N], which rows may be chosen.
        included: int64, rows that are chosen first, in that order; not in `keep`.
        excluded: int64, rows that were left out by name.
        duplicates: how many were left out as copies of others.
    """

    keep: np.ndarray
    included: np.ndarray
    excluded: np.ndarray
    duplicates: int

    @classmethod
    def of(cls, file: Packed, include: Any, exclude: Any, keep_duplicates: bool) -> Candidates:
        """Read the lists, and find duplicates by the digests of what is stored.

        Raises UsageError for lists of another form, DataError for samples that the set does not hold.
        """
        keep = np.ones(len(file), bool)
        excluded, included = _rows(file, "exclude", exclude), _rows(file, "include", include)
        keep[excluded] = False
        both = included[~keep[included]]
        if len(both):
            raise UsageError(f"{id_and_name(file, int(both[0]))} is both included and excluded; name it once")
        keep[included] = False
        duplicates = 0
        if not keep_duplicates and file.digests is not None:
            # What is included comes first, then the lowest id, so that the order of rows makes no difference.
            order = np.lexsort((file.ids, keep))
            order = order[keep[order] | np.isin(order, included)]
            first = np.zeros(len(file), bool)
            stored = file.digests[order]
            if file.storage == "ragged" and file.shapes is not None:  # the same bytes may be images of other sides
                stored = np.column_stack([stored, file.shapes[order].astype(np.uint64)])
            first[order[np.unique(stored, axis=0, return_index=True)[1]]] = True
            duplicates = int((keep & ~first).sum())
            keep &= first
        return cls(keep, included, excluded, duplicates)


def _rows(file: Packed, name: str, given: Any) -> np.ndarray:
    """Return the rows of a list of ids or names: a sequence, a text with commas between, or a file."""
    if given is None:
        return np.zeros(0, np.int64)
    where = f"{name}=…"
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        if text and Path(text).is_file():
            entries, where = read_list(Path(text)), text
        else:
            entries = ids_of([entry for entry in str(text).split(",") if entry.strip()])
    else:
        try:
            entries = np.asarray(list(given))
        except TypeError as error:
            raise UsageError(f"{name}={given!r}; it is a list of ids or names, or a file with one a line") from error
    if not len(entries):
        return np.zeros(0, np.int64)
    if entries.ndim != 1 or entries.dtype.kind not in "iuU" or (entries.dtype.kind == "u" and entries.max() >= 2**63):
        raise UsageError(f"{where}: holds {entries.dtype}; it is a list of ids (whole numbers) or of names")
    rows = find_rows(file, entries if entries.dtype.kind == "U" else entries.astype(np.int64), where)
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


@dataclass(frozen=True)
class KeptRows:
    """Embeddings without the rows that are no candidates: `keep` is bool [N], of the rows of `embeddings`."""

    embeddings: Embeddings
    keep: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.keep.sum()), self.embeddings.shape[1]

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, rows), numbered without those that were left out."""
        done = 0
        for start, rows in self.embeddings.chunks():
            kept = rows[self.keep[start : start + len(rows)]]
            if len(kept):
                yield done, kept
            done += len(kept)


@dataclass(frozen=True)
class CandidateRows:
    """The candidates among the rows of embeddings, which need not stand in the full set's order.

    Arguments:
        kept: bool [N], which rows of the embeddings may be chosen.
        of_full: int64 [n], the full set's rows of the samples there.
        ids: int64 [n], theirs.
        labels: their labels, [n]; None where classes are not balanced.
        samples: what a strategy is told of them.
        hashes: what identifies them, by name, hex.
    """

    kept: np.ndarray
    of_full: np.ndarray
    ids: np.ndarray
    labels: np.ndarray | None
    samples: Samples
    hashes: dict[str, str]

    @classmethod
    def of(cls, file: Packed, candidates: Candidates, own: OwnEmbeddings | None, balance: bool) -> CandidateRows:
        """Find the candidates' rows.

        Arguments:
            file: the full set.
            candidates: what may be chosen of it.
            own: the user's own embeddings; None for those in the full set's order.
            balance: whether classes are balanced.
        """
        row_of = np.arange(len(file)) if own is None else own.row_of
        kept = candidates.keep[row_of]
        row_of = row_of[kept]
        ids = file.ids[row_of]
        hashes: dict[str, str] = {}
        labels = None
        if balance:
            of_all = labels_of(file, "balancing classes")
            labels = of_all[row_of]
            hashes["labels"] = array_hash(of_all)
        if own is not None:
            hashes["embedding_ids"] = array_hash(ids)
        if not kept.all():
            hashes["candidates"] = array_hash(np.concatenate([ids, file.ids[candidates.included]]))
        return cls(kept, row_of, ids, labels, Samples.of(ids, labels), hashes)


def array_hash(array: np.ndarray) -> str:
    """Return the xxh3-128 of an array's values, hex."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)
