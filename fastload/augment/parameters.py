"""An `Augment` in the form that kernels take, and the random parameters that it gives samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from fastload.augment.colors import Jitter, PaperColor
from fastload.augment.crops import CenterCrop, RandomCrop, RandomResizedCrop
from fastload.augment.normalizing import MeanStd, PerImage
from fastload.augment.recipe import Augment
from fastload.errors import UsageError
from fastload.kernels import recipe as kernel
from fastload.kernels.augment import BFLOAT16, FLOAT16, FLOAT32
from fastload.kernels.draw_parameters import draw_parameters as draw_kernel
from fastload.kernels.recipe import Numbers, Recipe

KINDS = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16, torch.uint8: kernel.UINT8}
"""What the images of a batch may be, and what kernels call it."""


def kernel_recipe(
    augment: Augment,
    *,
    channels: int,
    dtype: torch.dtype,
    channels_last: bool,
    resample: bool,
    streamed: bool = False,
) -> Recipe:
    """Return what a kernel is compiled for.

    Arguments:
        augment: what happens to each image.
        channels: of the images.
        dtype: of the output.
        channels_last: whether pixels are written in NHWC order.
        resample: whether images must be resized.
        streamed: whether stores pass the caches by; see `Recipe`.
    """
    crop, color, normalize = augment.crop, augment.color, augment.normalize
    region = kernel.RESIZED
    if not isinstance(crop, RandomResizedCrop):
        region = kernel.CENTRE if isinstance(crop, CenterCrop) else kernel.CORNER
    pad = kernel.NO_PAD
    if isinstance(crop, RandomCrop) and crop.pad:
        pad = kernel.REFLECT if crop.mode == "reflect" else kernel.CONSTANT
    flip = kernel.ALTERNATING_FLIP if augment.flip == "alternating" else kernel.RANDOM_FLIP
    by = kernel.BY_CHANNEL
    if isinstance(normalize, PerImage):
        by = kernel.BY_STDDEV if normalize.divisor == "stddev" else kernel.BY_VARIANCE
    return Recipe(
        region=region,
        resample=int(resample),
        pad=pad,
        flip=flip if augment.flip else kernel.NO_FLIP,
        color=kernel.NO_COLOR if color is None else kernel.PAPER if isinstance(color, PaperColor) else kernel.JITTER,
        clamp=int(isinstance(color, PaperColor) and color.clamp),
        grayscale=int(augment.grayscale > 0),
        normalize=by,
        erase=int(augment.erase is not None and augment.erase.probability > 0),
        channels=channels,
        channels_last=int(channels_last and channels > 1),
        kind=KINDS[dtype],
        streamed=int(streamed),
    )


def kernel_numbers(augment: Augment) -> Numbers:
    """Return the numbers of the steps."""
    crop, color, erase = augment.crop, augment.color, augment.erase
    resized = crop if isinstance(crop, RandomResizedCrop) else RandomResizedCrop()
    one, nothing = np.float32(1), np.float32(0)
    brightness = contrast = saturation = hue = (one, nothing)
    if isinstance(color, PaperColor):
        half = np.float32(color.brightness)
        brightness = -half, np.float32(2) * half
        low, high = (np.float32(bound) for bound in color.contrast)
        contrast = low, high - low
    elif isinstance(color, Jitter):
        brightness, contrast, saturation = (
            _around_one(x) for x in (color.brightness, color.contrast, color.saturation)
        )
        hue = np.float32(-color.hue), np.float32(2) * np.float32(color.hue)
    return Numbers(
        height=np.int64(augment.sides[0]),
        width=np.int64(augment.sides[1]),
        resize=np.int64(augment.resize or 0),
        pad=np.int64(getattr(crop, "pad", 0)),
        flip=np.float64(0.5 if augment.flip == "alternating" else augment.flip),
        brightness_low=brightness[0],
        brightness_span=brightness[1],
        contrast_low=contrast[0],
        contrast_span=contrast[1],
        saturation_low=saturation[0],
        saturation_span=saturation[1],
        hue_low=hue[0],
        hue_span=hue[1],
        jitter=np.float64(color.probability if isinstance(color, Jitter) else 1.0),
        grayscale=np.float64(augment.grayscale),
        area_low=np.float64(resized.scale[0]),
        area_span=np.float64(resized.scale[1] - resized.scale[0]),
        ratio_low=np.float64(math.log(resized.ratio[0])),
        ratio_span=np.float64(math.log(resized.ratio[1]) - math.log(resized.ratio[0])),
        narrowest=np.float64(resized.ratio[0]),
        widest=np.float64(resized.ratio[1]),
        erase=np.float64(erase.probability if erase else 0.0),
        erase_area_low=np.float64(erase.scale[0] if erase else 1.0),
        erase_area_span=np.float64(erase.scale[1] - erase.scale[0] if erase else 0.0),
        erase_ratio_low=np.float64(math.log(erase.ratio[0]) if erase else 0.0),
        erase_ratio_span=np.float64(math.log(erase.ratio[1]) - math.log(erase.ratio[0]) if erase else 0.0),
        erase_value=np.float32(erase.value if erase else 0.0),
    )


def _around_one(x: float) -> tuple[np.float32, np.float32]:
    low, high = np.float32(max(0.0, 1.0 - x)), np.float32(1.0 + x)
    return low, high - low


def kernel_norm(augment: Augment, channels: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return (means, scales), float32 [channels] each, by which a value v of 0…255 becomes (v - mean)·scale.

    Raises UsageError where a normalized output is asked for as torch.uint8.
    """
    normalize = augment.normalize
    if dtype == torch.uint8:
        if normalize is not None:
            raise UsageError(
                f"dtype=torch.uint8 holds levels of 0…255, so normalize={normalize!r} cannot be; leave it out"
            )
        return np.zeros(channels, np.float32), np.ones(channels, np.float32)
    if not isinstance(normalize, MeanStd):
        return np.zeros(channels, np.float32), np.full(channels, 1 / 255, np.float32)
    mean, std = (np.broadcast_to(np.array(x, np.float64), (channels,)) for x in (normalize.mean, normalize.std))
    return (255 * mean).astype(np.float32), (1 / (255 * std)).astype(np.float32)


