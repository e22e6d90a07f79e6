"""TwoPhaseLoader: batches of a resident subset first, then, without a stall, of the full set."""

from __future__ import annotations

import inspect
import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
import xxhash

from fastload.agreement import Alone, Decision, Together, default_store, launched
from fastload.arguments import flag, real, seed64, whole
from fastload.augment import Augment, checked
from fastload.classes import label_map, mapped_labels
from fastload.device import resolve_device
from fastload.engines import choose_engine
from fastload.errors import DataError, UsageError
from fastload.evaluation import EvaluationLoader
from fastload.feeds import Batch, Feed, Output, open_feed
from fastload.memory import free_memory, resident_room
from fastload.order import FAST, FINE_TUNE, Order, Shuffle, shuffle_of, sorted_by_label
from fastload.packed_set import Packed, Source, labels_of, open_packed
from fastload.phase import Phase
from fastload.processors import makers
from fastload.swap import Plateau, Swap, planned_swap
from fastload.telemetry import Bar, ScalarLog, Writer, advice, bar_kind

STATE_FORMAT = 1
PHASES = ("fast", "fine-tune")

EMPTY_LOOPS = 1_000
"""After so many loops that got nothing, the next is an error: a framework without a limit would go on for ever."""

WARM_SECONDS = 5.0
"""How long before the swap, by estimate, the full set's batches are begun to be made."""


