"""Which part of an image comes out, and at which scale: the first step of an `Augment`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fastload.common.arguments import integer, real
from fastload.errors import UsageError

LARGEST_REDUCTION = 64
"""How many times longer than the output's side the part of an image may be that it is made from."""


@dataclass(frozen=True)
class CenterCrop:
    """The centre of each image.

    Arguments:
        resize: bring the shorter side to so many pixels first; None takes images as they are.

    Raises UsageError for a size below 1.
    """

    resize: int | None = None

    def __post_init__(self) -> None:
        _check_resize(self)


@dataclass(frozen=True)
class RandomCrop:
    """A random place of each image, all equally likely.

    Arguments:
        pad: pixels that are added at each edge first.
        mode: "reflect" (without repeating the edge's pixels) or "constant" (with 0), for `pad`.
        resize: bring the shorter side to so many pixels before that; None takes images as they are.

    Raises UsageError for values out of range.
    """

    pad: int = 0
    mode: Literal["reflect", "constant"] = "reflect"
    resize: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pad", integer("RandomCrop: pad", self.pad, 0))
        if self.mode not in ("reflect", "constant"):
            raise UsageError(f'RandomCrop: mode={self.mode!r}; it is "reflect" or "constant"')
        _check_resize(self)
        if self.pad and self.resize is not None:
            raise UsageError("RandomCrop: pad= and resize= are both given; give one of them")


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of each image, of random area and aspect ratio, resized to the output; torchvision's algorithm.

    Up to ten tries: the area is a uniform share of the image's, the ratio log-uniform, and the first
    rectangle that fits is taken; if none does, the centred one of the nearest ratio. Antialiased bilinear.

    Arguments:
        scale: bounds of the share of the area, above 0, at most 1.
        ratio: bounds of width / height.

    Raises UsageError for values out of range. Szegedy et al., "Going deeper with convolutions", 2015, section 6.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", bounds("RandomResizedCrop: scale", self.scale, 0.0, 1.0))
        object.__setattr__(self, "ratio", bounds("RandomResizedCrop: ratio", self.ratio, 0.0, math.inf))


Crop = CenterCrop | RandomCrop | RandomResizedCrop


def bounds(name: str, value: Any, above: float, most: float) -> tuple[float, float]:
    """Return (low, high) as plain floats; raise UsageError, naming it, unless above < low ≤ high ≤ most."""
    pair = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(pair) == 2:
        low, high = (real(name, side) for side in pair)
        if above < low <= high <= most and high < math.inf:
            return low, high
    limit = "" if most == math.inf else f" ≤ {most:g}"
    raise UsageError(f"{name}={value!r}; it is (low, high) with {above:g} < low ≤ high{limit}")


def _check_resize(crop: CenterCrop | RandomCrop) -> None:
    if crop.resize is not None:
        object.__setattr__(crop, "resize", integer(f"{type(crop).__name__}: resize", crop.resize, 1))
