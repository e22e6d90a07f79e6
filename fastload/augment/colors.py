"""What happens to an image's colours, and which rectangle of it is erased: steps of an `Augment`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fastload.augment.crops import bounds
from fastload.common.arguments import flag, real
from fastload.errors import UsageError

_LARGEST = 1e30  # far beyond any use, and products of it with pixel values are still float32


@dataclass(frozen=True)
class PaperColor:
    """Brightness and contrast of the paper (section 3): `(v - m_c)·k + m_c + b`, m_c a channel's mean over the crop.

    Arguments:
        brightness: half-width of the uniform draw b, in pixel values (0…255).
        contrast: bounds of the uniform factor k.
        clamp: bring values back to 0…255.

    Raises UsageError for values out of range.
    """

    brightness: float = 63.0
    contrast: tuple[float, float] = (0.2, 1.8)
    clamp: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "brightness", real("PaperColor: brightness", self.brightness))
        if not 0 <= self.brightness < _LARGEST:
            raise UsageError(f"PaperColor: brightness={self.brightness!r}; it is the half-width of a draw, 0 or more")
        problem = f"PaperColor: contrast={self.contrast!r}; it is (low, high) with 0 ≤ low ≤ high"
        if not isinstance(self.contrast, Iterable):
            raise UsageError(problem)
        pair = tuple(real("PaperColor: contrast", k) for k in self.contrast)
        if len(pair) != 2 or not 0 <= pair[0] <= pair[1] < _LARGEST:
            raise UsageError(problem)
        object.__setattr__(self, "contrast", pair)
        object.__setattr__(self, "clamp", flag("PaperColor: clamp", self.clamp))


@dataclass(frozen=True)
class Jitter:
    """Random brightness, contrast, saturation and hue, in this order; values are brought back to 0…255 at the end.

    Brightness multiplies; contrast blends with the mean of the grey image, saturation with the grey image; hue turns
    the plane of colours in YIQ. All is one 3×3 matrix a sample and, for contrast, one number that is added. Factors
    are uniform in max(0, 1 - x) … 1 + x, turns in -hue … hue.

    torchvision's ColorJitter takes the steps in random order, brings values back after each, and turns hue in HSV.

    Arguments:
        brightness: how far the factor may be from 1.
        contrast: likewise.
        saturation: likewise; images of three channels only.
        hue: of a full turn, at most 0.5; images of three channels only.
        probability: of an image to be changed at all.

    Raises UsageError for values out of range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            value = real(f"Jitter: {name}", getattr(self, name))
            if not 0 <= value < _LARGEST:
                raise UsageError(f"Jitter: {name}={value!r}; it is how far a factor may be from 1, 0 or more")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "hue", real("Jitter: hue", self.hue))
        if not 0 <= self.hue <= 0.5:
            raise UsageError(f"Jitter: hue={self.hue!r}; it is a part of a turn, 0 to 0.5")
        object.__setattr__(self, "probability", share("Jitter: probability", self.probability))

    @property
    def needs_three_channels(self) -> bool:
        """Whether it is defined for RGB only."""
        return self.saturation > 0 or self.hue > 0


@dataclass(frozen=True)
class Erase:
    """A random rectangle of an image that is set to one value once it has been normalized.

    The area is a uniform share of the image's, height / width is log-uniform; of two tries the first that fits is
    taken, and if none does, the second one, cut to the image's sides.

    Arguments:
        probability: of an image to be erased.
        scale: bounds of the share of the area, above 0, at most 1.
        ratio: bounds of height / width.
        value: what is stored, in units of the output: after normalizing; 0…255 for torch.uint8.

    Raises UsageError for values out of range. Zhong et al., "Random Erasing Data Augmentation", 2017, algorithm 1.
    """

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", share("Erase: probability", self.probability))
        object.__setattr__(self, "scale", bounds("Erase: scale", self.scale, 0.0, 1.0))
        object.__setattr__(self, "ratio", bounds("Erase: ratio", self.ratio, 0.0, math.inf))
        object.__setattr__(self, "value", real("Erase: value", self.value))
        if not abs(self.value) < _LARGEST:
            raise UsageError(f"Erase: value={self.value!r}; it must be a finite number")


def share(name: str, value: object) -> float:
    """Return a probability as a plain float; raise UsageError, naming it, unless it is 0 to 1."""
    number = real(name, value)
    if not 0 <= number <= 1:
        raise UsageError(f"{name}={number!r}; it is a probability, 0 to 1")
    return number