class TwoPhaseLoader:
    """Feed a training loop: `swap` steps from the subset, resident on the device, then the full set, streamed.

        loader = TwoPhaseLoader("full.h5", "subset.h5", batch_size=1024, steps=10_000, swap=0.5,
                                augment=Augment(crop=24), device="cuda")
        for images, labels in loader: ...

    What to feed:
        full: packed file of the whole set, raw or encoded; a pattern ("shards/*.h5") or a list of files is one set;
            may be None when `swap` is 1.0.
        subset: packed file made by build-subset, raw; may be None when `swap` is 0.
        images, labels: the datasets' names, where `full` is an HDF5 file of your own.
    How much:
        batch_size: images a batch on each rank. steps: batches in all; or seconds: of wall-clock time, in its place.
        swap: a float is the share of the run that is on the subset, an int is the step of the swap; or a policy:
            `Swap.after(seconds=…)`, `Swap.on_plateau(…)`, `Swap.never()`.
        steps_per_epoch: end each `iter()` after so many batches; the next one goes on.
    What comes out:
        augment: the settings. seed: 64-bit; decides order and augmentation, with phase, epoch and sample id.
        shuffle: True, "block" (the full set is read nearly in sequence), or False (file order).
        device: "cuda", "cuda:N" or "cpu". dtype, memory_format: of the images.
        with_ids: yield (images, labels, ids) rather than (images, labels).
    How it is made:
        engine: "fused", "dali", or "auto" (fused for raw files, DALI to decode or resize).
        prefetch: batches made ahead by threads.
        keep_resident: keep the subset on the device after the swap.
        resident_budget: bytes; a raw full set up to this size is kept on the device too, rather than streamed (not
            with shuffle="block"). By default 1 GiB, and no more than a quarter of the device's free memory; 0: never.
        rank, world_size: from torch.distributed where it is initialized. store: a torch.distributed store through
            which ranks agree on the swap, where they are given by hand.
        progress: show a bar: True or "rich", or "tqdm".

    Yields images [B, C, h, w] and labels [B, ...] (integers as int64) on the device. Every batch is full. A yielded
    tensor is the caller's and is never overwritten.

    Raises UsageError for settings that cannot be served, DataError for files that are not what they should be.
    """

    def __init__(
        self,
        full: Source | None,
        subset: Source | None = None,
        *,
        batch_size: int,
        augment: Augment,
        steps: int | None = None,
        seconds: float | None = None,
        swap: float | int | Swap = 0.5,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        shuffle: Shuffle = True,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        with_ids: bool = False,
        engine: Literal["auto", "fused", "dali"] = "auto",
        prefetch: int | None = None,
        keep_resident: bool = False,
        resident_budget: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        store: Any = None,
        images: str | None = None,
        labels: str | None = None,
        progress: bool | str = False,
    ) -> None:
        # Plain numbers, whatever NumPy gave: they go into checkpoints.
        self._steps, self._limit = _length(steps, seconds)
        self._steps_per_epoch = None if steps_per_epoch is None else whole("steps_per_epoch", steps_per_epoch, 1)
        prefetch = None if prefetch is None else whole("prefetch", prefetch, 1)
        budget = None if resident_budget is None else whole("resident_budget", resident_budget, 0)
        checked(augment)
        shuffle = shuffle_of(shuffle)
        self._seed = seed64(seed)
        self._swap = planned_swap(swap, self._steps, self._limit)
        self._augment, self._shuffle, self._engine = augment, shuffle, engine
        self._with_ids, self._keep_resident = flag("with_ids", with_ids), flag("keep_resident", keep_resident)
        self._rank, self._world_size = _ranks(rank, world_size)
        self._bar_kind = bar_kind(progress) if self._rank == 0 else None
        depth = prefetch if prefetch is not None else max(2, makers())
        self._output = Output(batch_size, resolve_device(device), dtype, memory_format, keep=depth + 3)
        self._step = 0
        self._swapped_at = 0 if self._swap == 0 else None
        self._decision = Decision(self._swapped_at)
        self._wants_swap = False
        self._plateau = Plateau(self._swap) if isinstance(self._swap, Swap) and self._swap.kind == "plateau" else None
        self._pass: tuple[int, int | None] | None = None
        self._resumed_at: int | None = None
        self._empty_loops = 0
        self._seconds = 0.0  # of the run, up to the last delivery
        self._last_delivery: float | None = None
        self._callbacks: list[Callable[[TwoPhaseLoader], Any]] = []
        self._told, self._telling = 0, False  # callbacks that have returned at the swap; whether one runs
        self._log: ScalarLog | None = None
        self._bar: Bar | None = None
        self._closed, self._process = False, os.getpid()
        self._lock = threading.RLock()  # two threads may draw from one loader; a callback may use it
        self._files: list[Packed] = []
        try:
            self._full = self._open_file(full, "full", self._may_need_full, images, labels)
            self._subset = self._open_file(subset, "subset", self._swap != 0)
            self._check_files()
            beside = self._subset.nbytes if self._subset is not None else 0
            self._budget = resident_room(self._output.device, budget, beside=beside)
            self._fast = self._phase(FAST, self._subset, self._planned, depth)
            left = None if self._steps is None or self._planned is None else self._steps - self._planned
            self._fine = self._phase(FINE_TUNE, self._full, left, depth)
            self._agreement = self._agree(store)
            if self._swap != 0:
                self._fast.prepare()
            if self._full is not None and left != 0:
                self._fine.prepare()
        except BaseException as error:
            self.close()
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise UsageError(
                    f"out of memory while the loader was made ({error}); choose a smaller batch_size= (here "
                    f"{self._output.batch_size:,}), prefetch= or resident_budget="
                ) from error
            raise

    # -- construction ----------------------------------------------------------------------------------------------

    @property
    def _planned(self) -> int | None:
        """The step of the swap where it is known from the beginning."""
        return self._swap if isinstance(self._swap, int) else None

    @property
    def _may_need_full(self) -> bool:
        if isinstance(self._swap, Swap):
            return self._swap.kind != "never"
        return self._steps is None or self._swap < self._steps

    def _open_file(
        self, source: Any, name: str, needed: bool, images: str | None = None, labels: str | None = None
    ) -> Packed | None:
        if source is None:
            if needed:
                raise UsageError(f"{name}= is missing, and swap={self._swap} needs it")
            return None
        file = open_packed(source, images=images, labels=labels, argument=name)
        self._files.append(file)
        return file

    def _check_files(self) -> None:
        full, subset = self._full, self._subset
        if full is not None and self._shuffle == "block" and full.labels is not None and sorted_by_label(full.labels):
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
        if full.selection is not None and full.fingerprint == subset.fingerprint:
            raise UsageError(f"full={full.path} is the subset, as subset= is; give the full set that it was built from")
        made_from = subset.selection.attributes.get("full_fingerprint") if subset.selection else None
        if made_from is not None and made_from != full.fingerprint:
            raise DataError(
                f"{subset.path}: was built from another full set (fingerprint {str(made_from)[:12]}…) than {full.path} "
                f"({full.fingerprint[:12]}…); run `fastload build-subset {full.path.name} {subset.path.name}` again"
            )
        ours, theirs = (None if file.labels is None else file.labels.shape[1:] for file in (subset, full))
        if ours != theirs:
            raise DataError(
                f"{subset.path}: labels have shape {ours} a sample, those of {full.path} {theirs}; the two do not "
                "belong together"
            )
        channels = 3 if full.shape is None else full.shape[2]
        if subset.shape is not None and subset.shape[2] != channels:
            raise DataError(f"{subset.path}: has {subset.shape[2]} channels, {full.path} has {channels}")

    @property
    def _classes(self) -> list[str]:
        """The names that labels are numbered by: the full set's, where it has any."""
        return next((file.classes for file in (self._full, self._subset) if file is not None and file.classes), [])

    def _labels(self, file: Packed) -> np.ndarray:
        """Return a file's labels, numbered as the full set's are."""
        target = "the other file" if self._full is None else self._full.path
        mapping = label_map(file.classes, self._classes, source=file.path, target=target)
        return mapped_labels(labels_of(file, "a batch"), mapping, file.path)

    def _is_resident(self, number: int, file: Packed) -> bool:
        if number == FAST:
            return True
        # Whoever asks for reads in sequence has a storage in mind; and no device has a kernel for that order.
        return file.shape is not None and self._shuffle != "block" and file.nbytes <= self._budget

    def _phase(self, number: int, file: Packed | None, last: int | None, depth: int) -> Phase:
        batch, world, rank = self._output.batch_size, self._world_size, self._rank
        augment, seed, output, engine = self._augment, self._seed, self._output, self._engine
        # A resident subset has no disk to be kind to: "block" is a full shuffle there.
        shuffle = bool(self._shuffle) if number == FAST else self._shuffle
        resident = file is not None and self._is_resident(number, file)
        labels = None if file is None else self._labels(file)

        def locate(index: int) -> tuple[int, int]:
            return (index * world + rank) * batch, batch

        def opened() -> Feed:
            assert file is not None
            return open_feed(
                file, augment, Order(len(file), seed, number, shuffle), output, engine=engine, resident=resident,
                labels=labels,
            )  # fmt: skip

        sample_bytes = 0 if file is None else file.nbytes // len(file)
        return Phase(
            PHASES[number], opened, locate, last=last, depth=depth, device=output.device, sample_bytes=sample_bytes
        )

    def _agree(self, store: Any) -> Alone | Together | None:
        """Return how this rank learns when to swap and to end; None for ranks that have no means to agree."""
        if self._world_size == 1:
            return Alone()
        if store is not None and not all(callable(getattr(store, name, None)) for name in ("get", "set", "check")):
            raise UsageError(f"store={store!r}; it is a torch.distributed store, such as FileStore or TCPStore")
        store = default_store(self._world_size) if store is None else store
        if store is None:
            if self._planned is None or self._limit is not None:
                raise UsageError(
                    f"{self._world_size} ranks cannot agree on when to swap or to end by the clock or the loss: "
                    "initialize torch.distributed, or give store= (a torch.distributed.FileStore or TCPStore)"
                )
            return None
        name = xxhash.xxh3_64_hexdigest(repr(self._identity()).encode())
        this = weakref.ref(self)

        def stopped() -> bool:
            loader = this()
            return loader is None or loader._closed

        return Together(store, self._rank, name, self._limit is not None, stopped)

    # -- iteration -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of the pass that runs, or else of the one that the next `iter()` begins.

        After `load_state_dict` in the middle of an epoch of `steps_per_epoch=`, those of the whole epoch: Lightning
        takes it so, as it is with torchdata's StatefulDataLoader, and counts the batches already trained on as well.
        """
        start, end = self._pass or self._next_pass()
        if end is None or self._limit is not None:
            raise TypeError("this run ends after seconds=, so it has no length")
        return end - start

    def _next_pass(self) -> tuple[int, int | None]:
        start, ends = self._step, [] if self._steps is None else [self._steps]
        if self._steps_per_epoch is not None:
            begun = self._step // self._steps_per_epoch * self._steps_per_epoch
            ends.append(begun + self._steps_per_epoch)
            if self._step == self._resumed_at and not self._finished:
                start = begun
        return start, min(ends, default=None)

    @property
    def _finished(self) -> bool:
        ends = [end for end in (self._steps, self._decision.end) if end is not None]
        return bool(ends) and self._step >= min(ends)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        self._check_usable()
        self._pass = self._next_pass()
        if self._finished:
            self._empty_loops += 1
            if self._empty_loops > EMPTY_LOOPS:
                raise UsageError(
                    f"all {self._step:,} steps have been delivered, and {EMPTY_LOOPS:,} loops since have got none; end "
                    f"training with the loader (while loader.step < …; Lightning: max_steps={self._step} at most)"
                )
            warnings.warn(f"all {self._step:,} steps have been delivered; this loop gets none", stacklevel=2)
        self._last_delivery = None
        return self._run(self._pass[1])

    def _check_usable(self) -> None:
        if self._closed:
            raise UsageError("this loader is closed; make a new one")
        if os.getpid() != self._process:
            raise UsageError("this loader was made before a fork, which has none of its threads; make one after it")

    def _run(self, end: int | None) -> Iterator[tuple[torch.Tensor, ...]]:
        own = self._pass
        try:
            while True:
                self._check_usable()  # first: after a fork the lock may be held for ever
                with self._lock:
                    if end is not None and self._step >= end:
                        break
                    batch = self._advance()
                if batch is None:
                    break
                yield batch if self._with_ids else batch[:2]
                del batch  # or the buffer would be kept from the ring while the next batch is made
        except BaseException:  # a `break` (GeneratorExit) too: from now on `len()` is that of the next pass
            if self._pass is own:
                self._pass = None
            raise
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        if self._finished:
            self._fine.rest()
            self._fast.rest()

    def _advance(self) -> Batch | None:
        """Return the next batch; None where the run has ended."""
        asked = time.perf_counter()
        between = 0.0 if self._last_delivery is None else asked - self._last_delivery
        self._decide(self._seconds + between)
        if self._finished:
            self._seconds += between  # or a resumed run would have that much time again
            self._last_delivery = None
            return None
        if self._swapped_at is None and self._step >= self._swap_step:
            self._swap_over()
        if self._step == self._swapped_at and self._swap != 0 and not self._telling:
            self._tell_of_swap()
        if self._swapped_at is None:
            if self._swap_is_near(self._seconds + between):
                self._fine.warm()
            phase, index = self._fast, self._step
        else:
            phase, index = self._fine, self._step - self._swapped_at
        batch = phase.get(index)
        now = time.perf_counter()
        taken = now - asked + between
        phase.count(taken, now - asked)
        self._seconds += taken
        self._last_delivery = now
        self._step += 1
        self._tell()
        return batch

    # -- the swap and the end --------------------------------------------------------------------------------------

    def _decide(self, seconds: float) -> None:
        """Bring the decision up to date, `seconds` into the run."""
        if self._agreement is None or (self._swapped_at is not None and self._limit is None):
            return
        wants_end = self._limit is not None and seconds >= self._limit
        wants_swap = self._swapped_at is None and (self._wants_swap or self._due(seconds))
        self._agreement.decide(self._step, self._decision, wants_swap, wants_end)

    def _due(self, seconds: float) -> bool:
        if self._plateau is not None:
            return self._plateau.reached
        return isinstance(self._swap, Swap) and seconds >= self._swap.seconds

    @property
    def _swap_step(self) -> float:
        """The step of the swap, planned or agreed, whichever comes first; infinity while it is open."""
        known = [step for step in (self._planned, self._decision.swap) if step is not None]
        return min(known, default=math.inf)

    def _swap_is_near(self, seconds: float) -> bool:
        """Whether it is time to begin to make batches of the full set."""
        if self._full is None or self._fine.last == 0:
            return False
        left = self._swap_step - self._step
        if left <= self._fine.depth + 1 or (self._plateau is not None and self._plateau.near):
            return True
        of_step = self._fast.seconds / self._fast.batches if self._fast.batches else math.inf
        until = left * of_step if left < math.inf else math.inf
        if isinstance(self._swap, Swap):
            until = min(until, self._swap.seconds - seconds)
        return until <= WARM_SECONDS

    def _swap_over(self) -> None:
        if self._full is None:
            raise UsageError("it is time to swap, but full= is missing; make the loader with it")
        self._swapped_at = self._decision.swap = self._step
        self._wants_swap = False
        if self._steps is not None:
            self._fine.limit(self._steps - self._step)
        if self._keep_resident:
            self._fast.rest()
        else:
            self._fast.close()

    def _tell_of_swap(self) -> None:
        """Call the callbacks in turn; where one raises, it and those after it are to be called before the next batch.

        Those before it have done their work (a learning rate was lowered, say), so they are not called again.
        """
        self._telling = True
        try:
            while self._told < len(self._callbacks):
                self._callbacks[self._told](self)
                self._told += 1
        finally:
            self._telling = False
        if self._closed:
            raise UsageError("an on_swap callback closed this loader; make a new one")

    def swap_now(self) -> None:
        """Swap at the next batch; under several ranks at a step that all agree on, some steps later.

        Under several ranks any of them may call it. Does nothing once the run has swapped.
        """
        self._check_usable()
        if self._full is None:
            raise UsageError("swap_now(): there is no full set to swap to; make the loader with full=")
        with self._lock:
            if self._swapped_at is not None:
                return
            if self._agreement is None:
                raise UsageError(
                    "swap_now(): these ranks have no means to agree on a step; initialize torch.distributed, or give "
                    "store="
                )
            self._wants_swap |= self._agreement.request_swap(self._step, self._decision)

    def report_loss(self, loss: float | torch.Tensor) -> None:
        """Tell `Swap.on_plateau` the loss of a step: a number, or a tensor of one, which is read only now and then.

        Under several ranks rank 0's losses decide. Ignored with another policy, and after the swap.
        """
        if self._plateau is not None and self._swapped_at is None:
            self._plateau.report(loss)

    def on_swap(self, callback: Callable[[TwoPhaseLoader], Any]) -> Callable[[TwoPhaseLoader], Any]:
        """Call `callback(loader)` just before the full set's first batch is delivered. Returns it: a decorator too.

        Callbacks are called in the order of their registration. What one raises comes out of the training loop's
        `next()`. By then the run has swapped, but no batch is lost: the next `iter()` begins by calling that callback
        again and then the ones after it, and so does a run resumed from a `state_dict()` taken then, or within the
        callback. Those that returned are not called again; so register the same ones, in the same order, to resume.
        """
        if not callable(callback) or not _takes_one(callback):  # told now, not at the swap, hours from here
            raise UsageError(f"on_swap({callback!r}): it takes a function of one argument, the loader")
        self._callbacks.append(callback)
        return callback

    # -- what a training loop asks ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Batches delivered so far."""
        return self._step

    @property
    def swap_step(self) -> int | None:
        """The step whose batch is the first of the full set; None while a policy has not decided it."""
        return None if self._swap_step == math.inf else int(self._swap_step)

    @property
    def phase(self) -> str:
        """ "fast" or "fine-tune": the phase of the batch delivered last (in an `on_swap` callback, the new one)."""
        return PHASES[self._swapped_at is not None]

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return, by phase, what the run has cost so far.

        `feed`: "resident" or "stream" ("" before the first batch). `batches`, `images`, `seconds` (wall-clock, training
        included), `images_per_second`. `waited`: the share of the time that training waited for data.
        `read_bytes_per_second`: of the files (0 for a resident feed). `ring_fill`: how full the batches made ahead were
        when one was asked for, 0 to 1. `advice`: what to change where more than a tenth of the time was waited, or "".
        """
        batch = self._output.batch_size
        found = {}
        free: int | None = None
        for phase, file in ((self._fast, self._subset), (self._fine, self._full)):
            stats = phase.stats(batch)
            stats["advice"] = ""
            if file is not None and stats["waited"] > 0:
                free = free_memory(self._output.device) if free is None else free
                stats["advice"] = advice(
                    stats, encoded=file.shape is None, engine=choose_engine(self._engine, file, self._augment),
                    shuffle=self._shuffle, size=file.nbytes, free=free,
                )  # fmt: skip
            found[phase.name] = stats
        return found

    def log_to(self, writer: Writer, *, every: int = 50, prefix: str = "fastload") -> None:
        """Write scalars to a SummaryWriter (or what has its `add_scalar`) each `every` steps, under `prefix`/….

        phase (0 fast, 1 fine-tune), images_per_second, waited, ring_fill, read_mb_per_second; each since the last time.
        """
        self._log = ScalarLog(writer, whole("every", every, 1), prefix)

    def _tell(self) -> None:
        if self._log is not None and self._log.due(self._step):
            batch = self._output.batch_size
            stats = {phase.name: phase.stats(batch) for phase in (self._fast, self._fine)}
            self._log.step(self._step, int(self._swapped_at is not None), stats)
        if self._bar_kind is not None:
            if self._bar is None:
                self._bar = Bar(self._bar_kind, self._steps, self._step - 1)
            phase = self._fast if self._swapped_at is None else self._fine
            self._bar.show(self._step, phase.name, phase.batches * self._output.batch_size / max(phase.seconds, 1e-9))

    def evaluation(self, path: Source, *, batch_size: int | None = None) -> EvaluationLoader:
        """Return a loader of a test set: centre crop, file order, partial last batch, same device and types.

        Its labels are numbered as the training set's are: by their classes' names, where both files have names.
        Raises DataError, naming it, for a class that the training set has not.
        """
        output = self._output
        size = output.batch_size if batch_size is None else batch_size
        return EvaluationLoader(
            path, self._augment, batch_size=size, device=output.device,
            engine=self._engine, dtype=output.dtype, memory_format=output.memory_format, with_ids=self._with_ids,
            classes=self._classes,
        )  # fmt: skip

    # -- resume ----------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "full": self._full.fingerprint if self._full else None,
            "subset": self._subset.fingerprint if self._subset else None,
            "seed": self._seed,
            "global_batch_size": self._output.batch_size * self._world_size,
            "swap_step": self._planned,
            "swap": self._swap.state() if isinstance(self._swap, Swap) else None,
            "shuffle": self._shuffle,
            "augment": self._augment.state(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a small dict of plain numbers and strings, good for torch.save and JSON; batches delivered count.

        Under several ranks save rank 0's.
        """
        return {
            "fastload_state": STATE_FORMAT,
            "step": self._step,
            "seconds": self._seconds,
            "agreed_swap": self._decision.swap,
            "swap_callbacks": self._told if self._step == self._swapped_at else 0,
            "plateau": None if self._plateau is None else self._plateau.state(),
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the batch after the last one that `state` counts, exactly, in whichever phase that is.

        Raises UsageError, naming what differs, for a state of other data or settings. Engine, device, prefetch,
        ranks and batch size (at an equal global batch) may differ.
        """
        if not isinstance(state, Mapping) or state.get("fastload_state") != STATE_FORMAT:
            found = state.get("fastload_state") if isinstance(state, Mapping) else type(state).__name__
            raise UsageError(
                f"this is no state of a TwoPhaseLoader that this fastload can read (found {_short(found)}, it reads "
                f"format {STATE_FORMAT}); give what loader.state_dict() returned, or update fastload"
            )
        for name, value in self._identity().items():
            if _differs(state.get(name), value):
                raise UsageError(
                    f"the state was saved with {name}={_short(state.get(name))}, this loader has {_short(value)}; "
                    "make the loader as it was"
                )
        try:
            step, seconds = whole("step", state["step"], 0), real("seconds", state["seconds"])
            if not 0 <= seconds < math.inf:
                raise UsageError(f"seconds={seconds}; it must be 0 or more")
            agreed = None if state["agreed_swap"] is None else whole("agreed_swap", state["agreed_swap"], 0)
            told = whole("swap_callbacks", state.get("swap_callbacks", 0), 0)  # older states have none
            plateau = None
            if self._plateau is not None and isinstance(self._swap, Swap):
                plateau = Plateau(self._swap)
                plateau.restore(state["plateau"])
        except (KeyError, TypeError, UsageError) as error:
            raise UsageError(f"the state is damaged ({error}); load an earlier one") from error
        self._check_usable()
        for file in self._files:
            file.check_unchanged()
        if self._steps is not None and step > self._steps:
            raise UsageError(f"the state is at step {step:,}, this loader ends at {self._steps:,}; raise steps=")
        with self._lock:
            if self._telling:
                raise UsageError("load_state_dict() was called by an on_swap callback; call it outside the loop")
            self._fast.rest()
            self._fine.rest()
            self._step, self._pass, self._seconds = step, None, seconds
            self._resumed_at, self._empty_loops = step, 0
            self._plateau, self._wants_swap = plateau, False
            self._decision = Decision(agreed)
            if self._agreement is not None:
                self._agreement.restart()
            # At the step of the swap itself callbacks may have yet to be called.
            self._told = told
            swapped = self._swap == 0 or step > self._swap_step
            self._swapped_at = int(self._swap_step) if swapped else None
            known = self._steps is not None and self._swap_step < math.inf
            self._fine.limit(self._steps - int(self._swap_step) if known else None)  # type: ignore[operator]
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
        if self._bar is not None:
            self._bar.close()

    def __reduce__(self) -> Any:
        raise TypeError("a TwoPhaseLoader holds threads and open files: make another one, and give it the state_dict()")

    def __enter__(self) -> TwoPhaseLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _length(steps: Any, seconds: Any) -> tuple[int | None, float | None]:
    """Return (steps, None) or (None, seconds): how long the run is."""
    if (steps is None) == (seconds is None):
        raise UsageError(f"steps={steps} and seconds={seconds}: give one of the two, the length of the run")
    if steps is not None:
        return whole("steps", steps, 1), None
    seconds = real("seconds", seconds)
    if not 0 < seconds < math.inf:
        raise UsageError(f"seconds={seconds}; it must be positive")
    return None, seconds


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise UsageError(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None or world_size is None:
        group = torch.distributed
        if not (group.is_available() and group.is_initialized()):
            _, started = launched()
            if started != 1:  # else every rank would train on the same batches, and nothing would show it
                raise UsageError(
                    f"a launcher has started several ranks (WORLD_SIZE={started}), but torch.distributed is not "
                    "initialized: make the loader after torch.distributed.init_process_group(), or give rank= and "
                    "world_size="
                )
            return 0, 1
        rank, world_size = group.get_rank(), group.get_world_size()
    rank, world_size = whole("rank", rank), whole("world_size", world_size)
    if not 0 <= rank < world_size:
        raise UsageError(f"rank={rank} is not below world_size={world_size}")
    return rank, world_size


def _takes_one(callback: Callable[..., Any]) -> bool:
    try:
        inspect.signature(callback).bind(None)
    except TypeError:
        return False
    except ValueError:  # built-in, with no signature to look at
        return True
    return True


def _differs(found: Any, value: Any) -> bool:
    try:
        return bool(found != value)
    except (RuntimeError, ValueError):  # an array or a tensor of several elements
        return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
