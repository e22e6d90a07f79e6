"""TwoPhaseLoader: batches of a resident subset first, then, without a stall, of the full set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch

from fastload.augment import Augment, Mix
from fastload.augment.schedule import Augments, final_augment
from fastload.common.arguments import flag, integer
from fastload.errors import UsageError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.loop.checkpoint import snapshot_of, state_of
from fastload.loop.dataloader_view import DataLoaderView
from fastload.loop.files import PHASES
from fastload.loop.run import Run
from fastload.loop.settings import LoaderSettings
from fastload.loop.swap import Swap
from fastload.loop.telemetry import ScalarLog
from fastload.order import Shuffle
from fastload.packed.set import PathsLike


class TwoPhaseLoader(DataLoaderView):
    """Feed a training loop: `swap` steps from the subset, resident on the device, then the full set, streamed.

        loader = TwoPhaseLoader("full.h5", "subset.h5", batch_size=1024, steps=10_000, swap=0.5,
                                augment=Augment.paper(24), device="cuda")
        for images, labels in loader: ...

    Yields images [B, C, h, w] and labels [B, ...] (integers as int64) on the device. Every batch is full. A yielded
    tensor is the caller's and is never overwritten.

    Arguments:
        full: packed file of the whole set, raw, ragged or encoded; a pattern ("shards/*.h5") or a list of files is one
            set; may be None when `swap` is 1.0.
        subset: packed file made by build-subset, raw or ragged; may be None when `swap` is 0.
        batch_size: images a batch on each rank.
        augment: what happens to each image: an `Augment`; one a phase, {"fast": …, "fine-tune": …}; or a `Schedule`.
        pool: draw from a pool on the device that the full set renews meanwhile (docs/rolling.md): the memory of each
            rank's pool, such as "16GB", or its samples on all ranks. It begins with the subset, or grows from nothing.
        refill: the share of a batch that arrives in the pool at each step, 0 to 1: a sample serves 1 / refill steps.
            "auto" (the default with `pool`) measures what the stream gives and training takes; 0 keeps the subset.
        feed: "auto" chooses: a pool as large as the device has room for, and `refill="auto"`.
        steps: batches in all. Give this, `seconds` or `epochs`.
        seconds: of wall-clock time in all.
        epochs: passes over the full set in all (the subset, where there is no full set), a float allowed: it is
            `steps=epochs · floor(samples / global batch)`, rounded, in whichever phase the steps are.
        swap: a float is the share of the run that is on the subset, an int is the step of the swap; or a policy:
            `Swap.after(seconds=…)`, `Swap.on_plateau(…)`, `Swap.never()`. By default 0.5; 1.0 with a rolling pool.
        steps_per_epoch: end each `iter()` after so many batches; the next one goes on.
        seed: 64-bit; decides order and augmentation, with phase, epoch and sample id.
        shuffle: True, "block" (the full set is read nearly in sequence), or False (file order).
        device: "cuda", "cuda:N" or "cpu".
        dtype: of the images: torch.float32, float16, bfloat16 or uint8 (levels of 0…255, without `normalize`).
        memory_format: of the images: torch.contiguous_format or channels_last.
        mix: `Mix`: MixUp and CutMix; labels are then float32 [B, classes].
        views: how many images are made of each sample; with more than one, `images` is a tuple of them.
        transform: called last, with the images of each batch on the device: a module or function that keeps shape, type
            and device. What it draws from torch's generators is the same after a resume with the same `batch_size`.
        with_ids: yield (images, labels, ids) rather than (images, labels). Unlabelled sets give no labels.
        engine: "fused", "dali", or "auto": fused, unless that cannot decode the files: on CUDA, without libturbojpeg,
            or where more than a tenth of them is no JPEG that can be cut.
        scaled_decoding: decode JPEG files at 1/2, 1/4 or 1/8 where a crop is at least that much larger than what it
            becomes: faster for large photographs, and a little different (docs/recipes.md).
        prefetch: batches made ahead by threads.
        keep_resident: keep the subset on the device after the swap.
        resident_budget: bytes; a raw or ragged full set up to this size is kept on the device too, not streamed (unless
            shuffle="block"). By default 1 GiB, and no more than a quarter of the device's free memory; 0: never.
        rank: of this process; by default from torch.distributed, where it is initialized.
        world_size: how many ranks there are; given with `rank`.
        store: a torch.distributed store through which ranks agree on the swap, where they are given by hand.
        images: the name of the images' dataset, where `full` is an HDF5 file of your own.
        labels: the name of the labels' dataset, likewise.
        progress: show a bar: True or "rich", or "tqdm".

    Raises UsageError for settings that cannot be served, DataError for files that are not what they should be.
    """

    def __init__(
        self,
        full: PathsLike | None,
        subset: PathsLike | None = None,
        *,
        batch_size: int,
        augment: Augments,
        pool: int | str | None = None,
        refill: float | Literal["auto"] | None = None,
        feed: Literal["auto"] | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        epochs: float | None = None,
        swap: float | int | Swap | None = None,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        shuffle: Shuffle = True,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        mix: Mix | None = None,
        views: int = 1,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        with_ids: bool = False,
        engine: Literal["auto", "fused", "dali"] = "auto",
        scaled_decoding: bool = False,
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
        given = {name: value for name, value in locals().items() if name != "self"}
        self._run = Run(LoaderSettings(**given))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return self._run.loop(self)

    def swap_now(self) -> None:
        """Swap at the next batch; under several ranks at a step that all agree on, some steps later.

        Under several ranks any of them may call it. Does nothing once the run has swapped.
        """
        self._run.swap_now()

    def report_loss(self, loss: float | torch.Tensor) -> None:
        """Tell `Swap.on_plateau` the loss of a step: a number, or a tensor of one, which is read only now and then.

        Under several ranks rank 0's losses decide. Ignored with another policy, and after the swap.
        """
        if self._run.state.swapped_at is None:
            self._run.swapping.policy.report(loss)

    def on_swap(self, callback: Callable[[TwoPhaseLoader], Any]) -> Callable[[TwoPhaseLoader], Any]:
        """Call `callback(loader)` just before the full set's first batch is delivered. Returns it: a decorator too.

        Callbacks are called in the order of their registration. What one raises comes out of the training loop's
        `next()`. By then the run has swapped, but no batch is lost: the next `iter()` begins by calling that callback
        again and then the ones after it, and so does a run resumed from a `state_dict()` taken then, or within the
        callback. Those that returned are not called again; so register the same ones, in the same order, to resume.
        """
        self._run.callbacks.add(callback)
        return callback

    @property
    def step(self) -> int:
        """Batches delivered so far."""
        return self._run.state.step

    @property
    def progress(self) -> float:
        """The share of the run that has been delivered, by its steps or its seconds: 0 before the first batch, 1 at the
        end. A schedule may read it at each step, and after a resume it goes on where it was.
        """
        return self._run.progress

    @property
    def swap_step(self) -> int | None:
        """The step whose batch is the first of the full set; None while a policy has not decided it."""
        step = self._run.swapping.step(self._run.state)
        return None if step == math.inf else int(step)

    @property
    def phase(self) -> str:
        """ "fast" or "fine-tune": the phase of the batch delivered last (in an `on_swap` callback, the new one)."""
        return PHASES[self._run.state.swapped_at is not None]

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return, by phase, what the run has cost so far.

        `feed`: "resident", "rolling" or "stream" ("" before the first batch). `batches`, `images`, `seconds` (with
        training), `images_per_second`. `waited`: the share of the time that training waited. `read_bytes_per_second`.
        `ring_fill`: how full the batches made ahead were, 0 to 1. `advice`: what to change where more than a tenth was
        waited. Of a rolling pool also `refill`, `uses` (1 / refill), `pool` (samples), `filled` (a share),
        `arrivals_per_second` (given by storage and decoders while at work), `choice` (what "auto" chose, and why).
        """
        return self._run.reports.stats(self._run.state)

    def log_to(self, writer: Any, *, every: int = 50, prefix: str = "fastload") -> None:
        """Write scalars to `writer` each `every` steps, under `prefix`/….

        Arguments:
            writer: a SummaryWriter (or what has its `add_scalar`), a run of W&B or an Accelerator (what has
                `log(scalars, step=…)`), or a function of (scalars, step), such as `mlflow.log_metrics`. What it raises
                is a warning, once, and costs no batch.

        The scalars: phase (0 fast, 1 fine-tune), images_per_second, waited, ring_fill, read_mb_per_second; each since
        the last time.
        """
        self._run.reports.log = ScalarLog(writer, integer("every", every, 1), prefix)

    def evaluation(
        self, path: PathsLike, *, batch_size: int | None = None, shard: bool = False, augment: Augment | None = None
    ) -> EvaluationLoader:
        """Return a loader of a test set: centre crop, file order, partial last batch, same device and types.

        Arguments:
            path: of a packed file; a pattern or a list of them is one set.
            batch_size: images a batch; the loader's own by default.
            shard: give each rank its part: every world-size-th batch, from the one of its number on. Together they
                serve each image once, some ranks a batch more than others. By default every rank serves the whole set.
            augment: has the sizes and the standardization of the test images, in place of the loader's own `augment`
                (to test at a larger size, say). Of neither is anything random.

        Its labels are numbered as the training set's are: by their classes' names, where both files have names.
        Raises DataError, naming it, for a class that the training set has not.
        """
        settings, output = self._run.settings, self._run.settings.output
        size = output.batch_size if batch_size is None else integer("batch_size", batch_size, 1)
        part = {"first_row": settings.rank * size, "every": settings.world_size} if flag("shard", shard) else {}
        return EvaluationLoader(
            path,
            final_augment(settings.augment) if augment is None else augment,
            batch_size=size,
            device=output.device,
            engine=settings.engine,
            dtype=output.dtype,
            memory_format=output.memory_format,
            with_ids=settings.with_ids,
            classes=self._run.files.class_names,
            **part,
        )

    def reset(self) -> None:
        """Go back to the first step, as if no batch had been drawn: after a look at some batches, or `lr_find`, say.

        The time of a run of `seconds=` begins again, and so do `stats()`; callbacks stay registered.
        For another place take `state_dict()` there, and `load_state_dict()` to go back to it.
        """
        self._run.go_to_start()

    def state_dict(self) -> dict[str, Any]:
        """Return a small dict of plain numbers, text and lists, good for torch.save and JSON; batches delivered count.

        A batch counts from the moment that `next()` has returned it. Under several ranks save rank 0's.
        """
        return state_of(self._run.snapshot(), self._run.identity())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the batch after the last one that `state` counts, exactly, in whichever phase that is.

        Raises UsageError, naming what differs, for a state of other data or settings. Engine, device, prefetch,
        ranks and batch size (at an equal global batch) may differ.
        """
        run, settings = self._run, self._run.settings
        snapshot = snapshot_of(state, run.identity(), run.swapping.policy, settings.world_size)
        run.check_usable()
        run.files.check_unchanged()
        if settings.steps is not None and snapshot.step > settings.steps:
            raise UsageError(
                f"the state is at step {snapshot.step:,}, this loader ends at {settings.steps:,}; "
                f"raise {'steps' if settings.epochs is None else 'epochs'}="
            )
        run.go_on_from(snapshot, resumed_at=snapshot.step)

    def close(self) -> None:
        """Free every thread, buffer, pipeline and file. Safe to call twice, at any time and from any thread.

        A loop that goes on drawing batches then gets a UsageError at the next one.
        """
        self._run.close()

    def __reduce__(self) -> Any:
        raise TypeError("a TwoPhaseLoader holds threads and open files: make another one, and give it the state_dict()")

    def __enter__(self) -> TwoPhaseLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
