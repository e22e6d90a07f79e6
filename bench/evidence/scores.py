"""Scores of samples that a finished training leaves: the area under the margin, for the strategy "scores"."""

from __future__ import annotations

import io
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from fastload.bench.evidence.arms import Piece, Plan, Setting
from fastload.bench.evidence.scale import Scale
from fastload.bench.evidence.workplace import SetPlace
from fastload.bench.state import key_of
from fastload.common.replacing import replace_file

_SEED = 2000
"""Of the training that leaves scores: no training that counts has it."""


def margins(place: SetPlace) -> np.ndarray:
    """Return each row's margin, the mean over a training's visits, float32 [N].

    A margin is the logit of the sample's label less the largest of the others, in the step that shows it: low where
    a sample is hard, or its label wrong. After Pleiss et al., "Identifying Mislabeled Data using the Area Under the
    Margin Ranking", 2020.
    """
    scale, n = place.scale, len(place.full)
    steps = -(-scale.scores_epochs * n // scale.batch)
    rows = np.arange(n)
    on = Setting(n, rows, rows[:0], place.pool_images, Fraction(1), steps, scale.batch, _SEED)
    plan = Plan((Piece(on.stream, steps),), scale.batch, steps * scale.batch)
    trainee = place.recipe.begin(place.classes, place.channels, place.device, _rate(scale), _SEED)
    total, visits = np.zeros(n), np.zeros(n)
    shown = zip(place.shown(plan), plan.rows(), strict=True)
    for step, (batch, (those, _)) in enumerate(shown):
        assert isinstance(batch.images, torch.Tensor) and batch.labels is not None
        logits, _ = trainee.step(batch.images, batch.labels, step / steps)
        own = logits.gather(1, batch.labels[:, None])
        others = logits.scatter(1, batch.labels[:, None], -torch.inf).amax(1, keepdim=True)
        np.add.at(total, those, (own - others)[:, 0].double().cpu().numpy())
        np.add.at(visits, those, 1)
    return (total / visits).astype(np.float32)


def _rate(scale: Scale) -> float:
    return scale.rates[len(scale.rates) // 2]


def scores_of(place: SetPlace) -> tuple[Path, float]:
    """Return a file of a set's scores, as `fastload build-subset --scores-from` reads them, and the seconds it took."""
    scale = place.scale
    settings = {**place.identity, "epochs": scale.scores_epochs, "rate": _rate(scale), "seed": _SEED}
    path = place.state.file(f"scores-{place.images.name}-{key_of(settings)}.npz")
    found = place.state.find("scores", settings)
    if found is None or not path.exists():
        began = time.perf_counter()
        stored = io.BytesIO()
        np.savez(stored, ids=place.full.ids, score=margins(place))
        replace_file(path, stored.getvalue())
        found = {"seconds": time.perf_counter() - began}
        place.state.record("scores", settings, found)
    return path, found["seconds"]
