"""What build-subset will need, before it starts: time from short trials and counted work, memory and disk by count."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastload.common.memory import available_memory, free_memory, pinned_bytes
from fastload.common.processors import default_threads
from fastload.common.processors import processors as processors
from fastload.common.reproducible import reproducible
from fastload.embedding.autoencoder import VIEW, Autoencoder
from fastload.embedding.embed import embed_chunk
from fastload.embedding.encoder import Encoder
from fastload.embedding.rows import BUFFERS, CHUNK_BYTES
from fastload.embedding.training import Trainer, Training
from fastload.errors import DataError, UsageError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.feeds.feed import stream
from fastload.order import AUTOENCODER
from fastload.packed.set import Packed
from fastload.selection.exact import piece_rows
from fastload.selection.kmeans import ITERATIONS

TRIAL_SECONDS = 1.5
_TRIAL_ROWS = 128
_WEIGHT_COPIES = 3  # the weights, their gradients, the momentum
_SPARE_DISK = 8 << 20  # HDF5's own structures, JSON, and what file systems round up
ENTRY_BYTES = 12  # a list's entry: float32 value, int64 position
SAMPLE_BYTES = 56  # ids, positions and classes, the permuted order and its reverse, what is chosen
CHOOSE_SECONDS = 1e-7  # a sample; 8e-8 measured: 8.64 % of 200,000 from 216 dimensions, on two busy cores
_ELEMENT_SECONDS = 1e-8  # a value in a pass; there 4e-9 measured for its extent, 1.5e-8 for its moments
BASE_MEMORY = 150 << 20  # an estimate: torch's and Numba's code that is loaded on the way; a tiny run grew by 204 MB


@dataclass
class Needs:
    """What a run will need.

    `seconds`: for each step that is still to be done. `memory`, `device_memory`: bytes of its own. `disk`: bytes
    in the folder of the output, the work folder included. `reused`: steps whose result is there already.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    memory: int = BASE_MEMORY
    device_memory: int = 0
    disk: int = _SPARE_DISK
    memory_available: int | None = None
    device_memory_free: int | None = None
    disk_free: int = 0
    reused: list[str] = field(default_factory=list)

    def check(self, folder: Path) -> None:
        """Raise DataError for a disk, UsageError for a memory that cannot hold it."""
        if self.disk > self.disk_free:
            raise DataError(
                f"{folder}: has {_mb(self.disk_free)} free, but the subset and its work folder need about "
                f"{_mb(self.disk)}; make room, choose another place, or a smaller --size"
            )
        if self.memory_available is not None and self.memory > self.memory_available:
            raise UsageError(
                f"about {_mb(self.memory)} of memory are needed, but {_mb(self.memory_available)} are available; "
                "choose a smaller --batch-size or --embedding-size, or --input-size for an encoder of your own"
            )
        if self.device_memory_free is not None and self.device_memory > self.device_memory_free:
            raise UsageError(
                f"about {_mb(self.device_memory)} of the device's memory are needed, but "
                f"{_mb(self.device_memory_free)} are free; choose a smaller --batch-size, or --device cpu"
            )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def measure_free(needs: Needs, folder: Path, device: str) -> None:
    """Note what there is: disk in `folder`, memory, and the device's memory."""
    needs.disk_free = shutil.disk_usage(folder).free
    needs.memory_available = available_memory()
    if device.startswith("cuda"):
        needs.device_memory_free = free_memory(torch.device(device))


@dataclass(frozen=True)
class Trial:
    """One timed part: seconds a step (or row), bytes of memory and of device memory; `columns` that came out."""

    seconds: float
    memory: int
    device_memory: int
    columns: int = 0


