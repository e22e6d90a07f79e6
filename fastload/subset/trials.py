"""Short trials of training and embedding, by which build-subset knows how long they will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastload.common.memory import pinned_bytes
from fastload.common.processors import default_threads
from fastload.common.reproducible import reproducible
from fastload.embedding.autoencoder import VIEW, Autoencoder
from fastload.embedding.embed import embed_chunk
from fastload.embedding.encoder import Encoder
from fastload.embedding.training import Trainer, TrainingSettings
from fastload.errors import UsageError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.feeds.feed import stream
from fastload.order import AUTOENCODER
from fastload.packed.set import Packed
from fastload.subset.estimate import BASE_MEMORY, check_memory

TRIAL_SECONDS = 1.5
_TRIAL_ROWS = 128
_WEIGHT_COPIES = 3  # the weights, their gradients, the momentum


@dataclass(frozen=True)
class Trial:
    """What a short trial took.

    Arguments:
        seconds: a step, or a row.
        memory: bytes.
        device_memory: bytes on the device; 0 on the CPU.
        columns: of the embeddings that came out.
    """

    seconds: float
    memory: int
    device_memory: int
    columns: int = 0


def time_training(file: Packed, training: TrainingSettings, *, device: str, engine: str) -> Trial:
    """Time a few real training steps of a model that is thrown away: seconds a step."""
    channels = file.channels
    with torch.device("meta"):  # sizes without memory: what cannot fit must be refused before it is tried
        model = Autoencoder(channels, training.embedding_size)
        # Forward values are kept for the backward pass, which makes as many gradients.
        activations = 2 * layer_bytes(model, torch.zeros(2, channels, *VIEW.sides), sum) // 2 * training.batch_size
    weights = _WEIGHT_COPIES * sum(weight.numel() * weight.element_size() for weight in model.parameters())
    feed = _feed_memory(file, device, training.batch_size, 8 * channels * math.prod(VIEW.sides) * 4)
    least = BASE_MEMORY + weights + feed + (0 if device.startswith("cuda") else activations)
    check_memory(least)
    batches = stream(
        file,
        VIEW,
        batch_size=training.batch_size,
        steps=1000,
        phase=AUTOENCODER,
        seed=training.seed,
        device=device,
        engine=engine,
    )

    def run() -> Iterator[None]:
        trainer = Trainer(channels, training, device)
        for images, *_ in batches:
            trainer.train_on(images)
            yield

    with reproducible(device):
        seconds, device_memory = _timed(run(), device, "batch_size=")
    batches.close()
    return Trial(seconds, (0 if device_memory else activations) + feed + weights, device_memory)


def time_embedding(file: Packed, encoder: Encoder, rows: int, *, device: str, engine: str) -> Trial:
    """Time the encoder on some real images: seconds a row; memory for `rows` at once."""
    if isinstance(encoder.model, nn.Module):
        encoder.model.to(device)
    size = min(_TRIAL_ROWS, rows, len(file))
    batches = iter(EvaluationLoader(file, encoder.view, batch_size=size, device=device, engine=engine))
    shapes: list[tuple[int, int]] = []

    def run() -> Iterator[None]:
        for images, *_ in batches:
            shapes.append((embed_chunk(encoder, images).shape[1], images.shape[1]))
            yield

    with reproducible(device):
        seconds, device_memory = _timed(run(), device, "input_size=")
    batches.close()
    columns, channels = shapes[0]
    sample = torch.zeros(1, channels, *encoder.view.sides, device=device)
    largest = 3 * layer_bytes(encoder.model, sample, max) * rows if isinstance(encoder.model, nn.Module) else 0
    feed = _feed_memory(file, device, rows, 4 * sample.numel() * 4)
    device_memory = device_memory * rows // size
    return Trial(seconds / size, (0 if device_memory else largest) + feed, device_memory, columns)


def _feed_memory(file: Packed, device: str, rows: int, image_bytes: int) -> int:
    """Return the bytes of host memory that a stream of batches of `rows` takes: `image_bytes` each on the CPU.

    On CUDA images are made there, out of pinned buffers, one a thread, of what is stored.
    """
    if device.startswith("cuda"):
        return default_threads() * pinned_bytes(rows * -(-file.nbytes // len(file)))
    return rows * image_bytes


def _timed(steps: Iterator[None], device: str, argument: str) -> tuple[float, int]:
    """Return seconds a step after a warm-up, and the peak of device memory in bytes (0 on the CPU)."""
    cuda = device.startswith("cuda")

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize(device)

    try:
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        before = time.monotonic()
        for _ in range(2):
            next(steps, None)
        wait()
        began, count = time.monotonic(), 0
        while time.monotonic() - began < TRIAL_SECONDS and count < 50:
            try:
                next(steps)
            except StopIteration:
                break
            count += 1
        wait()
        now = time.monotonic()
        seconds = (now - began) / count if count else now - before
        return seconds, int(torch.cuda.max_memory_allocated(device) * 1.2) if cuda else 0
    except torch.OutOfMemoryError as error:
        raise UsageError(f'{device} has not enough memory; choose a smaller {argument}, or device="cpu"') from error


def layer_bytes(model: nn.Module, images: Tensor, combine: Callable[[list[int]], Any]) -> int:
    """Return the sum or maximum, by `combine`, of the bytes that the model's layers put out on `images`."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return int(combine(sizes)) if sizes else 0
