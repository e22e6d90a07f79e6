"""The work of `pack`: every sample of a source, in threads, to its row of the packed file."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastload.common.processors import processors
from fastload.common.progress import progress_bar
from fastload.common.text import plural
from fastload.errors import DataError, UsageError
from fastload.packed.classes import class_counts, label_map, mapped_labels
from fastload.packed.labels import label_faults
from fastload.packed.writer import PackedWriter
from fastload.packing.chunks import Chunk, chunks, map_in_threads
from fastload.packing.decoding import ALPHA, BrokenImage, Decoded
from fastload.packing.encoded_check import EncodedCheck, Kept
from fastload.packing.making import Maker
from fastload.packing.options import PackOptions
from fastload.packing.summary import PackSummary
from fastload.sources import Sample, Source
from fastload.sources.base import NumberedNames


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
        self.source, self.name, self.out, self.options = source, name, out, options
        self.storage, self.make = options.storage_of(source), Maker(options, check)
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
        self.description = {"kind": source.kind, **source.details, **options.described()}
        self.shape: tuple[int, int, int] | None = None  # of raw images
        self.shape_from = ""
        self.broken: list[tuple[int, str]] = []
        self.faulty = _faulty(source.labels, source.classes)

    def run(self, workers: int | None, progress: bool, started: float) -> PackSummary:
        stream = self.source.read()
        if self.storage == "raw":
            stream = self._find_shape(stream)
        lost: Counter[str] = Counter()
        files = Counter[str]()
        done = 0
        with self._writer() as writer:
            stored = map_in_threads(
                lambda chunk: self._store(writer, chunk), chunks(stream), workers or processors(), _Stored.nbytes
            )
            # Closed before the writer is, or threads could write to a descriptor that is somebody else's by then.
            with progress_bar("packing", len(self.source), quiet=not progress) as advance, closing(stored):
                for part in stored:
                    for row, made in part.made:  # in the source's order, so that the file depends on no thread
                        files += _append(writer, row, made)
                    advance(part.count)
                    done += part.count
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
            storage=self.storage,
            order=self.options.order,
            image_bytes=writer.image_bytes,
            file_bytes=self.out.stat().st_size,
            seconds=time.perf_counter() - started,
            skipped=[f"{self.source.names[index]}: {reason}" for index, reason in sorted(self.broken)],
            left_out=[*self.source.left_out, *_lost_channels(lost, self.storage == "encoded")],
            passed_over=self.source.passed_over,
            notes=self.source.notes,
            unlabelled=labels is None,
            turned=files["turned"],
            whole=files["whole"],
        )

    def _labels(self) -> np.ndarray | None:
        """Return the labels in the source's order, which some sources know only once they have been read."""
        labels = self.source.labels
        return None if labels is None else mapped_labels(labels, self.mapping, self.name)

    def _find_shape(self, stream: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample]]:
        """Take the images' shape from the first that can be stored; return the stream from its start."""
        fit, channels = self.options.fit, self.options.decoded_channels
        if fit is not None and isinstance(channels, int):
            self.shape = (fit.side, fit.side, channels)
            return stream
        seen: Chunk = []
        for index, sample in stream:
            found = self._refused(index, sample) or self.make.decoded(sample)
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
            count=len(self.source) if self.shape is None else None,
            storage="ragged" if self.storage == "ragged" else "encoded",
            ids=self.index_of if ids is None else ids[self.index_of],
            names=None if isinstance(names, NumberedNames) else [names[index] for index in self.index_of.tolist()],
            classes=self.classes,
            source=self.description,
        )

    def _store(self, writer: PackedWriter, chunk: Chunk) -> _Stored:
        """Make what is stored of a chunk; write raw images, whose places are known, and return the others."""
        lost: Counter[str] = Counter()
        made: list[tuple[int, Decoded | Kept]] = []
        for index, sample in chunk:
            row, found = int(self.row_of[index]), self._refused(index, sample) or self.make(sample)
            if self.storage == "raw" and isinstance(found, Decoded):
                found = self._of_the_shape(found)
            if isinstance(found, BrokenImage):
                self._note_broken(index, found)
                writer.skip(row)
                continue
            lost.update([found.left_out] if found.left_out else [])
            if self.storage == "raw":
                writer.write(row, found.pixels)  # type: ignore[union-attr]
            else:
                made.append((row, found))
        return _Stored(len(chunk), made, lost)

    def _refused(self, index: int, sample: Sample) -> BrokenImage | None:
        """Return why a sample is refused before its image is decoded."""
        if isinstance(sample, DataError):
            return sample if isinstance(sample, BrokenImage) else BrokenImage(str(sample))
        if index in self.faulty:
            return BrokenImage(self.faulty[index])
        if self.storage == "encoded" and self.source.sizes is not None:
            size = self.source.sizes[index]
            if not isinstance(sample, bytes) or len(sample) != size:
                return BrokenImage("changed while it was read", "pack again")
        return None

    def _of_the_shape(self, found: Decoded) -> Decoded | BrokenImage:
        if found.pixels.shape == self.shape:
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
            "make them one size with resize=S, keep whole pictures with short_side=S, or the files with encoded=True",
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
        made: what is still to be stored, by its row.
        lost: how many images lost which channel.
    """

    count: int
    made: list[tuple[int, Decoded | Kept]]
    lost: Counter[str]

    def nbytes(self) -> int:
        """Return the bytes that wait to be stored."""
        return sum(found.pixels.nbytes if isinstance(found, Decoded) else len(found.data) for _, found in self.made)


def _append(writer: PackedWriter, row: int, made: Decoded | Kept) -> Counter[str]:
    """Append a sample; return whether its file was "turned", and is "whole": not to be cut."""
    if isinstance(made, Decoded):
        height, width, _ = made.pixels.shape
        writer.append(row, made.pixels, shape=(height, width))
        return Counter()
    writer.append(row, made.data, shape=made.sides, cut=made.cut, segments=made.segments)
    return Counter(turned=made.turned, whole=made.segments is None)


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
