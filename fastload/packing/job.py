"""The work of `pack`: every sample of a source, in threads, to its row of the packed file."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fastload.common.processors import processors
from fastload.common.progress import progress_bar
from fastload.common.text import plural
from fastload.errors import DataError, UsageError
from fastload.packed.classes import class_counts, label_map, mapped_labels
from fastload.packed.hdf5_reading import MOST_CHANNELS
from fastload.packed.labels import label_faults
from fastload.packed.writer import PackedWriter
from fastload.packing.decoding import ALPHA, BrokenImage, Decoded, decode_sample
from fastload.packing.encoded_check import EncodedCheck, Kept
from fastload.packing.summary import PackSummary
from fastload.sources import Sample, Source
from fastload.sources.base import Channels, NumberedNames

_CHUNK_SAMPLES, _CHUNK_BYTES = 64, 1 << 20
_WAITING_BYTES = 1 << 28  # of files in memory, beside the one that is read; each may have 256 MB

Chunk = list[tuple[int, Sample]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class PackOptions:
    """How samples are stored; see `pack`."""

    order: str
    seed: int
    resize: int | None
    channels: Channels
    encoded: bool
    max_pixels: int | None
    skip_broken: bool

    def __post_init__(self) -> None:
        if self.order not in ("source", "shuffled"):
            raise UsageError(f"order={self.order!r} is neither 'source' nor 'shuffled'")
        if self.resize is not None and not 1 <= self.resize <= 8192:
            raise UsageError(f"resize={self.resize} is not between 1 and 8192")
        fits = (
            1 <= self.channels <= MOST_CHANNELS if isinstance(self.channels, int) else self.channels in (None, "as-is")
        )
        if not fits:
            raise UsageError(f"channels={self.channels!r} is neither 'as-is' nor between 1 and {MOST_CHANNELS}")
        for name, value in (("resize=", self.resize), ("channels=", self.channels)):
            if self.encoded and value is not None:
                raise UsageError(
                    f"encoded=True keeps the files as they are, so {name} cannot go with it; leave one out"
                )

    @property
    def decoded_channels(self) -> int | None:
        """How many channels `decode_sample` is asked for: None for those that a sample has."""
        return 3 if self.channels is None else None if self.channels == "as-is" else self.channels


class PackJob:
    """One packing: every index of the source goes through `_store`, in a worker, to its row.

    Arguments:
        source: what is packed.
        name: what messages call it.
        out: the file to write.
        options: how samples are stored.
        check: for encoded storage, what decides which files are kept; None stores pixels.
        wanted: class names to number the labels by; None for the source's own.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        out: Path,
        options: PackOptions,
        check: EncodedCheck | None,
        wanted: Sequence[str] | None,
    ) -> None:
        self.source, self.name, self.out, self.options, self.check = source, name, out, options, check
        count = len(source)
        self.index_of = np.arange(count, dtype=np.int64)  # of each row
        if options.order == "shuffled":
            from fastload.order import permutation  # here, since it loads Numba

            self.index_of = permutation(count, options.seed)
        self.row_of = np.empty_like(self.index_of)
        self.row_of[self.index_of] = np.arange(count)
        self.classes, self.mapping = list(source.classes), None
        if wanted is not None:
            if not source.classes:
                raise UsageError(
                    f"{name}: does not name its classes, so classes_from= cannot number them; leave it out"
                )
            self.mapping = label_map(source.classes, wanted, source=name, target="the file of classes_from=")
            self.classes = list(wanted)
        self.description = {"kind": source.kind, **source.details, "order": options.order}
        self.description |= {"seed": options.seed} if options.order == "shuffled" else {}
        self.description |= {"resize": options.resize} if options.resize is not None else {}
        self.description |= {"channels": options.channels} if options.channels is not None else {}
        self.shape: tuple[int, int, int] | None = None  # of raw images
        self.shape_from = ""
        self.broken: list[tuple[int, str]] = []
        self.faulty = _faulty(source.labels, source.classes)

    def run(self, workers: int | None, progress: bool, started: float) -> PackSummary:
        stream = self.source.read()
        if self.check is None:
            stream = self._find_shape(stream)
        lost: Counter[str] = Counter()
        turned = done = 0
        with self._writer() as writer:
            stored = map_in_threads(lambda chunk: self._store(writer, chunk), _chunks(stream), workers or processors())
            # Closed before the writer is, or threads could write to a descriptor that is somebody else's by then.
            with progress_bar("packing", len(self.source), quiet=not progress) as advance, closing(stored):
                for part in stored:
                    for row, file in part.kept:  # in the source's order, so that the file depends on no thread
                        writer.append(row, file.data, shape=file.sides)
                    advance(part.count)
                    done += part.count
                    turned += sum(file.turned for _, file in part.kept)
                    lost += part.lost
            if done != len(self.source):
                raise DataError(
                    f"{self.name}: changed while it was read ({done:,} of {len(self.source):,} images found again)"
                )
            if len(self.broken) == done:
                raise self._nothing_stored()
            labels = self._labels()
            writer.labels = None if labels is None else labels[self.index_of]
        kept = np.ones(len(self.source), dtype=bool)
        kept[[index for index, _ in self.broken]] = False
        return PackSummary(
            path=self.out,
            kind=self.source.kind,
            images=int(kept.sum()),
            ignored=self.source.ignored,
            counts=class_counts(None if labels is None else labels[kept], self.classes),
            shape=self.shape,
            storage="raw" if self.check is None else "encoded",
            order=self.options.order,
            image_bytes=writer.image_bytes,
            file_bytes=self.out.stat().st_size,
            seconds=time.perf_counter() - started,
            skipped=[f"{self.source.names[index]}: {reason}" for index, reason in sorted(self.broken)],
            left_out=[*self.source.left_out, *_lost_channels(lost, self.check is not None)],
            passed_over=self.source.passed_over,
            notes=self.source.notes,
            unlabelled=labels is None,
            turned=turned,
        )

    def _labels(self) -> np.ndarray | None:
        """Return the labels in the source's order, which some sources know only once they have been read."""
        labels = self.source.labels
        return None if labels is None else mapped_labels(labels, self.mapping, self.name)

    def _find_shape(self, stream: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample]]:
        """Take the images' shape from the first that can be stored; return the stream from its start."""
        resize, channels = self.options.resize, self.options.decoded_channels
        if resize is not None and channels is not None:
            self.shape = (resize, resize, channels)
            return stream
        seen: Chunk = []
        for index, sample in stream:
            found = self._refused(index, sample) or self._decoded(sample)
            if isinstance(found, BrokenImage):
                self._note_broken(index, found)
                seen.append((index, found))
                continue
            height, width, count = found.pixels.shape
            self.shape = (height, width, count)
            self.shape_from = self.source.names[index]
            seen.append((index, sample))
            break
        else:
            raise self._nothing_stored()
        self.broken.clear()  # they come again
        return itertools.chain(seen, stream)

    def _nothing_stored(self) -> DataError:
        index, reason = min(self.broken)
        return DataError(
            f"{self.name}: not one of its {len(self.broken):,} images can be decoded and stored; the first, "
            f"'{self.source.names[index]}', {reason}"
        )

    def _writer(self) -> PackedWriter:
        names, ids = self.source.names, self.source.ids
        return PackedWriter(
            self.out,
            shape=None if self.shape is None else (len(self.source), *self.shape),
            count=None if self.check is None else len(self.source),
            ids=self.index_of if ids is None else ids[self.index_of],
            names=None if isinstance(names, NumberedNames) else [names[index] for index in self.index_of.tolist()],
            classes=self.classes,
            source=self.description,
        )

    def _store(self, writer: PackedWriter, chunk: Chunk) -> _Stored:
        lost: Counter[str] = Counter()
        kept: list[tuple[int, Kept]] = []
        for (index, _), found in zip(chunk, self._converted(chunk), strict=True):
            row = int(self.row_of[index])
            if isinstance(found, BrokenImage):
                self._note_broken(index, found)
                writer.skip(row)
                continue
            lost.update([found.left_out] if found.left_out else [])
            if isinstance(found, Kept):
                kept.append((row, found))
            else:
                writer.write(row, found.pixels)
        return _Stored(len(chunk), kept, lost)

    def _converted(self, chunk: Chunk) -> Iterator[Decoded | Kept | BrokenImage]:
        """Yield what is stored of each sample, its own bytes or pixels of the one shape, or why it cannot be."""
        refused = [self._refused(index, sample) for index, sample in chunk]
        if self.check is None:
            for (_, sample), reason in zip(chunk, refused, strict=True):
                yield reason or self._of_the_shape(self._decoded(sample))
            return
        files = (sample for (_, sample), reason in zip(chunk, refused, strict=True) if reason is None)
        checked = self.check([sample for sample in files if isinstance(sample, bytes)])
        for reason in refused:
            yield next(checked) if reason is None else reason

    def _refused(self, index: int, sample: Sample) -> BrokenImage | None:
        """Return why a sample is refused before its image is decoded."""
        if isinstance(sample, DataError):
            return sample if isinstance(sample, BrokenImage) else BrokenImage(str(sample))
        if index in self.faulty:
            return BrokenImage(self.faulty[index])
        if self.check is not None and self.source.sizes is not None:
            size = self.source.sizes[index]
            if not isinstance(sample, bytes) or len(sample) != size:
                return BrokenImage("changed while it was read", "pack again")
        return None

    def _decoded(self, sample: Sample) -> Decoded | BrokenImage:
        options = self.options
        try:
            return decode_sample(
                sample, options.resize, channels=options.decoded_channels, max_pixels=options.max_pixels
            )
        except BrokenImage as error:
            return error

    def _of_the_shape(self, found: Decoded | BrokenImage) -> Decoded | BrokenImage:
        if isinstance(found, BrokenImage) or found.pixels.shape == self.shape:
            return found
        assert self.shape is not None
        other = f"but '{self.shape_from}' before it"
        (height, width, channels), (first_height, first_width, first_channels) = found.pixels.shape, self.shape
        if channels != first_channels:
            return BrokenImage(
                f"has {plural(channels, 'channel')}, {other} has {first_channels}", "make them alike with channels=N"
            )
        return BrokenImage(
            f"is {height}×{width} (height × width), {other} is {first_height}×{first_width}",
            "make them one size with resize=S, or keep the files with encoded=True",
        )

    def _note_broken(self, index: int, error: BrokenImage) -> None:
        if not self.options.skip_broken:
            where = f"{self.name}: '{self.source.names[index]}'"
            mend = f"; {error.mend}" if error.mend else ""
            raise DataError(f"{where} {error}{mend}, or pack with skip_broken=True") from error
        self.broken.append((index, str(error)))


