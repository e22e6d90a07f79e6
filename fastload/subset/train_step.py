"""Step 1 of build-subset: train the autoencoder, or take the one that an earlier run has trained."""

from __future__ import annotations

from typing import Any

import torch

from fastload.common.tensors import load_tensors
from fastload.embedding.autoencoder import VIEW, Autoencoder, load_model, save_model
from fastload.embedding.encoder import Encoder, autoencoder_encoder
from fastload.embedding.training import train
from fastload.subset.run import Run, settings_hash

_SAVE_SECONDS = 30.0


def train_step(run: Run) -> tuple[Encoder | None, list[float]]:
    """Return the encoder, None where nothing is to be embedded, and the mean losses of the epochs of its training."""
    if not run.trains:
        run.report_skipped("train")
        return run.own_encoder, []
    settings = _settings(run)
    model = saved_model(run)
    if model is not None:
        facts = run.work.finished("train", settings) or {}
        run.report("train", "reused", run.work.seconds("train"), f"{run.training.steps:,} steps")
        return autoencoder_encoder(model), list(facts.get("losses", []))
    checkpoint = run.work.file("training.safetensors")
    if run.work.finished("train", settings) is not None:
        run.listener.note(f"{run.work.file('autoencoder.safetensors')} is damaged, so training is done again")
    run.say_changed("train", settings)
    if checkpoint.exists() and load_tensors(checkpoint) is None:
        run.listener.note(f"{checkpoint} is damaged, so training begins anew")
    run.work.record("train", settings, 0.0, {}, done=False)
    return _train(run, settings)


def saved_model(run: Run) -> Autoencoder | None:
    """Return the autoencoder that an earlier run with these settings has trained, or None."""
    facts = run.work.finished("train", _settings(run))
    if facts is None:
        return None
    model = load_model(run.work.file("autoencoder.safetensors"))
    if model is None or autoencoder_encoder(model).identity != facts.get("weights"):
        return None
    return model


def steps_trained(run: Run) -> int:
    """Return how many training steps an interrupted run with these settings has left behind."""
    found = load_tensors(run.work.file("training.safetensors"))
    if found is None or found[1].get("key") != settings_hash(_settings(run)):
        return 0
    return int(found[1].get("step", 0))


def untrained_encoder(run: Run) -> Encoder:
    """Return the encoder that training will begin with: as large and as fast as the one that it gives."""
    channels = run.full.channels
    model = Autoencoder(channels, run.training.embedding_size)
    return autoencoder_encoder(model.to(memory_format=torch.channels_last).eval())  # type: ignore[call-overload]


def _settings(run: Run) -> dict[str, Any]:
    """Return what the trained weights depend on."""
    return {**run.data, **run.training.state(), "view": VIEW.state()}


def _train(run: Run, settings: dict[str, Any]) -> tuple[Encoder, list[float]]:
    checkpoint = run.work.file("training.safetensors")
    started = False

    def on_step(step: int, loss: float | None) -> None:
        nonlocal started
        if not started:
            run.listener.begin("train", run.training.steps, step - 1)
            started = True
        run.listener.advance(step, "" if loss is None else f"loss {loss:.3f}")

    with run.deferred_interrupt() as should_stop:
        trained = train(
            run.full,
            run.training,
            device=run.device,
            engine=run.settings.engine,
            checkpoint=checkpoint,
            key=settings_hash(settings),
            seconds_between=_SAVE_SECONDS,
            on_step=on_step,
            should_stop=should_stop,
        )
        encoder = autoencoder_encoder(trained.model)
        save_model(run.work.file("autoencoder.safetensors"), trained.model)
        facts = {"weights": encoder.identity, "losses": trained.losses, "device": run.device}
        run.work.record("train", settings, trained.seconds, facts)
        checkpoint.remove()
    how = f"resumed at step {trained.resumed_at:,}" if trained.resumed_at else "done"
    run.report("train", how, trained.seconds, f"{run.training.steps:,} steps of {run.training.batch_size:,}")
    return encoder, trained.losses
