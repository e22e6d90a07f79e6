"""How large the evidence is: from minutes in the tests to the paper's own length on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from fastload.errors import UsageError


@dataclass(frozen=True)
class Scale:
    """Sizes of all trainings of an evidence.

    Arguments:
        name: of the scale.
        recipe: what is trained, a name in `recipes.RECIPES`.
        steps: that a trainer which never waits takes, T's.
        batch: images a step.
        rates: learning rates among which each arm's is chosen.
        seeds: of each arm in a registered hypothesis.
        selection_seeds: of pools that strategies choose.
        side_seeds: of all others.
        tuning_seeds: of each rate, when an arm's is chosen.
        held_out: training images on which it is chosen, at most a tenth of a set; they are trained on afterwards.
        pools: sizes of pools, as shares of the set.
        autoencoder: steps of its training.
        scores_epochs: of the training that leaves scores.
        limit: training images of a set, None for all.
    """

    name: str
    recipe: str
    steps: int
    batch: int
    rates: tuple[float, ...]
    seeds: int
    selection_seeds: int
    side_seeds: int
    tuning_seeds: int
    held_out: int
    pools: tuple[float, ...]
    autoencoder: int
    scores_epochs: int
    limit: int | None = None

    @property
    def several_epochs(self) -> bool:
        """Whether a trainer that never waits sees CIFAR-10 more than twice."""
        return self.steps * self.batch > 2 * (self.limit or 50_000)


SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""S/T: what the stream delivers in the time in which a trainer that never waits takes 1."""

PAPERS_POOL = 0.0864
"""The paper's 4,320 of CIFAR-10's 50,000."""

POOLS = (0.03, PAPERS_POOL)

SCALES = {
    one.name: one
    for one in (
        Scale("tiny", "small", 16, 16, (0.02, 0.06), 2, 1, 1, 1, 100, (PAPERS_POOL,), 4, 2, limit=1000),
        Scale("reduced", "small", 400, 128, (0.02, 0.06, 0.18), 10, 5, 3, 1, 5000, POOLS, 782, 4),
        Scale("longer", "small", 1600, 128, (0.02, 0.06, 0.18), 10, 5, 3, 1, 5000, (PAPERS_POOL,), 782, 4),
        Scale("gpu", "airbench94", 484, 1024, (0.5, 1.0, 2.0), 20, 5, 20, 1, 5000, (PAPERS_POOL,), 3910, 10),
        Scale("paper", "paper", 10_000, 1024, (0.03, 0.1, 0.3), 10, 5, 3, 1, 5000, POOLS, 40_000, 20),
    )
}
"""`longer` is `reduced` four times over, in which samples come again; `gpu` is airbench94's 9.9 epochs, its rates
multiples of its own; `paper` is the paper's classifier and length."""


def scale_named(name: str) -> Scale:
    """Return a scale. Raises UsageError for a name that none has."""
    if name not in SCALES:
        raise UsageError(f"--scale {name}: there is no such scale; choose one of {', '.join(SCALES)}")
    return SCALES[name]
