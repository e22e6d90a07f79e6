"""How pixel values become an output's numbers: the last step of an `Augment`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fastload.common.arguments import real
from fastload.errors import UsageError

_LARGEST = 1e30
"""Beyond it a number or what it is divided by is no float32."""


@dataclass(frozen=True)
class MeanStd:
    """`(v / 255 - mean) / std`, by channel: the data set's statistics.

    Arguments:
        mean: of each channel in 0…1; one number is for all channels.
        std: likewise, above 0.

    Raises UsageError for values out of range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            given = given.tolist() if hasattr(given, "tolist") else given  # of NumPy or torch
            several = isinstance(given, Iterable) and not isinstance(given, str)
            values = tuple(real(f"MeanStd: {name}", one) for one in (given if several else (given,)))
            if not values or not all(abs(one) < _LARGEST for one in values):  # NaN is not either
                raise UsageError(f"MeanStd: {name}={given!r}; it is a finite number for each channel")
            object.__setattr__(self, name, values)
        if not all(one > 1 / _LARGEST for one in self.std):
            raise UsageError(f"MeanStd: std={self.std}; each must be above 0, and 1 / std a float32")
        counts = {len(self.mean), len(self.std)} - {1}
        if len(counts) > 1:
            raise UsageError(
                f"MeanStd: mean= has {len(self.mean)} numbers, std= has {len(self.std)}; give one for each channel"
            )

    @property
    def channels(self) -> int | None:
        """For how many channels there are numbers; None where one number is for all."""
        most = max(len(self.mean), len(self.std))
        return None if most == 1 else most


@dataclass(frozen=True)
class PerImage:
    """Subtract an image's mean and divide by its spread, over all pixels and channels, of values 0…255.

    Arguments:
        divisor: "stddev" for max(stddev, 1/√count); "variance", the paper's literal word, for max(variance, 1/count).

    Raises UsageError for another divisor. Section 3 of the paper.
    """

    divisor: Literal["stddev", "variance"] = "stddev"

    def __post_init__(self) -> None:
        if self.divisor not in ("stddev", "variance"):
            raise UsageError(f'PerImage: divisor={self.divisor!r}; it is "stddev" or "variance"')


LEVELS = MeanStd((0.0,), (1 / 255,))
"""Pixel values 0…255 as they are, in floats."""

IMAGENET = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = MeanStd((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
