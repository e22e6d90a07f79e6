"""Step 3 of build-subset, "analyse": choose samples by their embeddings, or take what an earlier run has chosen."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fastload.common.tensors import load_tensors, save_tensors
from fastload.selection import Embeddings, Selection, as_embeddings, select
from fastload.selection.top_activations import read
from fastload.selection.topk_state import TopKState
from fastload.subset.candidates import KeptRows
from fastload.subset.embed_step import Embedded
from fastload.subset.not_finite import naming_them, rows_not_finite
from fastload.subset.report import measure_lists
from fastload.subset.run import Run, settings_hash
from fastload.subset.work_folder import NOT_FINITE


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The chosen samples, in order of choice, those that were named to be included first.

    Arguments:
        columns: `ids` int64, `dimension` int32, `rank` int32 and `score` float32, each [n].
        facts: what the report tells of the selection, JSON-able.
    """

    columns: dict[str, np.ndarray]
    facts: dict[str, Any]


def select_step(run: Run, embedded: Embedded) -> Chosen:
    """Return what a strategy chooses."""
    settings = _settings(run, embedded)
    path = run.work.file("selection.safetensors")
    run.work.file(NOT_FINITE).remove()  # of other embeddings
    facts = run.work.finished("analyse", settings)
    found = load_tensors(path) if facts is not None else None
    if facts is not None and found is not None and found[1].get("key") == settings_hash(settings):
        run.report("analyse", "reused", run.work.seconds("analyse"), "")
        return Chosen({name: tensor.numpy() for name, tensor in found[0].items()}, facts)
    if facts is not None:
        run.listener.note(f"{path} is damaged, so analysing is done again")
    run.say_changed("analyse", settings)
    run.listener.begin("analyse", len(run.full))
    began = time.monotonic()
    selection, strongest = _select(run, embedded)
    columns = _with_included(run, selection)
    facts = _facts(columns, strongest, selection.report)
    seconds = time.monotonic() - began
    tensors = {name: torch.from_numpy(array) for name, array in columns.items()}
    save_tensors(path, tensors, {"key": settings_hash(settings)})
    run.work.record("analyse", settings, seconds, facts)
    run.report("analyse", "done", seconds, run.choice.strategy)
    return Chosen(columns, facts)


def _settings(run: Run, embedded: Embedded) -> dict[str, Any]:
    """Return what the selection depends on."""
    return {
        **run.data,
        **run.choice.state(),
        "strategy": run.choice.strategy,
        "seed": run.choice.seed,
        "embeddings": embedded.hashed,
        **run.rows.hashes,
    }


def _with_included(run: Run, selection: Selection) -> dict[str, np.ndarray]:
    """Return the columns of a selection, before them the samples that were named to be chosen, as of no dimension."""
    chosen: dict[str, np.ndarray] = {
        "ids": np.asarray(selection.ids, np.int64),
        "dimension": np.asarray(selection.dimension, np.int32),
        "rank": np.asarray(selection.rank, np.int32),
        "score": np.asarray(selection.score, np.float32),
    }
    rows = run.candidates.included
    others = chosen["rank"][chosen["dimension"] < 0]
    first = int(others.max()) + 1 if len(others) else 0  # no rank twice
    included = {
        "ids": run.full.ids[rows],
        "dimension": np.full(len(rows), -1, np.int32),
        "rank": first + np.arange(len(rows), dtype=np.int32),
        "score": np.zeros(len(rows), np.float32),
    }
    return {name: np.concatenate([included[name], chosen[name]]) for name in chosen}


def _select(run: Run, embedded: Embedded) -> tuple[Selection, TopKState | None]:
    """Return the selection and each dimension's strongest samples, None where no lists of them were made."""
    if embedded.lists is not None:
        selection = embedded.lists.selection()
        assert selection is not None, "embedding goes on until the lists are long enough"
        return selection, embedded.lists.strongest()
    vectors = embedded.vectors
    if vectors is not None and not run.rows.kept.all():
        vectors = KeptRows(vectors, run.rows.kept)

    scores = run.choice.own_scores

    def find_not_finite() -> np.ndarray:
        if scores is not None:
            return scores.scores.unusable()
        found = rows_not_finite(as_embeddings(embedded.vectors))
        return found if run.own_embeddings is None else run.own_embeddings.row_of[found]

    where = "" if scores is None else f"{scores.path}: "
    with naming_them(run.full, run.candidates, run.work, find_not_finite, where):
        if vectors is not None and run.choice.streams:
            return _select_in_one_pass(run, vectors)
        return _select_by_strategy(run, vectors), None


def _select_in_one_pass(run: Run, vectors: Embeddings) -> tuple[Selection, TopKState]:
    source = as_embeddings(vectors)
    lists = run.begin_pass(vectors.shape[1], device=run.device)
    while (found := read(source, lists, _progress(run)).selection()) is None:
        lists = lists.again()
    return found, lists.strongest()


def _select_by_strategy(run: Run, vectors: Embeddings | None) -> Selection:
    # A strategy that looks at no embeddings gets a column of zeros that takes no memory.
    seen = np.broadcast_to(np.float32(0), (len(run.rows.ids), 1)) if vectors is None else vectors
    request = run.request(run.device)
    return select(
        run.choice.strategy,
        seen,
        run.rows.ids,
        size=request.size,
        per_dimension=request.per_dimension,
        labels=run.rows.labels,
        equal=request.equal,
        seed=request.seed,
        device=request.device,
        threads=request.threads,
        progress=_progress(run),
        overlap=vectors is not None,
        scores=request.scores,
    )


def _progress(run: Run) -> Callable[[int, int], None]:
    return lambda done, total: run.listener.advance(done)


def _facts(columns: dict[str, np.ndarray], strongest: TopKState | None, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report tells: of the strategy's own dimensions, clusters or pairs, as far as it says."""
    given = columns["dimension"][columns["dimension"] >= 0]
    facts = {
        "dimensions": int(report.get("dimensions", given.max() + 1 if len(given) else 0)),
        "dead": report.get("dead_dimensions", []),
        "filled": int(report.get("filled_at_random", report.get("left_out_but_taken", 0))),
        "overlap": report.get("lists"),
    }
    if strongest is not None:
        overlap, dead = measure_lists(strongest)
        facts |= {"overlap": dataclasses.asdict(overlap), "dead": dead}
    return facts
