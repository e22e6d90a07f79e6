"""`fastload demo`: the whole job on a small set, each step shown as the command that one would type.

Pack, choose two subsets (top-activations and random), and train the paper's classifier three times for the same
number of steps: on the full set only, and in two phases with either subset.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.nn.functional import cross_entropy

from fastload.augment import Augment
from fastload.classifier import SIDE, accuracy, averaged, paper_classifier, paper_optimizer
from fastload.command.digits import write_digits
from fastload.command.subset_terminal import TerminalListener
from fastload.common.arguments import integer, positive, seed64
from fastload.common.device import resolve_device
from fastload.common.progress import progress_bar
from fastload.common.terminal import command_lines
from fastload.common.text import duration_text
from fastload.errors import DataError, FastloadError, UsageError
from fastload.loop.loader import TwoPhaseLoader
from fastload.loop.swap import planned_swap
from fastload.packed.classes import label_map, mapped_labels
from fastload.packed.file import PackedFile
from fastload.packed.set import labels_of
from fastload.packing.pack import pack
from fastload.sources import open_source
from fastload.subset.build import build_subset
from fastload.subset.settings import DEFAULT_EPOCHS, DEFAULT_SIZE
from fastload.subset.size import parse_size

FULL, TEST = "train.h5", "test.h5"
RESIZE = 32


@dataclass(frozen=True)
class DemoSettings:
    """What all three trainings share.

    `steps` of `batch_size` augmented images; subsets of `size`, chosen with an autoencoder trained for `epochs`;
    `swap` as for TwoPhaseLoader; all drawn from `seed`, on `device`.
    """

    steps: int
    batch_size: int
    augment: Augment
    size: str
    epochs: float
    swap: float | int
    seed: int
    device: str


@dataclass(frozen=True)
class Training:
    """One training: the test accuracy of the averaged weights, seconds, images/s, the share spent waiting for data.

    `selection_seconds` is what choosing the subset took, None where there is no subset.
    """

    name: str
    accuracy: float
    selection_seconds: float | None
    fast_seconds: float
    fine_seconds: float
    images_per_second: float
    waited: float


def run_demo(
    *,
    data: str | None = None,
    test: str | None = None,
    out: str | os.PathLike[str] | None = None,
    size: str = DEFAULT_SIZE,
    steps: int | None = None,
    batch_size: int | None = None,
    epochs: float = DEFAULT_EPOCHS,
    swap: float | int = 0.5,
    seed: int = 0,
    device: str = "cpu",
    console: Console | None = None,
) -> list[Training]:
    """Do the whole job and print it; return the three trainings in the table's order.

    Arguments:
        data, test: sources for `pack`, in place of the digits; `test` may be left out where `data` has splits train
            and test, or train and val. Images are packed at 32×32.
        out: an empty or new folder that keeps all files; without it they are in a temporary one, gone at the end.
        size: of the subsets.
        epochs: of training the autoencoder.
        steps, batch_size: of each training; 60 of 64 for the digits, 300 of 256 for `data`.
        swap: a share of the steps (float) or a step (int).
        seed: 64-bit.
        device: "cpu", "cuda" or "cuda:N".
        console: where to print; stdout by default.

    Raises UsageError and DataError as `pack`, `build_subset` and TwoPhaseLoader do.
    """
    if test is not None and data is None:
        raise UsageError("--test goes with --data; the digits have a test set of their own")
    own = data is not None
    settings = DemoSettings(
        steps=integer("steps", steps) if steps is not None else 300 if own else 60,
        batch_size=integer("batch_size", batch_size) if batch_size is not None else 256 if own else 64,
        # A mirrored digit is no digit.
        augment=Augment.paper(SIDE) if own else Augment.paper(SIDE, flip=0.0),
        size=size,
        epochs=epochs,
        swap=swap,
        seed=seed,
        device=str(resolve_device(device)),
    )
    if settings.steps < 1 or settings.batch_size < 2:
        raise UsageError(f"--steps {settings.steps} of {settings.batch_size}: at least 1 step of 2 images is needed")
    # Refused now, not after packing.
    planned_swap(swap, settings.steps)
    parse_size(size, sys.maxsize)
    seed64(seed)
    if positive("epochs", epochs) == math.inf:
        raise UsageError("epochs=inf; it must be finite")
    with _workplace(out) as folder:
        show = _Show(console or Console(highlight=False))
        show.command("cd", folder)
        if out is None:
            show.text("a temporary folder, removed at the end; --out DIR keeps the files")
        return _Demo(settings, folder, show).run(data, test)


@contextlib.contextmanager
def _workplace(out: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Give a temporary folder, removed whatever happens, or the one that the user named."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="fastload-demo-") as folder:
            yield Path(folder)
        return
    named = Path(out)
    if named.exists() and (not named.is_dir() or any(named.iterdir())):
        raise UsageError(f"--out {named}: is there already and not an empty folder; name a new one")
    named.mkdir(parents=True, exist_ok=True)
    yield named.resolve()


class _Show:
    """Prints to a person: commands and code as they would be typed, and what came of them."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def text(self, text: str = "") -> None:
        self.console.print(escape(text))

    def command(self, *words: object) -> None:
        room = self.console.width if self.console.is_terminal else None
        self.code(*command_lines(words, room))

    def code(self, *lines: str) -> None:
        self.console.print()
        for line in lines:
            self.console.print(f"[bold]{escape(line)}[/bold]", soft_wrap=True)


