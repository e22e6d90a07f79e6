"""Which samples begin a pool: what each strategy chooses of a set, chosen once, and the seconds that it takes."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastload.bench.evidence.scores import scores_of
from fastload.bench.evidence.workplace import SetPlace
from fastload.bench.state import key_of
from fastload.common.replacing import replace_file
from fastload.embedding.autoencoder import save_model
from fastload.embedding.embed import embed
from fastload.embedding.encoder import autoencoder_encoder
from fastload.embedding.training import TrainingSettings, train
from fastload.order import permutation
from fastload.selection import Scores, select

_AUTOENCODER_BATCH = 128


@dataclass(frozen=True)
class Choice:
    """What a strategy chose.

    Arguments:
        rows: int64, first choice first.
        seconds: that choosing took, from nothing: trainings, embeddings and scores included.
    """

    rows: np.ndarray
    seconds: float


def choose(place: SetPlace, strategy: str, pool: float, tuning: bool, seed: int) -> Choice:
    """Return the samples that a strategy chooses among those that are trained on.

    Arguments:
        place: the set.
        strategy: a name that `select` knows.
        pool: how many, as a share of the set.
        tuning: whether some are held out.
        seed: of what is drawn at random.
    """
    rows, size = place.rows(tuning), place.pool_size(pool, tuning)
    if strategy == "random":
        return Choice(rows[permutation(len(rows), seed)[:size]], 0.0)
    path, known = _known(place, strategy, pool, tuning, seed)
    if known is None:
        found, spent = scores_of(place) if strategy == "scores" else embeddings_of(place)
        began = time.perf_counter()
        if strategy == "scores":
            with np.load(found) as stored:
                chosen = select(strategy, None, rows, size=size, seed=seed, scores=Scores(stored["score"][rows]))
        else:
            vectors = np.load(found, mmap_mode="r")[rows]
            chosen = select(strategy, vectors, rows, size=size, seed=seed, device=place.device.type)
        stored_rows = io.BytesIO()
        np.save(stored_rows, chosen.ids)
        replace_file(path, stored_rows.getvalue())
        known = {"seconds": spent + time.perf_counter() - began}
        place.state.record("choice", _settings(place, strategy, pool, tuning, seed), known)
    return Choice(np.load(path), known["seconds"])


def prepare(place: SetPlace, strategy: str) -> None:
    """Make what a strategy chooses by, embeddings or scores, where it is not there yet."""
    if strategy == "scores":
        scores_of(place)
    elif strategy != "random":
        embeddings_of(place)


def is_chosen(place: SetPlace, strategy: str, pool: float, tuning: bool, seed: int) -> bool:
    """Whether a strategy's choice is known already, or takes no time."""
    return strategy == "random" or _known(place, strategy, pool, tuning, seed)[1] is not None


def seconds_known(place: SetPlace, strategy: str, pool: float) -> float | None:
    """Return the seconds that a strategy's choice took, the first seed's; None where it has not chosen."""
    if strategy == "random":
        return 0.0
    known = _known(place, strategy, pool, False, 0)[1]
    return None if known is None else known["seconds"]


def _settings(place: SetPlace, strategy: str, pool: float, tuning: bool, seed: int) -> dict[str, Any]:
    scale = place.scale
    return {
        **place.identity,
        "strategy": strategy,
        "size": place.pool_size(pool, tuning),
        "held out": len(place.held_out) if tuning else 0,
        "seed": seed,
        "trained for": scale.scores_epochs if strategy == "scores" else scale.autoencoder,
    }


def _known(place: SetPlace, strategy: str, pool: float, tuning: bool, seed: int) -> tuple[Path, dict[str, Any] | None]:
    settings = _settings(place, strategy, pool, tuning, seed)
    path = place.state.file(f"chosen-{place.images.name}-{strategy}-{key_of(settings)}.npy")
    return path, place.state.find("choice", settings) if path.exists() else None


def embeddings_of(place: SetPlace) -> tuple[Path, float]:
    """Return a file of a set's embeddings by an autoencoder that is trained on it, and the seconds for both."""
    training = TrainingSettings(place.scale.autoencoder, _AUTOENCODER_BATCH)
    settings = {**place.identity, **training.state()}
    key = key_of(settings)
    vectors = place.state.file(f"embeddings-{place.images.name}-{key}.npy")
    found = place.state.find("embeddings", settings)
    if found is None or not vectors.exists():
        began = time.perf_counter()
        device = str(place.device)
        checkpoint = place.state.file(f"autoencoder-{key}.training")
        trained = train(place.full, training, device=device, key=key, checkpoint=checkpoint)
        save_model(place.state.file(f"autoencoder-{place.images.name}-{key}.safetensors"), trained.model)
        embed(place.full, autoencoder_encoder(trained.model), vectors, device=device)
        found = {"seconds": time.perf_counter() - began}
        place.state.record("embeddings", settings, found)
    return vectors, found["seconds"]
