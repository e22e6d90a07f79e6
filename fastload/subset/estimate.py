"""What build-subset will need: its sum, what there is of it, and counted work, memory and disk."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fastload.common.memory import available_memory, free_memory
from fastload.embedding.matrix_file import BUFFERS, CHUNK_BYTES
from fastload.errors import DataError, UsageError
from fastload.selection.exact import piece_rows
from fastload.selection.kmeans import ITERATIONS
from fastload.selection.stratified import strata_of

_SPARE_DISK = 8 << 20  # HDF5's own structures, JSON, and what file systems round up
ENTRY_BYTES = 12  # a list's entry: float32 value, int64 position
SAMPLE_BYTES = 56  # ids, positions and classes, the permuted order and its reverse, what is chosen
SCORE_BYTES = 64  # a sample of the strategy scores, beside those: 51 measured with 3,000,000
CHOOSE_SECONDS = 1e-7  # a sample; 8e-8 measured: 8.64 % of 200,000 from 216 dimensions, on two busy cores
_ELEMENT_SECONDS = 1e-8  # a value in a pass; there 4e-9 measured for its extent, 1.5e-8 for its moments
BASE_MEMORY = 150 << 20  # an estimate: torch's and Numba's code that is loaded on the way; a tiny run grew by 204 MB


@dataclass
class Estimate:
    """What a run will need, and what there is.

    Arguments:
        seconds: for each step that is still to be done.
        memory: bytes of its own.
        device_memory: bytes of its own on the device.
        disk: bytes in the folder of the output, the work folder included.
        memory_available: bytes; None while not known.
        device_memory_free: bytes; None where there is no such device.
        disk_free: bytes in the folder of the output.
        reused: steps whose result is there already.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    memory: int = BASE_MEMORY
    device_memory: int = 0
    disk: int = _SPARE_DISK
    memory_available: int | None = None
    device_memory_free: int | None = None
    disk_free: int = 0
    reused: list[str] = field(default_factory=list)

    def measure_free(self, folder: Path, device: str) -> None:
        """Note what there is: disk in `folder`, memory, and the memory of `device`."""
        self.disk_free = shutil.disk_usage(folder).free
        self.memory_available = available_memory()
        if device.startswith("cuda"):
            self.device_memory_free = free_memory(torch.device(device))

    def check(self, folder: Path) -> None:
        """Raise DataError for a disk, UsageError for a memory that cannot hold it."""
        if self.disk > self.disk_free:
            raise DataError(
                f"{folder}: has {_mb(self.disk_free)} free, but the subset and its work folder need about "
                f"{_mb(self.disk)}; make room, choose another place, or a smaller size="
            )
        if self.memory_available is not None and self.memory > self.memory_available:
            raise UsageError(
                f"about {_mb(self.memory)} of memory are needed, but {_mb(self.memory_available)} are available; "
                "choose a smaller batch_size= or embedding_size=, or input_size= for an encoder of your own"
            )
        if self.device_memory_free is not None and self.device_memory > self.device_memory_free:
            raise UsageError(
                f"about {_mb(self.device_memory)} of the device's memory are needed, but "
                f'{_mb(self.device_memory_free)} are free; choose a smaller batch_size=, or device="cpu"'
            )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def check_memory(needed: int) -> None:
    """Raise UsageError where so many bytes of memory are not available."""
    Estimate(memory=needed, memory_available=available_memory(), disk=0).check(Path())


def lists_memory(entries: int, threads: int) -> int:
    """Return the bytes that lists of so many entries take: each thread's, those merged, and a copy to choose from."""
    return entries * ENTRY_BYTES * (threads + 3)


def reading_memory(stored_bytes: int) -> int:
    """Return the bytes of the buffers through which stored embeddings are read."""
    return min(stored_bytes, BUFFERS * CHUNK_BYTES)


def lists_disk(entries: int) -> int:
    """Return the bytes of lists of so many entries in a file."""
    return entries * ENTRY_BYTES


def estimate_strategy(strategy: str, rows: int, dims: int, entries: int, threads: int) -> tuple[float, int]:
    """Return the seconds and the bytes of memory of a strategy that looks at stored embeddings more than once.

    An estimate: counted work at the rate that a product of matrices reaches now, which other work on the machine can
    make wrong several times over. 24·dims³ operations stand for the eigenvectors. For clusters it is the most, all of
    their passes: they end when no centre moves. Announced and taken for 2,000 × 1,024 on two busy cores: pca 23 s and
    15 to 27 s, kmeans 115 s and 3 s. Memory counts pieces of rows six times over.

    Arguments:
        strategy: its name.
        rows: of the embeddings.
        dims: columns of the embeddings.
        entries: of the lists of what the strategy ranks.
        threads: that make the lists.
    """
    square = 8 * dims * dims
    memory = 6 * 8 * piece_rows(dims) * dims + lists_memory(entries, threads)
    flops = 0.0
    if strategy == "pca":
        flops, memory = 4.0 * rows * dims**2 + 24.0 * dims**3, memory + 7 * square
    clusters = {"kmeans": min(rows, dims), "stratified": strata_of(rows)}.get(strategy, 0)
    if clusters:
        flops = 4.0 * ITERATIONS * rows * clusters * dims
        memory += 8 * clusters * (4 * dims + 3 * piece_rows(dims))
    passes = ITERATIONS + 3 if clusters else 3
    return flops / _flops_per_second() + passes * rows * dims * _ELEMENT_SECONDS, memory


def _flops_per_second() -> float:
    """Return how many floating-point operations a second products of float64 matrices reach here."""
    side, best = 384, math.inf
    matrix = np.ones((side, side))
    for _ in range(3):
        began = time.perf_counter()
        np.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / max(best, 1e-6)
