"""`fastload pack`: any source of labelled images becomes one packed file."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from fastload.arguments import path_of, whole
from fastload.decoding import BrokenImage, check_encoded, decode, strict_pillow
from fastload.errors import DataError, UsageError
from fastload.labels import label_faults
from fastload.packed_writer import PackedWriter, check_target
from fastload.processors import processors
from fastload.progress import progress_bar
from fastload.sources import Sample, Source, open_source

_CHUNK_SAMPLES, _CHUNK_BYTES = 64, 1 << 20
_LISTED = 20

Chunk = list[tuple[int, Sample]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class PackSummary:
    """What `pack` did; `str()` is for people.

    Attributes:
        path: the file written. kind: of the source. images: how many are in it. ignored: files that are no samples.
        passed_over: those by kind, such as {".txt": 2}. notes: what people should know of the source.
        counts: images by class name (by label where classes have no names; empty where labels are no classes).
        shape: (H, W, 3) of raw images, None for encoded ones. storage: "raw" or "encoded".
        order: "source" or "shuffled". image_bytes, file_bytes: sizes. seconds: time taken.
        skipped: the broken images left out, as "name: reason", in sorted order.
    """

    path: Path
    kind: str
    images: int
    ignored: int
    counts: dict[str, int]
    shape: tuple[int, int, int] | None
    storage: str
    order: str
    image_bytes: int
    file_bytes: int
    seconds: float
    skipped: list[str]
    passed_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unlabelled: bool = False

    def __str__(self) -> str:
        size = f"{self.file_bytes / 1e6:,.1f} MB"
        each = "×".join(map(str, self.shape)) if self.shape else f"{self.image_bytes / self.images / 1e3:,.1f} kB each"
        lines = [
            f"{self.path}: {plural(self.images, 'image')} from {self.kind}",
            f"  stored   {self.storage}, {each}, {size}",
            f"  classes  {'none: the images have no labels' if self.unlabelled else describe_counts(self.counts)}",
            f"  order    {'shuffled' if self.order == 'shuffled' else 'as in the source'}",
        ]
        if self.ignored:
            kinds = ", ".join(f"{count:,} {_one(kind, count)}" for kind, count in self.passed_over.items())
            lines.append(f"  ignored  {plural(self.ignored, 'other file')}{f': {kinds}' if kinds else ''}")
        lines += [f"  note     {note}" for note in self.notes]
        if self.skipped:
            lines.append(f"  skipped  {plural(len(self.skipped), 'broken image')}")
            lines += [f"           {text}" for text in self.skipped[:_LISTED]]
            if len(self.skipped) > _LISTED:
                lines.append(f"           … and {len(self.skipped) - _LISTED:,} more")
        rate = self.images / max(self.seconds, 1e-9)
        return "\n".join([*lines, f"  took     {self.seconds:,.1f} s, {rate:,.0f} images/s"])


def pack(
    source: Any,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    order: Literal["source", "shuffled"] = "source",
    seed: int = 0,
    resize: int | None = None,
    encoded: bool = False,
    workers: int | None = None,
    skip_broken: bool = False,
    images: str | None = None,
    labels: str | None = None,
    class_level: int | None = None,
    unlabelled: bool = False,
    progress: bool = True,
) -> PackSummary:
    """Write a source's images and labels into one packed file, which appears when it is complete.

    Arguments:
        source: a folder of class folders, or a tar or zip of one, a CIFAR archive, an .npz, WebDataset tars, an HDF5
            file (all by path or pattern), or a map-style dataset (torch, Hugging Face). docs/sources.md says what each
            becomes.
        out: the file to write; a packed file of that name is replaced.
        split: the part of the source to take, such as "train".
        order: "source" keeps the sorted order, "shuffled" writes rows in a permutation drawn from `seed`; `ids`
            tell the sorted index either way.
        resize: S brings the shorter side to S, antialiased, and cuts the centre square.
        encoded: keep JPEG and PNG files' bytes instead of their pixels.
        workers: decoding threads; one for each CPU when None. The file does not depend on it.
        skip_broken: leave images that cannot be decoded out, and list them in the summary.
        images, labels: names of the arrays or datasets in an .npz or your own HDF5 file, or of the keys of a dataset.
        class_level: how many levels below the source the class folders stand, where that does not follow from what
            is there: of "train/cats/0.jpg", 2 makes "cats" the class.
        unlabelled: leave labels and classes out, and take all images of the source (or split), wherever they stand.
        progress: show a bar where stderr is a terminal.

    Raises UsageError for options that cannot be served, DataError for a source that is damaged, images of
    several sizes without `resize` or `encoded`, a full disk. Nothing is left behind then.
    """
    started, out = time.perf_counter(), path_of("out", out)
    seed = whole("seed", seed)
    resize = None if resize is None else whole("resize", resize)
    workers = None if workers is None else whole("workers", workers)
    class_level = None if class_level is None else whole("class_level", class_level)
    _check_options(order, seed, resize, encoded, workers)
    if isinstance(source, str) and not source:  # Path would take it for the folder that one stands in
        raise UsageError("SOURCE is an empty text; name a folder, an archive or a file")
    check_target(out)
    with progress_bar("listing", None, quiet=not progress):
        opened = open_source(
            source, split=split, images=images, labels=labels, class_level=class_level, unlabelled=unlabelled
        )
    if not len(opened):
        raise DataError(f"{_named(source)}: holds not one image")
    if encoded and opened.sizes is None:
        raise UsageError(f"{_named(source)}: holds pixels, not JPEG or PNG files; pack it without --encoded")
    with strict_pillow():
        job = _Job(opened, _named(source), out, order, seed, resize, encoded, skip_broken)
        return job.run(workers or processors(), progress, started)


def _check_options(order: str, seed: int, resize: int | None, encoded: bool, workers: int | None) -> None:
    if order not in ("source", "shuffled"):
        raise UsageError(f"order '{order}' is neither 'source' nor 'shuffled'")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed {seed} is not between 0 and 2^64 - 1")
    if resize is not None and not 1 <= resize <= 8192:
        raise UsageError(f"--resize {resize} is not between 1 and 8192")
    if encoded and resize is not None:
        raise UsageError("--encoded keeps the files as they are, so --resize cannot go with it; leave one out")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers} is not a positive number of threads")


class _Job:
    """One packing: every index of the source goes through `_store`, in a worker, to its row."""

    def __init__(
        self,
        source: Source,
        name: str,
        out: Path,
        order: str,
        seed: int,
        resize: int | None,
        encoded: bool,
        skip_broken: bool,
    ) -> None:
        self.source, self.name, self.out, self.order = source, name, out, order
        self.resize, self.encoded, self.skip_broken = resize, encoded, skip_broken
        count = len(source)
        self.index_of = np.arange(count, dtype=np.int64)  # of each row
        if order == "shuffled":
            from fastload.order import permutation  # here, since it loads Numba

            self.index_of = permutation(count, seed)
        self.row_of = np.empty_like(self.index_of)
        self.row_of[self.index_of] = np.arange(count)
        self.description = {"kind": source.kind, **source.details, "order": order}
        self.description |= {"seed": seed} if order == "shuffled" else {}
        self.description |= {"resize": resize} if resize is not None else {}
        self.shape: tuple[int, int, int] | None = None
        self.shape_from = ""
        self.broken: list[tuple[int, str]] = []
        self.faulty = _faulty(source.labels, source.classes)

    def run(self, workers: int, progress: bool, started: float) -> PackSummary:
        stream = self.source.read()
        if not self.encoded:
            stream = self._find_shape(stream)
        with self._writer() as writer:
            done = 0
            chunks = map_in_threads(lambda chunk: self._store(writer, chunk), _chunks(stream), workers)
            # Closed before the writer is, or threads could write to a descriptor that is somebody else's by then.
            with progress_bar("packing", len(self.source), quiet=not progress) as advance, closing(chunks):
                for count in chunks:
                    advance(count)
                    done += count
            if done != len(self.source):
                raise DataError(
                    f"{self.name}: changed while it was read ({done:,} of {len(self.source):,} images found again)"
                )
            if self.source.labels is not None:
                writer.labels = self.source.labels[self.index_of]
        return self._summary(writer, time.perf_counter() - started)

    def _find_shape(self, stream: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample]]:
        """Take the images' shape from the first that can be decoded; return the stream from its start."""
        if self.resize is not None:
            self.shape = (self.resize, self.resize, 3)
            return stream
        seen: Chunk = []
        for index, sample in stream:
            seen.append((index, sample))
            try:
                self.shape = decode(sample).shape
            except BrokenImage as error:
                self._note_broken(index, error)
                continue
            self.shape_from = self.source.names[index]
            break
        else:
            raise DataError(f"{self.name}: not one of its {len(self.source):,} images can be decoded")
        self.broken.clear()  # they come again
        return itertools.chain(seen, stream)

    def _writer(self) -> PackedWriter:
        ids = self.index_of if self.source.ids is None else self.source.ids[self.index_of]
        return PackedWriter(
            self.out,
            shape=None if self.shape is None else (len(self.source), *self.shape),
            sizes=None if self.source.sizes is None or not self.encoded else self.source.sizes[self.index_of],
            ids=ids,
            classes=self.source.classes,
            source=self.description,
        )

    def _store(self, writer: PackedWriter, chunk: Chunk) -> int:
        for index, sample in chunk:
            row = int(self.row_of[index])
            try:
                data = self._converted(index, sample)
            except BrokenImage as error:
                self._note_broken(index, error)
                writer.skip(row)
                continue
            writer.write(row, data)
        return len(chunk)

    def _converted(self, index: int, sample: Sample) -> bytes | np.ndarray:
        """Return what is stored of a sample: its own bytes, or pixels of the one shape."""
        if index in self.faulty:
            raise BrokenImage(self.faulty[index])
        if self.encoded and isinstance(sample, bytes):
            assert self.source.sizes is not None
            if len(sample) != self.source.sizes[index]:
                raise DataError(f"{self._where(index)} changed while it was read; pack again")
            try:
                check_encoded(sample)
            except BrokenImage:
                raise
            except DataError as error:
                raise DataError(f"{self._where(index)} {error}") from error
            return sample
        pixels = decode(sample, self.resize)
        if pixels.shape != self.shape:
            assert self.shape is not None
            raise DataError(
                f"{self._where(index)} is {pixels.shape[0]}×{pixels.shape[1]} (height × width), but "
                f"'{self.shape_from}' before it is {self.shape[0]}×{self.shape[1]}; "
                "make them one size with --resize S, or keep the files with --encoded"
            )
        return pixels

    def _note_broken(self, index: int, error: BrokenImage) -> None:
        if not self.skip_broken:
            raise DataError(f"{self._where(index)} {error}; mend or remove it, or pack with --skip-broken") from error
        self.broken.append((index, str(error)))

    def _where(self, index: int) -> str:
        return f"{self.name}: '{self.source.names[index]}'"

    def _summary(self, writer: PackedWriter, seconds: float) -> PackSummary:
        kept = np.ones(len(self.source), dtype=bool)
        kept[[index for index, _ in self.broken]] = False
        labels = self.source.labels
        images = int(kept.sum())
        return PackSummary(
            path=self.out,
            kind=self.source.kind,
            images=images,
            ignored=self.source.ignored,
            counts={} if labels is None else class_counts(labels[kept], self.source.classes),
            shape=self.shape,
            storage="encoded" if self.encoded else "raw",
            order=self.order,
            image_bytes=writer.image_bytes,
            file_bytes=self.out.stat().st_size,
            seconds=seconds,
            skipped=[f"{self.source.names[index]}: {reason}" for index, reason in sorted(self.broken)],
            passed_over=self.source.passed_over,
            notes=self.source.notes,
            unlabelled=labels is None,
        )


