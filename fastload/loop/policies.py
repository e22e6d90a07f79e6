"""What decides the swap of a run: a step that is known, the clock, the loss, or nothing but `swap_now()`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastload.loop.swap import Plateau, Swap

WARM_SECONDS = 5.0
"""How long before the swap, by estimate, the full set's batches are begun to be made."""


class SwapPolicy:
    """What a run asks of its policy. These answers are those of `Swap.never()`, and the others' where they say no more.

    Arguments:
        swap: the argument of the loader, for checkpoints; None for a planned step.
    """

    step: int | None = None
    """The first step of the full set, where it is known from the beginning."""

    def __init__(self, swap: Swap | None) -> None:
        self._swap = swap

    @property
    def starts_on_full(self) -> bool:
        """Whether no batch is the subset's."""
        return self.step == 0

    def may_need_full(self, steps: int | None) -> bool:
        """Whether a run of that many steps (None: open) may come to the full set by itself."""
        return False

    def due(self, seconds: float) -> bool:
        """Whether to swap now, so many seconds into the run; False where the step is planned."""
        return False

    def near(self, seconds: float) -> bool:
        """Whether `due` may soon be true, so that the full set's batches are to be made ahead."""
        return False

    def report(self, loss: float | torch.Tensor) -> None:
        """Take in the loss of a step."""

    def history(self) -> dict[str, Any] | None:
        """Return what has been seen so far, for checkpoints."""
        return None

    def restored(self, state: Mapping[str, Any]) -> SwapPolicy:
        """Return the policy as it was when a checkpoint was taken."""
        return self

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with this policy."""
        return {"swap_step": self.step, "swap": None if self._swap is None else self._swap.state()}


class PlannedStep(SwapPolicy):
    """Swaps at a step. No rank needs to be asked for that, so it is never `due`."""

    def __init__(self, step: int) -> None:
        super().__init__(None)
        self.step = step

    def may_need_full(self, steps: int | None) -> bool:
        return steps is None or self.step is None or self.step < steps


class AfterSeconds(SwapPolicy):
    """Swaps by the clock."""

    def __init__(self, swap: Swap) -> None:
        super().__init__(swap)
        self._seconds = swap.seconds

    def may_need_full(self, steps: int | None) -> bool:
        return True

    def due(self, seconds: float) -> bool:
        return seconds >= self._seconds

    def near(self, seconds: float) -> bool:
        return self._seconds - seconds <= WARM_SECONDS


class OnPlateau(SwapPolicy):
    """Swaps once the loss has stopped falling."""

    def __init__(self, swap: Swap) -> None:
        super().__init__(swap)
        self._plateau = Plateau(swap)

    def may_need_full(self, steps: int | None) -> bool:
        return True

    def due(self, seconds: float) -> bool:
        return self._plateau.reached

    def near(self, seconds: float) -> bool:
        return self._plateau.near

    def report(self, loss: float | torch.Tensor) -> None:
        self._plateau.report(loss)

    def history(self) -> dict[str, Any] | None:
        return self._plateau.state()

    def restored(self, state: Mapping[str, Any]) -> SwapPolicy:
        assert self._swap is not None
        policy = OnPlateau(self._swap)
        policy._plateau.restore(state["plateau"])
        return policy


_POLICIES = {"after": AfterSeconds, "plateau": OnPlateau, "never": SwapPolicy}


def policy_of(swap: int | Swap) -> SwapPolicy:
    """Return the policy of a planned step or of a `Swap`."""
    return _POLICIES[swap.kind](swap) if isinstance(swap, Swap) else PlannedStep(swap)
