"""A source's samples in chunks, each worked on in a thread, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fastload.sources import Sample

_CHUNK_SAMPLES, _CHUNK_BYTES = 64, 1 << 20
_WAITING_BYTES = 1 << 28  # of files and of what was made of them, beside those at work; each file may have 256 MB

Chunk = list[tuple[int, Sample]]
Result = TypeVar("Result")


def chunks(stream: Iterable[tuple[int, Sample]]) -> Iterator[Chunk]:
    """Yield samples with their indices, so many together as keep a thread busy for a while."""
    chunk: Chunk = []
    size = 0
    for index, sample in stream:
        chunk.append((index, sample))
        size += len(sample) if isinstance(sample, bytes) else getattr(sample, "nbytes", _CHUNK_BYTES // 8)
        if len(chunk) == _CHUNK_SAMPLES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def map_in_threads(
    work: Callable[[Chunk], Result],
    chunks: Iterable[Chunk],
    workers: int,
    size_of: Callable[[Result], int] = lambda _: 0,
) -> Generator[Result, None, None]:
    """Yield work(chunk) in order, from threads, with at most two chunks a worker in memory, and few that are large.

    The first chunk (in order) that raises ends it; no thread is at work any more when this returns or raises.

    Arguments:
        work: what is done with a chunk.
        chunks: read in the calling thread, as they are wanted.
        workers: how many threads.
        size_of: the bytes that a result holds.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastload-pack")
    pending: deque[tuple[Future[Result], int]] = deque()

    def waiting() -> int:
        made = (future.result() for future, _ in pending if future.done() and future.exception() is None)
        return sum(size for _, size in pending) + sum(map(size_of, made))

    try:
        for chunk in chunks:
            size = sum(len(sample) for _, sample in chunk if isinstance(sample, bytes))
            pending.append((pool.submit(work, chunk), size))
            while pending and (len(pending) >= 2 * workers or waiting() > _WAITING_BYTES):
                yield pending.popleft()[0].result()
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
