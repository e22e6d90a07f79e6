"""Before the first step of build-subset: measure what the run will need, say so, and refuse what cannot fit."""

from __future__ import annotations

import torch

from fastload.embedding.autoencoder import Autoencoder
from fastload.embedding.chunks import most_rows
from fastload.embedding.encoder import autoencoder_encoder, chunk_rows
from fastload.selection import topk_cuda
from fastload.selection.top_activations import list_length
from fastload.subset.embed_step import plan_embedding
from fastload.subset.estimate import (
    BASE_MEMORY,
    CHOOSE_SECONDS,
    SAMPLE_BYTES,
    SCORE_BYTES,
    Estimate,
    estimate_strategy,
    lists_disk,
    lists_memory,
    reading_memory,
)
from fastload.subset.run import Run
from fastload.subset.train_step import saved_model, steps_trained, untrained_encoder
from fastload.subset.trials import Trial, time_embedding, time_training


def estimate_step(run: Run) -> None:
    """Tell the listener what is needed. Raises DataError for too small a disk, UsageError for too little memory."""
    found = Estimate()
    columns, streaming = 0 if run.own_embeddings is None else run.own_embeddings.shape[1], False
    model = _add_training(run, found) if run.trains else None
    if run.embeds:
        columns, streaming = _add_embedding(run, found, model)
    size = run.choice.size or min(len(run.full), (run.choice.per_dimension or 0) * max(1, columns))
    _add_selection(run, found, columns, size, streaming)
    _add_writing(run, found, size)
    found.measure_free(run.out.parent, run.device)
    run.listener.needs(found)
    found.check(run.out.parent)


def _add_training(run: Run, found: Estimate) -> Autoencoder | None:
    """Add the autoencoder's training; return the model where it is trained already."""
    model = saved_model(run)
    if model is not None:
        found.reused.append("train")
        return model
    trial = time_training(run.full, run.training, device=run.device, engine=run.settings.engine)
    found.seconds["train"] = trial.seconds * (run.training.steps - steps_trained(run))
    _add_memory(found, trial)
    return None


def _add_embedding(run: Run, found: Estimate, model: Autoencoder | None) -> tuple[int, bool]:
    """Add the encoder's pass; return the embeddings' columns, and whether nobody stores them."""
    count = len(run.full)
    known = run.own_encoder if model is None else autoencoder_encoder(model)
    encoder = known or untrained_encoder(run)
    plan = plan_embedding(run, known)
    if plan.done:
        found.reused.append("embed")
        columns = plan.columns
    else:
        rows = min(chunk_rows(encoder.view), count)
        trial = time_embedding(run.full, encoder, rows, device=run.device, engine=run.settings.engine)
        columns = trial.columns
        found.seconds["embed"] = trial.seconds * (count - plan.first) / run.ranks.world_size
        _add_memory(found, trial, run.ranks.on_this_machine)
    if plan.streaming is None and not run.work.file("embeddings.npy").exists():
        found.disk += count * columns * 4
    return columns, plan.streaming is not None


def _add_selection(run: Run, found: Estimate, columns: int, size: int, streaming: bool) -> None:
    """Add what choosing `size` samples by `columns` takes; `streaming`: the lists are made in the encoder's pass."""
    count = len(run.full)
    stored = 0 if streaming else count * columns * 4
    found.memory += count * SAMPLE_BYTES + (0 if streaming else reading_memory(stored))
    found.memory += 0 if run.choice.own_scores is None else count * SCORE_BYTES
    found.seconds["analyse"] = count * CHOOSE_SECONDS + stored / 1e9
    if columns and run.choice.streams:
        length, groups = list_length(run.request(), run.rows.samples, columns), len(run.rows.samples.group_sizes)
        entries = columns * (length * groups + run.report_length(columns))
        found.memory += lists_memory(entries, run.threads)
        # The state before stays until the new one is whole.
        found.disk += 2 * lists_disk(entries) if streaming else 0
        if run.device.startswith("cuda") and not streaming:
            device = torch.device(run.device)
            lists = (length, groups), (run.report_length(columns), 1)
            processors = torch.cuda.get_device_properties(device).multi_processor_count
            listing = topk_cuda.cuda_bytes(columns, lists, min(count, most_rows(columns)), processors)
            found.device_memory = max(found.device_memory, listing)
            topk_cuda.compile_for(device)
    if columns and run.choice.embeds and not run.choice.streams:
        entries = 2 * (size + 2 * columns)
        seconds, memory = estimate_strategy(run.choice.strategy, count, columns, entries, run.threads)
        found.seconds["analyse"] += seconds
        found.memory += memory


def _add_writing(run: Run, found: Estimate, size: int) -> None:
    """Add what writing `size` samples takes."""
    file = run.full
    subset = int(size * run.images.pixel_bytes.mean())
    found.disk += subset + size * (64 + (0 if file.labels is None else file.labels.nbytes // len(file)))
    found.seconds["write"] = subset / 200e6 + (size / (400 * run.threads) if file.storage == "encoded" else 0)


def _add_memory(found: Estimate, trial: Trial, processes: int = 1) -> None:
    """The steps come one after the other, so the largest counts."""
    found.memory = max(found.memory, processes * (BASE_MEMORY + trial.memory))
    found.device_memory = max(found.device_memory, trial.device_memory)
