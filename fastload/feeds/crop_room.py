"""How large images are once they have been resized, and whether the crop fits into them."""

from __future__ import annotations

import numpy as np

from fastload.augment import Augment


def resized(augment: Augment, sides: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) after `augment.resize`: the shorter side is just that, the longer rounded half up."""
    height, width = resized_sides(augment, np.array(sides, np.int64)).tolist()
    return height, width


def resized_sides(augment: Augment, sides: np.ndarray) -> np.ndarray:
    """Return the sides after `augment.resize`, int64 [..., 2]."""
    if augment.resize is None:
        return sides
    short = sides.min(axis=-1, keepdims=True)
    return (2 * sides * augment.resize + short) // (2 * short)


def misfit(augment: Augment, sides: tuple[int, int]) -> str | None:
    """Return what is wrong with images of (height, width) pixels that the crop does not fit into, or None."""
    room = resized(augment, sides)
    height, width = augment.size
    if height <= room[0] and width <= room[1]:
        return None
    before = "" if room == sides else f" resized from {sides[0]}×{sides[1]}"
    return (
        f"{room[0]}×{room[1]} pixels{before}, too small for crop={height}×{width}; "
        f"choose a smaller crop, or resize={max(augment.size)} to enlarge"
    )
