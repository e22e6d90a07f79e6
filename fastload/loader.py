"""TwoPhaseLoader: batches of a resident subset first, then, without a stall, of the full set."""

from __future__ import annotations

import numbers
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastload.arguments import real, seed64, whole
from fastload.augment import Augment, checked
from fastload.errors import DataError, UsageError
from fastload.evaluation import EvaluationLoader
from fastload.feeds import Batch, Feed, Output, open_feed, resolve_device
from fastload.order import FAST, FINE_TUNE, Order, Shuffle, sorted_by_label
from fastload.packed import PackedFile
from fastload.prefetch import Prefetcher

STATE_FORMAT = 1
PHASES = ("fast", "fine-tune")


@dataclass
class _Phase:
    """One phase's share of the steps, its feed, and the look-ahead once it runs."""

    first: int
    last: int
    open: Callable[[], Feed]
    locate: Callable[[int], tuple[int, int]]
    depth: int
    device: torch.device
    feed: Feed | None = None
    ahead: Prefetcher | None = None
    batches: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def prepare(self) -> Feed:
        """Open the feed where it is not: compile kernels, build pipelines, upload."""
        if self.feed is None:
            self.feed = self.open()
        return self.feed

    def warm(self, step: int) -> None:
        """Begin to make batches ahead, from `step` or the phase's first."""
        feed = self.prepare()
        if self.ahead is None and not feed.immediate and self.first < self.last:
            make, locate = feed.make, self.locate  # not self: threads must not keep a dropped loader alive
            self.ahead = Prefetcher(
                lambda at: make(*locate(at)), max(step, self.first), self.last,
                depth=self.depth, workers=min(feed.workers, self.depth), device=self.device,
            )  # fmt: skip

    def get(self, step: int) -> Batch:
        feed = self.prepare()
        if feed.immediate:
            return feed.make(*self.locate(step))
        self.warm(step)
        assert self.ahead is not None
        return self.ahead.get(step)

    def rest(self) -> None:
        """Stop making batches ahead; the feed stays."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

    def close(self) -> None:
        self.rest()
        if self.feed is not None:
            self.feed.close()
            self.feed = None


class TwoPhaseLoader:
    """Feed a training loop: `swap` steps from the subset, resident on the device, then the full set, streamed.

        loader = TwoPhaseLoader("full.h5", "subset.h5", batch_size=1024, steps=10_000, swap=0.5,
                                augment=Augment(crop=24), device="cuda")
        for images, labels in loader: ...

    What to feed:
        full: packed file of the whole set, raw or encoded; may be None when `swap` is 1.0.
        subset: packed file made by build-subset, raw; may be None when `swap` is 0.
        images, labels: the datasets' names, where `full` is an HDF5 file of your own.
    How much:
        batch_size: images a batch on each rank. steps: batches in all.
        swap: a float is the share of the steps that run on the subset, an int is the step of the swap.
        steps_per_epoch: end each `iter()` after so many batches; the next one goes on.
    What comes out:
        augment: the settings. seed: 64-bit; decides order and augmentation, with phase, epoch and sample id.
        shuffle: True, "block" (the full set is read nearly in sequence), or False (file order).
        device: "cuda", "cuda:N" or "cpu". dtype, memory_format: of the images.
        with_ids: yield (images, labels, ids) rather than (images, labels).
    How it is made:
        engine: "fused", "dali", or "auto" (fused for raw files, DALI to decode or resize).
        prefetch: batches made ahead by threads. rank, world_size: from torch.distributed where it is initialized.

    Yields images [B, C, h, w] and labels [B, ...] (integers as int64) on the device. Every batch is full. A yielded
    tensor is the caller's and is never overwritten.

    Raises UsageError for settings that cannot be served, DataError for files that are not what they should be.
    """

    def __init__(
        self,
        full: str | os.PathLike[str] | None,
        subset: str | os.PathLike[str] | None = None,
        *,
        batch_size: int,
        steps: int,
        augment: Augment,
        swap: float | int = 0.5,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        shuffle: Shuffle = True,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        with_ids: bool = False,
        engine: Literal["auto", "fused", "dali"] = "auto",
        prefetch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        images: str | None = None,
        labels: str | None = None,
    ) -> None:
        # Plain numbers, whatever NumPy gave: they go into checkpoints.
        steps, seed = whole("steps", steps, 1), seed64(seed)
        steps_per_epoch = None if steps_per_epoch is None else whole("steps_per_epoch", steps_per_epoch, 1)
        prefetch = None if prefetch is None else whole("prefetch", prefetch, 1)
        checked(augment)
        if not isinstance(shuffle, str) and shuffle in (True, False):
            shuffle = bool(shuffle)
        self._steps, self._steps_per_epoch, self._seed = steps, steps_per_epoch, seed
        self._swap_step = swap_step(swap, steps)
        self._augment, self._shuffle, self._engine, self._with_ids = augment, shuffle, engine, with_ids
        self._rank, self._world_size = _ranks(rank, world_size)
        workers = min(8, len(os.sched_getaffinity(0)))
        depth = prefetch if prefetch is not None else max(2, workers)
        self._output = Output(batch_size, resolve_device(device), dtype, memory_format, keep=depth + 3)
        self._step = 0
        self._fine_tuning = self._swap_step == 0
        self._pass: tuple[int, int] | None = None
        self._last_delivery: float | None = None
        self._callbacks: list[Callable[[TwoPhaseLoader], Any]] = []
        self._closed = False
        self._lock = threading.RLock()  # two threads may draw from one loader; a callback may use it
        self._files: list[PackedFile] = []
        try:
            self._full = self._open_file(full, "full", self._swap_step < steps, images, labels)
            self._subset = self._open_file(subset, "subset", self._swap_step > 0)
            self._check_files()
            self._fast = self._phase(FAST, self._subset, 0, self._swap_step, depth)
            self._fine = self._phase(FINE_TUNE, self._full, self._swap_step, steps, depth)
            for phase in (self._fast, self._fine):
                if phase.first < phase.last:
                    phase.prepare()
        except BaseException:
            self.close()
            raise

    # -- construction ----------------------------------------------------------------------------------------------

    def _open_file(
        self, path: Any, name: str, needed: bool, images: str | None = None, labels: str | None = None
    ) -> PackedFile | None:
        if path is None:
            if needed:
                raise UsageError(f"{name}= is missing, and swap={self._swap_step} of {self._steps} steps needs it")
            return None
        file = PackedFile(path, images=images, labels=labels)
        self._files.append(file)
        return file

    def _check_files(self) -> None:
        full, subset = self._full, self._subset
        if full is not None and self._shuffle == "block" and sorted_by_label(full.labels):
            raise UsageError(
                f'{full.path}: rows are sorted by label, so shuffle="block" would not mix the classes; '
                "pack it with `fastload pack --order shuffled`, or use shuffle=True"
            )
        if subset is not None and subset.storage != "raw":
            raise DataError(
                f"{subset.path}: holds encoded images; a subset is raw, make it with `fastload build-subset`"
            )
        if full is None or subset is None:
            return
        if full.selection is not None and full.selection.attributes.get("full_fingerprint") == subset.fingerprint:
            raise UsageError(f"full={full.path} is the subset and subset={subset.path} the full set; swap the two")
        made_from = subset.selection.attributes.get("full_fingerprint") if subset.selection else None
        if made_from is not None and made_from != full.fingerprint:
            raise DataError(
                f"{subset.path}: was built from another full set (fingerprint {str(made_from)[:12]}…) than {full.path} "
                f"({full.fingerprint[:12]}…); run `fastload build-subset {full.path.name} {subset.path.name}` again"
            )
        if subset.classes != full.classes and subset.classes and full.classes:
            raise DataError(
                f"{subset.path}: has other classes than {full.path}, so their labels do not mean the same; build the "
                f"subset with `fastload build-subset {full.path.name} {subset.path.name}`"
            )
        if subset.labels.shape[1:] != full.labels.shape[1:]:
            raise DataError(
                f"{subset.path}: labels have shape {subset.labels.shape[1:]} a sample, those of {full.path} "
                f"{full.labels.shape[1:]}; the two do not belong together"
            )
        channels = 3 if full.shape is None else full.shape[2]
        if subset.shape is not None and subset.shape[2] != channels:
            raise DataError(f"{subset.path}: has {subset.shape[2]} channels, {full.path} has {channels}")

    def _phase(self, number: int, file: PackedFile | None, first: int, last: int, depth: int) -> _Phase:
        batch, world, rank = self._output.batch_size, self._world_size, self._rank

        def locate(step: int) -> tuple[int, int]:
            return ((step - first) * world + rank) * batch, batch

        def opened() -> Feed:
            assert file is not None
            # A resident set has no disk to be kind to: "block" is a full shuffle there.
            shuffle = bool(self._shuffle) if number == FAST else self._shuffle
            order = Order(len(file), self._seed, number, shuffle)
            return open_feed(file, self._augment, order, self._output, engine=self._engine, resident=number == FAST)

        return _Phase(first, last, opened, locate, depth, self._output.device)

    # -- iteration -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of the pass that runs, or else of the one that the next `iter()` begins."""
        start, end = self._pass or self._next_pass()
        return end - start

    def _next_pass(self) -> tuple[int, int]:
        if self._steps_per_epoch is None:
            return self._step, self._steps
        epoch = self._step // self._steps_per_epoch
        return self._step, min(self._steps, (epoch + 1) * self._steps_per_epoch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        if self._closed:
            raise UsageError("this loader is closed; make a new one")
        self._pass = self._next_pass()
        if self._step >= self._steps:
            warnings.warn(f"all {self._steps:,} steps have been delivered; this loop gets none", stacklevel=2)
        self._last_delivery = None
        return self._run(self._pass[1])

    def _run(self, end: int) -> Iterator[tuple[torch.Tensor, ...]]:
        own = self._pass
        while True:
            with self._lock:
                if self._step >= end:
                    break
                batch = self._advance()
            try:
                yield batch if self._with_ids else batch[:2]
            except GeneratorExit:  # a `break`: from now on `len()` is that of the next pass
                if self._pass is own:
                    self._pass = None
                raise
            del batch  # or the buffer would be kept from the ring while the next batch is made
        if self._step >= self._steps:
            self._fine.rest()
            self._fast.rest()

    def _advance(self) -> Batch:
        if self._closed:
            raise UsageError("this loader is closed; make a new one")
        step, phase = self._step, self._fast if self._step < self._swap_step else self._fine
        if not self._fine_tuning and step >= self._swap_step:
            self._swap()
            if self._closed:
                raise UsageError("an on_swap callback closed this loader; make a new one")
        asked = time.perf_counter()
        if (
            phase is self._fast
            and step + self._fine.depth + 1 >= self._swap_step
            and self._fine.first < self._fine.last
        ):
            self._fine.warm(step)
        batch = phase.get(step)
        now = time.perf_counter()
        phase.batches += 1
        phase.waited += now - asked
        phase.seconds += now - (self._last_delivery if self._last_delivery is not None else asked)
        self._last_delivery = now
        self._step += 1
        return batch

    def _swap(self) -> None:
        self._fine_tuning = True
        self._fast.close()
        for callback in self._callbacks:
            callback(self)

    # -- what a training loop asks ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Batches delivered so far."""
        return self._step

    @property
    def swap_step(self) -> int:
        """The step whose batch is the first of the full set."""
        return self._swap_step

    @property
    def phase(self) -> str:
        """ "fast" or "fine-tune": the phase of the batch delivered last (in an `on_swap` callback, the new one)."""
        return PHASES[self._fine_tuning]

    def on_swap(self, callback: Callable[[TwoPhaseLoader], Any]) -> Callable[[TwoPhaseLoader], Any]:
        """Call `callback(loader)` just before the full set's first batch is delivered. Returns it: a decorator too."""
        if not callable(callback):
            raise UsageError(f"on_swap({callback!r}): it takes a function of one argument, the loader")
        self._callbacks.append(callback)
        return callback

    def stats(self) -> dict[str, dict[str, float]]:
        """Return, by phase: batches, images, seconds, images per second, and the share of time spent waiting."""
        batch = self._output.batch_size
        return {
            name: {
                "batches": phase.batches,
                "images": phase.batches * batch,
                "seconds": phase.seconds,
                "images_per_second": phase.batches * batch / phase.seconds if phase.seconds else 0.0,
                "waited": phase.waited / phase.seconds if phase.seconds else 0.0,
            }
            for name, phase in zip(PHASES, (self._fast, self._fine), strict=True)
        }

    def evaluation(self, path: str | os.PathLike[str], *, batch_size: int | None = None) -> EvaluationLoader:
        """Return a loader of a test set: centre crop, file order, partial last batch, same device and types."""
        output = self._output
        size = output.batch_size if batch_size is None else batch_size
        return EvaluationLoader(
            path, self._augment, batch_size=size, device=output.device,
            engine=self._engine, dtype=output.dtype, memory_format=output.memory_format, with_ids=self._with_ids,
        )  # fmt: skip

    # -- resume ----------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "full": self._full.fingerprint if self._full else None,
            "subset": self._subset.fingerprint if self._subset else None,
            "seed": self._seed,
            "global_batch_size": self._output.batch_size * self._world_size,
            "swap_step": self._swap_step,
            "shuffle": self._shuffle,
            "augment": self._augment.state(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a small dict of plain numbers and strings, good for torch.save and JSON; batches delivered count."""
        elapsed = self._fast.seconds + self._fine.seconds
        return {"fastload_state": STATE_FORMAT, "step": self._step, "seconds": elapsed, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the batch after the last one that `state` counts, exactly, in whichever phase that is.

        Raises UsageError, naming what differs, for a state of other data or settings. Engine, device, prefetch,
        ranks and batch size (at an equal global batch) may differ.
        """
        if not isinstance(state, Mapping) or state.get("fastload_state") != STATE_FORMAT:
            raise UsageError("this is no state of a TwoPhaseLoader that this fastload can read")
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UsageError(
                    f"the state was saved with {name}={_short(state.get(name))}, this loader has {_short(value)}; "
                    "make the loader as it was"
                )
        try:
            step, seconds = whole("step", state["step"], 0), real("seconds", state["seconds"])
        except (KeyError, UsageError) as error:
            raise UsageError(f"the state is damaged ({error}); load an earlier one") from error
        if self._closed:
            raise UsageError("this loader is closed; make a new one")
        if step > self._steps:
            raise UsageError(f"the state is at step {step:,}, this loader ends at {self._steps:,}; raise steps=")
        self._fast.rest()
        self._fine.rest()
        self._step, self._pass = step, None
        self._fine_tuning = step > self._swap_step or self._swap_step == 0
        self._fine.seconds = 0.0
        self._fast.seconds = seconds
        self._last_delivery = None

    # -- end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free every thread, buffer, pipeline and file. Safe to call twice."""
        self._closed = True
        for phase in (getattr(self, "_fast", None), getattr(self, "_fine", None)):
            if phase is not None:
                phase.close()
        for file in self._files:
            file.close()

    def __reduce__(self) -> Any:
        raise TypeError("a TwoPhaseLoader holds threads and open files: make another one, and give it the state_dict()")

    def __enter__(self) -> TwoPhaseLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def swap_step(swap: float | int, steps: int) -> int:
    """Return the first step of the full set: `swap` as a share of `steps` if a float, as a step if an int."""
    if isinstance(swap, bool) or not isinstance(swap, numbers.Real):
        raise UsageError(f"swap={swap!r}; it is a share of the steps (float, 0.0 to 1.0) or a step (int)")
    if not isinstance(swap, numbers.Integral):
        swap = float(swap)
        if not 0.0 <= swap <= 1.0:
            raise UsageError(f"swap={swap!r} is a float, so it is a share of the steps, from 0.0 to 1.0")
        return round(swap * steps)
    if not 0 <= swap <= steps:
        raise UsageError(f"swap={swap} is an int, so it is a step, from 0 to steps={steps}")
    return int(swap)


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise UsageError(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None or world_size is None:
        group = torch.distributed
        if not (group.is_available() and group.is_initialized()):
            return 0, 1
        rank, world_size = group.get_rank(), group.get_world_size()
    rank, world_size = whole("rank", rank), whole("world_size", world_size)
    if not 0 <= rank < world_size:
        raise UsageError(f"rank={rank} is not below world_size={world_size}")
    return rank, world_size


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
