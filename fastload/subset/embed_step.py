"""Step 2 of build-subset: embed the full set, into a file or into a strategy's lists, or take what is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastload.embedding.autoencoder import weights_of
from fastload.embedding.chunks import Embeddings
from fastload.embedding.embed import embed
from fastload.embedding.embeddings_hash import HASH_RULE, hash_rows
from fastload.embedding.encoder import Encoder, trained_model
from fastload.embedding.matrix_file import MatrixFile
from fastload.embedding.stored import open_stored
from fastload.errors import DataError
from fastload.selection import Pass
from fastload.subset.not_finite import naming_them
from fastload.subset.run import Run, settings_hash
from fastload.subset.streaming_pass import StreamingPass


@dataclass(frozen=True)
class Embedded:
    """What there is of the embeddings.

    Arguments:
        hashed: their hash, hex; "" without any.
        vectors: themselves, where they are stored or were brought.
        lists: the strategy's lists, where nobody stored them.
    """

    hashed: str
    vectors: Embeddings | None
    lists: Pass | None


@dataclass(frozen=True)
class EmbedPlan:
    """Where the embeddings go, and how far that is.

    Arguments:
        settings: what they depend on.
        done: whether they are there.
        first: the row that an interrupted pass goes on from.
        columns: of the embeddings; 0 while not known.
        streaming: what takes them in place of a file; None where they are stored.
    """

    settings: dict[str, Any]
    done: bool
    first: int
    columns: int
    streaming: StreamingPass | None


def plan_embedding(run: Run, encoder: Encoder | None) -> EmbedPlan:
    """Decide whether embeddings are stored or pass by, and how far that is; `encoder` is None while untrained.

    What an earlier call stored, or began to, is used; else only `keep` and strategies that look at embeddings more
    than once need them stored.
    """
    settings = {} if encoder is None else _settings(run, encoder)
    done, first = _stored_already(run, settings)
    if done or first or run.settings.keep or not run.choice.streams:
        stored = open_stored(run.work.file("embeddings.npy")) if done else None
        return EmbedPlan(settings, done, first, stored.shape[1] if stored else 0, None)
    settings |= {"strategy": run.choice.strategy, **run.choice.state(), **run.rows.hashes}
    streaming = StreamingPass(
        run.work.file("lists.safetensors"),
        settings_hash(settings),
        len(run.full),
        run.begin_pass,
        None if run.rows.kept.all() else run.rows.kept,
    )
    done = streaming.complete and run.work.finished("embed", settings) is not None
    return EmbedPlan(settings, done, streaming.rows, streaming.columns, streaming)


def embed_step(run: Run, encoder: Encoder | None) -> Embedded:
    """Return the embeddings of the full set; `encoder` is None where none is to make them."""
    if encoder is None:
        return _own_embeddings(run)
    plan = plan_embedding(run, encoder)
    settings = plan.settings
    path = run.work.file("embeddings.npy" if plan.streaming is None else "lists.safetensors")
    if plan.done:
        facts = run.work.finished("embed", settings) or {}
        run.report("embed", "reused", run.work.seconds("embed"), "")
        return _embedded(run, plan, str(facts["hash"]))
    if run.work.finished("embed", settings) is not None:
        run.listener.note(f"{path} is damaged, so embedding is done again")
    run.say_changed("embed", settings)
    if plan.streaming is not None:
        run.work.file("embeddings.npy").remove()  # of other settings, and large
    return _embed(run, plan, encoder)


def _settings(run: Run, encoder: Encoder) -> dict[str, Any]:
    """Return what the embeddings depend on."""
    return {
        **run.data,
        "encoder": encoder.name,
        "weights": encoder.identity,
        "view": encoder.view.state(),
        "hashed by": HASH_RULE,
    }


def _stored_already(run: Run, settings: dict[str, Any]) -> tuple[bool, int]:
    """Return whether the embeddings are stored, and else how many rows of them."""
    stored = open_stored(run.work.file("embeddings.npy"))
    complete = stored is not None and stored.shape[0] == len(run.full)
    done = run.work.finished("embed", settings)
    if done is not None:
        return complete and hash_rows(stored) == done.get("hash"), 0
    begun = run.work.unfinished("embed", settings)
    return False, int(begun.get("rows", 0)) if begun and complete else 0


def _embed(run: Run, plan: EmbedPlan, encoder: Encoder) -> Embedded:
    settings = plan.settings
    before = run.work.seconds("embed") if plan.first else 0.0
    began = time.monotonic()

    def record(rows: int) -> None:
        run.work.record("embed", settings, before + time.monotonic() - began, {"rows": rows}, done=False)

    def pass_from(first: int) -> None:
        run.listener.begin("embed", len(run.full), first)
        record(first)
        _ask_for_shares(run, encoder, first)
        embed(
            run.full,
            encoder,
            plan.streaming or run.work.file("embeddings.npy"),
            device=run.device,
            engine=run.settings.engine,
            first_row=first,
            leader=run.ranks,
            on_chunk=run.listener.advance,
            on_saved=record,
            should_stop=should_stop,
        )

    with run.deferred_interrupt() as should_stop:
        if plan.streaming is None:
            pass_from(plan.first)
            stored = _stored(run)
            hashed, columns, passes = hash_rows(stored), stored.shape[1], 1
        else:
            _repeat_until_long_enough(run, plan.streaming, pass_from)
            hashed, columns, passes = plan.streaming.hexdigest(), plan.streaming.columns, plan.streaming.passes
        seconds = before + time.monotonic() - began
        run.work.record("embed", settings, seconds, {"hash": hashed})
    how = f"resumed at row {plan.first:,}" if plan.first else "done"
    repeated = f", {passes} passes" if passes > 1 else ""
    run.report("embed", how, seconds, f"{len(run.full):,} × {columns}{repeated}")
    return _embedded(run, plan, hashed)


def _ask_for_shares(run: Run, encoder: Encoder, first: int) -> None:
    """Let the other ranks begin on their share of a pass from row `first` on."""
    asked = {
        "first": first,
        "threads": run.threads,
        "data": run.data,
        "encoder": encoder.identity,
        "view": encoder.view.state(),
    }
    model = trained_model(encoder)
    if model is None:
        run.ranks.tell(asked)
    else:
        asked |= {"channels": model.channels, "embedding_size": model.embedding_size}
        run.ranks.tell(asked, weights_of(model))


def _repeat_until_long_enough(run: Run, streaming: StreamingPass, pass_from: Callable[[int], None]) -> None:
    """Repeat the encoder's pass, each time with longer lists, until they are long enough to choose from."""
    while True:
        if not streaming.complete:
            pass_from(streaming.rows)
            streaming.sync()
        with naming_them(run.full, run.candidates, run.work, lambda: streaming.not_finite):
            if streaming.strategy.selection() is not None:
                return
        streaming.again()
        run.listener.note(f"lists were too short for this overlap, so pass {streaming.passes} has longer ones")


def _embedded(run: Run, plan: EmbedPlan, hashed: str) -> Embedded:
    if plan.streaming is not None:
        return Embedded(hashed, None, plan.streaming.strategy)
    return Embedded(hashed, _stored(run), None)


def _stored(run: Run) -> MatrixFile:
    stored = open_stored(run.work.file("embeddings.npy"))
    if stored is None:
        raise DataError(f"{run.work.file('embeddings.npy')}: cannot be read back; run the same command again")
    return stored


def _own_embeddings(run: Run) -> Embedded:
    """Return the user's own embeddings; none for a strategy that needs none."""
    if run.own_embeddings is None:
        run.report_skipped("embed")
        return Embedded("", None, None)
    began = time.monotonic()
    hashed = hash_rows(run.own_embeddings.vectors)
    rows, columns = run.own_embeddings.shape
    run.report("embed", "brought", time.monotonic() - began, f"{rows:,} × {columns}, {run.own_embeddings.rule}")
    return Embedded(hashed, run.own_embeddings.vectors, None)
