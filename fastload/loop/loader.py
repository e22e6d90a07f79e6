"""TwoPhaseLoader: batches of a resident subset first, then, without a stall, of the full set."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch

from fastload.augment import Augment, checked
from fastload.common.arguments import flag, seed64, whole
from fastload.common.device import resolve_device
from fastload.common.launcher import check_still_alone, ranks_of
from fastload.common.memory import resident_room
from fastload.common.processors import default_threads
from fastload.errors import ClosedError, UsageError
from fastload.feeds.batch import Feed, Output, yielded
from fastload.feeds.evaluation import EvaluationLoader
from fastload.feeds.feed import open_feed
from fastload.loop.agreement import Alone, Decision, Wishes, agree
from fastload.loop.bar import bar_kind
from fastload.loop.callbacks import SwapCallbacks
from fastload.loop.checkpoint import Saved, saved_of, state_of
from fastload.loop.dataloader_view import DataLoaderView
from fastload.loop.delivery import deliveries
from fastload.loop.loops import Loop, Pass, next_pass, run_length
from fastload.loop.pairing import check_pair, class_names, numbered_labels
from fastload.loop.phase import Phase
from fastload.loop.reporting import Reporter, advice_on
from fastload.loop.run_state import RunState
from fastload.loop.swap import Plateau, Swap, planned_swap
from fastload.loop.telemetry import ScalarLog
from fastload.order import FAST, FINE_TUNE, Order, Shuffle, shuffle_of
from fastload.packed.set import Packed, PathsLike, open_packed

PHASES = ("fast", "fine-tune")

EMPTY_LOOPS = 1_000
"""After so many loops that got nothing, the next is an error: a framework without a limit would go on for ever."""

WARM_SECONDS = 5.0
"""How long before the swap, by estimate, the full set's batches are begun to be made."""


