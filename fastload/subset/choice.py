"""What a run of build-subset is to choose: how many samples, how its classes share them, and by what scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastload.errors import UsageError
from fastload.packed.set import Packed, labels_of
from fastload.packing.subset_pixels import SubsetImages, sample_bytes
from fastload.selection import strategy_row
from fastload.subset.candidates import Candidates
from fastload.subset.own_scores import OwnScores, open_scores
from fastload.subset.settings import DEFAULT_SIZE, Settings
from fastload.subset.size import parse_size


@dataclass(frozen=True)
class Choice:
    """What to choose: `size` samples or `per_dimension` for each dimension.

    Arguments:
        strategy: the name of a strategy.
        size: samples in all; None with `per_dimension`.
        per_dimension: samples of each dimension; None with `size`.
        balance: how classes share them, as `Settings.balance`.
        seed: 64-bit.
        own_scores: what the strategy chooses by, where it is the user's scores.
    """

    strategy: str
    size: int | None
    per_dimension: int | None
    balance: str
    seed: int
    own_scores: OwnScores | None = None

    @classmethod
    def of(cls, settings: Settings, file: Packed, images: SubsetImages) -> Choice:
        """Return what the settings ask for of a full set, whose images become `images` in the subset.

        Raises UsageError for labels that are no classes, and for an amount that the set does not have; DataError for
        scores that cannot be read, or are of other samples.
        """
        strategy, per_dimension = settings.strategy, settings.per_dimension
        if settings.balance:
            balancing = "equal_classes=True" if settings.equal_classes else "balance_classes=True"
            labels = labels_of(file, balancing)
            if labels.ndim != 1 or labels.dtype.kind not in "iub":
                raise UsageError(
                    f"{balancing} needs one integer class a sample; the labels of {file.path} are {labels.dtype} of "
                    f"shape {labels.shape}"
                )
        scores = None
        if settings.scores_from is not None:
            scores = open_scores(Path(settings.scores_from), file, *settings.reading_of_scores)
        if per_dimension is not None:
            if not 1 <= per_dimension <= len(file):
                raise UsageError(
                    f"per_dimension={per_dimension}: choose from 1 to the {len(file):,} samples of {file.path}"
                )
            return cls(strategy, None, per_dimension, settings.balance, settings.seed, scores)
        size = DEFAULT_SIZE if settings.size is None else settings.size
        wanted = parse_size(size, len(file), sample_bytes(file, images))
        return cls(strategy, wanted, None, settings.balance, settings.seed, scores)

    def check(self, candidates: Candidates) -> None:
        """Raise UsageError where the samples that may be chosen are too few, or none are left to choose."""
        left, named = int(candidates.keep.sum()), len(candidates.included)
        if self.size is not None and self.size <= named:
            raise UsageError(f"size={self.size}: {named:,} are named by include= already; choose a larger size")
        wanted = (self.size or 0) - named if self.size is not None else self.per_dimension or 1
        if wanted > left:
            raise UsageError(
                f"{wanted:,} samples were asked for, but {left:,} are left to choose from "
                f"({len(candidates.excluded):,} are excluded)"
            )

    @property
    def embeds(self) -> bool:
        """Whether the strategy looks at embeddings."""
        return strategy_row(self.strategy).needs_embeddings

    @property
    def streams(self) -> bool:
        """Whether one pass over the embeddings serves the strategy, so that nobody need store them."""
        return strategy_row(self.strategy).streams is not None

    def state(self) -> dict[str, Any]:
        """Return the amount and the scores' hash as JSON-able values, as they stand in the subset's attributes."""
        found: dict[str, Any] = {
            "size": self.size,
            "per_dimension": self.per_dimension,
            "balance_classes": bool(self.balance),
        }
        found |= {"equal_classes": True} if self.balance == "equal" else {}
        return found | ({} if self.own_scores is None else self.own_scores.state())
