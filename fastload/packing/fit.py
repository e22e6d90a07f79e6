"""To what size a picture is brought: a square of one size for all, or the whole picture, smaller or larger."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from fastload.common.arguments import integer
from fastload.errors import UsageError

Rule = Literal["resize", "short_side", "max_side"]

MOST: dict[Rule, int] = {"resize": 8192, "short_side": 8192, "max_side": 65_500}
"""The largest side that may be asked for; 65,500 is the most that Pillow writes as JPEG."""


class Fit(NamedTuple):
    """How pictures are brought to a size.

    Attributes:
        rule: "resize" brings the shorter side to `side` and cuts the centre square; "short_side" brings the shorter
            side there and keeps the whole picture; "max_side" shrinks those whose longer side is above it.
        side: in pixels.
    """

    rule: Rule
    side: int

    @property
    def whole(self) -> bool:
        """Whether nothing is cut off, so that pictures keep their aspect and have sizes of their own."""
        return self.rule != "resize"

    def scaled(self, shapes: np.ndarray) -> np.ndarray:
        """Return the sides of whole pictures once they are scaled, int64 [..., 2], of heights and widths [..., 2]."""
        sides = np.asarray(shapes, np.int64)
        if self.rule == "max_side":
            longer = sides.max(axis=-1, keepdims=True)
            shrunk = np.maximum(1, np.rint(sides * self.side / longer).astype(np.int64))
            return np.where(longer > self.side, shrunk, sides)
        shorter = sides.min(axis=-1, keepdims=True)
        return np.maximum(self.side, np.rint(sides * self.side / shorter).astype(np.int64))

    def output(self, shapes: np.ndarray) -> np.ndarray:
        """Return the sides of what is kept, int64 [..., 2], of heights and widths [..., 2]."""
        return self.scaled(shapes) if self.whole else np.full(np.shape(shapes), self.side, np.int64)


def fit_of(resize: int | None = None, short_side: int | None = None, max_side: int | None = None) -> Fit | None:
    """Return what was asked for by the arguments of these names, None for no change of size.

    Raises UsageError for more than one of them, and for a side that is out of range.
    """
    asked: dict[Rule, int | None] = {"resize": resize, "short_side": short_side, "max_side": max_side}
    given = [Fit(rule, integer(rule, side)) for rule, side in asked.items() if side is not None]
    for rule, side in given:
        if not 1 <= side <= MOST[rule]:
            raise UsageError(f"{rule}={side} is not between 1 and {MOST[rule]}")
    if len(given) > 1:
        raise UsageError(f"{given[0].rule}= and {given[1].rule}= are two sizes for one picture; give one of them")
    return given[0] if given else None
