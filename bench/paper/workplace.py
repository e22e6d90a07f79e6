"""Where the experiments are done: the data, the device, the scale, the time that is left, and what is done already."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from fastload import __version__
from fastload.augment import Augment
from fastload.bench.measure import Deadline, describe, machine
from fastload.bench.paper.scale import Scale
from fastload.bench.state import State
from fastload.classifier import SIDE
from fastload.errors import DataError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.packed.classes import label_map
from fastload.packed.file import PackedFile

AUGMENT = Augment.paper(SIDE)
_EVALUATION_BATCH = 1000

T = TypeVar("T")


class OutOfTime(Exception):
    """There is not enough time left; what was begun is kept, and another call goes on."""


@dataclass(frozen=True)
class Options:
    """What the command was asked for; `seconds` are all that this call has, `deadline` their end."""

    full: Path
    test: Path
    folder: Path
    device: torch.device
    scale: float
    seeds: int
    seconds: float
    deadline: Deadline


def _class_numbers(file: PackedFile) -> np.ndarray:
    """Return the labels of a file that the experiments can be done on. Raises DataError for any other."""
    if file.storage != "raw" or file.shape is None or min(file.shape[:2]) < SIDE or file.shape[2] != 3:
        raise DataError(f"{file.path}: the paper's experiments need raw colour images of at least 24×24")
    labels = file.labels
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"{file.path}: the experiments need one class number, 0 or more, for each image")
    return labels


class Workplace:
    """Everything that the experiments share. Use it in a `with` block: it keeps two files open."""

    def __init__(self, options: Options, say: Callable[[str], None] = print) -> None:
        self.options, self.device, self.deadline, self.say = options, options.device, options.deadline, say
        self.state = State(options.folder)
        self.unfinished: list[str] = []
        self.rehearsed = False
        self._stack = ExitStack()
        try:
            self.full = self._stack.enter_context(PackedFile(options.full))
            self.test = self._stack.enter_context(PackedFile(options.test))
            self.labels = _class_numbers(self.full)
            self.test_labels = _class_numbers(self.test)
            label_map(self.test.classes, self.full.classes, source=self.test.path, target=self.full.path)
        except BaseException:
            self.close()
            raise
        self.scale = Scale.of(options.scale, len(self.full))
        self.classes = max(len(self.full.classes), int(self.labels.max()) + 1)
        self.seeds = tuple(range(options.seeds))
        found = machine(self.device)
        self.machine = describe(found)
        # What decides a result, beside an experiment's own settings.
        self.identity: dict[str, Any] = {
            "full": self.full.fingerprint,
            "test": self.test.fingerprint,
            "device": found.get("gpu", "cpu"),
            "fastload": __version__,
        }

    @property
    def many(self) -> tuple[int, ...]:
        """Half as many seeds again, for the variance between runs."""
        return tuple(range(math.ceil(1.5 * len(self.seeds))))

    def evaluation(self) -> EvaluationLoader:
        """Return a loader of the whole test set."""
        return EvaluationLoader(
            self.test,
            AUGMENT,
            batch_size=_EVALUATION_BATCH,
            device=self.device,
            memory_format=torch.channels_last,
            classes=self.full.classes,
        )

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """Return what `work` gives; None, noting it as unfinished, where the time is not enough."""
        try:
            return work()
        except OutOfTime:
            if what not in self.unfinished:
                self.unfinished.append(what)
            return None

    def check_time(self, seconds: float = 0.0) -> None:
        """Raise OutOfTime unless more than so many seconds are left."""
        if self.deadline.left <= seconds:
            raise OutOfTime

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
