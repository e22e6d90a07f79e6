"""MixUp and CutMix: pairs of a batch's samples, blended after everything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastload.augment.colors import share
from fastload.common.arguments import integer, real
from fastload.errors import UsageError
from fastload.kernels.beta import beta_quantiles
from fastload.kernels.draw_parameters import draw_words

_BLOCK = 4


@dataclass(frozen=True)
class Mix:
    """Blend each sample with its neighbour: with both given, one of the two at random.

    The partner is at position ^ 1 of the global batch, so a batch is the same on any number of ranks. Labels become
    float32 [B, classes].

    Arguments:
        mixup: alpha of the Beta(alpha, alpha) that the own share is drawn from; 0 leaves MixUp out.
        cutmix: likewise for CutMix's share of the area; 0 leaves it out.
        probability: of a sample to be blended at all.
        classes: how many there are; by default as many as the set has names, or else its greatest label and one.

    Raises UsageError for values out of range. Zhang et al., "mixup", 2017; Yun et al., "CutMix", 2019.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    classes: int | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = real(f"Mix: {name}", getattr(self, name))
            if not 0 <= alpha < 1e6:
                raise UsageError(f"Mix: {name}={alpha!r}; it is the alpha of a Beta distribution, 0 or more")
            object.__setattr__(self, name, alpha)
        if not self.mixup and not self.cutmix:
            raise UsageError("Mix: mixup= and cutmix= are both 0; give at least one of them")
        object.__setattr__(self, "probability", share("Mix: probability", self.probability))
        if self.classes is not None:
            object.__setattr__(self, "classes", integer("Mix: classes", self.classes, 1))


@dataclass(frozen=True)
class Blend:
    """How b samples are blended with their partners: what is left of their own.

    Attributes:
        share: float32 [b], of their own pixels, outside of the box.
        boxes: int64 [b, 4], (top, left, bottom, right) of the partner's rectangle; empty where there is none.
        label_share: float32 [b], of their own labels.
    """

    share: np.ndarray
    boxes: np.ndarray
    label_share: np.ndarray


def draw_blend(mix: Mix, seed: int, stream: int, ids: np.ndarray, epochs: np.ndarray, sides: tuple[int, int]) -> Blend:
    """Return how samples are blended, from the words of block 4; docs/determinism.md.

    Arguments:
        mix: the settings.
        seed: 64-bit.
        stream: `stream_number` of the phase.
        ids: int64 [b], of the samples.
        epochs: int64 [b].
        sides: (h, w) of the output.
    """
    height, width = sides
    words = np.empty((len(ids), 4), np.uint32)
    draw_words(ids, epochs, np.uint64(seed), np.uint64(stream), np.uint64(_BLOCK), words)
    choice, strength, y, x = ((words[:, k] >> 8) * 2.0**-24 for k in range(4))
    blended = choice < mix.probability
    cuts = blended & (choice >= mix.probability / 2 if mix.mixup and mix.cutmix else bool(mix.cutmix))
    mixes = blended & ~cuts
    share_left, boxes = np.ones(len(ids)), np.zeros((len(ids), 4), np.int64)
    label_share = np.ones(len(ids))
    if mixes.any():
        share_left[mixes] = _beta(mix.mixup, strength[mixes])
        label_share[mixes] = share_left[mixes]
    if cuts.any():
        own = _beta(mix.cutmix, strength[cuts])
        h, w = (np.floor(side * np.sqrt(1 - own)).astype(np.int64) for side in (height, width))
        middle_y, middle_x = (y[cuts] * height).astype(np.int64), (x[cuts] * width).astype(np.int64)
        top, left = np.maximum(middle_y - h // 2, 0), np.maximum(middle_x - w // 2, 0)
        bottom, right = np.minimum(middle_y + h // 2, height), np.minimum(middle_x + w // 2, width)
        boxes[cuts] = np.stack([top, left, bottom, right], axis=1)
        label_share[cuts] = 1 - (bottom - top) * (right - left) / (height * width)
    return Blend(share_left.astype(np.float32), boxes, label_share.astype(np.float32))


def _beta(alpha: float, probabilities: np.ndarray) -> np.ndarray:
    out = np.empty(len(probabilities))
    beta_quantiles(alpha, probabilities, out)
    return out
