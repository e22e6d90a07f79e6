"""Build a subset: the paper's five steps, each kept in OUT.h5.work/ until the last is done.

Train the autoencoder, embed, analyse, filter, write. A step whose data and settings are those of an interrupted
run is reused; a changed setting redoes the first step that it affects and those after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from fastload.common.arguments import flag, path_of, real, seed64, text, whole
from fastload.common.reproducible import torch_threads
from fastload.common.tensors import load_tensors, save_tensors
from fastload.embedding.autoencoder import VIEW, Autoencoder, load_model, save_model, weights_of
from fastload.embedding.chunks import most_rows
from fastload.embedding.embed import embed
from fastload.embedding.encoder import (
    Encoder,
    autoencoder_encoder,
    chunk_rows,
    load_encoder,
    parse_normalize,
    trained_model,
)
from fastload.embedding.follower import data_state, follow, rank_device
from fastload.embedding.own import OwnEmbeddings, open_embeddings
from fastload.embedding.ranks import Follower, Leader, joined
from fastload.embedding.rows import FileRows
from fastload.embedding.stored import hash_rows, open_stored
from fastload.embedding.training import Training, train
from fastload.errors import DataError, UsageError
from fastload.kernels import topk
from fastload.kernels.topk import TopKState
from fastload.packed.file import PackedFile, PackedWriter, SelectionTable
from fastload.packed.format import digest
from fastload.packed.set import Packed, Source, labels_of, open_packed
from fastload.packed.writer import check_target
from fastload.packing.subset_pixels import decode_rows, output_shape, sample_bytes
from fastload.selection import (
    Embeddings,
    Pass,
    Request,
    Samples,
    Selection,
    as_embeddings,
    select,
    strategy_row,
)
from fastload.selection.top_activations import list_length, read, report_length
from fastload.subset import estimate as needs
from fastload.subset.candidates import Candidates, KeptRows
from fastload.subset.not_finite import naming_them, rows_not_finite
from fastload.subset.report import Overlap, StepReport, SubsetReport, count_classes, measure_lists, size_text
from fastload.subset.sample_scores import check_scores, score_samples, write_scores
from fastload.subset.size import parse_size
from fastload.subset.streaming_pass import FusedPass
from fastload.subset.work_folder import NOT_FINITE, WorkFolder

DEFAULT_SIZE = "8.64%"
"""The paper's: 20 samples for each of 216 dimensions is 4,320 of CIFAR-10's 50,000."""

DEFAULT_EPOCHS = 5
"""Measured on CIFAR-10 with two cores: two minutes, loss 0.38 after the first epoch and 0.14 after the fifth."""

PAPER_STEPS, PAPER_BATCH = 40_000, 1024
STEPS = ("train", "embed", "analyse", "filter", "write")
_SAVE_SECONDS = 30.0


class Listener:
    """Hears how `build_subset` gets on; all methods may be left as they are, which is silence."""

    def needs(self, needs: needs.Needs) -> None:
        """Called before the first step with what is needed."""

    def note(self, text: str) -> None:
        """Called with what a person should know: a changed setting, a damaged state."""

    def begin(self, step: str, total: int, done: int = 0) -> None:
        """Called when a step of STEPS begins, `done` of `total` units from an earlier run."""

    def advance(self, done: int, detail: str = "") -> None:
        """Called as the step gets on."""

    def end(self, report: StepReport) -> None:
        """Called when a step is done, or was found done."""


def build_subset(
    full: Source,
    out: str | os.PathLike[str],
    *,
    strategy: str = "top-activations",
    size: int | float | str | None = None,
    per_dimension: int | None = None,
    balance_classes: bool = False,
    equal_classes: bool = False,
    include: Any = None,
    exclude: Any = None,
    keep_duplicates: bool = False,
    embeddings: str | os.PathLike[str] | None = None,
    embedding_ids: str | os.PathLike[str] | None = None,
    encoder: str | None = None,
    input_size: int | None = None,
    encoder_normalize: Any = None,
    embedding_size: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float = 0.1,
    preset: str | None = None,
    resize: int | None = None,
    images: str | None = None,
    labels: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    engine: str = "auto",
    threads: int | None = None,
    keep: bool = False,
    fresh: bool = False,
    scores: str | os.PathLike[str] | None = None,
    alone: bool = False,
    listener: Listener | None = None,
) -> SubsetReport:
    """Choose the samples of a packed full set that matter most by their embeddings, and write them as a packed file.

    The five steps of "Faster Training by Selecting Samples Using Embeddings": train the autoencoder (Fig. 2) on
    the augmented set, embed every sample, analyse (`top-activations` is Eq. 4: for each embedding dimension, the
    samples that activate it most), filter, write. State is kept in `out` + ".work" and the same call goes on
    after an interruption; with the same seed, on the same machine, it gives the same file.

    Arguments:
        full: the packed full set, a pattern ("shards/*.h5") or list of files that make up one, or the user's own HDF5
            file with `images` and `labels`, its datasets' names.
        out: the subset to write, raw; replaced only when complete.

        strategy: "top-activations"; "random" for comparison, which needs no embeddings; or one of the paper's
            suggestions, "combinations", "kmeans", "pca" and "penalized" (docs/strategies.md).
        size: how many samples: a number, a share like "8.64%", or a float in (0, 1). The default is "8.64%".
        per_dimension: instead of `size`, this many for each dimension: the plain union, of at most
            per_dimension × dimensions samples.
        balance_classes: with `size`, each class gives its share of the set; with `per_dimension`, its strongest so many
            of each dimension. Needs one integer label a sample.
        equal_classes: in place of it, all classes give the same number; one that is too small gives all it has.
        include: ids or names that are chosen first, whatever their rank: a list, a text with commas between, or a file
            with one a line. Classes are balanced among the rest.
        exclude: ids or names that are never chosen, in the same forms.
        keep_duplicates: choose also samples whose stored bytes are those of another. By default the lowest id of them
            is chosen alone, unless there are too few others.

        embeddings: FILE.npy or FILE.h5:dataset, [N, D], one for each sample, in place of the first two steps.
        embedding_ids: FILE[:dataset] of the ids (or names) of the samples that the rows of `embeddings` are of. By
            default a dataset `ids` beside the embeddings in FILE.h5, else row i is of row i of `full`; "rows" says
            that it is (docs/embeddings.md).
        encoder: "module:callable", a torch module that takes standardized float32 [B, C, h, w] and returns
            [B, D], in place of the autoencoder.
        input_size: the side in pixels of the centre square that `encoder` sees; 24 of 32 by default.
        encoder_normalize: "imagenet", or (means, standard deviations) of pixel values 0…1, a value a channel, which are
            taken off in place of standardizing each image by itself.
        embedding_size: elements of the autoencoder's embedding, 216 by default.
        epochs: of training the autoencoder, 5 by default. batch_size: 128 by default.
        learning_rate: of SGD with momentum 0.9.
        preset: "paper" for 40,000 steps of 1,024.

        resize: bring the chosen images' shorter side to this many pixels and cut the centre square; needed where
            an encoded set has images of several sizes.
        seed: 64-bit; decides weights, order, augmentation and selection.
        device: "cpu" or "cuda". engine: of the feeds, "auto", "fused" or "dali".
        threads: of torch and the kernels; all processors by default.
        keep: store the embeddings and leave the work folder, so that another call, of another size say, reuses its
            weights and embeddings. Without it the embeddings of `top-activations` pass by once and need no space.
        fresh: begin anew whatever the work folder holds.
        scores: FILE.npz for `ids` (int64), `score` (float32) and `dimension` (int32), each [N], of all samples in the
            order of rows, chosen or not (docs/strategies.md). Not for "random" and strategies of one's own;
            top-activations needs `keep` or `embeddings` for it.
        alone: do it in this process, though a launcher started several or torch.distributed has several. Otherwise
            all ranks call this with the same arguments, share the encoder's pass, and rank 0 does and tells the rest
            (docs/ranks.md); the file is the one that a single process writes.
        listener: hears of progress.

    Returns a SubsetReport. Raises UsageError for settings that cannot be served (a size beyond the set, no CUDA,
    too little memory, another process on the same output, a full set as the output), DataError for data that cannot
    (NaN in embeddings, a broken image, a full disk), RankFailure where another rank failed. KeyboardInterrupt leaves
    the state for the next call.
    """
    listener = listener or Listener()
    with joined(alone=flag("alone", alone)) as ranks:
        if isinstance(ranks, Follower):
            state = follow(
                ranks, full, images=images, labels=labels, encoder=encoder, input_size=input_size,
                encoder_normalize=encoder_normalize,
                seed=seed, device=device, engine=engine,
            )  # fmt: skip
            return SubsetReport.from_state(state)
        out, seed = path_of("out", out), seed64(seed)
        balance_classes, keep = flag("balance_classes", balance_classes), flag("keep", keep)
        equal_classes, fresh = flag("equal_classes", equal_classes), flag("fresh", fresh)
        keep_duplicates = flag("keep_duplicates", keep_duplicates)
        for name, value in (("strategy", strategy), ("preset", preset), ("device", device), ("engine", engine)):
            if value is not None:
                text(name, value)
        learning_rate, epochs = real("learning_rate", learning_rate), None if epochs is None else real("epochs", epochs)
        per_dimension, input_size, embedding_size, batch_size, resize, threads = (
            None if value is None else whole(name, value)
            for name, value in (
                ("per_dimension", per_dimension), ("input_size", input_size), ("embedding_size", embedding_size),
                ("batch_size", batch_size), ("resize", resize), ("threads", threads),
            )
        )  # fmt: skip
        if encoder is not None and not isinstance(encoder, str):
            raise UsageError(f"encoder={encoder!r}; it is a text, module:callable, for example my_models:encoder")
        if embeddings is not None:
            embeddings = path_of("embeddings", embeddings)
        if embedding_ids is not None:
            embedding_ids = str(path_of("embedding_ids", embedding_ids))
            if embeddings is None:
                raise UsageError("--embedding-ids says whose --embeddings are; give those too")
        if parse_normalize(encoder_normalize) is not None and encoder is None:
            raise UsageError("--encoder-normalize is for --encoder; the autoencoder standardizes each image")
        check_target(out)
        scores = None if scores is None else path_of("scores", scores)
        with open_packed(full, images=images, labels=labels) as file, torch_threads(_thread_count(threads)):
            _check_full(file, out)
            _check_replaceable(out)
            balance = "equal" if equal_classes else "shares" if balance_classes else ""
            if equal_classes and balance_classes:
                raise UsageError("--balance-classes and --equal-classes: give one of the two")
            shape = output_shape(file, resize)
            choice = _Choice.parse(file, strategy, size, per_dimension, balance, seed, shape)
            candidates = Candidates.of(file, include, exclude, keep_duplicates)
            if candidates.duplicates and choice.size is not None:
                distinct = int(candidates.keep.sum()) + len(candidates.included)
                if choice.size > distinct:
                    listener.note(
                        f"there are {distinct:,} distinct samples for {choice.size:,}: duplicates are chosen too"
                    )
                    candidates = Candidates.of(file, include, exclude, True)
            choice.check(candidates)
            if scores is not None:
                check_scores(scores, file, out, strategy, stored=keep or embeddings is not None)
            training = _training(
                len(file), preset, epochs, batch_size, learning_rate, embedding_size, seed,
                own=_own_source(embeddings, encoder, input_size),
            )  # fmt: skip
            if not choice.embeds and (embeddings is not None or encoder is not None):
                raise UsageError(
                    f"--strategy {strategy} needs no embeddings, so there is no use for --embeddings and --encoder"
                )
            resolved = rank_device(device, ranks.world_size)
            loaded = None
            if encoder and choice.embeds:
                loaded = load_encoder(encoder, input_size=input_size, seed=seed, normalize=encoder_normalize)
            brought = None
            if embeddings is not None and choice.embeds:
                brought = open_embeddings(embeddings, file, embedding_ids)
            with WorkFolder(out, fresh=fresh) as work:
                builder = _Builder(
                    file=file, out=out, work=work, listener=listener, choice=choice, candidates=candidates,
                    shape=shape, training=training,
                    encoder=loaded, brought=brought, resize=resize, device=resolved, engine=engine,
                    threads=_thread_count(threads), keep=keep, scores=scores, ranks=ranks,
                )  # fmt: skip
                try:
                    report = builder.build()
                except KeyboardInterrupt:
                    command = "the same command" + (" without --fresh" if fresh else "")
                    raise KeyboardInterrupt(f"{work.path} keeps what is done; {command} goes on from there") from None
                if not keep:
                    told = len(work.notes)
                    work.remove()
                    for note in work.notes[told:]:
                        listener.note(note)
        ranks.tell({"report": report.state()})
    return report


# -- arguments ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """What to choose: `size` samples or `per_dimension` for each dimension."""

    strategy: str
    size: int | None
    per_dimension: int | None
    balance: str
    seed: int

    @classmethod
    def parse(
        cls,
        file: Packed,
        strategy: str,
        size: Any,
        per_dimension: int | None,
        balance: str,
        seed: int,
        shape: tuple[int, int, int],
    ) -> _Choice:
        row = strategy_row(strategy)
        if size is not None and per_dimension is not None:
            raise UsageError("--size and --per-dimension: give one of the two")
        if balance:
            labels = labels_of(file, "--balance-classes")
            if labels.ndim != 1 or labels.dtype.kind not in "iub":
                raise UsageError(
                    f"--balance-classes: the labels of {file.path} are {labels.dtype} of shape {labels.shape}; it "
                    "needs one integer class a sample"
                )
        if per_dimension is not None:
            if not row.per_dimension:
                raise UsageError(f"--per-dimension: {strategy} has no dimensions; give --size")
            if not 1 <= per_dimension <= len(file):
                raise UsageError(
                    f"--per-dimension {per_dimension}: choose from 1 to the {len(file):,} samples of {file.path}"
                )
            return cls(strategy, None, per_dimension, balance, seed)
        wanted = parse_size(DEFAULT_SIZE if size is None else size, len(file), sample_bytes(file, shape))
        return cls(strategy, wanted, None, balance, seed)

    def check(self, candidates: Candidates) -> None:
        """Raise UsageError where the samples that may be chosen are too few, or none are left to choose."""
        left, named = int(candidates.keep.sum()), len(candidates.included)
        if self.size is not None and self.size <= named:
            raise UsageError(f"--size {self.size:,}: {named:,} are named by --include already; choose a larger size")
        wanted = (self.size or 0) - named if self.size is not None else self.per_dimension or 1
        if wanted > left:
            raise UsageError(
                f"{wanted:,} samples were asked for, but {left:,} are left to choose from "
                f"({len(candidates.excluded):,} are excluded)"
            )

    @property
    def embeds(self) -> bool:
        return strategy_row(self.strategy).needs_embeddings

    def state(self) -> dict[str, Any]:
        found = {"size": self.size, "per_dimension": self.per_dimension, "balance_classes": bool(self.balance)}
        return found | ({"equal_classes": True} if self.balance == "equal" else {})


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


def _own_source(embeddings: object, encoder: str | None, input_size: int | None) -> str | None:
    """Return the option that takes the autoencoder's place."""
    if embeddings is not None and encoder is not None:
        raise UsageError("--embeddings and --encoder: give one of the two")
    if input_size is not None and encoder is None:
        raise UsageError("--input-size is for --encoder; the autoencoder sees 24×24 pixels")
    if input_size is not None and input_size < 1:
        raise UsageError(f"--input-size {input_size}: it is a side in pixels, at least 1")
    return "--embeddings" if embeddings is not None else "--encoder" if encoder is not None else None


