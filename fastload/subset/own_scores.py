"""Scores that the user brings for the strategy `scores`: an .npz, .npy or text file, and which sample each is of."""

from __future__ import annotations

import csv
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastload.common.text import plural, shortened
from fastload.embedding.own import checked_ids, find_rows, id_and_name, ids_of
from fastload.errors import DataError
from fastload.packed.set import Packed
from fastload.selection import Scores
from fastload.subset.candidates import array_hash

_FORMS = "FILE.npz with arrays 'ids' and 'score', FILE.npy, or a text file with one 'id,score' a line"
_ID_NAMES = ("id", "ids", "name", "names")
_SCORE_NAMES = ("score", "scores")


@dataclass(frozen=True)
class OwnScores:
    """Scores and how they are read.

    Arguments:
        path: the file they are from.
        scores: of all rows of the full set, in their order, NaN where the file has none.
        rule: how it is known whose they are, for people.
    """

    path: Path
    scores: Scores
    rule: str

    def told(self) -> str:
        """Return where they are from and whose they are, for people."""
        return f"of {self.path}, {self.rule}"

    def state(self) -> dict[str, Any]:
        """Return what a choice by them depends on, JSON-able: the scores themselves, not where they are kept."""
        # One bit pattern for all that are missing, and for zero.
        values = np.where(np.isnan(self.scores.values), np.nan, self.scores.values + 0.0)
        return {"scores": array_hash(values), **self.scores.settings()}


def open_scores(path: Path, full: Packed, hardest: str, leave_out: float) -> OwnScores:
    """Read the user's scores of the samples of a full set.

    Arguments:
        path: an .npz with `score` [n] and `ids` [n], as `build_subset(scores=…)` writes it; a .npy [N], row i's of row
            i; or text, "id,score" a line, with or without a line of columns' names, or one score a line, row i's.
        full: the full set. In place of ids there may be names, where it holds them.
        hardest: see Scores.
        leave_out: see Scores.

    Raises DataError for a file that cannot be read, scores that are no real numbers, another number of them, and ids
    that the full set does not hold, or that come twice. Samples without a score are the strategy's business.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; scores_from= takes {_FORMS}")
    ids, values = _read(path)
    if ids is None:
        if len(values) != len(full):
            raise DataError(
                f"{path}: has {len(values):,} scores and no ids, but the full set has {len(full):,} samples; bring one "
                "for each, or ids beside them"
            )
        return OwnScores(path, Scores(values, hardest, leave_out), "row i's of row i of the full set")
    if len(ids) != len(values):
        raise DataError(f"{path}: has {len(ids):,} ids for {len(values):,} scores; there is one for each")
    if not len(ids):
        raise DataError(f"{path}: holds no scores; it takes {_FORMS}")
    rows = find_rows(full, ids, str(path), "; are these the scores of another set?")
    found, counts = np.unique(rows, return_counts=True)
    if len(found) != len(rows):
        again = id_and_name(full, int(found[counts > 1][0]))
        raise DataError(f"{path}: has {again} more than once; give each sample one score")
    of_rows = np.full(len(full), np.nan)
    of_rows[rows] = values
    return OwnScores(path, Scores(of_rows, hardest, leave_out), "by their ids" if ids.dtype.kind != "U" else "by names")


def _read(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """Return ids (int64) or names [n], None where there are none, and scores, float64 [n]."""
    try:
        with open(path, "rb") as file:
            begins = file.read(6)
        if begins[:4] == b"PK\x03\x04":
            return _read_npz(path)
        if begins == b"\x93NUMPY":
            return None, _checked(np.load(path, allow_pickle=False), str(path))
        return _read_text(path)
    except DataError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        no_text = "it is no text" if isinstance(error, UnicodeDecodeError) else None
        reason = no_text or getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as scores ({reason}); scores_from= takes {_FORMS}") from error


def _read_npz(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        if "score" not in archive.files:
            listed = ", ".join(sorted(archive.files)[:6]) or "none"
            raise DataError(f"{path}: has no array 'score'; it has {listed}: save them as 'score', with 'ids'")
        ids = checked_ids(archive["ids"], f"{path}:ids") if "ids" in archive.files else None
        return ids, _checked(archive["score"], f"{path}:score")


def _checked(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind not in "iuf" or values.ndim != 1:
        raise DataError(
            f"{where}: holds {values.dtype} of shape {values.shape}; scores are one real number a sample, [N]"
        )
    return values.astype(np.float64)


def _read_text(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """Return ids or names, None where lines hold scores alone, and scores; an empty one is missing."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        rows = [(reader.line_num, [field.strip() for field in fields]) for fields in reader if "".join(fields).strip()]
    if not rows:
        raise DataError(f"{path}: holds no scores; scores_from= takes {_FORMS}")
    columns = [name.lower() for name in rows[0][1]]
    named = any(name in columns for name in _SCORE_NAMES)
    if named:
        del rows[0]
    elif len(columns) > 2 or not _is_number(columns[-1]):
        raise DataError(
            f"{path}, line {rows[0][0]}: is {shortened(','.join(rows[0][1]), 60)!r}; scores_from= takes {_FORMS}, with "
            "or without a first line that names a column 'score' and one 'id' or 'name'"
        )
    else:
        columns = ["id", "score"][-len(columns) :]
    score = next(place for place, name in enumerate(columns) if name in _SCORE_NAMES)
    whose = next((place for place, name in enumerate(columns) if name in _ID_NAMES), None)
    if whose is None and len(columns) > 1:
        raise DataError(
            f"{path}: has columns {', '.join(map(repr, columns[:6]))}; name one 'id' or 'name', whose the scores are"
        )
    values = np.empty(len(rows))
    for place, (line, fields) in enumerate(rows):
        if len(fields) != len(columns):
            raise DataError(f"{path}, line {line}: has {plural(len(fields), 'column')}, and others have {len(columns)}")
        if fields[score] and not _is_number(fields[score]):
            raise DataError(f"{path}, line {line}: {shortened(fields[score], 60)!r} is no number; a score is one")
        values[place] = float(fields[score] or "nan")
    return None if whose is None else ids_of([fields[whose] for _, fields in rows]), values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
