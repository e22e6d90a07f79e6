"""Scores of samples that one brings, such as a finished training leaves: how hard each was to learn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from fastload.common.arguments import real
from fastload.errors import DataError, UsageError

LEAVE_OUT = 0.1
"""The share that is left out as hardest unless the caller says another; the paper of `scores` tunes it."""

HARDEST = ("lowest", "highest")


@dataclass(frozen=True, eq=False)
class Scores:
    """A score for each sample, and which of them are the hardest samples'.

    Arguments:
        values: real numbers [n], each row's.
        hardest: "lowest" where low scores are of hard samples, as the area under the margin; "highest" where high ones
            are, as losses, EL2N and counts of forgetting.
        leave_out: the share of samples that are left out as the hardest, from 0 to below 1.

    Raises UsageError for settings out of range, DataError for values that are no such numbers.
    """

    values: Any
    hardest: str = HARDEST[0]
    leave_out: float = LEAVE_OUT

    def __post_init__(self) -> None:
        if not isinstance(self.hardest, str) or self.hardest not in HARDEST:
            raise UsageError(
                f'hardest={self.hardest!r}; say which scores are the hardest samples\', "lowest" or "highest"'
            )
        object.__setattr__(self, "leave_out", real("leave_out", self.leave_out))
        if not 0 <= self.leave_out < 1:
            raise UsageError(f"leave_out={self.leave_out:g}; it is a share of the samples, from 0 to below 1")
        values = self.values.detach().cpu() if hasattr(self.values, "detach") else self.values
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"scores are no array, one number a sample ({error})") from error
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise DataError(f"scores are {values.dtype} of shape {values.shape}; one real number a sample was expected")
        object.__setattr__(self, "values", values.astype(np.float64))

    def hardness(self) -> np.ndarray:
        """Return the scores with the sign by which the hardest samples have the highest, float64 [n]."""
        return self.values if self.hardest == "highest" else -self.values

    def left_out(self, samples: int) -> int:
        """Return how many of so many samples are left out, rounded down: of the share as it is written."""
        return int(Decimal(str(self.leave_out)) * samples)

    def unusable(self) -> np.ndarray:
        """Return the rows, int64, whose score is NaN, infinite or beyond what float32 holds."""
        with np.errstate(over="ignore"):
            return np.flatnonzero(~np.isfinite(self.values.astype(np.float32)))

    def of_rows(self, rows: np.ndarray) -> Scores:
        """Return those of some rows, int64."""
        return replace(self, values=self.values[rows])

    def settings(self) -> dict[str, Any]:
        """Return how they are read, as JSON-able plain values."""
        return {"hardest": self.hardest, "leave_out": self.leave_out}