def _faulty(labels: np.ndarray | None, classes: Sequence[str]) -> dict[int, str]:
    """Return what is wrong with labels, by index; those of a dataset are known, and checked, only as it is read."""
    faults = [] if labels is None else label_faults(labels, classes)
    return {
        index: f"has label {labels[index].tolist()}, {fault.reason}"  # type: ignore[index]
        for fault in faults
        for index in fault.rows.tolist()
    }


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
    """Yield work(chunk) in order, from threads, with at most two chunks a worker in memory.

    The first chunk (in order) that raises ends it; no thread is at work any more when this returns or raises.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastload-pack")
    pending: deque[Future[Result]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(work, chunk))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def class_counts(labels: np.ndarray, classes: Any) -> dict[str, int]:
    """Return how many samples each class has, by name or else by label; {} where labels are not class indices."""
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        return {}
    found, counts = np.unique(labels, return_counts=True)
    by_label = {int(label): int(count) for label, count in zip(found, counts, strict=True)}
    for label in range(len(classes)):
        by_label.setdefault(label, 0)
    named = {label: classes[label] if 0 <= label < len(classes) else str(label) for label in sorted(by_label)}
    if len(set(named.values())) < len(named):  # two classes of one name
        named = {label: f"{name} ({label})" for label, name in named.items()}
    return {name: by_label[label] for label, name in named.items()}


def describe_counts(counts: dict[str, int]) -> str:
    """Return class counts on one line: each class of a few, the spread of many."""
    if not counts:
        return "none: the labels are not class indices"
    low, high = min(counts.values()), max(counts.values())
    spread = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    if len(counts) > 10:
        return f"{len(counts):,}, {spread}"
    if low == high:
        return f"{len(counts):,}, {spread}: " + ", ".join(counts)
    return f"{len(counts):,}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _one(kind: str, count: int) -> str:
    return kind.replace("images", "image").replace("files", "file") if count == 1 else kind


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _named(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else "dataset"
