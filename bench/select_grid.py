"""`python -m fastload.bench select`: top-k down the columns beside the rivals and the time to read the matrix once."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastload.bench.measure import Contestant, compare, race
from fastload.bench.parts import Setting
from fastload.bench.rivals import Outcome
from fastload.bench.storage import evict, read_through
from fastload.common.arguments import integer
from fastload.common.memory import free_memory
from fastload.embedding.chunks import as_embeddings
from fastload.errors import UsageError
from fastload.selection.topk import TopK

ORDERS = ("random", "ascending", "descending")


@dataclass(frozen=True)
class Size:
    """Rows and columns of a float32 matrix, in memory or in a file."""

    rows: int
    dims: int
    from_disk: bool = False

    @property
    def bytes(self) -> int:
        return 4 * self.rows * self.dims

    def __str__(self) -> str:
        return f"{self.rows:,}×{self.dims}" + (" from disk" if self.from_disk else "")

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read `ROWSxDIMS` or `ROWSxDIMS:disk`."""
        size, _, where = text.partition(":")
        rows, _, dims = size.partition("x")
        if not (rows.isdecimal() and dims.isdecimal() and int(rows) and int(dims)) or where not in ("", "disk"):
            raise UsageError(f"size {text!r}: ROWSxDIMS or ROWSxDIMS:disk was expected, such as 1000000x216")
        return cls(int(rows), int(dims), where == "disk")


SIZES = (Size(50_000, 216), Size(1_000_000, 216), Size(1_000_000, 2048), Size(10_000_000, 216, True))
QUICK_SIZES = (Size(500, 24), Size(2000, 24, True))


@dataclass(frozen=True)
class Grid:
    """What is measured: every size with every order of rows and every k; `scratch` is where files are written."""

    sizes: tuple[Size, ...] = SIZES
    orders: tuple[str, ...] = ORDERS
    ks: tuple[int, ...] = (20, 200)
    scratch: Path | None = None

    def __post_init__(self) -> None:
        unknown = [order for order in self.orders if order not in ORDERS]
        if unknown:
            raise UsageError(f"order {unknown[0]!r}: there are {', '.join(ORDERS)}")
        if not all(1 <= integer("k", k) <= 1024 for k in self.ks):
            raise UsageError(f"k of {', '.join(map(str, self.ks))}: it is from 1 to 1,024")


def select(setting: Setting, grid: Grid, *, rivals: bool = True) -> Outcome:
    """Measure every cell of the grid that fits memory, disk and the time; the notes name the others."""
    outcome = Outcome()
    for size in grid.sizes:
        lacking = _lacking(size, grid.scratch, setting.device)
        if lacking:
            outcome.notes.append(f"select, {size}: not measured: {lacking}")
            continue
        for order in grid.orders:
            if setting.deadline.left == 0:
                outcome.notes.append(f"select, {size}, {order}: not measured: no time left (--minutes)")
            elif size.from_disk:
                outcome += _on_disk(setting, grid, size, order)
            else:
                outcome += _in_memory(setting, grid, size, order, rivals)
    return outcome


def block(size: Size, order: str, first: int, count: int) -> np.ndarray:
    """Return `count` rows of a matrix from row `first` on, float32; columns are random, or rise or fall by row."""
    rng = np.random.default_rng([first, size.dims])
    if order == "random":
        return rng.random((count, size.dims), dtype=np.float32)
    rows = np.arange(first, first + count, dtype=np.float64)
    if order == "descending":
        rows = size.rows - 1 - rows
    return (rows[:, None] / size.rows + rng.random((count, size.dims), dtype=np.float32) / size.rows).astype(np.float32)


def _blocks(size: Size, order: str) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, (64 << 20) // (4 * size.dims))
    for first in range(0, size.rows, step):
        yield first, block(size, order, first, min(step, size.rows - first))


# -- in memory -----------------------------------------------------------------------------------------------------


def _in_memory(setting: Setting, grid: Grid, size: Size, order: str, rivals: bool) -> Outcome:
    host = torch.empty((size.rows, size.dims))
    for first, rows in _blocks(size, order):
        host[first : first + len(rows)] = torch.from_numpy(rows)
    matrix = host.to(setting.device)
    del host
    outcome = Outcome()
    for k in grid.ks:
        k = min(k, size.rows)
        if setting.deadline.left == 0:
            outcome.notes.append(f"select, {size}, {order}, k={k}: not measured: no time left (--minutes)")
            continue
        running = []
        for name, (work, needed) in contenders(matrix, k).items():
            if name != "ours" and not rivals:
                continue
            free = free_memory(setting.device)
            if free is not None and needed > 0.9 * free:
                outcome.notes.append(
                    f"select, {size}, {order}, k={k}: {name} left out: needs {needed / 1e9:.1f} GB,"
                    f" {free / 1e9:.1f} GB are free"
                )
                continue
            # Ours takes so little time that what else the machine does would decide: some in a row count as one.
            repeats = setting.pick(10, 1) if name == "ours" else 1
            details = {
                "rows": size.rows,
                "dims": size.dims,
                "k": k,
                "order": order,
                "dtype": "float32",
                "repeats": repeats,
            }
            label = f"select, {size}, {order}, k={k}: {name}"
            work, limit = _repeated(work, repeats), _repeated(matrix.sum, repeats)
            amount = repeats * size.bytes / 1e9
            running.append(Contestant(label, "GB/s", amount, work, limit, "reading it once", None, details))
        results = race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)
        compare(results, f"select, {size}, {order}, k={k}: ours")
        outcome.results += results
    return outcome


