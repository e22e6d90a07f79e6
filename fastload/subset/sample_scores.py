"""Scores of all samples of a full set, chosen or not, in a file of their own: ids, score and dimension, row by row."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from fastload.common.replacing import replace_file, target_of
from fastload.errors import DataError, UsageError
from fastload.packed.set import Packed
from fastload.packed.writer import check_place
from fastload.selection import Embeddings, Request, Samples, strategy_in_words, strategy_row
from fastload.selection.exact import pieces
from fastload.selection.kmeans import fit
from fastload.subset.work_folder import work_path

_BY_COLUMN = ("top-activations", "combinations", "pca", "penalized")


def check_scores(path: Path, full: Packed, out: Path, strategy: str, *, stored: bool) -> None:
    """Raise UsageError, before any work, unless a strategy's scores can be made and written to `path`.

    Arguments:
        path: the file to write.
        full: the full set.
        out: the subset.
        strategy: the name of one that looks at embeddings.
        stored: whether embeddings are stored or brought though the strategy needs one look only.
    """
    if strategy == "stratified":
        raise UsageError(
            f'{strategy_in_words(strategy)} has no scores for scores= to write; say strategy="top-activations", the '
            "paper's, or leave it out"
        )
    if strategy not in (*_BY_COLUMN, "kmeans"):
        raise UsageError(
            f"{strategy!r} is a strategy of your own, of which only the chosen have scores; leave scores= out"
        )
    if strategy_row(strategy).streams is not None and not stored:
        raise UsageError(f"{strategy} stores no embeddings to make scores= of; add keep=True (or embeddings=)")
    check_place(path, "scores.npz")
    place = Path(os.path.realpath(path))
    if any(place == Path(os.path.realpath(part)) for part in full.paths):
        raise UsageError(f'scores="{path}": is the full set itself; give the scores another name')
    if place == Path(os.path.realpath(out)) or place.is_relative_to(os.path.realpath(work_path(out))):
        raise UsageError(f'scores="{path}": is the subset itself or in its work folder; give the scores another name')
    if target_of(path).exists() and not _replaceable(path):
        raise UsageError(f'scores="{path}": exists and holds no scores, so it is not replaced; choose another name')


def score_samples(
    strategy: str,
    embeddings: Embeddings,
    scored: np.ndarray,
    candidates: Embeddings,
    samples: Samples,
    request: Request,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score, float32 [N], and the dimension or cluster, int32 [N], of each row of embeddings.

    A score is the largest over dimensions of (a - min) / (max - min), the least and the largest value being those of
    the rows that are scored; the first of equal dimensions counts, and one that never varies gives 0. For kmeans it
    is the strategy's own, 1 / (1 + distance), and the dimension is the cluster.

    Arguments:
        strategy: one that `check_scores` lets pass.
        embeddings: [N, D], looked at in chunks.
        scored: bool [N], the rows to score. Others, and those with NaN or infinity, get NaN and dimension -1.
        candidates: the embeddings that the strategy chose from; kmeans finds its clusters by them again.
        samples: whose those are.
        request: how much was wanted of it.
    """
    score, dimension = np.full(len(scored), np.nan, np.float32), np.full(len(scored), -1, np.int32)
    if strategy == "kmeans":
        best = fit(candidates, samples, request).nearest
    else:
        low, high = _extent(embeddings, scored)
        width = np.where(high > low, high - low, 1.0)

        def best(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            shares = (rows - low) / width
            return shares.argmax(axis=1), shares.max(axis=1)

    for start, rows in pieces(embeddings, scored, Request()):
        use = _usable(rows, scored[start : start + len(rows)])
        dimension[start + use], score[start + use] = best(rows[use])
    return score, dimension


def write_scores(path: Path, ids: np.ndarray, score: np.ndarray, dimension: np.ndarray) -> None:
    """Write an .npz of ids, int64, score, float32, and dimension, int32, each [N]. Raises DataError on a full disk."""
    data = io.BytesIO()
    np.savez(data, ids=ids.astype(np.int64), score=score, dimension=dimension)
    try:
        replace_file(path, data.getbuffer())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); make room, or choose another place") from error


def _extent(embeddings: Embeddings, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make a pass for the least and the largest value of each dimension, float64 [D]."""
    low, high = np.full(embeddings.shape[1], np.inf), np.full(embeddings.shape[1], -np.inf)
    for start, rows in pieces(embeddings, scored, Request()):
        rows = rows[_usable(rows, scored[start : start + len(rows)])]
        if len(rows):
            low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    return low, high


def _usable(rows: np.ndarray, scored: np.ndarray) -> np.ndarray:
    return np.flatnonzero(scored & np.isfinite(rows).all(axis=1))


def _replaceable(path: Path) -> bool:
    """Whether a file holds scores, or nothing: not somebody's embeddings."""
    if not path.is_file():
        return False
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return {"ids.npy", "score.npy"} <= set(archive.namelist())
    return path.stat().st_size == 0
