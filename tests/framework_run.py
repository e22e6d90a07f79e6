"""The run that frameworks are tried on, in the tests' own process and in the ranks of their programs."""

from __future__ import annotations

from fastload import Augment, TwoPhaseLoader

STEPS, SWAP, EPOCH, BATCH = 20, 8, 6, 4  # epochs of 6, 6, 6 and 2 batches; the swap is in the second


def make(pair, **changes) -> TwoPhaseLoader:
    """A loader of a (full set, subset), with these arguments changed; BATCH is that of all ranks together."""
    settings = {
        "batch_size": BATCH,
        "steps": STEPS,
        "swap": SWAP,
        "steps_per_epoch": EPOCH,
        "augment": Augment.paper(8),
        "device": "cpu",
        "with_ids": True,
        "seed": 3,
        "resident_budget": 0,
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))