class TwoPhaseLoader(DataLoaderView):
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
        with_ids: yield (images, labels, ids) rather than (images, labels). Unlabelled sets give no labels.
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
        full: PathsLike | None,
        subset: PathsLike | None = None,
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
        self._steps, self._limit = run_length(steps, seconds)
        self._steps_per_epoch = None if steps_per_epoch is None else whole("steps_per_epoch", steps_per_epoch, 1)
        prefetch = None if prefetch is None else whole("prefetch", prefetch, 1)
        budget = None if resident_budget is None else whole("resident_budget", resident_budget, 0)
        checked(augment)
        shuffle = shuffle_of(shuffle)
        self._seed = seed64(seed)
        self._swap = planned_swap(swap, self._steps, self._limit)
        self._augment, self._shuffle, self._engine = augment, shuffle, engine
        self._with_ids, self._keep_resident = flag("with_ids", with_ids), flag("keep_resident", keep_resident)
        self._rank, self._world_size = ranks_of(rank, world_size)
        self._taken_for_alone = rank is None and self._world_size == 1
        bar = bar_kind(progress)
        depth = prefetch if prefetch is not None else max(2, default_threads())
        self._output = Output(batch_size, resolve_device(device), dtype, memory_format, keep=depth + 3)
        # What changes as the run goes on. A batch counts when `_state` is set, at once with its delivery.
        self._state = RunState(swapped_at=0 if self._swap == 0 else None)
        self._decision = Decision(self._state.swapped_at)
        self._wants_swap = False
        self._plateau = Plateau(self._swap) if isinstance(self._swap, Swap) and self._swap.kind == "plateau" else None
        self._callbacks = SwapCallbacks()
        self._pass: Pass | None = None
        self._resumed_at: int | None = None
        self._empty_loops = 0
        self._closed, self._process = False, os.getpid()
        self._lock = threading.RLock()  # two threads may draw from one loader; a callback may use it
        self._files: list[Packed] = []
        try:
            self._full = self._open_file(full, "full", self._may_need_full, images, labels)
            self._subset = self._open_file(subset, "subset", self._swap != 0)
            check_pair(self._full, self._subset, self._shuffle)
            beside = self._subset.nbytes if self._subset is not None else 0
            self._budget = resident_room(self._output.device, budget, beside=beside)
            self._fast = self._phase(FAST, self._subset, depth)
            self._fine = self._phase(FINE_TUNE, self._full, depth)
            self._reports = Reporter(
                ((self._fast, self._subset), (self._fine, self._full)), self._output, self._steps,
                bar if self._rank == 0 else None, advice_on(engine, augment, shuffle),
            )  # fmt: skip
            this, planned = weakref.ref(self), self._planned is not None and self._limit is None
            self._agreement = agree(
                store, self._rank, self._world_size, self._identity(), planned=planned,
                open_end=self._limit is not None, closed=lambda: (loader := this()) is None or loader._closed,
            )  # fmt: skip
            # Alone, and with all that is to come planned, there is nothing to decide at each batch.
            self._watches = self._planned is None or self._limit is not None or self._world_size > 1
            if self._swap != 0:
                self._fast.prepare()
            if self._full is not None and (self._steps is None or self._planned != self._steps):
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

    def _is_resident(self, number: int, file: Packed) -> bool:
        if number == FAST:
            return True
        # Whoever asks for reads in sequence has a storage in mind; and no device has a kernel for that order.
        return file.shape is not None and self._shuffle != "block" and file.nbytes <= self._budget

    def _phase(self, number: int, file: Packed | None, depth: int) -> Phase:
        batch, world, rank = self._output.batch_size, self._world_size, self._rank
        augment, seed, output, engine = self._augment, self._seed, self._output, self._engine
        # A resident subset has no disk to be kind to: "block" is a full shuffle there.
        shuffle = bool(self._shuffle) if number == FAST else self._shuffle
        resident = file is not None and self._is_resident(number, file)
        target = "the other file" if self._full is None else self._full.path
        labels = None if file is None else numbered_labels(file, class_names(self._full, self._subset), target)

        def locate(index: int) -> tuple[int, int]:
            return (index * world + rank) * batch, batch

        def opened() -> Feed:
            assert file is not None
            return open_feed(
                file, augment, Order(len(file), seed, number, shuffle), output, engine=engine, resident=resident,
                labels=labels,
            )  # fmt: skip

        sample_bytes = 0 if file is None else file.nbytes // len(file)
        return Phase(PHASES[number], opened, locate, depth=depth, device=output.device, sample_bytes=sample_bytes)

    # -- iteration -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of the loop that runs, or else of the one that the next `iter()` begins; 0 once all are delivered.

        After `load_state_dict` in the middle of an epoch of `steps_per_epoch=`, those of the whole epoch: Lightning
        takes it so, as it is with torchdata's StatefulDataLoader, and counts the batches already trained on as well.
        Raises TypeError for a run of `seconds=`, whose length nobody knows.
        """
        running = self._pass
        start, end = (running.first, running.end) if running is not None and running.runs else self._next_pass()
        if end is None or self._limit is not None:
            raise TypeError("this run ends after seconds=, so it has no length")
        return end - start

    def __bool__(self) -> bool:
        """True, however many batches are left: `loader or other` is not about its length."""
        return True

    def _next_pass(self) -> tuple[int, int | None]:
        step = self._state.step
        return next_pass(step, self._steps, self._steps_per_epoch, resumed=step == self._resumed_at)

    def _is_finished(self, step: int) -> bool:
        end = self._decision.end
        return (self._steps is not None and step >= self._steps) or (end is not None and step >= end)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        self._check_usable()
        if self._taken_for_alone:
            check_still_alone()
        first, end = self._next_pass()
        step = self._state.step
        if self._is_finished(step):
            self._empty_loops += 1
            if self._empty_loops > EMPTY_LOOPS:
                raise UsageError(
                    f"all {step:,} steps have been delivered, and {EMPTY_LOOPS:,} loops since have got none; end "
                    f"training with the loader (while loader.step < …; Lightning: max_steps={step} at most)"
                )
            warnings.warn(f"all {step:,} steps have been delivered; this loop gets none", stacklevel=2)
        loop = Loop(step, end)
        self._pass = Pass(first, loop)
        return deliveries(self, "_state", self._lock, partial(self._next, loop))

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError()
        if os.getpid() != self._process:
            raise UsageError("this loader was made before a fork, which has none of its threads; make one after it")

    def _next(self, loop: Loop) -> tuple[RunState, tuple[torch.Tensor, ...]]:
        """Return what the next batch of a loop makes of the state, and the batch; StopIteration where there is none."""
        try:
            return self._advance(loop)
        except BaseException as error:
            if self._pass is not None and self._pass.is_of(loop):  # as a rule the loop ends with it
                self._pass = None
            if self._closed and isinstance(error, Exception) and not isinstance(error, ClosedError):
                raise ClosedError() from error  # whatever a file or a feed says that was closed in mid-use
            raise

    def _advance(self, loop: Loop) -> tuple[RunState, tuple[torch.Tensor, ...]]:
        asked = time.perf_counter()
        self._check_usable()
        state, left = self._state, self._state.step == loop.start
        while True:
            if loop.over or (loop.end is not None and state.step >= loop.end):
                raise self._ended(loop, state.with_last_step(asked, left))
            if self._watches or self._wants_swap:
                self._decide(state, state.seconds + state.last_step(asked, left))
            if self._is_finished(state.step):
                raise self._ended(loop, state.with_last_step(asked, left))
            swap_step = self._swap_step
            if state.swapped_at is None and state.step >= swap_step:
                if self._full is None:
                    raise UsageError("it is time to swap, but full= is missing; make the loader with it")
                self._state = state = state.with_swap()
            if state.step == state.swapped_at and self._swap != 0:
                self._cross_over()
            if self._state is state:
                break
            state = self._state  # a callback has drawn batches
        if state.swapped_at is None:
            if not self._fine.is_warm and self._swap_is_near(state, swap_step, asked, left):
                self._fine.warm()
            batch = self._fast.get(state.step, self._steps if swap_step == math.inf else int(swap_step))
        else:
            last = None if self._steps is None else self._steps - state.swapped_at
            batch = self._fine.get(state.step - state.swapped_at, last)
        state = state.with_batch(asked, time.perf_counter(), left)
        if self._reports.is_wanted:
            self._reports.tell(state, loop, lambda: self._state)
        return state, yielded(batch, self._with_ids)

    def _ended(self, loop: Loop, state: RunState) -> StopIteration:
        """End a loop in `state`; return what says so."""
        self._state = state
        if self._is_finished(state.step):
            self._fine.rest()
            self._fast.rest()
            if self._agreement is not None:
                self._agreement.leave()
        if loop.bar is not None:
            loop.bar.end()
        loop.over = True
        return StopIteration()

    # -- the swap and the end --------------------------------------------------------------------------------------

    def _decide(self, state: RunState, seconds: float) -> None:
        """Bring the decision up to date, `seconds` into the run."""
        agreement = self._agreement
        if agreement is None or (state.swapped_at is not None and self._limit is None and agreement.settled):
            return
        swapped = state.swapped_at is not None
        wishes = Wishes(
            self._wants_swap and not swapped,
            not swapped and self._is_due(seconds),
            self._limit is not None and seconds >= self._limit,
        )
        self._decision = agreement.decide(state.step, self._decision, wishes)

    def _is_due(self, seconds: float) -> bool:
        if self._plateau is not None:
            return self._plateau.reached
        return isinstance(self._swap, Swap) and seconds >= self._swap.seconds

    @property
    def _swap_step(self) -> float:
        """The step of the swap, planned or agreed, whichever comes first; infinity while it is open."""
        if self._state.swapped_at is not None:
            return self._state.swapped_at
        planned, agreed = self._planned, self._decision.swap
        if agreed is None:
            return math.inf if planned is None else planned
        return agreed if planned is None else min(planned, agreed)

    def _swap_is_near(self, state: RunState, swap_step: float, asked: float, left: bool) -> bool:
        """Whether it is time to begin to make batches of the full set."""
        if self._full is None or swap_step == self._steps:
            return False
        steps = swap_step - state.step
        if steps <= self._fine.depth + 1 or (self._plateau is not None and self._plateau.near):
            return True
        of_step = state.fast.seconds / state.fast.batches if state.fast.batches else math.inf
        until = steps * of_step if steps < math.inf else math.inf
        if isinstance(self._swap, Swap):
            until = min(until, self._swap.seconds - state.seconds - state.last_step(asked, left))
        return until <= WARM_SECONDS

    def _cross_over(self) -> None:
        """Do what comes between the subset's last batch and the full set's first; after an interrupt, once more."""
        self._wants_swap = False
        if self._keep_resident:
            self._fast.rest()
        else:
            self._fast.release()
        self._callbacks.call(self)
        if self._closed:
            raise ClosedError("an on_swap callback closed this loader; make a new one")

    def swap_now(self) -> None:
        """Swap at the next batch; under several ranks at a step that all agree on, some steps later.

        Under several ranks any of them may call it. Does nothing once the run has swapped.
        """
        self._check_usable()
        if self._full is None:
            raise UsageError("swap_now(): there is no full set to swap to; make the loader with full=")
        with self._lock:
            if self._state.swapped_at is not None:
                return
            if self._agreement is None:
                raise UsageError(
                    "swap_now(): these ranks have no means to agree on a step; initialize torch.distributed, or give "
                    "store="
                )
            self._wants_swap = True
            if isinstance(self._agreement, Alone):
                self._decide(self._state, self._state.seconds)

    def report_loss(self, loss: float | torch.Tensor) -> None:
        """Tell `Swap.on_plateau` the loss of a step: a number, or a tensor of one, which is read only now and then.

        Under several ranks rank 0's losses decide. Ignored with another policy, and after the swap.
        """
        if self._plateau is not None and self._state.swapped_at is None:
            self._plateau.report(loss)

    def on_swap(self, callback: Callable[[TwoPhaseLoader], Any]) -> Callable[[TwoPhaseLoader], Any]:
        """Call `callback(loader)` just before the full set's first batch is delivered. Returns it: a decorator too.

        Callbacks are called in the order of their registration. What one raises comes out of the training loop's
        `next()`. By then the run has swapped, but no batch is lost: the next `iter()` begins by calling that callback
        again and then the ones after it, and so does a run resumed from a `state_dict()` taken then, or within the
        callback. Those that returned are not called again; so register the same ones, in the same order, to resume.
        """
        self._callbacks.add(callback)
        return callback

    # -- what a training loop asks ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Batches delivered so far."""
        return self._state.step

    @property
    def swap_step(self) -> int | None:
        """The step whose batch is the first of the full set; None while a policy has not decided it."""
        step = self._swap_step
        return None if step == math.inf else int(step)

    @property
    def phase(self) -> str:
        """ "fast" or "fine-tune": the phase of the batch delivered last (in an `on_swap` callback, the new one)."""
        return PHASES[self._state.swapped_at is not None]

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return, by phase, what the run has cost so far.

        `feed`: "resident" or "stream" ("" before the first batch). `batches`, `images`, `seconds` (wall-clock, training
        included), `images_per_second`. `waited`: the share of the time that training waited for data.
        `read_bytes_per_second`: of the files (0 for a resident feed). `ring_fill`: how full the batches made ahead were
        when one was asked for, 0 to 1. `advice`: what to change where more than a tenth of the time was waited, or "".
        """
        return self._reports.stats(self._state)

    def log_to(self, writer: Any, *, every: int = 50, prefix: str = "fastload") -> None:
        """Write scalars to `writer` each `every` steps, under `prefix`/….

        Arguments:
            writer: a SummaryWriter (or what has its `add_scalar`), a run of W&B or an Accelerator (what has
                `log(scalars, step=…)`), or a function of (scalars, step), such as `mlflow.log_metrics`. What it raises
                is a warning, once, and costs no batch.

        The scalars: phase (0 fast, 1 fine-tune), images_per_second, waited, ring_fill, read_mb_per_second; each since
        the last time.
        """
        self._reports.log = ScalarLog(writer, whole("every", every, 1), prefix)

    def evaluation(self, path: PathsLike, *, batch_size: int | None = None, shard: bool = False) -> EvaluationLoader:
        """Return a loader of a test set: centre crop, file order, partial last batch, same device and types.

        Arguments:
            path: of a packed file; a pattern or a list of them is one set.
            batch_size: images a batch; the loader's own by default.
            shard: give each rank its part: every world-size-th batch, from the one of its number on. Together they
                serve each image once, some ranks a batch more than others. By default every rank serves the whole set.

        Its labels are numbered as the training set's are: by their classes' names, where both files have names.
        Raises DataError, naming it, for a class that the training set has not.
        """
        output = self._output
        size = output.batch_size if batch_size is None else whole("batch_size", batch_size, 1)
        part = {"first_row": self._rank * size, "every": self._world_size} if flag("shard", shard) else {}
        return EvaluationLoader(
            path, self._augment, batch_size=size, device=output.device,
            engine=self._engine, dtype=output.dtype, memory_format=output.memory_format, with_ids=self._with_ids,
            classes=class_names(self._full, self._subset), **part,
        )  # fmt: skip

    # -- resume ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Go back to the first step, as if no batch had been drawn: after a look at some batches, or `lr_find`, say.

        For another place take `state_dict()` there, and `load_state_dict()` to go back to it.
        """
        self._check_usable()
        plateau = None if self._plateau is None or not isinstance(self._swap, Swap) else Plateau(self._swap)
        self._go_on_from(Saved(0, 0.0, None, 0, plateau), resumed_at=None)

    def _go_to(self, step: int) -> None:
        """Go on with the batch of another step, in whichever phase that is as far as is decided."""
        state = self._state
        swap = self._decision.swap if state.swapped_at is None else state.swapped_at
        callbacks = self._callbacks.returned if step == state.step == state.swapped_at else 0
        self._go_on_from(Saved(step, state.seconds, swap, callbacks, self._plateau), resumed_at=None)

    def _identity(self) -> dict[str, Any]:
        """Return what a state must have in common with this loader, as JSON-able plain values."""
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
        """Return a small dict of plain numbers, text and lists, good for torch.save and JSON; batches delivered count.

        A batch counts from the moment that `next()` has returned it. Under several ranks save rank 0's.
        """
        state = self._state
        callbacks = self._callbacks.returned if state.step == state.swapped_at else 0
        swap = self._decision.swap if state.swapped_at is None else state.swapped_at
        return state_of(Saved(state.step, state.seconds, swap, callbacks, self._plateau), self._identity())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the batch after the last one that `state` counts, exactly, in whichever phase that is.

        Raises UsageError, naming what differs, for a state of other data or settings. Engine, device, prefetch,
        ranks and batch size (at an equal global batch) may differ.
        """
        saved = saved_of(state, self._identity(), self._swap, self._world_size)
        self._check_usable()
        for file in self._files:
            file.check_unchanged()
        if self._steps is not None and saved.step > self._steps:
            raise UsageError(f"the state is at step {saved.step:,}, this loader ends at {self._steps:,}; raise steps=")
        self._go_on_from(saved, resumed_at=saved.step)

    def _go_on_from(self, saved: Saved, *, resumed_at: int | None) -> None:
        with self._lock:
            if self._callbacks.running:
                raise UsageError(
                    "load_state_dict() or reset() was called by an on_swap callback; call it outside the loop"
                )
            self._fast.rest()
            self._fine.rest()
            # At the step of the swap itself callbacks may have yet to be called.
            at = min((step for step in (self._planned, saved.swap) if step is not None), default=math.inf)
            swapped_at = int(at) if self._swap == 0 or saved.step > at else None
            vars(self).update(  # at once: an interrupt comes before or after
                _state=RunState(saved.step, swapped_at, saved.seconds, fast=self._state.fast, fine=self._state.fine),
                _decision=Decision(saved.swap),
                _agreement=None if self._agreement is None else self._agreement.restarted(saved.step),
                _callbacks=SwapCallbacks(self._callbacks, saved.callbacks),
                _plateau=saved.plateau,
                _wants_swap=False,
                _pass=None,
                _resumed_at=resumed_at,
                _empty_loops=0,
            )

    # -- end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free every thread, buffer, pipeline and file. Safe to call twice, at any time and from any thread.

        Whoever draws batches then gets a UsageError at the next one.
        """
        self._closed = True
        for phase in (getattr(self, "_fast", None), getattr(self, "_fine", None)):
            if phase is not None:
                phase.close()
        for file in self._files:
            file.close()
        reports = getattr(self, "_reports", None)
        if reports is not None:
            reports.close()

    def __reduce__(self) -> Any:
        raise TypeError("a TwoPhaseLoader holds threads and open files: make another one, and give it the state_dict()")

    def __enter__(self) -> TwoPhaseLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
