"""How large the experiments are: 1 is the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastload.errors import UsageError
from fastload.subset.settings import PAPER_BATCH, PAPER_STEPS

STEPS, BATCH = 10_000, 1024
"""The paper's classifier: 10,000 steps of 1,024."""

SWAPS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
"""Figure 4's splits: the share of the steps that run on the subset."""

SIZE, LARGE = "8.64%", "86.4%"
"""4,320 samples of CIFAR-10's 50,000, and ten times as many."""

BUDGET = 7 / 12
"""The paper's fixed budget: 7 minutes of the 12 that a full run takes."""

DEFAULT = 0.002
"""All experiments with three seeds take about 100 minutes on two cores on which the classifier makes 770 images/s: 170
trainings of 160 steps, which cost what 112 whole ones do since splits share their beginnings, 84 timed ones (those that
R asks for among them), 266 tests, and an autoencoder."""


@dataclass(frozen=True)
class Scale:
    """Sizes at a scale: images for each run in proportion, in steps of a batch that shrinks more slowly.

    `autoencoder`: lengths of its training as (name, steps); the last one's embeddings choose the subsets.
    """

    value: float
    steps: int
    batch: int
    autoencoder: tuple[tuple[str, int], ...]
    autoencoder_batch: int

    @classmethod
    def of(cls, value: float, samples: int) -> Scale:
        """Return the sizes for a full set of `samples`. Raises UsageError unless 0 < value ≤ 1."""
        if not 0 < value <= 1:
            raise UsageError(f"--scale {value:g}: it lies above 0, and 1 is the paper's")
        # Small runs need steps more than large batches: 320 of 128 for 40,960 images, not 40 of 1,024.
        batch = max(16, min(BATCH, 2 ** round(math.log2(BATCH) + 0.375 * math.log2(value))))
        steps = max(20, round(STEPS * BATCH * value / batch))
        small = PAPER_BATCH if value == 1 else 128
        epoch = math.ceil(samples / small)
        lengths = [("1 epoch", epoch), ("10 epochs", 10 * epoch)]
        if value == 1:
            lengths.append((f"{PAPER_STEPS / epoch:,.0f} epochs", PAPER_STEPS))
        return cls(value, steps, batch, tuple(lengths), small)

    def swap(self, share: float) -> int:
        """Return the step at which a split swaps."""
        return round(share * self.steps)


def split_name(share: float) -> str:
    """Return a split as the paper writes it: 25/75 is a quarter of the steps on the subset."""
    fast = round(100 * share)
    return f"{fast}/{100 - fast}"
