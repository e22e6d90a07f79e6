"""Serve a test set: centre crop, file order, a partial last batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastload.augment import Augment, checked
from fastload.common.arguments import flag, integer
from fastload.common.device import resolve_device
from fastload.errors import ClosedError
from fastload.feeds.batch import Output, as_tuple
from fastload.feeds.feed import FeedRun, open_feed, run_feed
from fastload.order import FINE_TUNE, Order
from fastload.packed.classes import label_map, mapped_labels
from fastload.packed.file import PackedFile
from fastload.packed.labels import checked_labels
from fastload.packed.set import PackedSet, PathsLike, open_packed


class EvaluationLoader:
    """Iterate a packed file once, in file order, as `augment.evaluation()` says; may be iterated again.

    Arguments:
        source: a packed file or set, or its path, pattern or list of paths (opened here and closed with `close()`).
        augment: crop, resize and standardization are taken from it, nothing random.
        batch_size: images a batch; the last batch holds what is left.
        with_ids: yield (images, labels, ids) rather than (images, labels). Unlabelled sets give no labels.
        first_row: where to begin, to go on with a pass that was interrupted.
        every: yield each `every`-th batch only, from the first one on: a rank's share.
        device: "cuda", "cuda:N" or "cpu".
        engine: "fused", "dali", or "auto" (fused for raw and ragged files, DALI to decode).
        dtype: of the images: torch.float32, float16, bfloat16 or uint8 (without `normalize`).
        memory_format: of the images: torch.contiguous_format or channels_last.
        classes: names of the classes that labels are to be numbered by, such as the training set's. Where the file has
            names too, its labels are matched by them; by default they come as they are.

    Raises UsageError and DataError as TwoPhaseLoader does, and DataError, naming it, for a class that is none of
    `classes`.
    """

    def __init__(
        self,
        source: PackedFile | PackedSet | PathsLike,
        augment: Augment,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        engine: str = "auto",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        with_ids: bool = False,
        first_row: int = 0,
        every: int = 1,
        classes: Sequence[str] = (),
    ) -> None:
        settings = checked(augment).evaluation()
        self._owned = not isinstance(source, PackedFile | PackedSet)
        self._file = source if isinstance(source, PackedFile | PackedSet) else open_packed(source, argument="path")
        try:
            mapping = label_map(self._file.classes, classes, source=self._file.path, target="the training set")
            found = checked_labels(self._file) if classes else self._file.labels
            self._labels = None if found is None else mapped_labels(found, mapping, self._file.path)
        except BaseException:
            if self._owned:
                self._file.close()
            raise
        self._augment, self._engine = settings, engine
        self._output = Output(batch_size, resolve_device(device), dtype, memory_format)
        self._with_ids, self._closed = flag("with_ids", with_ids), False
        self._first, self._every = integer("first_row", first_row, 0), integer("every", every, 1)

    def __len__(self) -> int:
        return max(0, -(-(len(self._file) - self._first) // (self._output.batch_size * self._every)))

    drop_last, sampler, batch_sampler = False, None, None

    @property
    def batch_size(self) -> int:
        """Images a batch; the last may have fewer."""
        return self._output.batch_size

    @property
    def dataset(self) -> PackedFile | PackedSet:
        """The test set, whose `len()` is its samples."""
        return self._file

    def __iter__(self) -> EvaluationPass:
        self._check_open()
        order = Order(len(self._file), phase=FINE_TUNE, shuffle=False)
        feed = open_feed(self._file, self._augment, order, self._output, engine=self._engine, labels=self._labels)
        return EvaluationPass(self, run_feed(feed, self._locate, 0, len(self), self._output.device))

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError()

    def _locate(self, step: int) -> tuple[int, int]:
        start = self._first + step * self._every * self._output.batch_size
        return start, min(self._output.batch_size, len(self._file) - start)

    def close(self) -> None:
        """Close the file, if it was opened here. Safe to call twice."""
        self._closed = True
        if self._owned:
            self._file.close()

    def __reduce__(self) -> Any:
        raise TypeError("an EvaluationLoader holds threads and open files: make another one of the same file")

    def __enter__(self) -> EvaluationLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class EvaluationPass(Iterator[tuple[torch.Tensor, ...]]):
    """One pass over a test set; `close` ends it early."""

    def __init__(self, loader: EvaluationLoader, run: FeedRun) -> None:
        self._loader, self._run = loader, run

    def __next__(self) -> tuple[torch.Tensor, ...]:
        try:
            self._loader._check_open()
            return as_tuple(next(self._run), self._loader._with_ids)
        except Exception:
            if self._loader._closed:
                self.close()
                raise ClosedError() from None
            raise

    def close(self) -> None:
        """End the threads. Safe to call twice."""
        self._run.close()
