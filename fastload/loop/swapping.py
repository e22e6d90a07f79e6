"""When a run swaps to the full set, and when it ends: by its policy, the clock or `swap_now()`, as all ranks agree."""

from __future__ import annotations

import math

from fastload.errors import UsageError
from fastload.loop.agreement import Agreement, Decision, Wishes
from fastload.loop.policies import WARM_SECONDS, SwapPolicy
from fastload.loop.run_state import RunState


class Swapping:
    """What is decided of the swap and of the end of a run.

    Arguments:
        policy: what decides the swap on this rank.
        steps: of the run, None where it ends by the clock.
        seconds: of the run, None where it ends at a step.
        agreement: how ranks agree; None for those that have no means to, and no need.
        swap: the step of the swap, where it is decided by now.
    """

    def __init__(
        self,
        policy: SwapPolicy,
        steps: int | None,
        seconds: float | None,
        agreement: Agreement | None,
        swap: int | None,
    ) -> None:
        self.policy, self._steps, self._seconds, self._agreement = policy, steps, seconds, agreement
        self._decision = Decision(swap)
        self._is_requested = False
        # Alone, and with all that is to come planned, there is nothing to decide at each batch.
        alone = agreement is not None and agreement.at_once
        self._is_open = policy.step is None or seconds is not None or not alone

    def restarted(self, step: int, policy: SwapPolicy, swap: int | None) -> Swapping:
        """Return what decides on a run that goes on from `step`, with the swap decided so far."""
        agreement = None if self._agreement is None else self._agreement.restarted(step)
        return Swapping(policy, self._steps, self._seconds, agreement, swap)

    @property
    def must_decide(self) -> bool:
        """Whether `decide` is to be called before the next batch."""
        return self._is_open or self._is_requested

    def decide(self, state: RunState, seconds: float) -> None:
        """Bring the decision up to date, `seconds` into the run."""
        agreement, swapped = self._agreement, state.swapped_at is not None
        if agreement is None or (swapped and self._seconds is None and agreement.is_done):
            return
        wishes = Wishes(
            asked=self._is_requested and not swapped,
            due=not swapped and self.policy.due(seconds),
            end=self._seconds is not None and seconds >= self._seconds,
        )
        self._decision = agreement.decide(state.step, self._decision, wishes)

    def agreed_swap(self, state: RunState) -> int | None:
        """Return the step of the swap as far as it has come, or was agreed apart from the plan."""
        return self._decision.swap if state.swapped_at is None else state.swapped_at

    def step(self, state: RunState) -> float:
        """Return the step of the swap, planned or agreed, whichever comes first; infinity while it is open."""
        if state.swapped_at is not None:
            return state.swapped_at
        planned, agreed = self.policy.step, self._decision.swap
        if agreed is None:
            return math.inf if planned is None else planned
        return agreed if planned is None else min(planned, agreed)

    def is_near(self, state: RunState, seconds: float, depth: int) -> bool:
        """Whether it is time to begin to make batches of the full set, `seconds` into the run.

        Arguments:
            depth: how many are made ahead.
        """
        swap = self.step(state)
        if swap == self._steps:
            return False
        if swap - state.step <= depth + 1 or self.policy.near(seconds):
            return True
        if swap == math.inf or not state.fast.batches:
            return False
        return (swap - state.step) * state.fast.seconds / state.fast.batches <= WARM_SECONDS

    def is_finished(self, step: int) -> bool:
        """Whether no batch is left at `step`."""
        end = self._decision.end
        return (self._steps is not None and step >= self._steps) or (end is not None and step >= end)

    def request(self, state: RunState) -> None:
        """Have the run swap as soon as all ranks can. Raises UsageError for ranks that have no means to agree."""
        if self._agreement is None:
            raise UsageError(
                "swap_now(): these ranks have no means to agree on a step; initialize torch.distributed, or give store="
            )
        self._is_requested = True
        if self._agreement.at_once:
            self.decide(state, state.seconds)

    def clear_request(self) -> None:
        """Forget the request: the run swaps now."""
        self._is_requested = False

    def leave(self) -> None:
        """Tell other ranks what they still need to hear, at the end of the run."""
        if self._agreement is not None:
            self._agreement.leave()
