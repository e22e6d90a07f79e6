"""Select the samples that matter most: a named strategy ranks samples by their embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastload.common.arguments import flag
from fastload.common.device import resolve_device
from fastload.embedding.chunks import Embeddings, as_embeddings
from fastload.errors import DataError, UsageError
from fastload.selection.base import (
    Pass,
    Request,
    Samples,
    Selection,
    Strategy,
    StreamingStrategy,
)
from fastload.selection.combinations import combinations
from fastload.selection.given_scores import Scores
from fastload.selection.kmeans import kmeans
from fastload.selection.pca import pca
from fastload.selection.penalized import penalized
from fastload.selection.random import random
from fastload.selection.scores import scores as by_scores
from fastload.selection.stratified import stratified
from fastload.selection.top_activations import ListsPass, top_activations


@dataclass(frozen=True)
class StrategyRow:
    """What is known of a strategy.

    Arguments:
        rank: ranks samples, see `Strategy`.
        needs_embeddings: whether it looks at embeddings; without, none are made, and `rank` gets None or zeros.
        streams: begins its first pass, for one that needs one look at the embeddings, which are then not stored.
        per_dimension: whether it serves `per_dimension` beside `size`: from lists of a dimension's best, best first.
        needs_scores: whether it chooses by scores that the caller brings, which all others refuse.
    """

    rank: Strategy
    needs_embeddings: bool = True
    streams: StreamingStrategy | None = None
    per_dimension: bool = True
    needs_scores: bool = False


STRATEGIES: dict[str, StrategyRow] = {
    "top-activations": StrategyRow(top_activations, streams=ListsPass),
    "random": StrategyRow(random, needs_embeddings=False, per_dimension=False),
    "combinations": StrategyRow(combinations),
    "kmeans": StrategyRow(kmeans),
    "pca": StrategyRow(pca),
    "penalized": StrategyRow(penalized),
    "stratified": StrategyRow(stratified, per_dimension=False),
    "scores": StrategyRow(by_scores, needs_embeddings=False, per_dimension=False, needs_scores=True),
}
_OURS = frozenset(STRATEGIES)

DEFAULT_STRATEGY = "stratified"
"""What `build_subset` takes where none is named, by docs/evidence.md's rule.

Its docstring, the command's help and docs/strategies.md say so too (tested).
"""


def register(
    name: str,
    rank: Strategy,
    *,
    needs_embeddings: bool = True,
    streams: StreamingStrategy | None = None,
    per_dimension: bool = False,
    needs_scores: bool = False,
) -> None:
    """Make a strategy of your own known to `select` and `build_subset`, under `name` (docs/strategies.md).

    Arguments:
        name: letters, digits, "-", "_" and "."; an earlier one of yours is replaced.
        rank: called as rank(embeddings, samples, request), returns a Selection of `request.size` samples, best first.
        needs_embeddings: see StrategyRow.
        streams: see StrategyRow.
        per_dimension: see StrategyRow.
        needs_scores: see StrategyRow; they are `request.scores`.

    Raises UsageError for a name that is no such text or one of fastload's own, and for what cannot be called.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"name={name!r}; a strategy's name is of letters, digits, '-', '_' and '.'")
    if name in _OURS:
        raise UsageError(f"{name!r} is a strategy of fastload; give yours another name")
    if not callable(rank) or not (streams is None or callable(streams)):
        raise UsageError(f"rank={rank!r}, streams={streams!r}; they are called with (embeddings, samples, request)")
    STRATEGIES[name] = StrategyRow(
        rank,
        flag("needs_embeddings", needs_embeddings),
        streams,
        flag("per_dimension", per_dimension),
        flag("needs_scores", needs_scores),
    )


