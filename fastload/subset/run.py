"""One run of build-subset: what its steps share, opened and checked, and how they say what they did."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from fastload.common.interrupts import deferred_interrupt
from fastload.common.reproducible import torch_threads
from fastload.embedding.encoder import Encoder
from fastload.embedding.follower import data_state, rank_device
from fastload.embedding.own import OwnEmbeddings, open_embeddings
from fastload.embedding.ranks import Leader
from fastload.embedding.training import TrainingSettings
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.packed.set import Packed
from fastload.packed.writer import check_target
from fastload.packing.fit import fit_of
from fastload.packing.subset_pixels import SubsetImages, subset_images
from fastload.selection import Pass, Request, strategy_row
from fastload.selection.top_activations import report_length
from fastload.subset.candidates import CandidateRows, Candidates
from fastload.subset.choice import Choice
from fastload.subset.listener import Listener
from fastload.subset.report import StepReport
from fastload.subset.sample_scores import check_scores
from fastload.subset.settings import Settings
from fastload.subset.work_folder import WorkFolder


@dataclass
class Run:
    """One run: the settings and what they lead to, where results go, and the steps' reports so far.

    Arguments:
        settings: as asked for.
        full: the full set.
        out: the subset to write.
        images: what its images are.
        choice: what is to be chosen.
        candidates: what may be chosen.
        training: how the autoencoder is trained, where it is.
        own_encoder: the user's, where there is one.
        own_embeddings: the user's, where there are.
        device: of this rank, "cpu" or "cuda:N".
        ranks: the other ranks.
        work: what is kept for the next run.
        listener: hears of progress.
        reports: of the steps that are done.
        told_of_changes: whether it was said which changed setting has steps done again.
    """

    settings: Settings
    full: Packed
    out: Path
    images: SubsetImages
    choice: Choice
    candidates: Candidates
    training: TrainingSettings
    own_encoder: Encoder | None
    own_embeddings: OwnEmbeddings | None
    device: str
    ranks: Leader
    work: WorkFolder
    listener: Listener
    reports: list[StepReport] = field(default_factory=list)
    told_of_changes: bool = False

    @property
    def trains(self) -> bool:
        """Whether an autoencoder is needed."""
        return self.choice.embeds and self.own_encoder is None and self.own_embeddings is None

    @property
    def embeds(self) -> bool:
        """Whether an encoder's pass is needed."""
        return self.choice.embeds and self.own_embeddings is None

    @property
    def threads(self) -> int:
        """Threads of torch and the kernels."""
        return self.settings.thread_count

    @cached_property
    def data(self) -> dict[str, Any]:
        """What identifies the full set and the code, JSON-able."""
        return data_state(self.full)

    @cached_property
    def rows(self) -> CandidateRows:
        """The candidates as rows of the embeddings."""
        return CandidateRows.of(self.full, self.candidates, self.own_embeddings, bool(self.choice.balance))

    # -- what strategies are asked ------------------------------------------------------------------

    def request(self, device: str = "cpu") -> Request:
        """Return how much is wanted of a strategy: what the list of included samples leaves."""
        size = None if self.choice.size is None else self.choice.size - len(self.candidates.included)
        own = self.choice.own_scores
        return Request(
            size=size,
            per_dimension=self.choice.per_dimension,
            seed=self.choice.seed,
            device=device,
            threads=self.threads,
            equal=self.choice.balance == "equal",
            scores=None if own is None else own.scores.of_rows(self.rows.of_full),
        )

    def report_length(self, columns: int) -> int:
        """Return how many of each dimension's strongest samples the report looks at: those that a plain union takes."""
        return report_length(self.request(), columns)

    def begin_pass(self, columns: int, device: str = "cpu") -> Pass:
        """Begin a strategy's pass over embeddings of so many columns."""
        # On the CPU unless said otherwise: the encoder's chunks come there to be hashed, and listing takes 0.3 ms each.
        begin = strategy_row(self.choice.strategy).streams
        assert begin is not None
        return begin(self.rows.samples, self.request(device), columns, report=self.report_length(columns))

    # -- telling ------------------------------------------------------------------------------------

    def report(self, step: str, how: str, seconds: float, detail: str) -> None:
        """Note that a step is done, as a StepReport says it. Raises RankFailure where another rank has failed."""
        self.ranks.check()
        self.reports.append(StepReport(step, how, seconds, detail))
        self.listener.end(self.reports[-1])

    def report_skipped(self, step: str) -> None:
        """Note that a step is not needed."""
        self.report(step, "not needed", 0.0, "")

    def say_changed(self, step: str, settings: Mapping[str, Any]) -> None:
        """Say what changed since the kept state, at the first step that it affects."""
        changed = self.work.changed(step, settings)
        if changed and not self.told_of_changes:
            self.listener.note(f"{step} and what follows is done anew, since {', '.join(changed)}")
            self.told_of_changes = True

    @contextlib.contextmanager
    def deferred_interrupt(self) -> Iterator[Callable[[], bool]]:
        """As `deferred_interrupt`; asked whether to stop, it raises RankFailure where another rank has failed."""
        with deferred_interrupt() as came:

            def should_stop() -> bool:
                self.ranks.check()
                return came()

            yield should_stop


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return the xxh3-128 of JSON-able values, hex."""
    return xxhash.xxh3_128_hexdigest(json.dumps(settings, sort_keys=True).encode())


@contextlib.contextmanager
def open_run(settings: Settings, ranks: Leader) -> Iterator[Run]:
    """Open all that a run needs, and check what can be checked before the work.

    An interrupt in the block says that the same command goes on; a block that ends well leaves the work folder only
    where it is to be kept.
    """
    out, listener = Path(settings.out), settings.listener or Listener()
    check_target(out)
    with settings.open_full() as full, torch_threads(settings.thread_count):
        _check_full(full, out)
        _check_replaceable(out)
        images = subset_images(full, fit_of(settings.resize, settings.short_side))
        choice = Choice.of(settings, full, images)
        candidates = _candidates(settings, full, choice, listener)
        if settings.scores is not None:
            stored = settings.keep or settings.embeddings is not None
            check_scores(Path(settings.scores), full, out, choice.strategy, stored=stored)
        training = settings.training(len(full))
        device = rank_device(settings.device, ranks.world_size)
        encoder = settings.load_encoder()
        embeddings = None
        if settings.embeddings is not None:
            ids = settings.embedding_ids
            embeddings = open_embeddings(settings.embeddings, full, None if ids is None else os.fspath(ids))
        with WorkFolder(out, fresh=settings.fresh) as work:
            run = Run(
                settings=settings,
                full=full,
                out=out,
                images=images,
                choice=choice,
                candidates=candidates,
                training=training,
                own_encoder=encoder,
                own_embeddings=embeddings,
                device=device,
                ranks=ranks,
                work=work,
                listener=listener,
            )
            for note in work.notes:
                listener.note(note)
            try:
                yield run
            except KeyboardInterrupt:
                command = "the same command" + (" without fresh=True" if settings.fresh else "")
                raise KeyboardInterrupt(f"{work.path} keeps what is done; {command} goes on from there") from None
            if not settings.keep:
                told = len(work.notes)
                work.remove()
                for note in work.notes[told:]:
                    listener.note(note)


def _candidates(settings: Settings, file: Packed, choice: Choice, listener: Listener) -> Candidates:
    """Return what may be chosen; exact duplicates too where the others are too few."""
    found = Candidates.of(file, settings.include, settings.exclude, settings.keep_duplicates)
    if found.duplicates and choice.size is not None:
        distinct = int(found.keep.sum()) + len(found.included)
        if choice.size > distinct:
            listener.note(f"there are {distinct:,} distinct samples for {choice.size:,}: duplicates are chosen too")
            found = Candidates.of(file, settings.include, settings.exclude, True)
    choice.check(found)
    return found


def _check_full(file: Packed, out: Path) -> None:
    if out.exists() and any(out.samefile(path) for path in file.paths):
        raise UsageError(f"{out}: is the full set itself; give the subset another name")
    if file.selection is not None:
        raise UsageError(
            f"{file.path}: is itself a subset ({len(file):,} samples chosen by "
            f"{file.selection.attributes.get('strategy', 'some strategy')}); build from the full set"
        )
    if len(file) == 1:
        raise DataError(f"{file.path}: has one image; there is nothing to choose from")


def _check_replaceable(out: Path) -> None:
    """Refuse to write over a full set, which may have taken hours to pack."""
    if not out.exists():
        return
    with contextlib.suppress(DataError), PackedFile(out) as file:  # what is damaged may go
        if file.selection is None:
            raise UsageError(
                f"{out}: is there already, a packed file of {len(file):,} samples and no subset; give another name, or "
                "remove it first"
            )