def try_training(file: Packed, training: Training, *, device: str, engine: str) -> Trial:
    """Time a few real training steps of a model that is thrown away: seconds a step."""
    channels = file.shape[2] if file.shape is not None else 3
    with torch.device("meta"):  # sizes without memory: what cannot fit must be refused before it is tried
        model = Autoencoder(channels, training.embedding_size)
        # Forward values are kept for the backward pass, which makes as many gradients.
        activations = 2 * layer_bytes(model, torch.zeros(2, channels, *VIEW.size), sum) // 2 * training.batch_size
    weights = _WEIGHT_COPIES * sum(weight.numel() * weight.element_size() for weight in model.parameters())
    feed = _feed_memory(file, device, training.batch_size, 8 * channels * math.prod(VIEW.size) * 4)
    least = BASE_MEMORY + weights + feed + (0 if device.startswith("cuda") else activations)
    Needs(memory=least, memory_available=available_memory(), disk=0).check(Path())
    batches = stream(
        file, VIEW, batch_size=training.batch_size, steps=1000, phase=AUTOENCODER, seed=training.seed,
        device=device, engine=engine,
    )  # fmt: skip

    def run() -> Iterator[None]:
        trainer = Trainer(channels, training, device)
        for images, *_ in batches:
            trainer.train_on(images)
            yield

    with reproducible(device):
        seconds, device_memory = _timed(run(), device, "--batch-size")
    batches.close()
    return Trial(seconds, (0 if device_memory else activations) + feed + weights, device_memory)


def try_embedding(file: Packed, encoder: Encoder, rows: int, *, device: str, engine: str) -> Trial:
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
        seconds, device_memory = _timed(run(), device, "--input-size")
    batches.close()
    columns, channels = shapes[0]
    sample = torch.zeros(1, channels, *encoder.view.size, device=device)
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


def _timed(steps: Iterator[None], device: str, option: str) -> tuple[float, int]:
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
        raise UsageError(f"{device} has not enough memory; choose a smaller {option}, or --device cpu") from error


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


def lists_memory(entries: int, threads: int) -> int:
    """Return the bytes that lists of so many entries take: each thread's, those merged, and a copy to choose from."""
    return entries * ENTRY_BYTES * (threads + 3)


def reading_memory(stored_bytes: int) -> int:
    """Return the bytes of the buffers through which stored embeddings are read."""
    return min(stored_bytes, BUFFERS * CHUNK_BYTES)


def lists_disk(entries: int) -> int:
    """Return the bytes of lists of so many entries in a file."""
    return entries * ENTRY_BYTES


def strategy_needs(strategy: str, rows: int, dims: int, entries: int, threads: int) -> tuple[float, int]:
    """Return the seconds and the bytes of memory of a strategy that looks at stored embeddings more than once.

    An estimate: counted work at the rate that a product of matrices reaches now, which other work on the machine can
    make wrong several times over. 24·dims³ operations stand for the eigenvectors. For kmeans it is the most, all of its
    passes: it ends when no centre moves. Announced and taken for 2,000 × 1,024 on two busy cores: pca 23 s and 15 to
    27 s, kmeans 115 s and 3 s. Memory counts pieces of rows six times over.

    Arguments:
        rows, dims: of the embeddings. entries: of the lists of what the strategy ranks.
    """
    square = 8 * dims * dims
    memory = 6 * 8 * piece_rows(dims) * dims + lists_memory(entries, threads)
    flops = 0.0
    if strategy == "pca":
        flops, memory = 4.0 * rows * dims**2 + 24.0 * dims**3, memory + 7 * square
    elif strategy == "kmeans":
        clusters = min(rows, dims)
        flops, memory = 4.0 * ITERATIONS * rows * clusters * dims, memory + 4 * 8 * clusters * dims
    passes = ITERATIONS + 2 if strategy == "kmeans" else 3
    return flops / _flops() + passes * rows * dims * _ELEMENT_SECONDS, memory


def _flops() -> float:
    """Return how many floating-point operations a second products of float64 matrices reach here."""
    side, best = 384, math.inf
    matrix = np.ones((side, side))
    for _ in range(3):
        began = time.perf_counter()
        np.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / max(best, 1e-6)
