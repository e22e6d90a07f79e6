"""Augmentations that tests ask for by the steps of the paper's."""

from __future__ import annotations

from typing import Any

from fastload.augment import Augment, CenterCrop, MeanStd, PaperColor, PerImage, RandomCrop


def paper_like(
    *,
    crop: Any,
    resize: int | None = None,
    flip: float = 0.5,
    brightness: float = 63.0,
    contrast: Any = (0.2, 1.8),
    clamp: bool = True,
    standardize: Any = "stddev",
    centre: bool = False,
) -> Augment:
    """Return the paper's augmentation with some steps changed; without standardizing, values are 0…255."""
    plain = brightness == 0 and tuple(contrast) == (1.0, 1.0)
    return Augment(
        crop,
        crop=CenterCrop(resize) if centre else RandomCrop(resize=resize),
        flip=flip,
        color=None if plain else PaperColor(brightness, contrast, clamp),
        normalize=MeanStd(0.0, 1 / 255) if standardize is None else PerImage(standardize),
    )
