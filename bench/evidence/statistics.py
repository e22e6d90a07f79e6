"""Differences between arms, paired by seed: means, intervals, tests, and what several tests together may claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fastload.common.install import install_command
from fastload.errors import UsageError

LEVEL = 0.05
"""Of all tests; intervals are of 95 %."""


def require_scipy() -> None:
    """Raise UsageError where there is no SciPy: to be asked before hours of training, not after them."""
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise UsageError(f"evidence needs scipy, which is not installed: {install_command('evidence')}") from error


def interval(values: Sequence[float]) -> float:
    """Return half the width of the mean's 95 % interval by Student's t; NaN of fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * _standard_error(values))


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Difference:
    """Of two arms with the same seeds.

    Arguments:
        mean: of the differences, seed by seed.
        half: half the width of the mean's 95 % interval, NaN of fewer than two seeds.
        p: of a one-sided paired t test that the mean is above 0; NaN likewise, and where all differences are equal.
        least: lower end of the mean's one-sided 95 % interval; NaN likewise.
        seeds: how many.
    """

    mean: float
    half: float
    p: float
    least: float
    seeds: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Difference:
        """Compare the first with the second; seeds that only one of them has do not count."""
        from scipy import stats

        found = [one - other for one, other in zip(first, second, strict=False)]
        mean, freedom = statistics.mean(found), len(found) - 1
        if freedom < 1:
            return cls(mean, math.nan, math.nan, math.nan, len(found))
        error = _standard_error(found)
        if error == 0:
            return cls(mean, 0.0, math.nan, mean, len(found))  # no test: as far as is known, seeds differ in nothing
        return cls(
            mean,
            interval(found),
            float(stats.t.sf(mean / error, freedom)),
            float(mean - stats.t.ppf(1 - LEVEL, freedom) * error),
            len(found),
        )


def holm(values: Sequence[float]) -> list[float]:
    """Return p values adjusted for being so many (Holm, 1979); NaN counts as 1.

    Those that are below a level are below it together, with no more than that chance of any being so wrongly.
    """
    values = [1.0 if math.isnan(value) else value for value in values]
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, highest = [0.0] * len(values), 0.0
    for place, number in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[number]))
        adjusted[number] = highest
    return adjusted


def recovered(accuracy: float, stalled: float, ceiling: float) -> float:
    """Return the share (x - stalled) / (ceiling - stalled) of what waiting costs that an arm wins back."""
    return (accuracy - stalled) / (ceiling - stalled) if ceiling > stalled else math.nan
