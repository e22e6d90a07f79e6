"""Augmentation: frozen settings, and the random parameters that (seed, phase, epoch, sample id) give a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastload.common.arguments import flag, integer, real
from fastload.errors import UsageError
from fastload.kernels.augment import KEEP, STDDEV, VARIANCE, Draws, Settings
from fastload.kernels.augment_cpu import draw_batch

_LARGEST = 1e30  # far beyond any use, and products of it with pixel values are still float32


@dataclass(frozen=True)
class Augment:
    """What happens to each image, in this order: resize, crop, flip, brightness, contrast, clamp, standardize.

    Arguments:
        crop: side, or (height, width), of the output in pixels.
        resize: bring the shorter side to this many pixels first, where it is not yet; antialiased bilinear.
        flip: probability of mirroring left–right.
        brightness: half-width of the uniform draw that is added, in pixel values (0…255).
        contrast: bounds of the uniform factor k in `(v - m_c)·k + m_c`, m_c each channel's mean over the crop.
        clamp: bring values back to 0…255 before standardizing.
        standardize: subtract the image's mean; divide by max(stddev, 1/√count) for "stddev", or by the variance,
            floored at 1/count, for "variance" (the paper's literal words); None leaves pixel values.
        centre: take the centre instead of a random corner (`evaluation()` sets it).

    Raises UsageError for settings out of range, with the offending value. Section 3 of the paper; docs/determinism.md.
    """

    crop: int | tuple[int, int]
    resize: int | None = None
    flip: float = 0.5
    brightness: float = 63.0
    contrast: tuple[float, float] = (0.2, 1.8)
    clamp: bool = True
    standardize: Literal["stddev", "variance"] | None = "stddev"
    centre: bool = False

    def __post_init__(self) -> None:
        # Plain numbers, whatever NumPy or a configuration gave: they go into checkpoints.
        crop = tuple(self.crop) if isinstance(self.crop, Iterable) else (self.crop, self.crop)
        try:
            sides = tuple(integer("crop", side, 1) for side in crop)
        except UsageError:
            sides = ()
        if len(sides) != 2:
            raise UsageError(f"crop={self.crop!r}; it is a side or (height, width) in pixels, at least 1")
        object.__setattr__(self, "crop", sides)
        if not isinstance(self.contrast, Iterable):
            raise UsageError(f"contrast={self.contrast!r}; it is (low, high) with 0 ≤ low ≤ high")
        object.__setattr__(self, "contrast", tuple(real("contrast", k) for k in self.contrast))
        for name in ("flip", "brightness"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        for name in ("clamp", "centre"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.resize is not None:
            object.__setattr__(self, "resize", integer("resize", self.resize))
            if self.resize < min(sides):
                raise UsageError(f"resize={self.resize!r}; it must be at least the crop's {min(sides)} pixels")
        if not 0 <= self.flip <= 1:
            raise UsageError(f"flip={self.flip!r}; it is a probability, 0 to 1")
        if not 0 <= self.brightness < _LARGEST:
            raise UsageError(f"brightness={self.brightness!r}; it is the half-width of a draw, 0 or more")
        if len(self.contrast) != 2 or not 0 <= self.contrast[0] <= self.contrast[1] < _LARGEST:
            raise UsageError(f"contrast={self.contrast!r}; it is (low, high) with 0 ≤ low ≤ high")
        if self.standardize not in ("stddev", "variance", None):
            raise UsageError(f'standardize={self.standardize!r}; it is "stddev", "variance" or None')

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output in pixels."""
        return self.crop  # type: ignore[return-value]  # __post_init__ made it a pair

    def evaluation(self) -> Augment:
        """Return the settings for test data: the same sizes, centre crop, nothing random."""
        return dataclasses.replace(self, flip=0.0, brightness=0.0, contrast=(1.0, 1.0), centre=True)

    def state(self) -> dict[str, Any]:
        """Return the settings as JSON-able plain values, for checkpoints."""
        values = dataclasses.asdict(self)
        return values | {"crop": list(self.size), "contrast": list(self.contrast)}

    def check(self, shape: tuple[int, int, int], name: str) -> None:
        """Raise UsageError unless images of `shape` (H, W, C) in the file `name` can be cropped so."""
        height, width, _ = shape
        if self.resize is None and (self.size[0] > height or self.size[1] > width):
            raise UsageError(
                f"crop={self.size[0]}×{self.size[1]} is larger than the images of {name} ({height}×{width}); "
                f"choose a smaller crop, or resize={max(self.size)} to enlarge them"
            )

    def needs_resize(self, shape: tuple[int, int, int]) -> bool:
        """Whether images of `shape` (H, W, C) are not yet of the size that `resize` asks for."""
        return self.resize is not None and min(shape[:2]) != self.resize


def checked(augment: object) -> Augment:
    """Return what callers gave as `augment=`; raise UsageError, saying what it must be, unless it is an Augment."""
    if not isinstance(augment, Augment):
        raise UsageError(f"augment={augment!r}; it must be an Augment, such as Augment(crop=24)")
    return augment


@dataclass(frozen=True)
class Parameters:
    """The random parameters of b samples, from Philox at counter (id low, id high, epoch, phase·16 + block).

    `top` and `left`: uint32 [b] words; `(word · positions) >> 32` is the corner. `flip`: bool [b].
    `brightness`, `contrast`: float32 [b].
    """

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray


def draw_parameters(augment: Augment, seed: int, phase: int, ids: np.ndarray, epochs: np.ndarray) -> Parameters:
    """Return the parameters of the samples `ids` in `epochs`, int64 [b] each."""
    count = len(ids)
    drawn = Parameters(
        np.empty(count, np.uint32),
        np.empty(count, np.uint32),
        np.empty(count, np.bool_),
        np.empty(count, np.float32),
        np.empty(count, np.float32),
    )
    draw_batch(
        ids,
        epochs,
        np.uint64(seed),
        np.uint64(phase),
        kernel_settings(augment).draws,
        drawn.top,
        drawn.left,
        drawn.flip,
        drawn.brightness,
        drawn.contrast,
    )
    return drawn


_STANDARDIZE = {None: KEEP, "stddev": STDDEV, "variance": VARIANCE}


def kernel_settings(augment: Augment) -> Settings:
    """Return the settings in the form that the kernels take."""
    height, width = augment.size
    low, high = np.float32(augment.contrast[0]), np.float32(augment.contrast[1])
    brightness = np.float32(augment.brightness)
    return Settings(
        height=np.int64(height),
        width=np.int64(width),
        centre=np.int64(augment.centre),
        draws=Draws(
            flip=np.float64(augment.flip),
            brightness_low=-brightness,
            brightness_span=np.float32(2) * brightness,
            contrast_low=low,
            contrast_span=high - low,
        ),
        clamp=np.int64(augment.clamp),
        standardize=np.int64(_STANDARDIZE[augment.standardize]),
    )
