"""Where a run stands: one value, which changes as a whole when a batch is delivered."""

from __future__ import annotations

from typing import NamedTuple

from fastload.feeds.rolling_order import Rate, Renewal


class Spent(NamedTuple):
    """What a phase has cost so far.

    Arguments:
        batches: delivered.
        seconds: of wall-clock time, training included.
        waited: seconds that training waited for data.
    """

    batches: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class RunState(NamedTuple):
    """Where a run stands.

    Arguments:
        step: batches delivered.
        swapped_at: the step of the swap, once it has come.
        seconds: of wall-clock time, but for the step that is being trained.
        since: when the last batch was delivered, by `time.perf_counter`; None where its step's time has been counted.
        pace: how long the last step took whose end was seen, in seconds; None before one was.
        fast: what the fast phase has cost.
        fine: what the fine-tune phase has cost.
        renewal: how the pool of the fast phase is renewed, None where it has none.
    """

    step: int = 0
    swapped_at: int | None = None
    seconds: float = 0.0
    since: float | None = None
    pace: float | None = None
    fast: Spent = Spent()
    fine: Spent = Spent()
    renewal: Renewal | None = None

    def last_step(self, now: float, left: bool) -> float:
        """Return how long the last step took, in seconds, which ends now.

        Arguments:
            now: by `time.perf_counter`.
            left: the loop that got its batch was left before it asked for another one. When the step ended is not
                known then: it counts as long as the one before it, and where there is none, until now.
        """
        if self.since is None:
            return 0.0
        taken = now - self.since
        return min(taken, self.pace) if left and self.pace is not None else taken

    def with_last_step(self, now: float, left: bool) -> RunState:
        """Count the last step, which ends now; see `last_step`."""
        if self.since is None:
            return self
        taken = self.last_step(now, left)
        pace = self.pace if left else taken
        fast, fine = self.fast, self.fine
        if self.swapped_at is not None and self.step > self.swapped_at:
            fine = Spent(fine.batches, fine.seconds + taken, fine.waited)
        else:
            fast = Spent(fast.batches, fast.seconds + taken, fast.waited)
        return RunState(self.step, self.swapped_at, self.seconds + taken, None, pace, fast, fine, self.renewal)

    def with_swap(self) -> RunState:
        """Swap before the next batch."""
        return self._replace(swapped_at=self.step)

    def with_rate(self, rate: Rate) -> RunState:
        """Have samples arrive at another rate from a later step on."""
        renewal = self.renewal
        return self if renewal is None else self._replace(renewal=Renewal(renewal.pool, (*renewal.rates, rate)))

    def with_batch(self, asked: float, now: float, left: bool) -> RunState:
        """Count the last step, and a batch that was asked for when that ended, and is delivered now."""
        step, swapped_at, seconds, since, pace, fast, fine, renewal = self
        if since is None or left or step == swapped_at:
            step, swapped_at, seconds, since, pace, fast, fine, _ = self.with_last_step(asked, left)
            taken = 0.0
        else:  # as nearly always: the last step belongs to the phase of the next
            taken = pace = asked - since
        waited = now - asked
        spent = fast if swapped_at is None else fine
        spent = _new(Spent, (spent[0] + 1, spent[1] + taken + waited, spent[2] + waited))
        if swapped_at is None:
            fast = spent
        else:
            fine = spent
        return _new(RunState, (step + 1, swapped_at, seconds + taken + waited, now, pace, fast, fine, renewal))


_new = tuple.__new__  # a quarter of the time that their own constructors take, at each batch