def _repeated(work: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            work()

    return run


def contenders(matrix: torch.Tensor, k: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return by name what finds the k largest of every column, and the bytes of memory it takes beside the matrix.

    torch and NumPy give no order among equal values, do not count NaN, and argpartition does not sort: less than ours.
    """
    rows, dims = matrix.shape
    device = "cpu" if matrix.device.type == "cpu" else str(matrix.device)

    def ours() -> Any:
        lists = TopK(dims, k, device=device)
        lists.update(matrix, range(rows))
        return lists.result()

    found: dict[str, tuple[Callable[[], Any], int]] = {
        "ours": (ours, 0),
        "torch.topk(dim=0)": (lambda: matrix.topk(k, dim=0), 4 * rows * dims),
        "transpose + topk": (lambda: matrix.t().contiguous().topk(k, dim=1), 4 * rows * dims),
    }
    if matrix.device.type == "cpu":
        array = matrix.numpy()
        # It returns a position, int64, for every value.
        found["numpy.argpartition"] = (lambda: np.argpartition(array, rows - k, axis=0)[rows - k :], 8 * rows * dims)
    else:
        try:
            import cupy
        except ImportError:
            return found
        shared = cupy.from_dlpack(matrix)
        found["cupy.argpartition"] = (lambda: cupy.argpartition(shared, rows - k, axis=0)[rows - k :], 16 * rows * dims)
    return found


# -- from disk -----------------------------------------------------------------------------------------------------


def _on_disk(setting: Setting, grid: Grid, size: Size, order: str) -> Outcome:
    outcome = Outcome()
    with _file(size, order, grid.scratch) as path:
        for k in grid.ks:
            if setting.deadline.left == 0:
                outcome.notes.append(f"select, {size}, {order}, k={k}: not measured: no time left (--minutes)")
                continue
            contestant = _disk_contestant(setting, path, size, order, min(k, size.rows))
            outcome.results += race([contestant], setting.device, rounds=setting.rounds, deadline=setting.deadline)
    return outcome


def _disk_contestant(setting: Setting, path: Path, size: Size, order: str, k: int) -> Contestant:
    details: dict[str, Any] = {"rows": size.rows, "dims": size.dims, "k": k, "order": order, "dtype": "float32"}
    details |= {"own_memory_mb": 0.0, "anonymous_memory_mb": 0.0, "cached_before": 0.0}

    def ours() -> None:
        array = np.load(path, mmap_mode="r")
        lists = TopK(size.dims, k, device=str(setting.device))
        for first, rows in as_embeddings(array).chunks():
            lists.update(rows, range(first, first + len(rows)))
        lists.result()

    def measured() -> float:
        details["cached_before"] = max(details["cached_before"], evict(path))
        with _AnonymousMemory() as memory:
            began = time.perf_counter()
            ours()
            seconds = time.perf_counter() - began
        details["own_memory_mb"] = max(details["own_memory_mb"], round(memory.grown / 1e6, 1))
        details["anonymous_memory_mb"] = max(details["anonymous_memory_mb"], round(memory.peak / 1e6, 1))
        return seconds

    def read() -> float:
        evict(path)
        began = time.perf_counter()
        read_through(path)
        return time.perf_counter() - began

    name = f"select, {size}, {order}, k={k}: ours"
    return Contestant(name, "GB/s", size.bytes / 1e9, measured, read, "sequential read", None, details, inside=True)


@contextmanager
def _file(size: Size, order: str, scratch: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "embeddings.npy"
        with path.open("wb") as out:
            header = {"descr": "<f4", "fortran_order": False, "shape": (size.rows, size.dims)}
            np.lib.format.write_array_header_1_0(out, header)
            for _, rows in _blocks(size, order):
                out.write(rows.data)
            out.flush()
            os.fsync(out.fileno())  # what is not yet on the disk cannot be evicted
        yield path


class _AnonymousMemory:
    """The peak of this process's anonymous memory while the context lasts, in bytes, and how far it grew."""

    def __enter__(self) -> _AnonymousMemory:
        self.peak = self._start = anonymous_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_memory())

    @property
    def grown(self) -> int:
        return self.peak - self._start

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, anonymous_memory())


def anonymous_memory() -> int:
    """Return this process's RssAnon in bytes."""
    return _kilobytes("/proc/self/status", "RssAnon:") * 1024


def _kilobytes(path: str, name: str) -> int:
    with open(path, encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


# -- what fits -----------------------------------------------------------------------------------------------------


def _lacking(size: Size, scratch: Path | None, device: torch.device) -> str:
    free: float
    if size.from_disk:
        where = scratch or Path(tempfile.gettempdir())
        free = shutil.disk_usage(where).free
        kind = f"on the disk of {where}"
    else:
        free = min(free_memory(one) or math.inf for one in (torch.device("cpu"), device))
        kind = "of memory"
    if size.bytes > 0.9 * free:
        return f"it takes {size.bytes / 1e9:,.1f} GB {kind}, and {free / 1e9:,.1f} GB are free"
    return ""
