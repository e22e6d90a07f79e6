"""Steps 4 and 5 of build-subset: check the chosen samples' bytes, and write them as a packed file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from fastload.common.text import size_text
from fastload.embedding.chunks import Embeddings
from fastload.errors import DataError
from fastload.packed.file import PackedWriter, SelectionTable
from fastload.packed.format import digest
from fastload.packing.subset_pixels import decode_rows
from fastload.subset.candidates import KeptRows
from fastload.subset.run import Run
from fastload.subset.sample_scores import score_samples, write_scores
from fastload.subset.select_step import Chosen


def filter_step(run: Run, chosen: Chosen) -> np.ndarray:
    """Return the chosen samples' rows in the full set, int64, in order of choice.

    Raises DataError where the bytes stored of any are not those that were packed.
    """
    began = time.monotonic()
    file, ids = run.full, chosen.columns["ids"]
    run.listener.begin("filter", len(ids))
    order = np.argsort(file.ids, kind="stable")
    rows = order[np.searchsorted(file.ids, ids, sorter=order)]
    if file.digests is not None:
        damaged = [row for row in rows if digest(file.read(int(row))) != int(file.digests[row])]
        if damaged:
            first = ", ".join(str(file.ids[row]) for row in damaged[:5])
            raise DataError(
                f"{file.path}: {len(damaged):,} of the chosen samples are damaged (ids {first}…); "
                "`fastload verify` lists all, pack it again"
            )
    run.report("filter", "done", time.monotonic() - began, f"{len(rows):,} of {len(file):,} samples")
    return rows


def scores_step(run: Run, vectors: Embeddings | None) -> None:
    """Write the scores of all samples, where they are wanted: before the subset, so that all is there once that is."""
    if run.settings.scores is None:
        return
    assert vectors is not None, "checked before the work"
    row_of = np.arange(len(run.full)) if run.own_embeddings is None else run.own_embeddings.row_of
    scored = np.isin(row_of, run.candidates.excluded, invert=True)
    score, dimension = score_samples(
        run.choice.strategy,
        vectors,
        scored,
        KeptRows(vectors, run.rows.kept),
        run.rows.samples,
        run.request(),
    )
    order = np.argsort(row_of)  # of the full set's rows
    write_scores(Path(run.settings.scores), run.full.ids, score[order], dimension[order])


def write_step(run: Run, chosen: Chosen, rows: np.ndarray, hashed: str) -> None:
    """Write the subset.

    Arguments:
        chosen: what was chosen.
        rows: of the full set, int64.
        hashed: the embeddings' hash.
    """
    began = time.monotonic()
    file, columns = run.full, chosen.columns
    run.listener.begin("write", len(rows))
    writer = PackedWriter(
        run.out,
        shape=None if run.images.shape is None else (len(rows), *run.images.shape),
        count=len(rows) if run.images.shape is None else None,
        storage="ragged",
        labels=None if file.labels is None else file.labels[rows],
        ids=columns["ids"],
        classes=file.classes,
        source={"kind": "subset", "of": file.source},
        selection=SelectionTable(columns["dimension"], columns["rank"], columns["score"], _attributes(run, hashed)),
        names=None if file.names is None else [file.names[row] for row in rows.tolist()],
    )
    with writer:
        for index, pixels in decode_rows(file, rows, run.images, run.threads):
            if run.images.shape is None:
                writer.append(index, pixels, shape=pixels.shape[:2])
            else:
                writer.write(index, pixels)
            if index % 64 == 63:
                run.listener.advance(index + 1)
    run.report("write", "done", time.monotonic() - began, size_text(run.out.stat().st_size))


def _attributes(run: Run, hashed: str) -> dict[str, object]:
    included = {"included": len(run.candidates.included)} if len(run.candidates.included) else {}
    attributes = {
        "strategy": run.choice.strategy,
        "settings": json.dumps(run.choice.state() | included, sort_keys=True),
        "seed": np.uint64(run.choice.seed),
        "full_fingerprint": run.full.fingerprint,
        "embeddings": hashed,
    }
    if run.own_embeddings is not None:
        attributes["embedding_order"] = run.own_embeddings.rule
    return attributes