class _Demo:
    def __init__(self, settings: DemoSettings, folder: Path, show: _Show) -> None:
        self.settings, self.folder, self.show = settings, folder, show

    def run(self, data: str | None, test: str | None) -> list[Training]:
        if data is None:
            train_count, test_count = write_digits(self.folder / "digits")
            self.show.text(f"scikit-learn's digits, enlarged to 32×32×3: {train_count:,} PNG files in digits/train,")
            self.show.text(f"{test_count:,} in digits/test, a folder for each class")
            self._pack("digits/train", FULL)
            self._pack("digits/test", TEST)
        else:
            self._pack_own(data, test)
        classes = self._check_classes()
        chosen = {strategy: self._choose(strategy) for strategy in ("top-activations", "random")}
        self._announce_training()
        trainings = [self._train("full set only", classes, None, None)]
        trainings += [self._train(name, classes, f"{name}.h5", seconds) for name, seconds in chosen.items()]
        self._report(trainings)
        return trainings

    # -- pack ------------------------------------------------------------------------------------------------------

    def _pack(self, source: str, out: str, split: str | None = None, resize: int | None = None) -> None:
        """Pack a source, given relative to the demo's folder."""
        options = [*(["--split", split] if split else []), *(["--resize", resize] if resize else [])]
        summary = pack(self.folder / source, self.folder / out, split=split, resize=resize)
        self.show.command("fastload", "pack", source, out, *options)
        size = f"{summary.file_bytes / 1e6:,.1f} MB"
        self.show.text(
            f"{summary.images:,} images, {len(summary.counts):,} classes, {size}, {duration_text(summary.seconds)}"
        )

    def _pack_own(self, data: str, test: str | None) -> None:
        """Pack the user's sources at 32×32, which does nothing to images of that size."""
        if test is None:
            training: tuple[str | None, ...] = ("train",)
            held_out: tuple[str | None, ...] = ("test", "val")
            mend = "without --test, --data needs a split train, and test or val; give --test"
        else:
            training, held_out, mend = (None, "train"), ("test", "val", None), ""
        sources = ((data, FULL, training), (data if test is None else test, TEST, held_out))
        # Both before the first is packed.
        chosen = [(source, out, _first_that_suits(source, splits, mend)) for source, out, splits in sources]
        for source, out, split in chosen:
            self._pack(os.path.abspath(source), out, split, RESIZE)

    def _check_classes(self) -> int:
        """Return the number of classes; refuse labels that the classifier cannot learn or the test set not share."""
        with PackedFile(self.folder / FULL) as full, PackedFile(self.folder / TEST) as test:
            largest = 0
            for file in (full, test):
                labels = file.labels
                if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
                    raise DataError(f"{file.path.name}: the demo needs one class number, 0 or more, for each image")
                largest = max(largest, int(labels.max()))
            mapping = label_map(test.classes, full.classes, source="the test set", target="the training set")
            mapped = mapped_labels(labels_of(test, "the demo"), mapping, test.path.name)
            if full.fingerprint == test.fingerprint:
                raise UsageError("the test set is the training set itself; name another one with --test")
            self.test_count = len(test)
            return max(len(full.classes), largest + 1, int(mapped.max()) + 1)

    # -- choose ----------------------------------------------------------------------------------------------------

    def _choose(self, strategy: str) -> float:
        """Build the subset of a strategy; return the seconds that it took."""
        given, out = self.settings, f"{strategy}.h5"
        epochs = None if strategy == "random" else given.epochs
        self.show.command(
            "fastload",
            "build-subset",
            FULL,
            out,
            "--strategy",
            strategy,
            "--size",
            given.size,
            *(["--epochs", f"{epochs:g}"] if epochs else []),
            "--seed",
            given.seed,
            *(["--device", given.device] if given.device != "cpu" else []),
        )
        began = time.perf_counter()
        with TerminalListener() as listener:
            report = build_subset(
                self.folder / FULL,
                self.folder / out,
                strategy=strategy,
                size=given.size,
                epochs=epochs,
                seed=given.seed,
                device=given.device,
                listener=listener,
            )
        seconds = time.perf_counter() - began
        self.show.text(f"{report.chosen:,} of {report.total:,} samples in {duration_text(seconds)}")
        return seconds

    # -- train -----------------------------------------------------------------------------------------------------

    def _announce_training(self) -> None:
        given = self.settings
        flip = "" if given.augment.flip == 0.5 else f", flip={given.augment.flip}"
        self.show.code(
            f'>>> loader = TwoPhaseLoader("{FULL}", "top-activations.h5", swap={given.swap},',
            f"...     batch_size={given.batch_size}, steps={given.steps}, augment=Augment.paper({SIDE}{flip}),",
            f'...     device="{given.device}", seed={given.seed})',
        )
        self.show.text(f"the paper's classifier, {given.steps:,} steps of {given.batch_size:,} images, three times:")

    def _train(self, name: str, classes: int, subset: str | None, selection_seconds: float | None) -> Training:
        given = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(given.seed)
            model = paper_classifier(classes).to(given.device)
        optimizer, average = paper_optimizer(model), averaged(model)
        loader = TwoPhaseLoader(
            self.folder / FULL,
            self.folder / subset if subset else None,
            batch_size=given.batch_size,
            steps=given.steps,
            swap=given.swap if subset else 0,
            augment=given.augment,
            device=given.device,
            memory_format=torch.channels_last,
            seed=given.seed,
        )
        with loader, progress_bar(f"training, {name}", given.steps, unit="steps") as advance:
            swaps: list[float] = []
            loader.on_swap(lambda loader: swaps.append(self._clock()))
            began = self._clock()
            for images, labels in loader:
                loss = cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                average.update_parameters(model)
                advance(1)
            ended = self._clock()
            with loader.evaluation(self.folder / TEST) as batches:
                share = accuracy(average, batches)
            waited = sum(phase["waited"] * phase["seconds"] for phase in loader.stats().values())
        swapped = swaps[0] if swaps else began if loader.swap_step == 0 else ended
        seconds = ended - began
        rate = given.steps * given.batch_size / seconds
        self.show.text(f"  {name}: {share:.1%} of the test set right, {duration_text(seconds)}")
        return Training(name, share, selection_seconds, swapped - began, ended - swapped, rate, waited / seconds)

    def _clock(self) -> float:
        if self.settings.device.startswith("cuda"):
            torch.cuda.synchronize(self.settings.device)
        return time.perf_counter()

    # -- tell ------------------------------------------------------------------------------------------------------

    def _report(self, trainings: list[Training]) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("trained on", no_wrap=True)
        for column in ("accuracy", "selection", "fast phase", "fine-tune", "images/s"):
            table.add_column(column, justify="right")
        for one in trainings:
            selection = "–" if one.selection_seconds is None else f"{one.selection_seconds:.1f} s"
            fast = f"{one.fast_seconds:.1f} s" if one.fast_seconds else "–"
            fine = f"{one.fine_seconds:.1f} s" if one.fine_seconds else "–"
            table.add_row(one.name, f"{one.accuracy:.1%}", selection, fast, fine, f"{one.images_per_second:,.0f}")
        self.show.text()
        self.show.console.print(table)
        given = self.settings
        waited = max(one.waited for one in trainings)
        pace = ": the classifier sets the pace here, not the feed" if waited < 0.05 else ""
        mean = sum(one.accuracy for one in trainings) / len(trainings)
        # Two standard errors of a difference between two shares of n images.
        chance = 2 * math.sqrt(2 * max(mean * (1 - mean), 1 / self.test_count) / self.test_count)
        self.show.text(
            f"Each: {given.steps:,} steps of {given.batch_size:,}, swap={given.swap}, seed {given.seed}, "
            f"{given.device}; subsets of {given.size}. Selection is the whole of build-subset. "
            f"Training waited for data {waited:.1%} of its time at most{pace}."
        )
        self.show.text(
            f"What this shows is that every part works. It is one run with one seed on {self.test_count:,} test "
            f"images, where a difference under {chance:.1%} is chance, and a set that fits in memory needs no "
            "subset: no claim follows from it. Measured comparisons are in docs/results.md."
        )


def _first_that_suits(source: str, splits: Sequence[str | None], mend: str) -> str | None:
    """Return the first split that a source has; raise the reason why it has none of them, with `mend`."""
    reasons: list[FastloadError] = []
    for split in splits:
        try:
            open_source(source, split=split)
            return split
        except FastloadError as error:
            reasons.append(error)
    # What is wrong with a split tells more than that another is not there.
    told = [reason for reason in reasons if not re.search("has no split|several splits", str(reason))]
    reason = (told or reasons)[0]
    raise type(reason)(f"{reason}{f' ({mend})' if mend else ''}") from reason


def parse_swap(text: str) -> float | int:
    """Return what --swap means: "60" is a step, anything with a point or a percent sign a share of the steps."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise UsageError(
            f"--swap {text}: it is a share of the steps such as 0.5 or 50%, or a step such as 60"
        ) from error