def strategy_row(name: Any) -> StrategyRow:
    """Return what is known of a strategy; UsageError for a name that nobody registered."""
    if not isinstance(name, str) or name not in STRATEGIES:
        raise UsageError(f"strategy {name!r} is unknown; choose one of {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]


def strategy_in_words(name: str) -> str:
    """Return how messages of `build_subset` name its strategy: as the argument, and whether it is the default."""
    return f'strategy="{name}"' + (", the default," if name == DEFAULT_STRATEGY else "")


def _checked(found: Any, name: str, samples: Samples, request: Request) -> Selection:
    """Return what a strategy gave with its columns' types; DataError, naming it, for what is no such selection."""
    try:
        ids, dimension, rank, score = (
            np.asarray(getattr(found, field), dtype)
            for field, dtype in (("ids", np.int64), ("dimension", np.int32), ("rank", np.int32), ("score", np.float32))
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"strategy {name!r} gave a {type(found).__name__}, not a Selection ({error})") from error
    if not ids.shape == dimension.shape == rank.shape == score.shape or ids.ndim != 1:
        raise DataError(f"strategy {name!r} gave columns of several lengths; ids, dimension, rank and score are [N]")
    if request.size is not None and len(ids) != request.size:
        raise DataError(f"strategy {name!r} gave {len(ids):,} samples where {request.size:,} were asked for")
    if len(np.unique(ids)) != len(ids) or not np.isin(ids, samples.sorted_ids).all():
        raise DataError(f"strategy {name!r} gave an id twice, or one that is none of the samples'")
    if not np.isfinite(score).all():
        raise DataError(f"strategy {name!r} gave scores that are not finite")
    return replace(found, ids=ids, dimension=dimension, rank=rank, score=score)


def select(
    strategy: str,
    embeddings: Any,
    ids: Any,
    *,
    size: int | None = None,
    per_dimension: int | None = None,
    labels: Any = None,
    equal: bool = False,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    overlap: bool = False,
    scores: Scores | None = None,
) -> Selection:
    """Choose samples; the same answer whatever the chunks, device, threads or order of rows.

    Arguments:
        strategy: a name in STRATEGIES.
        embeddings: real numbers [n, dims], anything that `as_embeddings` takes; random and scores do without (None).
        ids: distinct integers [n], each row's sample.
        size: exactly so many samples; or per_dimension: the best so many of each dimension, fewer as they overlap.
        labels: [n], each row's class, to give each class its share of `size` (with `per_dimension`, the best so many of
            each dimension and class); None to leave classes alone.
        equal: with labels, all classes give the same number; one that is too small gives all it has.
        seed: decides what is drawn at random.
        device: "cpu" or "cuda".
        threads: for the CPU, all cores by default.
        progress: called with (rows done, rows in all); a repeated pass starts over.
        scores: for the strategy `scores`, each row's score and which of them are the hardest samples'.
        overlap: tell in the report's "lists" how much the dimensions' lists of their strongest samples share.

    Raises UsageError for amounts that cannot be served, DataError for embeddings, scores or ids that are not what they
    should be (shapes, NaN, infinity, repeated ids).
    """
    request = Request(size, per_dimension, seed, str(device), threads, progress, equal, overlap, scores)
    row = strategy_row(strategy)
    if per_dimension is not None and not row.per_dimension:
        raise UsageError(f"{strategy} has no dimensions: say size instead of per_dimension")
    source = None if embeddings is None else as_embeddings(embeddings)
    samples = Samples.of(ids, labels)
    if source is not None and source.shape[0] != len(samples):
        raise DataError(f"embeddings have {source.shape[0]:,} rows but there are {len(samples):,} ids")
    if row.needs_scores != (scores is not None):
        mend = "say scores=Scores(…)" if row.needs_scores else "leave scores= out"
        what = "ranks samples by scores that one brings" if row.needs_scores else "has no use for scores"
        raise UsageError(f"{strategy} {what}; {mend}")
    resolve_device(request.device)
    request.check(len(samples))
    return _checked(row.rank(source, samples, request), strategy, samples, request)


__all__ = [
    "DEFAULT_STRATEGY",
    "STRATEGIES",
    "Embeddings",
    "Pass",
    "Request",
    "Samples",
    "Scores",
    "Selection",
    "Strategy",
    "StrategyRow",
    "StreamingStrategy",
    "as_embeddings",
    "register",
    "select",
    "strategy_in_words",
    "strategy_row",
]