@dataclass(frozen=True)
class _Stored:
    """What came of a chunk.

    Arguments:
        count: its samples.
        kept: files that are still to be stored, by their rows.
        lost: how many images lost which channel.
    """

    count: int
    kept: list[tuple[int, Kept]]
    lost: Counter[str]


def _faulty(labels: np.ndarray | None, classes: Sequence[str]) -> dict[int, str]:
    """Return what is wrong with labels, by index; those of a dataset are known, and checked, only as it is read."""
    faults = [] if labels is None else label_faults(labels, classes)
    return {
        index: f"has label {labels[index].tolist()}, {fault.reason}"  # type: ignore[index]
        for fault in faults
        for index in fault.rows.tolist()
    }


def _lost_channels(lost: Counter[str], encoded: bool) -> list[str]:
    def mend(what: str) -> str:
        return "which no feed reads" if encoded else f"channels={4 if what == ALPHA else what.split()[-1]} keeps it"

    return [f"{what} of {plural(count, 'image')} ({mend(what)})" for what, count in sorted(lost.items())]


def _chunks(stream: Iterable[tuple[int, Sample]]) -> Iterator[Chunk]:
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
    work: Callable[[Chunk], Result], chunks: Iterable[Chunk], workers: int
) -> Generator[Result, None, None]:
    """Yield work(chunk) in order, from threads, with at most two chunks a worker in memory, and few of large files.

    The first chunk (in order) that raises ends it; no thread is at work any more when this returns or raises.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastload-pack")
    pending: deque[tuple[Future[Result], int]] = deque()
    waiting = 0  # bytes
    try:
        for chunk in chunks:
            size = sum(len(sample) for _, sample in chunk if isinstance(sample, bytes))
            pending.append((pool.submit(work, chunk), size))
            waiting += size
            while len(pending) >= 2 * workers or waiting > _WAITING_BYTES:
                done, size = pending.popleft()
                yield done.result()
                waiting -= size
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