def _training(
    count: int,
    preset: str | None,
    epochs: float | None,
    batch_size: int | None,
    learning_rate: float,
    embedding_size: int | None,
    seed: int,
    own: str | None,
) -> Training:
    given = {"--preset": preset, "--epochs": epochs, "--batch-size": batch_size, "--embedding-size": embedding_size}
    unused = [name for name, value in given.items() if value is not None]
    if own is not None and unused:
        raise UsageError(f"{own} takes the autoencoder's place, so there is no use for {', '.join(unused)}")
    if preset not in (None, "paper"):
        raise UsageError(f"--preset {preset}: there is one, 'paper'")
    if preset and (epochs is not None or batch_size is not None):
        raise UsageError("--preset paper sets steps and batch size; leave out --epochs and --batch-size")
    if epochs is not None and not 0 < epochs < math.inf:
        raise UsageError(f"--epochs {epochs:g}: it must be positive")
    batch = PAPER_BATCH if preset else 128 if batch_size is None else batch_size
    steps = PAPER_STEPS if preset else math.ceil((DEFAULT_EPOCHS if epochs is None else epochs) * count / max(1, batch))
    return Training(
        steps, batch, learning_rate, embedding_size=216 if embedding_size is None else embedding_size, seed=seed
    )


def _thread_count(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: it must be at least 1")
    return threads or needs.processors()


# -- the steps ---------------------------------------------------------------------------------------------------


@dataclass
class _Builder:
    """One run over the five steps: each method does one, or finds it done, and passes its result on."""

    file: Packed
    out: Path
    work: WorkFolder
    listener: Listener
    choice: _Choice
    candidates: Candidates
    shape: tuple[int, int, int]
    training: Training
    encoder: Encoder | None
    brought: OwnEmbeddings | None
    resize: int | None
    device: str
    engine: str
    threads: int
    keep: bool
    scores: Path | None
    ranks: Leader

    def __post_init__(self) -> None:
        self.steps: list[StepReport] = []
        self.losses: list[float] = []
        self.trains = self.choice.embeds and self.encoder is None and self.brought is None
        self.embeds = self.choice.embeds and self.brought is None
        self._redone = False
        self._data = data_state(self.file)
        balance = self.choice.balance
        # Rows of the embeddings, which need not stand in the full set's order; those that may be chosen of them.
        row_of = np.arange(len(self.file)) if self.brought is None else self.brought.row_of
        self._kept = self.candidates.keep[row_of]
        row_of = row_of[self._kept]
        self._ids = self.file.ids[row_of]
        self._labels = labels_of(self.file, "--balance-classes")[row_of] if balance else None
        self._samples = Samples.of(self._ids, self._labels)
        self._labels_hash = (
            {"labels": xxhash.xxh3_128_hexdigest(np.ascontiguousarray(self.file.labels).data)} if balance else {}
        )
        self._order_hash = (
            {}
            if self.brought is None
            else {"embedding_ids": xxhash.xxh3_128_hexdigest(np.ascontiguousarray(self._ids).data)}
        )
        if not self._kept.all():
            named = np.concatenate([self._ids, self.file.ids[self.candidates.included]])
            self._order_hash["candidates"] = xxhash.xxh3_128_hexdigest(named.data)
        self._streams = strategy_row(self.choice.strategy).streams is not None
        self._train_settings = {**self._data, **self.training.state(), "view": VIEW.state()}

    def build(self) -> SubsetReport:
        for note in self.work.notes:
            self.listener.note(note)
        self._announce()
        encoder = self._train() if self.trains else self._skip("train", self.encoder)
        embedded = self._embed(encoder) if encoder is not None else self._own_embeddings()
        chosen, facts = self._analyse(embedded)
        rows = self._filter(chosen["ids"])
        if self.scores is not None:
            self._write_scores(self.scores, embedded.vectors)
        self._write(rows, chosen, embedded.hashed)
        return self._summary(chosen, facts, rows, embedded.hashed)

    # -- before -----------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Measure what is needed, say so, and refuse what cannot fit."""
        found = needs.Needs()
        file, training = self.file, self.training
        count = len(file)
        model = self._saved_model() if self.trains else None
        columns = 0 if self.brought is None else self.brought.shape[1]
        train_left = embed_rows = 0
        fused = False
        if self.trains:
            if model is not None:
                found.reused.append("train")
            else:
                trial = needs.try_training(file, training, device=self.device, engine=self.engine)
                checkpoint = load_tensors(self.work.file("training.safetensors"))
                begun = checkpoint is not None and checkpoint[1].get("key") == self._train_key
                train_left = training.steps - (int(checkpoint[1].get("step", 0)) if checkpoint and begun else 0)
                found.seconds["train"] = trial.seconds * train_left
                _add_memory(found, trial)
        if self.embeds:
            encoder = self.encoder
            if encoder is None:
                encoder = autoencoder_encoder(model or _untrained(file, training))
            plan = self._plan(encoder if self.encoder is not None or model is not None else None)
            columns = training.embedding_size if self.encoder is None else 0
            if plan.done:
                found.reused.append("embed")
                columns = plan.columns
            else:
                chunk = chunk_rows(encoder.view)
                trial = needs.try_embedding(file, encoder, min(chunk, count), device=self.device, engine=self.engine)
                embed_rows, columns = count - plan.first, trial.columns
                found.seconds["embed"] = trial.seconds * embed_rows / self.ranks.world_size
                _add_memory(found, trial, self.ranks.on_this_machine)
            fused = plan.fused is not None
            if not fused and not self.work.file("embeddings.npy").exists():
                found.disk += count * columns * 4
        size = self.choice.size or min(count, (self.choice.per_dimension or 0) * max(1, columns))
        found.memory += count * needs.SAMPLE_BYTES + (0 if fused else needs.reading_memory(count * columns * 4))
        if columns and self._streams:
            length = list_length(self._request(), self._samples, columns)
            entries = columns * (length * len(self._samples.group_sizes) + self._report_length(columns))
            found.memory += needs.lists_memory(entries, self.threads)
            # The state before stays until the new one is whole.
            found.disk += 2 * needs.lists_disk(entries) if fused else 0
            if self.device.startswith("cuda") and not fused:
                device = torch.device(self.device)
                lists = (length, len(self._samples.group_sizes)), (self._report_length(columns), 1)
                processors = torch.cuda.get_device_properties(device).multi_processor_count
                listing = topk.cuda_bytes(columns, lists, min(count, most_rows(columns)), processors)
                found.device_memory = max(found.device_memory, listing)
                topk.compile_for(device)
        found.seconds["analyse"] = count * needs.CHOOSE_SECONDS + (0 if fused else count * columns * 4 / 1e9)
        if columns and self.choice.embeds and not self._streams:
            seconds, memory = needs.strategy_needs(
                self.choice.strategy, count, columns, 2 * (size + 2 * columns), self.threads
            )
            found.seconds["analyse"] += seconds
            found.memory += memory
        height, width, channels = self.shape
        subset = size * height * width * channels
        found.disk += subset + size * (64 + (0 if file.labels is None else file.labels.nbytes // count))
        found.seconds["write"] = subset / 200e6 + (size / (400 * self.threads) if file.shape is None else 0)
        needs.measure_free(found, self.out.parent, self.device)
        self.listener.needs(found)
        found.check(self.out.parent)

    # -- train ------------------------------------------------------------------------------------

    @property
    def _train_key(self) -> str:
        return _hash(self._train_settings)

    def _saved_model(self) -> Autoencoder | None:
        facts = self.work.finished("train", self._train_settings)
        if facts is None:
            return None
        model = load_model(self.work.file("autoencoder.safetensors"))
        if model is None or autoencoder_encoder(model).identity != facts.get("weights"):
            return None
        return model

    def _train(self) -> Encoder:
        settings = self._train_settings
        model = self._saved_model()
        if model is not None:
            facts = self.work.finished("train", settings) or {}
            self.losses = list(facts.get("losses", []))
            self._report("train", "reused", self.work.seconds("train"), f"{self.training.steps:,} steps")
            return autoencoder_encoder(model)
        path = self.work.file("training.safetensors")
        if self.work.finished("train", settings) is not None:
            self.listener.note(f"{self.work.file('autoencoder.safetensors')} is damaged, so training is done again")
        self._say_changed("train", settings)
        if path.exists() and load_tensors(path) is None:
            self.listener.note(f"{path} is damaged, so training begins anew")
        self.work.record("train", settings, 0.0, {}, done=False)
        started = False

        def on_step(step: int, loss: float | None) -> None:
            nonlocal started
            if not started:
                self.listener.begin("train", self.training.steps, step - 1)
                started = True
            self.listener.advance(step, "" if loss is None else f"loss {loss:.3f}")

        with self._deferred_interrupt() as should_stop:
            trained = train(
                self.file, self.training, device=self.device, engine=self.engine, checkpoint=path,
                key=self._train_key, seconds_between=_SAVE_SECONDS, on_step=on_step, should_stop=should_stop,
            )  # fmt: skip
            self.losses = trained.losses
            encoder = autoencoder_encoder(trained.model)
            save_model(self.work.file("autoencoder.safetensors"), trained.model)
            facts = {"weights": encoder.identity, "losses": trained.losses, "device": self.device}
            self.work.record("train", settings, trained.seconds, facts)
            path.remove()
        how = f"resumed at step {trained.resumed_at:,}" if trained.resumed_at else "done"
        self._report("train", how, trained.seconds, f"{self.training.steps:,} steps of {self.training.batch_size:,}")
        return encoder

    # -- embed ------------------------------------------------------------------------------------

    def _embed_settings(self, encoder: Encoder) -> dict[str, Any]:
        return {**self._data, "encoder": encoder.name, "weights": encoder.identity, "view": encoder.view.state()}

    def _embeddings_on_disk(self, settings: dict[str, Any]) -> tuple[bool, int]:
        """Return whether the embeddings are there, and else how many rows of them."""
        stored = open_stored(self.work.file("embeddings.npy"))
        whole = stored is not None and stored.shape[0] == len(self.file)
        done = self.work.finished("embed", settings)
        if done is not None:
            return whole and hash_rows(stored) == done.get("hash"), 0
        begun = self.work.unfinished("embed", settings)
        return False, int(begun.get("rows", 0)) if begun and whole else 0

    def _plan(self, encoder: Encoder | None) -> _EmbedPlan:
        """Decide whether embeddings are stored or pass by, and how far that is; `encoder` is None while untrained.

        What an earlier call stored, or began to, is used; else only --keep and strategies that look at embeddings more
        than once need them stored.
        """
        settings = self._embed_settings(encoder) if encoder is not None else {}
        done, first = self._embeddings_on_disk(settings)
        if done or first or self.keep or not self._streams:
            stored = open_stored(self.work.file("embeddings.npy")) if done else None
            return _EmbedPlan(settings, done, first, stored.shape[1] if stored else 0, None)
        settings |= {"strategy": self.choice.strategy, **self.choice.state(), **self._labels_hash, **self._order_hash}
        fused = FusedPass(
            self.work.file("lists.safetensors"), _hash(settings), len(self.file), self._begin_pass,
            None if self._kept.all() else self._kept,
        )  # fmt: skip
        done = fused.complete and self.work.finished("embed", settings) is not None
        return _EmbedPlan(settings, done, fused.rows, fused.columns, fused)

    def _embed(self, encoder: Encoder) -> _Embedded:
        plan = self._plan(encoder)
        settings, path = plan.settings, self.work.file("embeddings.npy" if plan.fused is None else "lists.safetensors")
        if plan.done:
            facts = self.work.finished("embed", settings) or {}
            self._report("embed", "reused", self.work.seconds("embed"), "")
            return self._embedded(plan, str(facts["hash"]))
        if self.work.finished("embed", settings) is not None:
            self.listener.note(f"{path} is damaged, so embedding is done again")
        self._say_changed("embed", settings)
        if plan.fused is not None:
            self.work.file("embeddings.npy").remove()  # of other settings, and large
        before = self.work.seconds("embed") if plan.first else 0.0
        began = time.monotonic()

        def on_saved(rows: int) -> None:
            self.work.record("embed", settings, before + time.monotonic() - began, {"rows": rows}, done=False)

        def run(first: int) -> None:
            self.listener.begin("embed", len(self.file), first)
            self.work.record("embed", settings, before + time.monotonic() - began, {"rows": first}, done=False)
            self._ask_for_shares(encoder, first)
            embed(
                self.file, encoder, plan.fused or path, device=self.device, engine=self.engine, first_row=first,
                leader=self.ranks, on_chunk=self.listener.advance, on_saved=on_saved, should_stop=should_stop,
            )  # fmt: skip

        with self._deferred_interrupt() as should_stop:
            if plan.fused is None:
                run(plan.first)
                stored = self._stored()
                hashed, columns, passes = hash_rows(stored), stored.shape[1], 1
            else:
                self._pass_by(plan.fused, run)
                hashed, columns, passes = plan.fused.hexdigest(), plan.fused.columns, plan.fused.passes
            seconds = before + time.monotonic() - began
            self.work.record("embed", settings, seconds, {"hash": hashed})
        how = f"resumed at row {plan.first:,}" if plan.first else "done"
        repeated = f", {passes} passes" if passes > 1 else ""
        self._report("embed", how, seconds, f"{len(self.file):,} × {columns}{repeated}")
        return self._embedded(plan, hashed)

    def _ask_for_shares(self, encoder: Encoder, first: int) -> None:
        """Let the other ranks begin on their share of a pass from row `first` on."""
        asked = {
            "first": first, "threads": self.threads, "data": self._data, "encoder": encoder.identity,
            "view": encoder.view.state(),
        }  # fmt: skip
        model = trained_model(encoder)
        if model is None:
            self.ranks.tell(asked)
        else:
            asked |= {"channels": model.channels, "embedding_size": model.embedding_size}
            self.ranks.tell(asked, weights_of(model))

    def _pass_by(self, fused: FusedPass, run: Callable[[int], None]) -> None:
        """Repeat the encoder's pass, each time with longer lists, until they are long enough to choose from."""
        while True:
            if not fused.complete:
                run(fused.rows)
                fused.sync()
            with naming_them(self.file, self.candidates, self.work, lambda: fused.not_finite):
                if fused.strategy.selection() is not None:
                    return
            fused.again()
            self.listener.note(f"lists were too short for this overlap, so pass {fused.passes} has longer ones")

    def _embedded(self, plan: _EmbedPlan, hashed: str) -> _Embedded:
        if plan.fused is not None:
            return _Embedded(hashed, None, plan.fused.strategy)
        return _Embedded(hashed, self._stored(), None)

    def _stored(self) -> FileRows:
        stored = open_stored(self.work.file("embeddings.npy"))
        if stored is None:
            raise DataError(f"{self.work.file('embeddings.npy')}: cannot be read back; run the same command again")
        return stored

    def _own_embeddings(self) -> _Embedded:
        if self.brought is None:
            self._skip("embed", None)
            return _Embedded("", None, None)
        began = time.monotonic()
        hashed = hash_rows(self.brought.rows)
        rows, columns = self.brought.shape
        self._report("embed", "brought", time.monotonic() - began, f"{rows:,} × {columns}, {self.brought.rule}")
        return _Embedded(hashed, self.brought.rows, None)

    # -- analyse, filter, write -------------------------------------------------------------------

    def _request(self, device: str = "cpu") -> Request:
        size = None if self.choice.size is None else self.choice.size - len(self.candidates.included)
        return Request(
            size,
            self.choice.per_dimension,
            self.choice.seed,
            device,
            self.threads,
            None,
            self.choice.balance == "equal",
        )

    def _report_length(self, columns: int) -> int:
        """Return how many of each dimension's strongest samples the report looks at: those that a plain union takes."""
        return report_length(self._request(), columns)

    def _begin_pass(self, columns: int, device: str = "cpu") -> Pass:
        # On the CPU unless said otherwise: the encoder's chunks come there to be hashed, and listing takes 0.3 ms each.
        begin = strategy_row(self.choice.strategy).streams
        assert begin is not None
        return begin(self._samples, self._request(device), columns, report=self._report_length(columns))

    def _analyse(self, embedded: _Embedded) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        settings = {
            **self._data, **self.choice.state(), "strategy": self.choice.strategy, "seed": self.choice.seed,
            "embeddings": embedded.hashed, **self._labels_hash, **self._order_hash,
        }  # fmt: skip
        path = self.work.file("selection.safetensors")
        self.work.file(NOT_FINITE).remove()  # of other embeddings
        facts = self.work.finished("analyse", settings)
        found = load_tensors(path) if facts is not None else None
        if facts is not None and found is not None and found[1].get("key") == _hash(settings):
            self._report("analyse", "reused", self.work.seconds("analyse"), "")
            return {name: tensor.numpy() for name, tensor in found[0].items()}, facts
        if facts is not None:
            self.listener.note(f"{path} is damaged, so analysing is done again")
        self._say_changed("analyse", settings)
        self.listener.begin("analyse", len(self.file))
        began = time.monotonic()
        selection, strongest = self._select(embedded)
        chosen: dict[str, np.ndarray] = {
            "ids": np.asarray(selection.ids, np.int64), "dimension": np.asarray(selection.dimension, np.int32),
            "rank": np.asarray(selection.rank, np.int32), "score": np.asarray(selection.score, np.float32),
        }  # fmt: skip
        chosen = self._with_included(chosen)
        facts = _selection_facts(chosen, strongest, selection.report)
        seconds = time.monotonic() - began
        save_tensors(path, {name: torch.from_numpy(array) for name, array in chosen.items()}, {"key": _hash(settings)})
        self.work.record("analyse", settings, seconds, facts)
        self._report("analyse", "done", seconds, self.choice.strategy)
        return chosen, facts

    def _included_state(self) -> dict[str, int]:
        return {"included": len(self.candidates.included)} if len(self.candidates.included) else {}

    def _with_included(self, chosen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Put the samples that are named to be chosen before the others, as of no dimension."""
        rows = self.candidates.included
        others = chosen["rank"][chosen["dimension"] < 0]
        first = int(others.max()) + 1 if len(others) else 0  # no rank twice
        named = {
            "ids": self.file.ids[rows], "dimension": np.full(len(rows), -1, np.int32),
            "rank": first + np.arange(len(rows), dtype=np.int32), "score": np.zeros(len(rows), np.float32),
        }  # fmt: skip
        return {name: np.concatenate([named[name], chosen[name]]) for name in chosen}

    def _select(self, embedded: _Embedded) -> tuple[Selection, TopKState | None]:
        """Return the selection and each dimension's strongest samples, None without embeddings."""
        if embedded.lists is not None:
            selection = embedded.lists.selection()
            assert selection is not None, "embedding goes on until the lists are long enough"
            return selection, embedded.lists.strongest()
        vectors, count = embedded.vectors, len(self._samples)
        if vectors is not None and not self._kept.all():
            vectors = KeptRows(vectors, self._kept)

        def advance(done: int, total: int) -> None:
            self.listener.advance(done)

        def find() -> np.ndarray:
            found = rows_not_finite(as_embeddings(embedded.vectors))
            return found if self.brought is None else self.brought.row_of[found]

        if vectors is not None and self._streams:
            source = as_embeddings(vectors)
            lists = self._begin_pass(vectors.shape[1], device=self.device)
            with naming_them(self.file, self.candidates, self.work, find):
                while (found := read(source, lists, advance).selection()) is None:
                    lists = lists.again()
            return found, lists.strongest()
        # A strategy that looks at no embeddings gets a column of zeros that takes no memory.
        seen = np.broadcast_to(np.float32(0), (count, 1)) if vectors is None else vectors
        with naming_them(self.file, self.candidates, self.work, find):
            selection = select(
                self.choice.strategy, seen, self._ids, size=self._request().size,
                per_dimension=self.choice.per_dimension, labels=self._labels, equal=self.choice.balance == "equal",
                seed=self.choice.seed, device=self.device, threads=self.threads, progress=advance,
                overlap=vectors is not None,
            )  # fmt: skip
        return selection, None

    def _filter(self, ids: np.ndarray) -> np.ndarray:
        """Return the chosen samples' rows in the full file, in order of choice; their stored bytes are verified."""
        began = time.monotonic()
        self.listener.begin("filter", len(ids))
        order = np.argsort(self.file.ids, kind="stable")
        rows = order[np.searchsorted(self.file.ids, ids, sorter=order)]
        if self.file.digests is not None:
            damaged = [row for row in rows if digest(self.file.read(int(row))) != int(self.file.digests[row])]
            if damaged:
                first = ", ".join(str(self.file.ids[row]) for row in damaged[:5])
                raise DataError(
                    f"{self.file.path}: {len(damaged):,} of the chosen samples are damaged (ids {first}…); "
                    "`fastload verify` lists all, pack it again"
                )
        self._report("filter", "done", time.monotonic() - began, f"{len(rows):,} of {len(self.file):,} samples")
        return rows

    def _write_scores(self, path: Path, vectors: Embeddings | None) -> None:
        """Before the subset, so that all is there once that is."""
        assert vectors is not None, "checked before the work"
        row_of = np.arange(len(self.file)) if self.brought is None else self.brought.row_of
        scored = np.isin(row_of, self.candidates.excluded, invert=True)
        score, dimension = score_samples(
            self.choice.strategy, vectors, scored, KeptRows(vectors, self._kept), self._samples, self._request()
        )
        order = np.argsort(row_of)  # of the full set's rows
        write_scores(path, self.file.ids, score[order], dimension[order])

    def _write(self, rows: np.ndarray, chosen: dict[str, np.ndarray], hashed: str) -> None:
        began = time.monotonic()
        self.listener.begin("write", len(rows))
        attributes = {
            "strategy": self.choice.strategy,
            "settings": json.dumps(self.choice.state() | self._included_state(), sort_keys=True),
            "seed": np.uint64(self.choice.seed),
            "full_fingerprint": self.file.fingerprint,
            "embeddings": hashed,
        }
        if self.brought is not None:
            attributes["embedding_order"] = self.brought.rule
        labels, names = self.file.labels, self.file.names
        table = SelectionTable(chosen["dimension"], chosen["rank"], chosen["score"], attributes)
        writer = PackedWriter(
            self.out, shape=(len(rows), *self.shape), labels=None if labels is None else labels[rows],
            ids=chosen["ids"], classes=self.file.classes, source={"kind": "subset", "of": self.file.source},
            selection=table, names=None if names is None else [names[row] for row in rows.tolist()],
        )  # fmt: skip
        with writer:
            for index, pixels in decode_rows(self.file, rows, self.resize, self.shape, self.threads):
                writer.write(index, pixels)
                if index % 64 == 63:
                    self.listener.advance(index + 1)
        self._report("write", "done", time.monotonic() - began, size_text(self.out.stat().st_size))

    def _summary(
        self, chosen: dict[str, np.ndarray], facts: dict[str, Any], rows: np.ndarray, hashed: str
    ) -> SubsetReport:
        given = chosen["dimension"][chosen["dimension"] >= 0]
        dimensions = int(facts["dimensions"])
        return SubsetReport(
            full=self.file.path, out=self.out, strategy=self.choice.strategy, settings=self.choice.state(),
            seed=self.choice.seed, full_fingerprint=self.file.fingerprint, embeddings_hash=hashed,
            chosen=len(rows), total=len(self.file), steps=self.steps, losses=self.losses,
            classes=count_classes(self.file, rows),
            per_dimension=np.bincount(given, minlength=dimensions)[:dimensions], dead=list(facts["dead"]),
            filled=int(facts["filled"]), overlap=Overlap(**facts["overlap"]) if facts["overlap"] else None,
            ids=chosen["ids"].tolist(),
            names=None if self.file.names is None else [self.file.names[row] for row in rows.tolist()],
            embedding_order="" if self.brought is None else self.brought.rule,
            left_out={
                "included": len(self.candidates.included), "excluded": len(self.candidates.excluded),
                "exact duplicates left out": self.candidates.duplicates,
            },
        )  # fmt: skip

    @contextlib.contextmanager
    def _deferred_interrupt(self) -> Iterator[Callable[[], bool]]:
        """As `deferred_interrupt`; asked whether to stop, it raises RankFailure where another rank has failed."""
        with deferred_interrupt() as came:

            def should_stop() -> bool:
                self.ranks.check()
                return came()

            yield should_stop

    # -- telling ----------------------------------------------------------------------------------

    def _report(self, step: str, how: str, seconds: float, detail: str) -> None:
        self.ranks.check()
        self.steps.append(StepReport(step, how, seconds, detail))
        self.listener.end(self.steps[-1])

    def _skip(self, step: str, result: Any) -> Any:
        self._report(step, "not needed", 0.0, "")
        return result

    def _say_changed(self, step: str, settings: dict[str, Any]) -> None:
        """Say what changed since the kept state, at the first step that it affects."""
        changed = self.work.changed(step, settings)
        if changed and not self._redone:
            self.listener.note(f"{step} and what follows is done anew, since {', '.join(changed)}")
            self._redone = True


@dataclass(frozen=True)
class _EmbedPlan:
    """Where embeddings go: `fused`, or a file where that is None; how far that is; `columns`, 0 while not known."""

    settings: dict[str, Any]
    done: bool
    first: int
    columns: int
    fused: FusedPass | None


@dataclass(frozen=True)
class _Embedded:
    """What there is of the embeddings: their hash, themselves, or the lists that they left behind."""

    hashed: str
    vectors: Embeddings | None
    lists: Pass | None


def _selection_facts(
    chosen: dict[str, np.ndarray], strongest: TopKState | None, report: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the summary tells: of the strategy's own dimensions, clusters or pairs, as far as it says."""
    given = chosen["dimension"][chosen["dimension"] >= 0]
    facts = {
        "dimensions": int(report.get("dimensions", given.max() + 1 if len(given) else 0)),
        "dead": report.get("dead_dimensions", []), "filled": int(report.get("filled_at_random", 0)),
        "overlap": report.get("lists"),
    }  # fmt: skip
    if strongest is not None:
        overlap, dead = measure_lists(strongest)
        facts |= {"overlap": dataclasses.asdict(overlap), "dead": dead}
    return facts


def _hash(settings: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(settings, sort_keys=True).encode())


def _add_memory(found: needs.Needs, trial: needs.Trial, processes: int = 1) -> None:
    """The steps come one after the other, so the largest counts."""
    found.memory = max(found.memory, processes * (needs.BASE_MEMORY + trial.memory))
    found.device_memory = max(found.device_memory, trial.device_memory)


def _untrained(file: Packed, training: Training) -> Autoencoder:
    channels = file.shape[2] if file.shape is not None else 3
    model = Autoencoder(channels, training.embedding_size)
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the work is at a point to save; yields a function that says whether it came.

    A second Ctrl-C acts at once. One that came too late for the block is raised at its end. Outside the main
    thread, where signals do not arrive, it never comes.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.getsignal(signal.SIGINT)
    if before in (None, signal.SIG_IGN):  # not Python's to restore, or somebody wants it ignored
        yield came.is_set
        return

    def hold(number: int, frame: Any) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    signal.signal(signal.SIGINT, hold)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)
    if came.is_set():
        raise KeyboardInterrupt
