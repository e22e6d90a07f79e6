"""The arguments of `build_subset`: listed once, checked, and made plain."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from fastload.common.arguments import flag, integer, path_of, real, seed64, text
from fastload.common.processors import processors
from fastload.embedding.encoder import Encoder, load_encoder, parse_normalize
from fastload.embedding.training import TrainingSettings
from fastload.errors import UsageError
from fastload.packed.set import Packed, PathsLike, open_packed
from fastload.packing.fit import fit_of
from fastload.selection import DEFAULT_STRATEGY, Scores, strategy_in_words, strategy_row
from fastload.selection.given_scores import HARDEST, LEAVE_OUT
from fastload.subset.listener import Listener

DEFAULT_SIZE = "8.64%"
"""The paper's: 20 samples for each of 216 dimensions is 4,320 of CIFAR-10's 50,000."""

DEFAULT_EPOCHS = 5
"""Measured on CIFAR-10 with two cores: two minutes, loss 0.38 after the first epoch and 0.14 after the fifth."""

PAPER_STEPS, PAPER_BATCH = 40_000, 1024

_REQUIRED: dict[str, Callable[[str, Any], Any]] = {
    "out": path_of,
    "balance_classes": flag,
    "equal_classes": flag,
    "keep_duplicates": flag,
    "seed": lambda name, value: seed64(value),
    "keep": flag,
    "fresh": flag,
    "alone": flag,
}
_OPTIONAL: dict[str, Callable[[str, Any], Any]] = {
    "strategy": text,
    "preset": text,
    "device": text,
    "engine": text,
    "epochs": real,
    "per_dimension": integer,
    "input_size": integer,
    "embedding_size": integer,
    "batch_size": integer,
    "learning_rate": real,
    "resize": integer,
    "short_side": integer,
    "threads": integer,
    "scores_from": path_of,
    "hardest": text,
    "leave_out": real,
    "embeddings": path_of,
    "embedding_ids": lambda name, value: str(path_of(name, value)),
    "scores": path_of,
}
_OF_EMBEDDINGS = (
    "embeddings",
    "embedding_ids",
    "encoder",
    "input_size",
    "encoder_normalize",
    "embedding_size",
    "epochs",
    "batch_size",
    "learning_rate",
    "preset",
    "scores",
)
"""What only a strategy that looks at embeddings has a use for, where it is not None; `keep` too."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `build_subset`, which tells what each means.

    They are checked as far as the full set need not be read for it; numbers and paths become plain ones.

    Raises UsageError for values of another kind or out of range, and for arguments that exclude each other.
    """

    full: PathsLike
    out: str | os.PathLike[str]
    _: KW_ONLY
    strategy: str = DEFAULT_STRATEGY
    size: int | float | str | None = None
    per_dimension: int | None = None
    balance_classes: bool = False
    equal_classes: bool = False
    include: Any = None
    exclude: Any = None
    keep_duplicates: bool = False
    scores_from: str | os.PathLike[str] | None = None
    hardest: str | None = None
    leave_out: float | None = None
    embeddings: str | os.PathLike[str] | None = None
    embedding_ids: str | os.PathLike[str] | None = None
    encoder: str | None = None
    input_size: int | None = None
    encoder_normalize: Any = None
    embedding_size: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    preset: str | None = None
    resize: int | None = None
    short_side: int | None = None
    images: str | None = None
    labels: str | None = None
    seed: int = 0
    device: str = "cpu"
    engine: str = "auto"
    threads: int | None = None
    keep: bool = False
    fresh: bool = False
    scores: str | os.PathLike[str] | None = None
    alone: bool = False
    listener: Listener | None = None

    def __post_init__(self) -> None:
        for name, plain in _REQUIRED.items():
            object.__setattr__(self, name, plain(name, getattr(self, name)))
        for name, plain in _OPTIONAL.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, plain(name, getattr(self, name)))
        if self.encoder is not None and not isinstance(self.encoder, str):
            raise UsageError(f"encoder={self.encoder!r}; it is a text, module:callable, for example my_models:encoder")
        fit_of(self.resize, self.short_side)
        self._check_amount()
        self._check_scores()
        self._check_use_of_embeddings()
        self._check_embedding()
        self._check_training()
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads}: it must be at least 1")

    def _check_amount(self) -> None:
        row = strategy_row(self.strategy)
        if self.equal_classes and self.balance_classes:
            raise UsageError("balance_classes=True and equal_classes=True exclude each other; give one of the two")
        if self.size is not None and self.per_dimension is not None:
            raise UsageError("size= and per_dimension= exclude each other; give one of the two")
        if self.per_dimension is not None and not row.per_dimension:
            raise UsageError(
                f"{strategy_in_words(self.strategy)} has no dimensions for per_dimension={self.per_dimension}; give "
                'size=, or say strategy="top-activations", the paper\'s'
            )

    def _check_scores(self) -> None:
        given = {"scores_from=": self.scores_from, "hardest=": self.hardest, "leave_out=": self.leave_out}
        used = [name for name, value in given.items() if value is not None]
        if not strategy_row(self.strategy).needs_scores:
            if used:
                raise UsageError(
                    f'{strategy_in_words(self.strategy)} has no use for {", ".join(used)}: strategy="scores" has'
                )
            return
        Scores((), *self.reading_of_scores)
        if self.scores_from is None:
            beside = "; scores= is a file to write" if self.scores is not None else ""
            raise UsageError(
                f'strategy="{self.strategy}" chooses by scores that you bring: give scores_from="FILE" '
                f"(.npz, .npy or .csv){beside}"
            )

    @property
    def reading_of_scores(self) -> tuple[str, float]:
        """Which scores are the hardest samples', and the share of these that is left out."""
        return self.hardest or HARDEST[0], LEAVE_OUT if self.leave_out is None else self.leave_out

    def _check_use_of_embeddings(self) -> None:
        if strategy_row(self.strategy).needs_embeddings:
            return
        unused = [f"{name}=" for name in _OF_EMBEDDINGS if getattr(self, name) is not None]
        unused += ["keep=True"] if self.keep else []
        if unused:
            raise UsageError(
                f"{strategy_in_words(self.strategy)} looks at no embeddings, so there is no use for "
                f'{", ".join(unused)}; say strategy="top-activations", the paper\'s, or leave '
                f"{'it' if len(unused) == 1 else 'them'} out"
            )

    def _check_embedding(self) -> None:
        if self.embedding_ids is not None and self.embeddings is None:
            raise UsageError("embedding_ids= says whose embeddings= are; give those too")
        if parse_normalize(self.encoder_normalize) is not None and self.encoder is None:
            raise UsageError("encoder_normalize= is for encoder=; the autoencoder standardizes each image")
        if self.embeddings is not None and self.encoder is not None:
            raise UsageError("embeddings= and encoder= exclude each other; give one of the two")
        if self.input_size is not None and self.encoder is None:
            raise UsageError("input_size= is for encoder=; the autoencoder sees 24×24 pixels")
        if self.input_size is not None and self.input_size < 1:
            raise UsageError(f"input_size={self.input_size}: it is a side in pixels, at least 1")

    def _check_training(self) -> None:
        own = "embeddings=" if self.embeddings is not None else "encoder=" if self.encoder is not None else None
        given = {
            "preset=": self.preset,
            "epochs=": self.epochs,
            "batch_size=": self.batch_size,
            "learning_rate=": self.learning_rate,
            "embedding_size=": self.embedding_size,
        }
        unused = [name for name, value in given.items() if value is not None]
        if own is not None and unused:
            raise UsageError(f"{own} takes the autoencoder's place, so there is no use for {', '.join(unused)}")
        if self.preset not in (None, "paper"):
            raise UsageError(f"preset={self.preset!r}: there is one, 'paper'")
        if self.preset and (self.epochs is not None or self.batch_size is not None):
            raise UsageError('preset="paper" sets steps and batch size; leave out epochs= and batch_size=')
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UsageError(f"epochs={self.epochs:g}: it must be positive")

    @property
    def balance(self) -> str:
        """How classes share the subset: "equal" counts, "shares" of the full set, or "" for as it comes."""
        return "equal" if self.equal_classes else "shares" if self.balance_classes else ""

    @property
    def thread_count(self) -> int:
        """Threads of torch and the kernels."""
        return self.threads or processors()

    def training(self, count: int) -> TrainingSettings:
        """Return how the autoencoder is trained on a full set of `count` samples."""
        if self.preset:
            batch, steps = PAPER_BATCH, PAPER_STEPS
        else:
            batch = TrainingSettings.batch_size if self.batch_size is None else self.batch_size
            epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
            steps = math.ceil(epochs * count / max(1, batch))
        rate = TrainingSettings.learning_rate if self.learning_rate is None else self.learning_rate
        size = TrainingSettings.embedding_size if self.embedding_size is None else self.embedding_size
        return TrainingSettings(steps, batch, rate, embedding_size=size, seed=self.seed)

    def open_full(self) -> Packed:
        """Open the full set."""
        return open_packed(self.full, images=self.images, labels=self.labels)

    def load_encoder(self) -> Encoder | None:
        """Return the user's own encoder, or None for the autoencoder."""
        if not self.encoder:
            return None
        return load_encoder(self.encoder, input_size=self.input_size, seed=self.seed, normalize=self.encoder_normalize)