def stream_number(phase: int, view: int = 0) -> int:
    """Return the number of a stream of random words: of a phase, and of a sample's `view` in it."""
    return view * 2**16 + phase


class SampleKeys(NamedTuple):
    """What the random parameters of b samples hang on.

    Attributes:
        seed: 64-bit.
        stream: `stream_number` of the phase and the view.
        ids: int64 [b], of the samples.
        epochs: int64 [b].
    """

    seed: int
    stream: int
    ids: np.ndarray
    epochs: np.ndarray


@dataclass(frozen=True)
class Parameters:
    """The random parameters of b samples; docs/determinism.md.

    Attributes:
        places: int64 [b, 8], which pixels: see `fastload.kernels.recipe.Place`.
        flip: bool [b].
        brightness: float32 [b], added (`PaperColor`) or a factor (`Jitter`).
        contrast: float32 [b].
        saturation: float32 [b].
        hue: float32 [b], in turns.
        grey: bool [b].
        erased: int64 [b, 4], (top, left, height, width) of the rectangle of the output; empty where none is.
    """

    places: np.ndarray
    flip: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    grey: np.ndarray
    erased: np.ndarray

    def moved(self, origins: np.ndarray) -> Parameters:
        """Return the parameters for parts of the images that begin at `origins`, int64 [b, 2], row and column."""
        places = self.places.copy()
        places[:, :2] -= origins
        return replace(self, places=places)

    @property
    def top(self) -> np.ndarray:
        """int64 [b], the first row of the crop: in the image, or in what it is resized to."""
        return self.places[:, 0] + self.places[:, 6]

    @property
    def left(self) -> np.ndarray:
        """int64 [b], the first column likewise."""
        return self.places[:, 1] + self.places[:, 7]


def draw_parameters(
    augment: Augment, keys: SampleKeys, sides: tuple[int, int] | np.ndarray, *, resample: bool | None = None
) -> Parameters:
    """Return the parameters of samples.

    Arguments:
        augment: what happens to each image.
        keys: of the samples.
        sides: (H, W) of the images in pixels, or int64 [b, 2].
        resample: whether places are those of images that are resized, if only by 1; by default as the sides ask for it.
    """
    seed, stream, ids, epochs = keys
    count = len(ids)
    each = np.ascontiguousarray(np.broadcast_to(np.asarray(sides, np.int64), (count, 2)))
    singles = [np.empty(count, np.float32) for _ in range(4)]
    flip, grey = np.empty(count, np.bool_), np.empty(count, np.bool_)
    places, erased = np.empty((count, 8), np.int64), np.empty((count, 4), np.int64)
    if resample is None:
        resample = any(augment.resizes((int(h), int(w))) for h, w in np.unique(each, axis=0))
    recipe = kernel_recipe(augment, channels=3, dtype=torch.float32, channels_last=False, resample=resample)
    _draw(recipe)(
        ids,
        epochs,
        np.uint64(seed),
        np.uint64(stream),
        kernel_numbers(augment),
        each,
        places,
        flip,
        *singles,
        grey,
        erased,
    )
    brightness, contrast, saturation, hue = singles
    return Parameters(places, flip, brightness, contrast, saturation, hue, grey, erased)


@cache
def _draw(recipe: Recipe) -> Any:
    return draw_kernel(recipe)
