"""The subsets that trainings run on, made once: autoencoders of several lengths, embeddings, what is chosen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastload.bench.paper.scale import SIZE
from fastload.bench.paper.workplace import OutOfTime, Workplace
from fastload.bench.state import key_of
from fastload.embedding.autoencoder import Autoencoder, load_model, save_model
from fastload.embedding.embed import embed
from fastload.embedding.encoder import autoencoder_encoder
from fastload.embedding.training import Trained, TrainingSettings, train
from fastload.packed.file import PackedFile
from fastload.subset.build import build_subset


@dataclass(frozen=True)
class Subset:
    """A packed subset: where, what identifies it, its size, and the seconds that choosing it took, from nothing."""

    path: Path
    strategy: str
    fingerprint: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Encoded:
    """What an autoencoder gave: its weights, the full set's embeddings, the seconds for both, its last loss."""

    model: Path
    embeddings: Path
    seconds: float
    loss: float


def encode(place: Workplace, length: str | None = None) -> Encoded:
    """Return the embeddings of the autoencoder trained for a length that the scale names; by default the longest.

    A longer training goes on from a shorter one, which, as the learning rate is constant, is its first part.
    Raises OutOfTime.
    """
    lengths = dict(place.scale.autoencoder)
    length = length or place.scale.autoencoder[-1][0]
    shorter = [name for name in lengths if lengths[name] < lengths[length]]
    if shorter:
        encode(place, shorter[-1])
    training = TrainingSettings(lengths[length], place.scale.autoencoder_batch)
    settings = {**place.identity, **training.state()}
    key = key_of(settings)
    model, vectors = place.state.file(f"autoencoder-{key}.safetensors"), place.state.file(f"embeddings-{key}.npy")
    found = place.state.find("autoencoder", settings)
    if found is not None and model.exists() and vectors.exists():
        return Encoded(model, vectors, found["seconds"], found["loss"])
    place.check_time()
    place.say(f"autoencoder, {length}: {training.steps:,} steps of {training.batch_size:,}")
    common = {name: value for name, value in settings.items() if name != "steps"}
    checkpoint = place.state.file(f"autoencoder-{key_of(common)}.training")

    def trained_on() -> Trained:
        return train(
            place.full,
            training,
            device=str(place.device),
            key=key_of(common),
            checkpoint=checkpoint,
            should_stop=lambda: place.deadline.left == 0,
        )

    try:
        trained = trained_on()
        if trained.resumed_at > training.steps:  # a longer training got further, and this one's files are lost
            checkpoint.unlink()
            trained = trained_on()
        save_model(model, trained.model)
        began = time.perf_counter()
        embed(
            place.full,
            autoencoder_encoder(trained.model),
            vectors,
            device=str(place.device),
            should_stop=lambda: place.deadline.left == 0,
        )
    except KeyboardInterrupt:
        if place.deadline.left:
            raise
        vectors.unlink(missing_ok=True)
        raise OutOfTime from None
    seconds = trained.seconds + time.perf_counter() - began
    place.state.record("autoencoder", settings, {"seconds": seconds, "loss": trained.losses[-1]})
    return Encoded(model, vectors, seconds, trained.losses[-1])


def saved_model(encoded: Encoded) -> Autoencoder:
    """Return the trained autoencoder."""
    model = load_model(encoded.model)
    if model is None:
        raise OSError(f"{encoded.model}: cannot be read; remove it, and the same command makes it again")
    return model


def choose(place: Workplace, strategy: str, *, size: str = SIZE, seed: int = 0, length: str | None = None) -> Subset:
    """Return the subset that a strategy chooses, from the embeddings of an autoencoder of that length.

    Arguments:
        seed: of what the strategy draws; `random` gives another subset for each.

    Raises OutOfTime.
    """
    encoded = None if strategy == "random" else encode(place, length)
    settings = {
        **place.identity,
        "strategy": strategy,
        "size": size,
        "seed": seed,
        "embeddings": None if encoded is None else encoded.embeddings.name,
    }
    path = place.state.file(f"{strategy}-{key_of(settings)}.h5")
    found = place.state.find("subset", settings)
    if found is None or not path.exists():
        place.check_time()
        began = time.perf_counter()
        build_subset(
            place.full.path,
            path,
            strategy=strategy,
            size=size,
            seed=seed,
            device=str(place.device),
            fresh=True,
            embeddings=None if encoded is None else encoded.embeddings,
        )
        found = {"seconds": time.perf_counter() - began}
        place.state.record("subset", settings, found)
    seconds = found["seconds"] + (0.0 if encoded is None else encoded.seconds)
    with PackedFile(path) as file:
        return Subset(path, strategy, file.fingerprint, len(file), seconds)


def chosen_ids(subset: Subset) -> np.ndarray:
    """Return the ids of a subset's samples, int64."""
    with PackedFile(subset.path) as file:
        return file.ids
