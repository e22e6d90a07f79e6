"""InfoBatch's rule: leave out half of the samples that are learned well, and let the rest of them count double.

Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (ICLR 2024), section 2. It is on no
package registry, so the rule is written here.
"""

from __future__ import annotations

import numpy as np

RATIO, ANNEALING = 0.5, 0.125
"""The paper's r and δ."""


class InfoBatch:
    """Chooses each epoch's samples by the losses that they had when they were seen last.

    A sample whose loss lies below the mean of all losses is left out of an epoch with probability r; where it stays,
    its loss, and so its gradient, is multiplied by 1 / (1 - r), which keeps the expected gradient. All others count
    once. In the last share δ of the training nothing is left out or multiplied.

    Arguments:
        samples: how many there are.
        seed: of what is drawn.
        ratio: r.
        annealing: δ.
    """

    def __init__(self, samples: int, seed: int = 0, ratio: float = RATIO, annealing: float = ANNEALING) -> None:
        self.losses = np.full(samples, np.nan)
        self._seed, self._ratio, self._annealing, self._epoch = seed, ratio, annealing, 0

    def next_epoch(self, progress: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's rows, int64, in random order, and the factor of each one's loss, float32.

        Arguments:
            progress: the share of the training that is behind, 0 to 1.
        """
        rng = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        seen = ~np.isnan(self.losses)
        weights = np.ones(len(self.losses), np.float32)
        kept = np.ones(len(self.losses), bool)
        if seen.any() and progress < 1 - self._annealing:
            # Samples that were never seen have no loss; they count as not learned.
            below = seen & (np.nan_to_num(self.losses) < self.losses[seen].mean())
            kept = ~(below & (rng.random(len(below)) < self._ratio))
            weights[below] = 1 / (1 - self._ratio)
        rows = rng.permutation(np.flatnonzero(kept))
        return rows, weights[rows]

    def learn(self, rows: np.ndarray, losses: np.ndarray) -> None:
        """Note the losses, without their factors, that rows had."""
        self.losses[rows] = losses
