"""When to swap from the subset to the full set: the policies, and what decides by the clock or by the loss."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastload.common.arguments import integer, real
from fastload.errors import UsageError

_FIELDS: dict[str, tuple[str, ...]] = {
    "after": ("seconds",),
    "plateau": ("patience", "min_delta", "window"),
    "never": (),
}
"""The fields of each kind of `Swap`, in the order of its state."""


@dataclass(frozen=True)
class Swap:
    """When a run swaps to the full set, where neither a share nor a step says it.

        swap=Swap.after(seconds=300)            that much wall-clock time into the run
        swap=Swap.on_plateau(patience=5)        once the loss given to `loader.report_loss(...)` stops falling
        swap=Swap.never()                       when `loader.swap_now()` is called, if ever

    Make one with these methods, not with the fields. Raises UsageError for values out of range.
    """

    kind: str
    seconds: float = math.inf
    patience: int = 0
    min_delta: float = 0.0
    window: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            raise UsageError(
                f"Swap({self.kind!r}): there is no such policy; make one with Swap.after(seconds=…), "
                "Swap.on_plateau(…) or Swap.never()"
            )

    @classmethod
    def after(cls, *, seconds: float) -> Swap:
        """Swap when the run has lasted `seconds` of wall-clock time (time between loops does not count)."""
        seconds = real("seconds", seconds)
        if not 0 <= seconds < math.inf:
            raise UsageError(f"Swap.after(seconds={seconds}): it must be 0 or more")
        return cls("after", seconds=seconds)

    @classmethod
    def on_plateau(cls, *, patience: int = 5, min_delta: float = 0.0, window: int = 50) -> Swap:
        """Swap when the mean loss of `patience` windows in a row was not below the best one's by more than `min_delta`.

        Arguments:
            patience: windows without improvement, at least 1.
            min_delta: what counts as an improvement, in units of the loss, 0 or more.
            window: reported losses whose mean is one value; a tensor is read (a GPU waited for) once a window only.
        """
        patience, window = integer("patience", patience, 1), integer("window", window, 1)
        min_delta = real("min_delta", min_delta)
        if not 0 <= min_delta < math.inf:
            raise UsageError(f"Swap.on_plateau(min_delta={min_delta}): it must be 0 or more")
        return cls("plateau", patience=patience, min_delta=min_delta, window=window)

    @classmethod
    def never(cls) -> Swap:
        """Swap only when `loader.swap_now()` is called."""
        return cls("never")

    def state(self) -> list[Any]:
        """Return the policy as JSON-able plain values, for checkpoints."""
        return [self.kind, *(getattr(self, name) for name in _FIELDS[self.kind])]


def planned_swap(swap: float | int | Swap, steps: int | None, seconds: float | None = None) -> int | Swap:
    """Return the first step of the full set, or the policy that decides it while the run goes on.

    Arguments:
        swap: a share of the run (float, of `steps`, or else of `seconds`), a step (int), or a policy.
        steps: how long the run is, where it ends at a step.
        seconds: how long the run is, where it ends by the clock.

    Raises UsageError for anything else.
    """
    if isinstance(swap, Swap):
        return swap
    if isinstance(swap, bool) or not isinstance(swap, numbers.Real):
        raise UsageError(
            f"swap={swap!r}; it is a share of the steps (float, 0.0 to 1.0), a step (int), or a policy such as "
            "Swap.after(seconds=300)"
        )
    if not isinstance(swap, numbers.Integral):
        swap = float(swap)
        if not 0.0 <= swap <= 1.0:
            raise UsageError(f"swap={swap!r} is a float, so it is a share of the steps or seconds=, from 0.0 to 1.0")
        if steps is not None:
            return round(swap * steps)
        if swap in (0.0, 1.0):
            return 0 if swap == 0.0 else Swap.never()
        assert seconds is not None
        return Swap.after(seconds=swap * seconds)
    if swap < 0 or (steps is not None and swap > steps):
        raise UsageError(f"swap={swap} is an int, so it is a step, from 0 to steps={steps}")
    return int(swap)


class Plateau:
    """Whether losses have stopped falling; sees means of `window` of them."""

    def __init__(self, policy: Swap) -> None:
        self._policy = policy
        self.best, self.stale = math.inf, 0
        self._sum: float | torch.Tensor = 0.0
        self._count = 0

    def report(self, loss: float | torch.Tensor) -> None:
        """Take in one loss. Raises UsageError for what is no single number."""
        if isinstance(loss, torch.Tensor):
            if loss.numel() != 1:
                raise UsageError(f"report_loss: a tensor of shape {tuple(loss.shape)}; it takes one number")
            if loss.is_complex():
                raise UsageError("report_loss: a complex tensor; it takes a real number")
            loss = loss.detach().reshape(()).double()  # on its device: reading it would make a GPU wait each time
        else:
            loss = real("loss", loss)
        self._sum = self._sum + loss
        self._count += 1
        if self._count >= self._policy.window:
            self._close_window()

    def _close_window(self) -> None:
        mean = float(self._sum) / self._count
        self._sum, self._count = 0.0, 0
        if mean < self.best - self._policy.min_delta:
            self.best, self.stale = mean, 0
        else:  # NaN too: a loss that is none does not fall
            self.stale += 1

    @property
    def reached(self) -> bool:
        return self.stale >= self._policy.patience

    @property
    def near(self) -> bool:
        """Whether the next window can be the last."""
        return self.stale >= self._policy.patience - 1

    def state(self) -> dict[str, Any]:
        """Return what has been seen as JSON-able plain values."""
        best = None if self.best == math.inf else _plain(self.best)
        return {"best": best, "stale": self.stale, "sum": _plain(float(self._sum)), "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()`."""
        self.best = math.inf if state["best"] is None else _number("best", state["best"])
        self.stale, self._count = integer("stale", state["stale"], 0), integer("count", state["count"], 0)
        self._sum = _number("sum", state["sum"])


def _plain(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinity, for which it has no numbers, are texts."""
    return value if math.isfinite(value) else str(value)


def _number(name: str, value: Any) -> float:
    """Return the number that `_plain` gave."""
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else real(name, value)
